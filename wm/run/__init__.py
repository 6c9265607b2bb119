"""What every command needs: run folder, files, errors, metrics, provenance, signals, command line."""

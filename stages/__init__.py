"""One script a stage: python -m stages.<name> --run FOLDER --preset NAME; they talk through files only."""

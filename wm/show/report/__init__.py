"""The report: one page of all that a run folder holds."""

"""One script a stage: python -m stages.<name> --run FOLDER --preset NAME; they talk through files only."""

import sys

from wm.signals import leave_at_once

# A stage imports for seconds before its `run_stage` is reached, and a signal then has nothing to save. Python's "-m"
# stands here only while it looks for the module to run: tests, notebooks and workers keep their own handlers.
if sys.argv[0] == "-m":
    leave_at_once()

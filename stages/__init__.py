"""One script per stage: python -m stages.<name> --run FOLDER --preset NAME. Stages communicate through files only."""

import sys

from wm.run.signals import leave_at_once

# A stage imports for seconds before it reaches `run_stage`, and a signal then has nothing to save. sys.argv[0] is "-m"
# only while Python looks for the module to run, so that tests, notebooks and workers keep their own handlers.
if sys.argv[0] == "-m":
    leave_at_once()

"""`python -m orchestrator.main`: the whole job, the same as `orchestrator run`."""

import sys

from orchestrator.__main__ import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])

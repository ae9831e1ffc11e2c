"""`python -m orchestrator.main`: the whole job, the same as `orchestrator run`."""

from orchestrator.cli import main

if __name__ == "__main__":
    main(["run"])

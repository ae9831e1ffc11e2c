"""`python -m orchestrator COMMAND`."""

from orchestrator.cli import main

if __name__ == "__main__":
    main()

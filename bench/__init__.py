"""The benchmark: how close the orchestrator is to what the machine allows. `python -m bench --help`."""

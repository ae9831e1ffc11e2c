"""The benchmark: how close we come to the limits of the machine. `python -m bench --help`."""

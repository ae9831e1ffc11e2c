"""Lines for the end of the run: figures, and deviations from the header."""

lines: list[str] = []

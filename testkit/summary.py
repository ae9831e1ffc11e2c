"""What the run has to tell at its end: figures, and what did not go as the header promised."""

lines: list[str] = []

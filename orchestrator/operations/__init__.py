"""What operators do: look, explain, check, repair. Knows no terminal; no process needs it."""

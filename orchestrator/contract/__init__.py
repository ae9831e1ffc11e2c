"""What the API, the Runner and the orchestrator agree on: messages, workers, names of commands."""

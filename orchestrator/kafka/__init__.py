"""Reading and managing topics."""

"""`explain`: everything that is known of a worker or a scenario."""

"""`audit`: the output topic against the workers."""

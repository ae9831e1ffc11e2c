"""`repair`: let a refused lane or partition go on."""

"""Dead letters: find them, send their commands again, discard them."""

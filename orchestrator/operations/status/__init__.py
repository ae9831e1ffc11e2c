"""`status`: the state of the installation at one moment."""

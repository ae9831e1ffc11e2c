"""The command line: arguments, terminal, one module for each group of commands."""

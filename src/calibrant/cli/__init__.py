"""The command line, a module per command: docstring and `EXAMPLES` are its help text, `run` returns its exit status."""

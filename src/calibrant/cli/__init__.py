"""The command line, a module per command: docstring and `EXAMPLES` are its help text, `run` returns its exit status.

`run` checks the options before it imports what loads torch and transformers, so that help and errors appear at once.
"""

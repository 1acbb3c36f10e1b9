"""Mathematical equality: verification in worker processes that can be killed, and clusters by it."""

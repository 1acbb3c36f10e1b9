"""`calibrant evaluate`: how good a policy's answers are, and whether its confidence can be trusted."""

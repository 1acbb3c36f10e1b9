"""`calibrant compare`: methods with several seeds each, trained alike and evaluated on the same prompts."""

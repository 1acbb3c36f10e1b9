"""`calibrant train`: settings, the steps of a run, and the files of a run directory."""

"""`calibrant score`: methods applied to rollouts that exist already."""

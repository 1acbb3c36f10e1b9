"""`calibrant score`: methods applied to existing rollouts."""

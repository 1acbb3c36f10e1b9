"""Look before training: which signals follow the gradient variance of a model on its data, and what that suggests."""

"""Gradients of single rollouts: their norms, and the variance of the update that they make up."""

from calibrant.gradients.variance import GradientVariance, gradient_variance

__all__ = ["GradientVariance", "gradient_variance"]

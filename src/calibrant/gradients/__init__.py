"""Gradient norms of single rollouts, and the variance of the gradients within each group.

Sources: (a) read in the authors' code, (a*) in code of others, (b) in the paper, (c) an interpretation.
"""

from calibrant.gradients.block import block_gram
from calibrant.gradients.variance import GradientVariance, gradient_variance

__all__ = ["GradientVariance", "block_gram", "gradient_variance"]

"""A method of your own: larger weights for groups whose mean reward is near that of the policy.

cd examples && calibrant train --method my_method.frontier --method-options width=0.3
"""

from calibrant.groups import group_mean
from calibrant.methods import Outcome


def frontier(rewards, where, state, *, width=0.5, decay=0.9):
    """Weights groups by the distance d of their mean reward to its running mean: `w = exp(-(d / width)^2)`."""
    success = group_mean(rewards, where)
    level = decay * state.get("level", success.mean()) + (1 - decay) * success.mean()
    distance = success - level
    weights = (-(distance / width).square()).exp()[:, None].expand_as(rewards)
    return Outcome(weights, {"distance": distance}, state={"level": level})

"""A method of one's own: the groups at the edge of what the policy can do teach most.

cd examples && calibrant train --method my_method.frontier --method-options width=0.3
"""

from calibrant.groups import group_mean
from calibrant.methods import Outcome


def frontier(rewards, where, state, *, width=0.5, decay=0.9):
    """Weighs a group by how near its mean reward is to the running mean of all: `w = exp(-(d / width)^2)`."""
    success = group_mean(rewards, where)
    level = decay * state.get("level", success.mean()) + (1 - decay) * success.mean()
    distance = success - level
    weights = (-(distance / width).square()).exp()[:, None].expand_as(rewards)
    return Outcome(weights, {"distance": distance}, state={"level": level})

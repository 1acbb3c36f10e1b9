"""Log-probabilities of completions with each distinct prompt computed once for all of its rollouts."""

from calibrant.policy.check import PrefixCheck, RouteCheck, check_prefix
from calibrant.policy.cost import worthwhile
from calibrant.policy.logps import SharedPrefix, logps_in_chunks, plain_logps, reads_head, shared_prefix_logps
from calibrant.policy.prompts import group_chunks
from calibrant.policy.routes import obstacles

__all__ = [
    "PrefixCheck",
    "RouteCheck",
    "SharedPrefix",
    "check_prefix",
    "group_chunks",
    "logps_in_chunks",
    "obstacles",
    "plain_logps",
    "reads_head",
    "shared_prefix_logps",
    "worthwhile",
]

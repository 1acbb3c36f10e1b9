"""Log-probabilities of completions with each distinct prompt computed once for all of its rollouts."""

from calibrant.prefix.check import PrefixCheck, RouteCheck, check_prefix
from calibrant.prefix.cost import worthwhile
from calibrant.prefix.logps import SharedPrefix, logps_in_chunks, plain_logps, shared_prefix_logps
from calibrant.prefix.prompts import group_chunks
from calibrant.prefix.routes import obstacles

__all__ = [
    "PrefixCheck",
    "RouteCheck",
    "SharedPrefix",
    "check_prefix",
    "group_chunks",
    "logps_in_chunks",
    "obstacles",
    "plain_logps",
    "shared_prefix_logps",
    "worthwhile",
]

"""The rollout file, and its rows as groups of equal size."""

from calibrant.rollouts.columns import COLUMNS, FURTHER_NUMBERS
from calibrant.rollouts.files import group_keys, read_rollouts, write_rollouts
from calibrant.rollouts.groups import RolloutGroups

__all__ = ["COLUMNS", "FURTHER_NUMBERS", "RolloutGroups", "group_keys", "read_rollouts", "write_rollouts"]

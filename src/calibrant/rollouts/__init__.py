"""The rollout file, and its rows as groups of equal size."""

from calibrant.rollouts.files import COLUMNS, FURTHER_NUMBERS, group_keys, read_rollouts, write_rollouts
from calibrant.rollouts.groups import RolloutGroups

__all__ = ["COLUMNS", "FURTHER_NUMBERS", "RolloutGroups", "group_keys", "read_rollouts", "write_rollouts"]

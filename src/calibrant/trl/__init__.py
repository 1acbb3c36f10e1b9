"""GRPO of TRL with calibrated updates: the one place that imports trl."""

from calibrant.trl.config import CalibratedGRPOConfig
from calibrant.trl.trainer import CalibratedGRPOTrainer

__all__ = ["CalibratedGRPOConfig", "CalibratedGRPOTrainer"]

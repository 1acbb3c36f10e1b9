"""GRPO of TRL with calibrated updates: the one place that imports trl."""

from calibrant.trl.seams import check_trl

check_trl()  # before the modules that import private parts of TRL by name

from calibrant.trl.config import CalibratedGRPOConfig  # noqa: E402
from calibrant.trl.trainer import CalibratedGRPOTrainer  # noqa: E402

__all__ = ["CalibratedGRPOConfig", "CalibratedGRPOTrainer"]

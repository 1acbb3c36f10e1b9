"""verl's trainers with calibrated updates: `plugin` is loaded by verl, `trainers` imports verl, nothing else does."""

TRAINERS = {f"calibrant_{mode}": mode for mode in ("sync", "colocate_async", "separate_async")}
"""Value of `trainer.v1.trainer_mode` -> the mode of verl's that it calibrates."""

SECTION = "calibrant"
"""The section of verl's configuration that holds the method and its options."""

"""calibrant: GRPO-style post-training whose updates follow how uncertain and how informative each group is."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("calibrant")
except PackageNotFoundError:
    __version__ = "0+unknown"

__all__ = ["__version__"]

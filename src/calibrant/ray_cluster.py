"""The connection to a Ray cluster, for `--ray`; Ray is imported only then."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from calibrant.errors import CalibrantError, reason

ADDRESS = "address of a Ray cluster, auto for the one that this machine belongs to, or local to start one here"
"""What the option `ray` of a command takes."""


def require_ray() -> None:
    """Raises CalibrantError where Ray is not installed."""
    if find_spec("ray") is None:
        raise CalibrantError("option 'ray' needs Ray, which is not installed; pip install 'calibrant[ray]'")


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """The module `ray`, connected to a cluster until the end; where it is connected already, to that one.

    Raises CalibrantError where Ray is not installed, or where there is no cluster at the address.
    """
    require_ray()
    import ray
    import ray.exceptions

    before = ray.is_initialized()
    try:
        ray.init(address, ignore_reinit_error=True, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise CalibrantError(
            f"no Ray cluster at '{address}' ({reason(error)}); start one with `ray start --head`, or give --ray local"
        ) from None
    try:
        yield ray
    finally:
        if not before:
            ray.shutdown()

"""Checks of the statistics: lengths, masks and options."""

import torch
from torch import Tensor

from calibrant.checks import check_shapes, is_number
from calibrant.errors import CalibrantError


def counted(caller: str, where: Tensor | None, **values: Tensor) -> Tensor:
    """Which of the N entries count in all tensors, `[..., N]` boolean: not NaN and not excluded by `where`.

    Leading axes of the tensors are broadcast.

    >>> counted("f", None, x=torch.tensor([1.0, torch.nan]), y=torch.zeros(3, 2))[0].tolist()
    [True, False]
    """
    for name, tensor in values.items():
        check_shapes(caller, **{name: (tensor, "... N")})
    check_shapes(caller, where=(where, "... N"))
    present = values if where is None else {**values, "where": where}
    try:
        if len({tensor.shape[-1] for tensor in present.values()}) > 1:
            raise RuntimeError
        shape = torch.broadcast_shapes(*(tensor.shape for tensor in present.values()))
    except RuntimeError:
        shapes = " and ".join(f"{name} {list(tensor.shape)}" for name, tensor in present.items())
        raise CalibrantError(f"{caller}: expected {', '.join(present)} of one length [..., N], got {shapes}") from None
    device = next(iter(values.values())).device
    mask = torch.ones(shape, dtype=torch.bool, device=device) if where is None else where.expand(shape)
    for tensor in values.values():
        mask = mask & ~tensor.isnan()
    return mask


def check_fraction(caller: str, **numbers: float) -> None:
    """Raises unless each number is in (0, 1).

    >>> check_fraction("f", level=95)
    Traceback (most recent call last):
    calibrant.errors.CalibrantError: f: level has to be a number between 0 and 1, got 95
    """
    for name, value in numbers.items():
        if not is_number(value) or not 0 < value < 1:
            raise CalibrantError(f"{caller}: {name} has to be a number between 0 and 1, got {value!r}")


def check_count(caller: str, least: int = 1, **numbers: int) -> None:
    """Raises unless each number is an integer of at least `least`.

    >>> check_count("f", least=2, folds=1)
    Traceback (most recent call last):
    calibrant.errors.CalibrantError: f: folds has to be an integer of at least 2, got 1
    """
    for name, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise CalibrantError(f"{caller}: {name} has to be an integer of at least {least}, got {value!r}")


def as_labels(caller: str, name: str, labels: Tensor) -> Tensor:
    """Labels as booleans; a NaN is False.

    >>> as_labels("f", "correct", torch.tensor([1.0, 0.5]))
    Traceback (most recent call last):
    calibrant.errors.CalibrantError: f: correct has to be 0 or 1 (or NaN where it is not known), got 0.5; set a \
threshold to turn a graded reward into 0 and 1
    """
    if labels.dtype == torch.bool:
        return labels
    odd = labels[(labels != 0) & (labels != 1) & ~labels.isnan()]
    if odd.numel():
        raise CalibrantError(
            f"{caller}: {name} has to be 0 or 1 (or NaN where it is not known), got {odd[0].item():g}; set a "
            "threshold to turn a graded reward into 0 and 1"
        )
    return labels == 1


def size_of_share(share: float, count: Tensor) -> Tensor:
    """`ceil(share * n)`, at least 1, not raised by rounding: 0.07 * 100 = 7.000000000000001 gives 7.

    >>> size_of_share(0.07, torch.tensor([100, 101, 3])).tolist()
    [7.0, 8.0, 1.0]
    """
    return (share * count.double() * (1 - 1e-12)).ceil().clamp(min=1.0)

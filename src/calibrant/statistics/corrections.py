"""Corrections of p-values for the number of comparisons."""

from collections.abc import Sequence


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: the family-wise error stays at the level, whatever depends on what.

    With `p_(1) <= ... <= p_(m)`: `adjusted_(i) = min(1, max_{j <= i} (m - j + 1) p_(j))`.

    Reference: Holm (1979), "A simple sequentially rejective multiple test procedure".

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted

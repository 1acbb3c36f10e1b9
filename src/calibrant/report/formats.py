"""Numbers and values as a report prints them. A dash stands for a missing value."""

import math
from collections.abc import Mapping

DASH = "–"


def decimal(x: float) -> str:
    """Two decimals; never `-0.00`.

    >>> decimal(0.414), decimal(-1.0), decimal(-0.001)
    ('0.41', '-1.00', '0.00')
    """
    return f"{round(x, 2) + 0.0:.2f}"


def interval_text(mean: float = math.nan, low: float = math.nan, high: float = math.nan) -> str:
    """Mean and interval; the mean alone without an interval, a dash without a mean.

    >>> interval_text(0.414, 0.38, 0.44), interval_text(0.5), interval_text()
    ('0.41 [0.38, 0.44]', '0.50', '–')
    """
    if math.isnan(mean):
        return DASH
    return decimal(mean) if math.isnan(low + high) else f"{decimal(mean)} [{decimal(low)}, {decimal(high)}]"


def rho_text(row: Mapping[str, float]) -> str:
    """The rank correlation of a row of an analysis, with its interval."""
    return interval_text(row["rho"], row["low"], row["high"])


def p_value(p: float) -> str:
    """`<0.001`, or three decimals.

    >>> p_value(1e-9), p_value(0.04)
    ('<0.001', '0.040')
    """
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def plain(value: object) -> str:
    """A value of a configuration, as text.

    >>> plain(0.0003), plain(True), plain(None), plain([0.0, 2.0])
    ('0.0003', 'yes', '–', '0, 2')
    """
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(v) for v in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{k}={plain(v)}" for k, v in value.items()) or "none"
    return str(value)


def duration(seconds: float) -> str:
    """Seconds in their two largest units.

    >>> duration(42), duration(750), duration(7384)
    ('42 s', '12 min 30 s', '2 h 3 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def shorten(text: str, limit: int = 40) -> str:
    """A name as a label of at most `limit` characters: underscores become spaces, the middle is left out.

    >>> shorten("gradient_snr,depth=block,strength=0.1", 30)
    'gradient snr,d…ck,strength=0.1'
    """
    return middle_cut(" ".join(text.replace("_", " ").split()), limit)


def middle_cut(text: str, limit: int) -> str:
    """The text with its middle left out where it is too long, so that its ends still tell it from others.

    >>> middle_cut("gcpo_bot alpha=0.3", 12)
    'gcpo_…ha=0.3'
    """
    return text if len(text) <= limit else text[: limit // 2 - 1] + "…" + text[len(text) - limit + limit // 2 :]


def capital(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]

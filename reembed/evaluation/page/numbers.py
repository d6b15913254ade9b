"""Numbers and names as a page writes them."""

from __future__ import annotations

from reembed.evaluation.figures import Estimate

UNKNOWN = "unknown"
_MOST = 60


def signed(value: float | None) -> str:
    """Return a change with its sign."""
    return UNKNOWN if value is None else f"{value:+.3f}"


def between(low: float | None, high: float | None) -> str:
    """Return an interval of a change; unknown where one group of queries gives none."""
    if low is None or high is None:
        return UNKNOWN
    return f"{low:+.3f} .. {high:+.3f}"


def interval(change: Estimate) -> str:
    """Return the two-sided 95 % interval of a change."""
    return between(change.low, change.high)


def clipped(text: str, most: int = _MOST) -> str:
    """Return the beginning of a text from outside, with dots where it was cut."""
    return text if len(text) <= most else f"{text[: most - 1]}…"

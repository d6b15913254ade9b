"""Wall-clock time in the format of the records."""

from __future__ import annotations

import datetime as dt


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")

"""What became of the answers while a lazy migration serves."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Literal

Reason = Literal["fused", "late", "failed", "skipped", "vectors", "unread"]


@dataclass(frozen=True)
class LazyCounts:
    """Answers, one for each query, and their documents; since the index was opened."""

    fused: int = 0
    """Answers of both sides. In one without a migrated document, the new side changed nothing."""
    late: int = 0
    """Answers of the old release alone, because the new side was not ready in time."""
    failed: int = 0
    """The same, because the new side raised an error, or could not be opened."""
    skipped: int = 0
    """The same, because the new side was late or failed several times, or too many searches waited for it."""
    vectors: int = 0
    """The same, because the queries were vectors of the old space alone."""
    unread: int = 0
    """The same, because the state of the migration could not be read for some seconds."""
    hits: int = 0
    """Documents of all those answers."""
    hits_new: int = 0
    """Of `hits`, those that were migrated."""
    embedded: int = 0
    """Documents that were not migrated, and that the new model embedded for an answer (`lazy_embed`)."""
    queued: int = 0
    """Documents that turned up and were written to the queue."""
    dropped: int = 0
    """Documents that turned up and were not: the queue was full, or could not be written."""
    last_error: str | None = None
    """Of the new side or of the queue, the last time; None if there was none."""


class Counts:
    """The counts as they grow. Threads may share it."""

    def __init__(self) -> None:
        """Begin at 0."""
        self._lock = threading.Lock()
        self._now = LazyCounts()

    def add(self, **more: int) -> None:
        """Count; each by its name."""
        with self._lock:
            now = self._now
            self._now = replace(now, **{name: getattr(now, name) + n for name, n in more.items()})

    def failed(self, why: str) -> None:
        """Keep an error."""
        with self._lock:
            self._now = replace(self._now, last_error=why)

    def now(self) -> LazyCounts:
        """Return them."""
        return self._now

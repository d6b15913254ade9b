"""Write down documents that turned up in answers and are not migrated yet, beside the answers.

An answer only adds its documents to a set in memory. A thread writes the set as a file of the queue every few
seconds. What does not fit is dropped and counted: a document that turns up again is offered again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable

from reembed.catalog.lazy_queue import MOST_IDS, Queue
from reembed.redact import redacted
from reembed.serving.lazy_counts import Counts

log = logging.getLogger(__name__)

EVERY_S = 5.0
"""Seconds between two files of one process."""
MOST_WAITING = 65_536
"""Documents that wait in memory for the next file."""
MOST_SEEN = 65_536
"""Documents that this process remembers to have offered."""
MOST_FILES = 10_000
"""Files of the queue, of all processes, above which nothing is written."""
LISTED_S = 10.0
"""Seconds for which the number of files is remembered."""


class TurnedUp:
    """Documents for the queue of one lazy migration, until it is closed. Threads may share it."""

    def __init__(self, queue: Queue, counts: Counts, every_s: float) -> None:
        """Start the thread that writes."""
        self._queue, self._counts, self._every_s = queue, counts, every_s
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._waiting: dict[str | int, None] = {}
        self._seen: dict[str | int, None] = {}
        self._files, self._listed_at = 0, -LISTED_S
        self._failed = False
        self._end = threading.Event()
        name = f"reembed-turned-up-{queue.plan.alias}"
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def offer(self, doc_ids: Iterable[str | int]) -> None:
        """Take documents of an answer. Returns at once."""
        with self._lock:
            if self._end.is_set():
                return
            for doc_id in doc_ids:
                if doc_id in self._seen:
                    continue
                if len(self._waiting) >= MOST_WAITING:
                    self._counts.add(dropped=1)
                    continue
                self._waiting[doc_id] = self._seen[doc_id] = None
                if len(self._seen) > MOST_SEEN:
                    del self._seen[next(iter(self._seen))]

    def forget(self) -> None:
        """Offer documents again that turn up again, as after a catch-up of the old side.

        Not after a batch: the queue keeps what it was given until a batch took it. What is not migrated then has left
        the source or changed there, and would be queued in vain until the old side has caught up.
        """
        with self._lock:
            self._seen = dict(self._waiting)

    def close(self, *, write: bool) -> None:
        """Take no more; `write`: what waits is written first."""
        with self._lock:
            self._end.set()
        if write:
            self._write()
        with self._lock:
            self._waiting, self._seen = {}, {}

    def _work(self) -> None:
        while not self._end.wait(self._every_s):
            self._write()

    def _write(self) -> None:
        with self._writing:  # one file at a time, so that a close returns after the last one
            with self._lock:
                ids, self._waiting = list(self._waiting), {}
            if not ids:
                return
            try:
                if not self._has_room():
                    self._drop(ids)
                    return
                self._queue.put(ids)
            except Exception as error:  # noqa: BLE001 - counted and told once; no answer depends on it
                self._drop(ids)
                self._tell(error)
                return
            self._failed = False
            self._files += -(-len(ids) // MOST_IDS)
            self._counts.add(queued=len(ids))

    def _has_room(self) -> bool:
        if time.monotonic() - self._listed_at >= LISTED_S:
            self._files = len(self._queue.files())
            self._listed_at = time.monotonic()
        return self._files < MOST_FILES

    def _drop(self, ids: list[str | int]) -> None:
        self._counts.add(dropped=len(ids))
        with self._lock:
            for doc_id in ids:
                self._seen.pop(doc_id, None)

    def _tell(self, error: Exception) -> None:
        why = redacted(f"{type(error).__name__}: {error}")
        self._counts.failed(why)
        if not self._failed:
            self._failed = True
            log.warning(
                "documents that turned up in answers of %s cannot be queued, and are dropped: %s",
                self._queue.plan.alias,
                why,
            )

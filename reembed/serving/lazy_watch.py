"""Whether a lazy migration still serves, looked at every second beside the searches.

A search asks the new side only as long as the state was read lately: after a stop, or while the store does not
answer, the old side alone answers.
"""

from __future__ import annotations

import logging
import threading
import time
from weakref import WeakSet

from reembed.catalog import lazies
from reembed.catalog.lazies import Lazy
from reembed.catalog.releases import Catalog
from reembed.redact import redacted
from reembed.serving.new_side import NewSide

log = logging.getLogger(__name__)

EVERY_S = 1.0
"""Seconds between two looks."""
UNREAD_S = 10.0
"""Seconds without a look that succeeded, after which the old side alone answers."""


class Watch:
    """The state of one lazy migration, followed by a thread until it serves no more or this is closed."""

    def __init__(self, catalog: Catalog, lazy: Lazy, read_at: float) -> None:
        """Follow a migration whose state was read at this time of `time.monotonic`."""
        self._catalog, self._lazy, self._read_at = catalog, lazy, read_at
        self._sides: WeakSet[NewSide] = WeakSet()
        self._end = threading.Event()
        name = f"reembed-lazy-{catalog.alias}"
        threading.Thread(target=self._work, name=name, daemon=True).start()

    @property
    def has_ended(self) -> bool:
        """Whether it serves no more."""
        return self._end.is_set()

    @property
    def is_known(self) -> bool:
        """Whether the state was read lately."""
        return time.monotonic() - self._read_at < UNREAD_S

    @property
    def queues(self) -> bool:
        """Whether documents that turn up are to be migrated; not while it is paused."""
        return self._lazy.step.state == "running" and not self.has_ended

    def closes(self, side: NewSide) -> NewSide:
        """Close a new side when the migration serves no more; return it."""
        self._sides.add(side)
        if self.has_ended:
            side.close()
        return side

    def close(self) -> None:
        """Let nothing be answered from the new side any more, and free it when its last search has ended."""
        self._end.set()
        for side in list(self._sides):
            side.close()

    def _work(self) -> None:
        while not self._end.wait(EVERY_S):
            known, started = self.is_known, time.monotonic()
            try:
                self._look()
            except Exception as error:  # noqa: BLE001 - told; after some seconds the old side alone answers
                if known and not self.is_known:
                    why = redacted(f"{type(error).__name__}: {error}")
                    log.warning(
                        "the lazy migration of %s cannot be read; the old side alone answers: %s",
                        self._catalog.alias,
                        why,
                    )
            else:
                self._read_at = started

    def _look(self) -> None:
        if lazies.is_newest(self._catalog, self._lazy):
            return
        now = lazies.current(self._catalog)
        if now is not None and now.serves and now.plan == self._lazy.plan:
            self._lazy = now
        else:
            self.close()

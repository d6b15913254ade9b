"""Open the new side of a lazy migration beside the release that serves, as the records say at each refresh."""

from __future__ import annotations

import logging
import threading
import time

import numpy as np

from reembed.catalog import lazies, lazy_background
from reembed.catalog.lazies import Lazy
from reembed.catalog.lazy_queue import Queue
from reembed.catalog.releases import AliasRecord, Catalog
from reembed.errors import SpaceMismatch
from reembed.redact import redacted
from reembed.serving import turned_up
from reembed.serving.embed_now import EmbedNow
from reembed.serving.in_time import BUDGET_S, InTime
from reembed.serving.lazy_counts import Counts, LazyCounts
from reembed.serving.lazy_pair import LazyPair, Shared
from reembed.serving.lazy_watch import Watch
from reembed.serving.live import OpenRelease
from reembed.serving.migrated import Migrated
from reembed.serving.new_side import KeptVectors, NewSide, Opened
from reembed.serving.turned_up import TurnedUp
from reembed.table.read import as_vectors

log = logging.getLogger(__name__)


class LazyServing:
    """What an index needs for the lazy migrations of its alias, one after the other."""

    def __init__(self, catalog: Catalog, budget_s: float = BUDGET_S, embed: int = 0) -> None:
        """Take the alias; nothing is read yet. `embed`: documents of a list that are embedded at once."""
        self._catalog, self._budget_s, self._embed = catalog, budget_s, embed
        self._counts, self._counted = Counts(), False
        self._lock = threading.Lock()
        self._shared: Shared | None = None
        self._closed = False

    @property
    def counts(self) -> LazyCounts | None:
        """What became of the answers; None as long as no lazy migration served."""
        return self._counts.now() if self._counted else None

    def beside(self, old: OpenRelease, before: OpenRelease | None) -> OpenRelease:
        """Return a release with the new side of the lazy migration that serves now; alone if none does.

        What cannot be read or opened is told and counted: the old side answers alone, or as before.

        Args:
            old: alone, or as this returned it.
            before: what served until now. It is returned if nothing changed.
        """
        if isinstance(old, LazyPair):
            old = old.old
        kept = before if isinstance(before, LazyPair) and before.old is old else None
        read_at = time.monotonic()
        try:
            lazy = lazies.current(self._catalog)
        except Exception as error:  # noqa: BLE001 - told; a pair that was open watches the state by itself
            self._failed(error)
            return kept or old
        shared = self._begin(lazy, read_at, old)
        if lazy is None or shared is None:
            return old
        try:
            return self._paired(shared, old, before, kept)
        except Exception as error:  # noqa: BLE001 - told and counted; the old side answers alone
            self._failed(error)
            if kept is not None and kept.shared is shared:
                return kept
            return LazyPair.of(old, NewSide(None, None, broken=True), shared)

    def close(self, *, write: bool = True) -> None:
        """End all threads; `write`: what turned up is written down first."""
        with self._lock:
            self._closed = True
            self._leave(write=write)

    def _begin(self, lazy: Lazy | None, read_at: float, old: OpenRelease) -> Shared | None:
        """Return what pairs of this migration share; None if it does not serve beside this release."""
        with self._lock:
            if self._closed or lazy is None or not _is_of(lazy, old):
                self._leave(write=False)
                return None
            shared = self._shared
            if shared is not None and not shared.watch.has_ended and shared.plan == lazy.plan:
                return shared
            self._leave(write=False)
            self._counted = True
            in_time = InTime(self._catalog.alias, self._counts, self._budget_s)
            self._shared = Shared(
                lazy.plan,
                Watch(self._catalog, lazy, read_at),
                TurnedUp(Queue(self._catalog.storage, lazy.plan), self._counts, turned_up.EVERY_S),
                in_time,
                self._counts,
                EmbedNow(self._embed, in_time, self._counts) if self._embed else None,
            )
            return self._shared

    def _leave(self, *, write: bool) -> None:
        shared, self._shared = self._shared, None
        if shared is not None:
            shared.watch.close()
            shared.in_time.close()
            shared.turned_up.close(write=write)

    def _paired(
        self, shared: Shared, old: OpenRelease, before: OpenRelease | None, kept: LazyPair | None
    ) -> LazyPair:
        record = Catalog(self._catalog.storage, shared.plan.side).live()
        token = record.token if record else None
        if kept is not None and kept.is_at(shared, token):
            return kept
        opened = None
        if record is not None:
            opened = self._opened(record, shared, old, before)
        if (
            kept is None
        ):  # another version of the old side may have documents again, or with other texts
            shared.turned_up.forget()
        return LazyPair.of(old, shared.watch.closes(NewSide(opened, token)), shared)

    def _opened(
        self, record: AliasRecord, shared: Shared, old: OpenRelease, before: OpenRelease | None
    ) -> Opened:
        held = (
            before.side.opened if isinstance(before, LazyPair) and before.shared is shared else None
        )
        if held is not None and held.release.release == record.release:
            release = held.release
        else:
            same = held.release if held else None
            release = OpenRelease.open(self._catalog.storage, record.release, same)
        if release.release.space.id != shared.plan.space.id:
            raise SpaceMismatch(
                f"release {release.release.id} is of space {release.release.space.id}, the lazy"
                f" migration of {shared.plan.alias} of {shared.plan.space.id}",
                "another run was promoted to the alias of its new side",
                "reembed lazy status",
            )
        migrated = Migrated.read(old.table, release.table, held.migrated if held else None)
        background = held.background if held else None
        if shared.plan.fusion == "zscore" and background is None:
            found = lazy_background.read(self._catalog.storage, shared.plan)
            background = as_vectors(found["old"]), as_vectors(found["new"])
        vectors = KeptVectors(release.table)
        if held is not None:
            vectors = held.vectors.following(release.table, np.sort(migrated.new_rows))
        return Opened(release, migrated, vectors, background)

    def _failed(self, error: Exception) -> None:
        why = redacted(f"{type(error).__name__}: {error}")
        self._counts.failed(why)
        log.warning(
            "the new side of %s could not be opened; the old one answers as before: %s",
            self._catalog.alias,
            why,
        )


def _is_of(lazy: Lazy, old: OpenRelease) -> bool:
    """Return whether a migration serves, beside this release: not once another line is live."""
    return lazy.serves and lazy.plan.live == old.release.origin

"""The old release and the new side of a lazy migration, searched as one release.

Both models embed a query at the same time. The old index finds `depth` documents; those that are migrated are scored
again by their new vectors, and the lists are fused. The new side never delays an answer by more than its budget.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from reembed.catalog.lazies import LazyPlan
from reembed.errors import texts_of
from reembed.index.queries import checked_queries, require_k
from reembed.index.types import Answer, Float32
from reembed.serving.embed_now import EmbedNow
from reembed.serving.in_time import Alone, InTime, ready
from reembed.serving.lazy_counts import Counts, Reason
from reembed.serving.lazy_fusion import Listed, Ours, Theirs, Vectors, cut, fused, theirs
from reembed.serving.lazy_watch import Watch
from reembed.serving.live import EncodedQueries, Hit, OpenRelease
from reembed.serving.new_side import NewSide, Opened
from reembed.serving.turned_up import TurnedUp


@dataclass(frozen=True)
class Shared:
    """What all pairs of one lazy migration have in common."""

    plan: LazyPlan
    watch: Watch
    turned_up: TurnedUp
    in_time: InTime
    counts: Counts
    embed_now: EmbedNow | None = None
    """None where documents that are not migrated wait for a batch."""


@dataclass(frozen=True)
class LazyPair(OpenRelease):
    """An old release, whose answers the new side ranks again. Its parts are those of the old release."""

    old: OpenRelease
    side: NewSide
    shared: Shared

    @classmethod
    def of(cls, old: OpenRelease, side: NewSide, shared: Shared) -> LazyPair:
        """Return the two as one."""
        return cls(old.release, old.table, old.index, old.encoder, old, side, shared)

    def is_at(self, shared: Shared, token: str | None) -> bool:
        """Return whether it is of this migration, and has what this step of the side's alias names."""
        return self.shared is shared and self.side.token == token and not self.side.broken

    def search(
        self,
        queries: Sequence[str] | Float32 | EncodedQueries,
        k: int = 10,
        columns: Sequence[str] = (),
        filter: str | None = None,
    ) -> list[list[Hit]]:
        """Return the k best documents of each query by both sides; errors as the old release alone."""
        watch = self.shared.watch
        if watch.has_ended or not watch.is_known:
            hits = self.old.search(queries, k, columns, filter)
            self.shared.counts.add(unread=0 if watch.has_ended else len(hits))
            return hits
        require_k(k)
        carried = self.old.carried(columns)
        if isinstance(queries, Iterator):  # it can be read once
            queries = list(queries)
        opened = self.side.opened
        reason, answer = self._answer(opened, queries, k, filter)
        hits = self.old.hits(answer, carried)
        self._tell(reason, answer, hits, opened)
        return hits

    def encoded(self, texts: Any) -> EncodedQueries:
        """Return the vectors of texts in the old space, with those in the new one if they are there in time."""
        texts = texts_of("queries", texts, 'encode_queries(["how do vaccines work"])')
        opened = self.side.opened
        try:
            asked = self._encoding(opened, texts)
        except Alone:
            return self.old.encoded(texts)
        try:
            ours = self.old.encoded(texts)
            vectors = self.shared.in_time.result(asked, self._until())
        except Alone:
            return ours
        finally:
            asked.cancel()
        assert opened is not None  # it was asked
        return replace(ours, newer=EncodedQueries(vectors, opened.release.release.space.id))

    def _encoding(self, opened: Opened | None, texts: list[str]) -> Future[Float32]:
        if opened is None:
            raise Alone("failed")
        return self.shared.in_time.begin(opened.release.encode_queries, texts)

    def _answer(
        self, opened: Opened | None, queries: Any, k: int, filter: str | None
    ) -> tuple[Reason, Answer]:
        """Return each query's k best documents, and how they were found."""
        if opened is None or not (len(opened.migrated) or self.shared.embed_now):
            return "failed" if self.side.broken else "fused", self.old.nearest(queries, k, filter)
        try:
            asked = self._asked(opened, queries, max(k, self.shared.plan.depth), filter)
        except Alone as alone:
            return alone.reason, self.old.nearest(queries, k, filter)
        try:
            vectors = self.old.vectors(queries)
            found = self.old.nearest(vectors, max(k, self.shared.plan.depth), filter)
            return "fused", self._fused(opened, Ours(vectors, found), asked, k)
        except Alone as alone:
            return alone.reason, cut(found, k)
        finally:
            asked.cancel()  # if it did not begin yet, nobody waits for it any more

    def _asked(
        self, opened: Opened | None, queries: Any, depth: int, filter: str | None
    ) -> Future[Theirs]:
        """Return what the new side finds, which may be under way.

        Raises:
            Alone: the queries are vectors of the old space, or the new side cannot be asked.
        """
        if opened is None:
            raise Alone("failed")
        release = opened.release.release
        vectors = queries
        if isinstance(queries, EncodedQueries):
            vectors = queries.of(release.space.id)
        elif isinstance(queries, np.ndarray) and queries.dtype.kind in "fiu":
            vectors = None
        if vectors is None:
            raise Alone("vectors")
        if self.shared.plan.fusion != "slots":
            return self.shared.in_time.begin(theirs, opened, vectors, depth, filter)
        if not isinstance(queries, EncodedQueries):
            return self.shared.in_time.begin(theirs, opened, vectors)
        return ready(Theirs(checked_queries(vectors, release.space.dim, 1), None))

    def _until(self) -> float:
        return time.perf_counter() + self.shared.in_time.budget_s

    def _fused(self, opened: Opened, ours: Ours, asked: Future[Theirs], k: int) -> Answer:
        """Return the documents of both sides as the plan's fusion ranks them.

        Raises:
            Alone: the new side is late or failed.
        """
        until, in_time = self._until(), self.shared.in_time
        listed = Listed.of(opened, ours.found)
        known = np.unique(listed.new_rows[listed.new_rows >= 0])
        kept = opened.vectors.kept(known)
        reading = in_time.begin(opened.vectors.of, known) if kept is None else ready(kept)
        now = self._embedded(opened, listed, until)
        ranked = len(known) + len(now.rows)
        if not ranked and (self.shared.plan.fusion == "slots" or not len(listed.keys)):
            return cut(ours.found, k)
        stored = Vectors(known, in_time.result(reading, until))
        found = in_time.result(asked, until)
        try:
            old = listed.scored(ours.found, found.queries, stored, now)
            answer = fused(self.shared.plan.fusion, opened, ours, found, old, k)
        except Exception as error:  # noqa: BLE001 - counted and told: whatever the new side found, users get an answer
            in_time.failed(error)
            raise Alone("failed") from None
        in_time.worked()
        return answer

    def _embedded(self, opened: Opened, listed: Listed, until: float) -> Vectors:
        """Return the vectors of documents that are not migrated, as many as are ready in time."""
        embed_now = self.shared.embed_now
        if embed_now is None:
            return Vectors.of({}, opened.release.release.space.dim)
        rows = listed.not_migrated(embed_now.first)
        return embed_now.vectors(self.old, opened.release, rows, until)

    def _tell(
        self, reason: Reason, answer: Answer, hits: list[list[Hit]], opened: Opened | None
    ) -> None:
        """Count an answer, and offer what is not migrated."""
        positions = answer.positions[answer.positions >= 0]
        new = np.zeros(len(positions), bool)
        if opened is not None:
            new = opened.migrated.find(answer.row_ids(positions)) >= 0
        of_new = int(new.sum())
        self.shared.counts.add(**{reason: len(hits)}, hits=len(positions), hits_new=of_new)
        if self.shared.watch.queues and not self.side.broken and of_new < len(new):
            shown = zip(chain.from_iterable(hits), new.tolist(), strict=True)
            self.shared.turned_up.offer([hit.doc_id for hit, is_new in shown if not is_new])

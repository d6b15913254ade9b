"""A query log, asked again in its order: which documents a lazy migration would have migrated after how many queries.

Nothing is embedded but the queries, by live's own model. A document counts as migrated from the query that it turns up
in, as if batches took no time; with a sweep, so many documents are migrated for each query: those that turned up
first, then those that most queries of the log showed, then the others in the order of live's table.

Shapes: N documents, R queries of the log, T different texts among them, K results of each.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain

import numpy as np
import numpy.typing as npt

from reembed import digests
from reembed.digests import Digests
from reembed.errors import UsageError
from reembed.evaluation.judged import logged_words, place_of_log, time_of
from reembed.evaluation.metrics import Ranked
from reembed.table.read import TableVersion

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
NEVER = np.iinfo(np.int64).max
_DAY_S = 86_400.0


@dataclass(frozen=True)
class Asked:
    """The queries of a log that are asked again."""

    rows: int
    """Queries of the whole log."""
    texts: list[str]
    """Different ones."""
    text: Int64
    """Which of the texts each query is [R], in the order of the log."""
    days: Float64 | None
    """When each was asked [R], since the first; None without times."""


@dataclass(frozen=True)
class Documents:
    """The documents of a release. The key of one is its place among the sorted digests of ids."""

    ids: Digests
    """[N], sorted."""
    in_order: Int64
    """Keys in the order of the table [N]."""

    @classmethod
    def of(cls, table: TableVersion) -> Documents:
        """Read the ids of a table: 24 bytes each are held."""
        ids = bytearray()
        for batch in table.scan(["doc_id"]):
            ids += digests.of_column(batch.column("doc_id"))
        known = digests.stack(ids)
        order = np.argsort(known)
        return cls(known[order], np.argsort(order))

    def find(self, doc_ids: Iterable[str]) -> Int64:
        """Return the key of each document, -1 for one that is not there."""
        return digests.find(self.ids, digests.of_ids(doc_ids))

    def lists(self, found: Sequence[Sequence[str]], k: int) -> Int64:
        """Return the keys of the first k documents of each list [T, k]; -1 after the last one."""
        keys = np.full((len(found), k), -1, np.int64)
        flat = self.find(chain.from_iterable(ids[:k] for ids in found))
        lengths = [min(k, len(ids)) for ids in found]
        keys[np.arange(k) < np.array(lengths)[:, None]] = flat
        return keys


def asked_of(uri: str, options: dict[str, str], most: int) -> Asked:
    """Return the last queries of a log, so many at most: by their times if all have one, else those at its end.

    Raises:
        UsageError: the log cannot be read, a row cannot be used, or none has a text.
    """
    place, rows, all_timed = place_of_log(uri, options), 0, True
    last: deque[tuple[str, str | None]] = deque(maxlen=most)
    latest: list[tuple[str, int, str]] = []  # a heap: a log may have its newest query first
    for at, row in place.rows({"text", "timestamp"}):
        rows += 1
        text = logged_words(row, at)
        if text is None:
            continue
        time = time_of(row, at)
        last.append((text, time))
        all_timed = all_timed and time is not None
        if all_timed:
            add = heapq.heappush if len(latest) < most else heapq.heappushpop
            add(latest, (time or "", rows, text))
    if all_timed:
        last = deque((text, time) for time, _, text in sorted(latest))
    if not last:
        raise UsageError(f"{place.uri}: no query has a text", f"{rows} rows were read", place.fix)
    times = [datetime.fromisoformat(time) for _, time in last if time]
    queries, days = [text for text, _ in last], None
    if len(times) == len(queries):
        seconds = np.array([time.timestamp() for time in times])
        order = np.argsort(seconds, kind="stable")
        days = (seconds[order] - seconds[order[0]]) / _DAY_S
        queries = [queries[at] for at in order]
    known = {text: at for at, text in enumerate(dict.fromkeys(queries))}
    return Asked(rows, list(known), np.array([known[text] for text in queries]), days)


@dataclass(frozen=True)
class Replay:
    """What live shows for the queries of a log."""

    asked: Asked
    documents: Documents
    shown: Int64
    """Keys [T, K]; -1 after the last one."""

    @classmethod
    def of(cls, asked: Asked, documents: Documents, found: Ranked, k: int) -> Replay:
        """Return it from the lists of the texts."""
        return cls(asked, documents, documents.lists(found.ids, k))

    @property
    def times(self) -> Int64:
        """Return how often each document turns up [N]."""
        keys = self.shown[self.asked.text].ravel()
        return np.bincount(keys[keys >= 0], minlength=len(self.documents.ids))

    def migrated(self, first: Int64, per_query: float | None = None) -> Int64:
        """Return after how many queries each document is migrated [N]; `NEVER` for one that is not.

        Args:
            first: keys of the documents that a start migrates.
            per_query: documents that a sweep migrates for each query; None: what turns up, at once, and no other.
        """
        when = np.full(len(self.documents.ids), NEVER)
        when[first] = 0
        waiting: deque[int] = deque()
        others, due = self._others(), 0.0
        for number, text in enumerate(self.asked.text, 1):
            found = self.shown[text]
            new = found[(found >= 0) & (when[found] == NEVER)]
            if per_query is None:
                when[new] = number
                continue
            waiting.extend(new.tolist())
            due += per_query
            while due >= 1 and (key := _next(waiting, others, when)) is not None:
                when[key] = number
                due -= 1
        return when

    def _others(self) -> deque[int]:
        """Return all documents in the order of a sweep."""
        times, order = self.times, self.documents.in_order
        # In a sweep documents that turned up equally often come by their ids, which changes no share of answers.
        return deque(order[np.argsort(-times[order], kind="stable")].tolist())

    def answers(self, when: Int64, queries: int) -> float:
        """Return the share of all results of the log that are migrated after so many queries."""
        times = self.times
        return float(times[when <= queries].sum() / max(1, times.sum()))


def _next(waiting: deque[int], others: deque[int], when: Int64) -> int | None:
    """Return the next document of a sweep that is not migrated yet; None if all are."""
    for keys in (waiting, others):
        while keys:
            key = keys.popleft()
            if when[key] == NEVER:
                return key
    return None

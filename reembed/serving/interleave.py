"""Interleaved answers: one list of two releases for each user, and whose results are clicked.

A click says more here than in a comparison of two means: both lists answer the same user at the same moment.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from dataclasses import dataclass
from typing import Self

from reembed.errors import UsageError
from reembed.serving.follow import EXPECTED
from reembed.serving.live import Hit, OpenRelease
from reembed.serving.team_draft import Interleaved, credit, team_draft

Search = Callable[[Sequence[str], int, Sequence[str], str | None], list[list[Hit]]]


@dataclass(frozen=True)
class Shown:
    """One answer; keep it with the request until its clicks are known."""

    hits: tuple[Hit, ...]
    """Best first. Their scores are not of one scale, and each names its release."""
    interleaved: Interleaved | None
    """None if the candidate failed or was late: these are the live release's results alone, and clicks count for
    neither."""


@dataclass(frozen=True)
class InterleavedCounts:
    """How many answers there were, and whose results were clicked more."""

    answers: int
    alone: int
    """Of `answers`, those of the live release alone: the candidate failed or was late."""
    live: int
    candidate: int
    neither: int


class Interleaving:
    """A candidate whose results are mixed with those of a live index. A context manager; threads may share it."""

    def __init__(self, search: Search, candidate: OpenRelease, timeout_s: float) -> None:
        """Take the live index's search; `Index.interleave` says what the rest is."""
        self.release = candidate.release
        """The candidate."""
        self._search, self._timeout_s = search, timeout_s
        self._candidate: OpenRelease | None = candidate
        self._pool = ThreadPoolExecutor(thread_name_prefix="reembed-interleave")
        self._lock = threading.Lock()
        self._answers = self._alone = 0
        self._credits: list[int] = []

    @property
    def credits(self) -> tuple[int, ...]:
        """1 (candidate), -1 (live) or 0 (neither) of each answer whose clicks came, in their order.

        `evaluation.sequential.always_valid(credits, 0)` says whether the candidate is preferred.
        """
        with self._lock:
            return tuple(self._credits)

    @property
    def counts(self) -> InterleavedCounts:
        """What was answered and clicked so far."""
        with self._lock:
            of = self._credits.count
            return InterleavedCounts(self._answers, self._alone, of(-1), of(1), of(0))

    def search(
        self,
        query: str,
        key: str,
        k: int = 10,
        columns: Sequence[str] = (),
        filter: str | None = None,
    ) -> Shown:
        """Return the k results of a query that both releases picked in turns.

        Args:
            query: a text, which each model embeds.
            key: the id of the request: it decides who picks first, so that the same key shows the same list.
            k: hits.
            columns: carried columns of both releases.
            filter: as `Index.search`.

        Raises:
            UsageError, IntegrityError: as `Index.search` of the live release, or this was closed. The candidate's
                errors are counted.
        """
        candidate = self._candidate
        if candidate is None:
            raise UsageError("the interleaving is closed", None, "index.interleave(candidate)")
        asked = self._pool.submit(candidate.search, [query], k, columns, filter)
        (live,) = self._search([query], k, columns, filter)
        theirs = self._theirs(asked)
        if theirs is None:
            return Shown(tuple(live), None)
        of = {"live": _by_id(live), "candidate": _by_id(theirs)}
        merged = team_draft([*of["live"]], [*of["candidate"]], k, key)
        picks = zip(merged.doc_ids, merged.teams, strict=True)
        return Shown(tuple(of[team][doc_id] for doc_id, team in picks), merged)

    def clicked(self, shown: Shown, doc_ids: Collection[str | int]) -> int:
        """Note the clicks of an answer, once and with all of them; return 1 (candidate), -1 (live) or 0 (neither).

        Raises:
            ValueError: a document was not shown.
        """
        if shown.interleaved is None:
            return 0
        found = credit(shown.interleaved, [str(d) for d in doc_ids])
        with self._lock:
            self._credits.append(found)
        return found

    def close(self) -> None:
        """Free the candidate when its last search has ended."""
        self._candidate = None
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _theirs(self, asked: Future[list[list[Hit]]]) -> list[Hit] | None:
        """Return what the candidate found; None if it failed or is late."""
        found = None
        try:
            (found,) = asked.result(self._timeout_s)
        except (Late, *EXPECTED):
            asked.cancel()
        with self._lock:
            self._answers += 1
            self._alone += found is None
        return found


def _by_id(hits: Sequence[Hit]) -> dict[str, Hit]:
    return {str(hit.doc_id): hit for hit in hits}

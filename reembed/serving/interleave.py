"""Interleaved answers: one list of two releases for each user, and whose results are clicked.

A click says more here than in a comparison of two means: both lists answer the same user at the same moment.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

from reembed.errors import UsageError
from reembed.redact import redacted
from reembed.serving.live import Hit, OpenRelease
from reembed.serving.team_draft import Interleaved, credit, team_draft

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shown:
    """One answer; keep it with the request until its clicks are known."""

    key: str
    """The id of the request."""
    hits: tuple[Hit, ...]
    """Best first. Their scores are not of one scale, and each names its release."""
    interleaved: Interleaved | None
    """None if the candidate failed or was late, or another model than at the start is live: these are the live
    release's results alone, and clicks count for neither."""


@dataclass(frozen=True)
class InterleavedCounts:
    """How many answers there were, and whose results were clicked more."""

    answers: int
    alone: int
    """Of `answers`, those of the live release alone."""
    live: int
    candidate: int
    neither: int
    last_error: str | None
    """Why the candidate failed or was late, the last time; None if it never did."""


class Interleaving:
    """A candidate whose results are mixed with those of a live index. A context manager; threads may share it."""

    def __init__(
        self, live: Callable[[], OpenRelease], candidate: OpenRelease, timeout_s: float
    ) -> None:
        """Take what returns the live release; `Index.interleave` says what the rest is."""
        self.release = candidate.release
        """The candidate."""
        self._live, self._timeout_s = live, timeout_s
        self._line = live().release.origin
        self._candidate: OpenRelease | None = candidate
        self._pool = ThreadPoolExecutor(thread_name_prefix="reembed-interleave")
        self._lock = threading.Lock()
        self._answers = self._alone = 0
        self._last_error: str | None = None
        self._credits: dict[str, int] = {}

    @property
    def credits(self) -> tuple[int, ...]:
        """1 (candidate), -1 (live) or 0 (neither) of each request whose clicks came, in their order.

        `evaluation.sequential.always_valid(numpy.array(credits), 0)` says whether the candidate is preferred.
        """
        with self._lock:
            return tuple(self._credits.values())

    @property
    def counts(self) -> InterleavedCounts:
        """What was answered and clicked so far."""
        with self._lock:
            of = [*self._credits.values()].count
            clicked = of(-1), of(1), of(0)
            return InterleavedCounts(self._answers, self._alone, *clicked, self._last_error)

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
            UsageError, IntegrityError: as `Index.search` of the live release, or this was closed. What the candidate
                raises is counted.
        """
        if not isinstance(key, str):
            raise UsageError(f"key must be a text, not {key!r:.80}", None, 'key="request 17"')
        live = self._live()
        asked = self._asked(live, [query], k, columns, filter)
        (ours,) = live.search([query], k, columns, filter)
        theirs = self._theirs(asked)
        if theirs is None:
            return Shown(key, tuple(ours), None)
        of = {"live": _by_id(ours), "candidate": _by_id(theirs)}
        merged = team_draft([*of["live"]], [*of["candidate"]], k, key)
        picks = zip(merged.doc_ids, merged.teams, strict=True)
        return Shown(key, tuple(of[team][doc_id] for doc_id, team in picks), merged)

    def clicked(self, shown: Shown, doc_ids: Collection[str | int]) -> int:
        """Note the clicks of an answer; return 1 (candidate), -1 (live) or 0 (neither).

        Give all of them: clicks of a request that come again replace those before.

        Raises:
            UsageError: `doc_ids` is a single text, or a document was not shown.
        """
        if isinstance(doc_ids, str | bytes):
            why = "a single text would be taken letter by letter"
            raise UsageError(
                f"doc_ids must be a list, not {doc_ids!r:.80}", why, "doc_ids=[doc_id]"
            )
        if shown.interleaved is None:
            return 0
        found = credit(shown.interleaved, [str(d) for d in doc_ids])
        with self._lock:
            self._credits[shown.key] = found
        return found

    def close(self) -> None:
        """Free the candidate when its last search has ended; answers under way are the live release's alone."""
        self._candidate = None
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _asked(self, live: OpenRelease, *question: Any) -> Future[list[list[Hit]]] | None:
        """Ask the candidate in another thread; None if another model is live by now, or this is being closed."""
        candidate = self._candidate
        if candidate is None:
            raise UsageError("the interleaving is closed", None, "index.interleave(candidate)")
        if live.release.origin != self._line or live.release.id == candidate.release.id:
            return None
        try:
            return self._pool.submit(candidate.search, *question)
        except RuntimeError:  # closed a moment ago
            return None

    def _theirs(self, asked: Future[list[list[Hit]]] | None) -> list[Hit] | None:
        """Return what the candidate found; None if it was not asked, failed or is late."""
        found = None
        if asked is not None:
            try:
                (found,) = asked.result(self._timeout_s)
            except Exception as error:  # noqa: BLE001 - counted and told; the answer is there already
                asked.cancel()
                self._failed(error)
        with self._lock:
            self._answers += 1
            self._alone += found is None
        return found

    def _failed(self, error: Exception) -> None:
        why = redacted(f"{type(error).__name__}: {error}")
        log.warning("%s did not answer in time or failed: %s", self.release.id, why)
        with self._lock:
            self._last_error = why


def _by_id(hits: Sequence[Hit]) -> dict[str, Hit]:
    return {str(hit.doc_id): hit for hit in hits}

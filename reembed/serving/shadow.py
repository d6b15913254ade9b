"""Shadow reads: a sample of the calls of a live index, repeated on a candidate beside the answers.

The candidate's model and index run in a thread of their own, after the answer was given. What they find goes to the
caller's function; nothing of it reaches a user.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from reembed.errors import UsageError, require_positive
from reembed.redact import redacted
from reembed.serving.live import EncodedQueries, Hit, OpenRelease

log = logging.getLogger(__name__)

_WAITING = 64
"""Calls that may wait for the candidate; more are dropped."""
_REST_S = 0.02
"""Seconds before each read, so that few answers fall together with one: reads take the interpreter's lock, too."""


@dataclass(frozen=True)
class ShadowRead:
    """One call, on both releases."""

    queries: tuple[str, ...] | EncodedQueries
    """Texts; or vectors, where both releases are of one space."""
    live: list[list[Hit]]
    """What was answered."""
    candidate: list[list[Hit]]
    """What the candidate would have answered; no columns."""
    live_s: float
    """Seconds of the whole call, with encoding its texts."""
    candidate_s: float


@dataclass(frozen=True)
class ShadowCounts:
    """What became of the calls so far."""

    calls: int = 0
    sampled: int = 0
    """Of `calls`; each of them is one of those that follow, or still waits."""
    read: int = 0
    dropped: int = 0
    """Too many others waited: the candidate was too slow, or calls came faster than it is asked."""
    failed: int = 0
    """The candidate, or the caller's function, raised an error."""
    other_space: int = 0
    """Vectors, which say nothing in the candidate's space."""
    last_error: str | None = None


@dataclass(frozen=True)
class _Call:
    queries: tuple[str, ...] | EncodedQueries
    k: int
    filter: str | None
    live: list[list[Hit]]
    live_s: float


class Shadow:
    """A candidate beside a live index, until it is closed. A context manager; threads may share it."""

    def __init__(
        self,
        candidate: OpenRelease,
        share: float,
        on_read: Callable[[ShadowRead], object],
        seed: int | None = None,
    ) -> None:
        """Start to read; `Index.shadow` says what the arguments are.

        Raises:
            UsageError: the share is not above 0 and at most 1.
        """
        require_positive("share", share, 0.01)
        if share > 1:
            raise UsageError(
                f"share must be at most 1, not {share}", "all calls are 1", "share=0.01"
            )
        self.release = candidate.release
        """The candidate."""
        self._candidate: OpenRelease | None = candidate
        self._share, self._on_read = share, on_read
        self._coin = random.Random(seed)
        self._waiting: queue.Queue[_Call | None] = queue.Queue(_WAITING)
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(
            ("calls", "sampled", "read", "dropped", "failed", "other_space"), 0
        )
        self._last_error: str | None = None
        self._thread = threading.Thread(target=self._work, name="reembed-shadow", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> ShadowCounts:
        """What became of the calls so far."""
        with self._lock:
            return ShadowCounts(**self._counts, last_error=self._last_error)

    @property
    def is_open(self) -> bool:
        """Whether calls are still read."""
        return self._candidate is not None

    def search(
        self,
        live: OpenRelease,
        queries: Sequence[str] | np.ndarray[Any, Any] | EncodedQueries,
        k: int,
        columns: Sequence[str],
        filter: str | None,
    ) -> list[list[Hit]]:
        """Return what the live release answers, and perhaps put the call beside for the candidate."""
        started = time.perf_counter()
        if isinstance(queries, Iterator):  # it can be read once
            queries = list(queries)
        hits = live.search(queries, k, columns, filter)
        seconds = time.perf_counter() - started
        self._count("calls")
        if live.release.id == self.release.id or self._coin.random() >= self._share:
            return hits  # nothing is learned of a candidate that is live itself
        self._count("sampled")
        try:
            self._put(_Call(_kept(queries, live), k, filter, hits, seconds))
        except Exception as error:  # noqa: BLE001 - the answer is there already
            self._failed(error)
        return hits

    def close(self) -> None:
        """Finish the call that the candidate is at, drop those that wait, and free the candidate."""
        self._candidate = None
        self._empty()
        self._waiting.put(None)
        self._thread.join()
        self._empty()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _put(self, call: _Call) -> None:
        candidate = self._candidate
        if candidate is None:
            self._count("dropped")
            return
        if (
            isinstance(call.queries, EncodedQueries)
            and call.queries.space != candidate.release.query_model.id
        ):
            self._count("other_space")
            return
        try:
            self._waiting.put_nowait(call)
        except queue.Full:
            self._count("dropped")

    def _empty(self) -> None:
        while True:
            try:
                self._waiting.get_nowait()
            except queue.Empty:
                return
            self._count("dropped")

    def _work(self) -> None:
        while (call := self._waiting.get()) is not None:
            candidate = self._candidate
            if candidate is None:
                self._count("dropped")
                continue
            time.sleep(_REST_S)
            try:
                self._read(call, candidate)
            except Exception as error:  # noqa: BLE001 - counted and told; no answer depends on it
                self._failed(error)
            else:
                self._count("read")

    def _read(self, call: _Call, candidate: OpenRelease) -> None:
        started = time.perf_counter()
        hits = candidate.search(call.queries, call.k, (), call.filter)
        seconds = time.perf_counter() - started
        self._on_read(ShadowRead(call.queries, call.live, hits, call.live_s, seconds))

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1

    def _failed(self, error: Exception) -> None:
        why = redacted(f"{type(error).__name__}: {error}")
        with self._lock:
            self._counts["failed"] += 1
            self._last_error, failed = why, self._counts["failed"]
        if (
            failed.bit_count() == 1
        ):  # the 1st, 2nd, 4th, 8th ...: a broken candidate fails in each call
            log.warning("shadow reads of %s failed %s times: %s", self.release.id, failed, why)


def _kept(queries: Any, live: OpenRelease) -> tuple[str, ...] | EncodedQueries:
    """Return the queries of a call as they are now: the caller may change a list or an array afterwards."""
    if isinstance(queries, EncodedQueries):
        return EncodedQueries(np.array(queries.vectors, np.float32), queries.space)
    if isinstance(queries, np.ndarray) and queries.dtype.kind in "fiu":
        return EncodedQueries(np.array(queries, np.float32), live.release.space.id)
    return tuple(map(str, queries))

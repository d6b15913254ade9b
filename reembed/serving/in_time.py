"""Work that an answer waits for only so long, in threads of its own.

The new side of a lazy migration works here. If it is late or fails several times, it is left alone for a second at a
time, so that a side that hangs delays a few answers and not all.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from reembed.redact import redacted
from reembed.serving.lazy_counts import Counts, Reason

log = logging.getLogger(__name__)

BUDGET_S = 0.1
"""Seconds that an answer waits for the new side once the old one's part is ready."""
THREADS = 32
"""Pieces of work at a time."""
IN_A_ROW = 5
"""Failures after which nothing is asked for `REST_S`."""
REST_S = 1.0

P = ParamSpec("P")
T = TypeVar("T")


def ready(value: T) -> Future[T]:
    """Return a value as work that is done."""
    future: Future[T] = Future()
    future.set_result(value)
    return future


class Alone(Exception):
    """The old side answers alone."""

    def __init__(self, reason: Reason) -> None:
        """Take why."""
        super().__init__(reason)
        self.reason: Reason = reason


class InTime:
    """Threads for work that may be late. Threads may share it."""

    def __init__(self, alias: str, counts: Counts, budget_s: float) -> None:
        """Take how long an answer may wait, from when its own part is ready."""
        self._alias, self._counts, self.budget_s = alias, counts, budget_s
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="reembed-lazy")
        self._free = threading.BoundedSemaphore(THREADS)
        self._lock = threading.Lock()
        self._in_a_row, self._failures, self._rests_until = 0, 0, 0.0

    def begin(self, work: Callable[P, T], *args: P.args, **more: P.kwargs) -> Future[T]:
        """Return work that is under way.

        Raises:
            Alone: it rests, all threads are busy, or this is closed.
        """
        if time.monotonic() < self._rests_until or not self._free.acquire(blocking=False):
            raise Alone("skipped")
        try:
            future = self._pool.submit(work, *args, **more)
        except RuntimeError:  # closed a moment ago
            self._free.release()
            raise Alone("skipped") from None
        future.add_done_callback(lambda _: self._free.release())
        return future

    def result(self, future: Future[T], until: float) -> T:
        """Return what came of it, if that is before a time of `time.perf_counter`.

        Raises:
            Alone: it is late, or failed; both are told.
        """
        try:
            return future.result(max(0.0, until - time.perf_counter()))
        except Exception as error:  # noqa: BLE001 - counted and told; the old side's answer is there
            late = not future.done()
            future.cancel()
            self.failed(
                TimeoutError(f"not ready {self.budget_s:g} s after the old side") if late else error
            )
            raise Alone("late" if late else "failed") from None

    def worked(self) -> None:
        """Note that an answer got all it waited for."""
        self._in_a_row = 0

    def failed(self, error: Exception) -> None:
        """Note that one did not."""
        with self._lock:
            self._in_a_row += 1
            if self._in_a_row >= IN_A_ROW:
                self._rests_until = time.monotonic() + REST_S
        self.tell(error, "was late or failed; the old one answers alone")

    def tell(self, error: Exception, what: str) -> None:
        """Keep an error, and log what the new side did."""
        why = redacted(f"{type(error).__name__}: {error}")
        self._counts.failed(why)
        with self._lock:
            self._failures, told = self._failures + 1, self._failures.bit_count() <= 1
        if told:  # the 1st, 2nd, 3rd, 5th, 9th ...: a broken side fails in each answer
            log.warning("the new side of %s %s: %s", self._alias, what, why)

    def close(self) -> None:
        """Begin nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

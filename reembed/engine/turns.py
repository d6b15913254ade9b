"""In which thread the model works, and which unit is next."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Turns(Protocol):
    """Lets the model do one piece of work at a time."""

    def run(self, work: Callable[[], T], deaths: int = 0) -> T:
        """Return what `work` returns; of those that wait, the one whose unit has fewest deaths is next."""


class _Caller:
    """The caller's thread, for a replica that has one."""

    def run(self, work: Callable[[], T], deaths: int = 0) -> T:
        return work()


CALLER = _Caller()


class ModelThread:
    """A thread that only the model runs in: libraries keep pools and handles by thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "model")
        self._waiting: list[tuple[int, int, Future[Any], Callable[[], Any]]] = []
        self._numbers = itertools.count()

    def run(self, work: Callable[[], T], deaths: int = 0) -> T:
        found: Future[T] = Future()
        heapq.heappush(self._waiting, (deaths, next(self._numbers), found, work))
        self._thread.submit(self._next)
        return found.result()

    def _next(self) -> None:
        _, _, found, work = heapq.heappop(self._waiting)
        try:
            found.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised where the result is waited for
            found.set_exception(error)

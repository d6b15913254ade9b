"""Stop on request: after the first signal units in progress are finished, the second ends at once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from reembed.errors import Interrupted
from reembed.events import Draining, Listener, ignore

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle SIGINT and SIGTERM during the block; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.signal(s, handler) for s in _SIGNALS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


class Stop:
    """The signals that this process received, and what to do about them."""

    def __init__(self, emit: Listener = ignore) -> None:
        self.emit = emit
        self._asked: int | None = None
        self._drain: Callable[[], None] | None = None
        self._drain_s = 0.0
        self._deadline: float | None = None

    @contextmanager
    def listening(self) -> Iterator[Stop]:
        with handled(self._received):
            yield self

    @contextmanager
    def draining(self, drain: Callable[[], None], seconds: float) -> Iterator[None]:
        """Let a first signal drain during the block, for at most `seconds`; outside it ends at once."""
        self._drain, self._drain_s = drain, seconds
        try:
            yield
        finally:
            self._drain = None

    def check(self, *, drained: bool = False) -> None:
        """Act on a signal that came; what can be drained calls it often.

        Raises Interrupted if units in progress are finished (`drained`), or took too long.
        """
        if self._asked is None:
            return
        if drained:
            raise Interrupted(self._asked)
        if self._deadline is None:
            assert self._drain is not None
            self._deadline = time.monotonic() + self._drain_s
            self.emit(Draining(self._drain_s))
            self._drain()
        elif time.monotonic() > self._deadline:
            raise Interrupted(self._asked)

    def _received(self, number: int, frame: FrameType | None) -> None:
        if self._asked is not None or self._drain is None:
            raise Interrupted(number)
        self._asked = number

"""Ending on request: the first signal lets what is begun be finished, the second ends at once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from reembed.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """What was asked of this process so far."""

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        """`say` hears what a signal led to."""
        self.say = say or (lambda words: None)
        self._asked: int | None = None
        self._drain: Callable[[], None] | None = None
        self._drain_s = 0.0
        self._deadline: float | None = None

    @contextmanager
    def listening(self) -> Iterator[Stop]:
        """Take SIGINT and SIGTERM during the block; a thread that is not the main one cannot."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {s: signal.signal(s, self._received) for s in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def draining(self, drain: Callable[[], None], seconds: float) -> Iterator[None]:
        """During the block a first signal drains, for at most `seconds`; elsewhere it ends."""
        self._drain, self._drain_s = drain, seconds
        try:
            yield
        finally:
            self._drain = None

    def check(self, *, drained: bool = False) -> None:
        """Called by who can be drained, often: acts on a signal that came.

        Raises:
            Interrupted: what was begun is finished (`drained`), or took too long.
        """
        if self._asked is None:
            return
        if drained:
            raise Interrupted(self._asked)
        if self._deadline is None:
            assert self._drain is not None
            self._deadline = time.monotonic() + self._drain_s
            self.say(
                f"finishing the units that are begun, for at most {self._drain_s:.0f} s;"
                " once more stops at once"
            )
            self._drain()
        elif time.monotonic() > self._deadline:
            raise Interrupted(self._asked)

    def _received(self, number: int, frame: FrameType | None) -> None:
        if self._asked is not None or self._drain is None:
            raise Interrupted(number)
        self._asked = number

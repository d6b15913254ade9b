"""Waiting for a model's provider that is busy or broken: no document is to blame for that."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from reembed.errors import ProviderError

T = TypeVar("T")

log = logging.getLogger(__name__)

_FIRST_S = 1.0
_MOST_S = 60.0
_SHARE = 0.8  # of embed.stall_s: so the error names the provider, before the job counts as standing still


class Patience:
    """Tries again, after pauses that double, until the provider answers or time is up."""

    def __init__(
        self,
        stall_s: float,
        fix: str | None = None,
        wait: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take embed.stall_s, the command to paste after that, what sleeps for seconds, and a clock in seconds."""
        self._total_s, self._fix = _SHARE * stall_s, fix
        self._wait, self._clock = wait, clock

    def through(self, ask: Callable[[], T]) -> T:
        """Return what `ask` returns, trying again on a ProviderError.

        Raises:
            ProviderError: it failed for longer than is waited; of the type of the last error.
        """
        slept, pause, started = 0.0, _FIRST_S, self._clock()
        while True:
            try:
                return ask()
            except ProviderError as error:
                asked = max(pause, error.retry_after_s or 0.0)
                # A request that times out takes time as well.
                waited = max(slept, self._clock() - started)
                if waited + asked > self._total_s:
                    raise type(error)(
                        f"the model's provider did not answer in {waited:,.0f} s of waiting",
                        error.what,
                        self._fix,
                    ) from error
                log.warning("%s: trying again in %.0f s", error.what, asked)
            self._wait(asked)
            slept, pause = slept + asked, min(2 * pause, _MOST_S)

"""Figures of the embedding while it runs: rates, time left, and why nothing moves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

from reembed.catalog.lease import repeating
from reembed.catalog.receipts import Receipt
from reembed.events import Embedded, Listener, Notice, Progress, Throughput

_EVERY_S = 1.0
_ETA_FROM = 0.01
_QUIET_S = 30.0
_WINDOW_S = 60.0


class _Finished(NamedTuple):
    """A unit that was staged: when, and what it held."""

    at: float
    documents: int
    tokens: int
    actor_s: float
    """Seconds of its actor since the end of its previous unit."""


def _recent(finished: list[_Finished], actors: int) -> list[_Finished]:
    """Return the units of the last minute, in whole rounds of one for each actor, and the one before."""
    rounds = (len(finished) - 1) // actors
    if rounds < 1:
        return finished
    starts = (-1 - actors * r for r in range(1, rounds + 1))
    last = finished[-1].at
    first = next((s for s in starts if last - finished[s].at >= _WINDOW_S), -1 - actors * rounds)
    return finished[first:]


def _rates(recent: list[_Finished], actors: int, at: float) -> tuple[float, float]:
    """Return documents and tokens per second over `_recent` units.

    The time ends with the last unit, not now: units in progress are assumed to be as fast. The rate falls
    only once none was finished for twice the longest time between two of them. One unit gives no rate:
    nothing is known yet of the time between two.
    """
    if len(recent) < 2:
        return 0.0, 0.0
    if len(recent) <= actors:  # not every actor has finished one: the others go as these do
        units, span = recent, sum(u.actor_s for u in recent) / actors
        longest = max(u.actor_s for u in recent)
    else:
        units, span = recent[1:], recent[-1].at - recent[0].at
        longest = max(b.at - a.at for a, b in pairwise(recent))
    span = max(span + max(0.0, at - recent[-1].at - 2 * longest), 1e-9)
    return sum(u.documents for u in units) / span, sum(u.tokens for u in units) / span


class EmbedProgress:
    """Counts units as they are staged; a thread emits the figures, and why nothing moves."""

    def __init__(
        self, emit: Listener, *, total: int, done: int, units: tuple[int, int], actors: int
    ) -> None:
        """`units` is (staged before, all); `done` and `total` count documents."""
        self._emit = emit
        self._total, self._done = total, done
        self._units_done, self._units = units
        self._actors = actors
        self._started = self._last = time.monotonic()
        self._first: float | None = None
        self._recent: list[_Finished] = []
        self._noted: set[str] = set()
        self._new = self._tokens = 0
        self._busy_s = self._model_s = self._waited_s = 0.0
        self._dead = self._copied = 0
        self._computed = self._real = 0
        self._flop = self._peak_s = 0.0
        self._path = ""

    def receipt(self, receipt: Receipt) -> None:
        """Count a unit that was staged."""
        stats = receipt.stats
        assert stats is not None  # it was embedded
        self._last = time.monotonic()
        if self._first is None:
            # The actor's clock may be another host's: what it says is bounded by what is possible.
            age = min(
                max(time.time() - stats.started_at, stats.embed_s), self._last - self._started
            )
            self._first = self._last - age
        actor_s = stats.embed_s + stats.waited_s
        finished = _Finished(self._last, receipt.tried, stats.tokens, actor_s)
        self._recent = _recent([*self._recent, finished], self._actors)
        self._done += receipt.tried
        self._new += receipt.tried
        self._units_done += 1
        self._tokens += stats.tokens
        self._busy_s += stats.embed_s
        self._model_s += stats.model_s
        self._waited_s += stats.waited_s
        self._dead += len(receipt.dead_letters)
        self._copied += stats.copied
        self._computed += stats.computed_tokens
        self._real += stats.model_tokens
        self._flop += stats.flop
        self._peak_s += stats.peak_flops * stats.embed_s
        self._path = f"{stats.path} on {stats.device}"
        if stats.notes and stats.notes not in self._noted:
            self._noted.add(stats.notes)
            self._emit(Notice(f"embedding goes {self._path}: {stats.notes}"))

    def now(self, *, last: bool = False) -> Progress:
        """Return the figures now; rates are those of the last minute."""
        at = time.monotonic()
        docs_per_s, tokens_per_s = _rates(self._recent, self._actors, at)
        return Progress(
            self._figures(at, docs_per_s, tokens_per_s),
            eta_s=self._eta(docs_per_s, at),
            waiting=self._waiting(at),
            last=last,
        )

    def totals(self) -> Embedded:
        """Return the figures at the end; rates count from the first unit's start, without start-up."""
        at = time.monotonic()
        elapsed = self._elapsed(at)
        return Embedded(self._figures(at, self._new / elapsed, self._tokens / elapsed))

    def _figures(self, at: float, docs_per_s: float, tokens_per_s: float) -> Throughput:
        capacity = self._elapsed(at) * self._actors
        return Throughput(
            done=self._done,
            total=self._total,
            docs_per_s=round(docs_per_s, 1),
            tokens_per_s=round(tokens_per_s),
            actors=self._actors,
            busy=self._share(self._model_s, capacity),
            waits_for_input=self._share(self._waited_s, capacity),
            waits_for_records=self._share(self._busy_s - self._model_s, capacity),
            path=self._path,
            padding=round(max(self._computed / max(self._real, 1) - 1, 0.0), 4),
            mfu=round(self._flop / self._peak_s, 3) if self._peak_s else None,
            units_done=self._units_done,
            units=self._units,
            dead_letters=self._dead,
            copied=self._copied,
            startup_s=round((self._first or at) - self._started, 1),
        )

    def _elapsed(self, at: float) -> float:
        return max(at - (self._first or at), 1e-9)

    def _eta(self, docs_per_s: float, at: float) -> int | None:
        """Return the seconds that are left; what is in progress since the last unit counts as done."""
        if not docs_per_s or self._done < _ETA_FROM * self._total:
            return None
        return max(1, round((self._total - self._done) / docs_per_s - (at - self._last)))

    @staticmethod
    def _share(seconds: float, capacity: float) -> float:
        return round(min(1.0, seconds / capacity), 3)

    def _waiting(self, at: float) -> str | None:
        if self._first is None:
            since = at - self._started
            return f"each actor loads the model and embeds its first unit, for {since:.0f} s"
        quiet = at - self._last
        if quiet > _QUIET_S:
            return f"no unit was finished for {quiet:.0f} s"
        return None

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Emit `Progress` every second while the block runs, and once at its end."""
        try:
            with repeating(_EVERY_S, lambda: self._emit(self.now())):
                yield
        finally:
            self._emit(self.now(last=True))

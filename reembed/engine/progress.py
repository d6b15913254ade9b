"""Figures of a run while it goes on: to whoever listens, and into the run's folder."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from obstore.exceptions import BaseError

from reembed.catalog.lease import repeating
from reembed.catalog.receipts import UnitStats
from reembed.catalog.runs import Run

_ETA_FROM = 0.01
_QUIET_S = 30.0
_WINDOW_S = 60.0


@dataclass(frozen=True)
class UnitDone:
    """A unit that was embedded and staged."""

    unit: str
    rows: int
    dead_letters: int
    stats: UnitStats

    @property
    def documents(self) -> int:
        """Those that were tried."""
        return self.rows + self.dead_letters

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> UnitDone:
        """As `dataclasses.asdict` gives it."""
        return cls(**{**row, "stats": UnitStats(**row["stats"])})


class _Finished(NamedTuple):
    """A unit that was staged: when, and what it held."""

    at: float
    documents: int
    tokens: int
    actor_s: float
    """Of its actor: since the end of its unit before."""


def _recent(finished: list[_Finished], actors: int) -> list[_Finished]:
    """The units of the last minute, in whole rounds of one for each actor, and the one before them."""
    rounds = (len(finished) - 1) // actors
    if rounds < 1:
        return finished
    starts = (-1 - actors * r for r in range(1, rounds + 1))
    last = finished[-1].at
    first = next((s for s in starts if last - finished[s].at >= _WINDOW_S), -1 - actors * rounds)
    return finished[first:]


def _rates(recent: list[_Finished], actors: int, at: float) -> tuple[float, float]:
    """Documents and tokens per second over `_recent` units.

    The time ends with the last unit, not now: units under way are taken to go like those. Only once
    none was finished for twice as long as ever between two of them does the rate fall.
    """
    if not recent:
        return 0.0, 0.0
    if len(recent) <= actors:  # not every actor has finished one: the others go as these do
        units, span = recent, sum(u.actor_s for u in recent) / actors
        longest = max(u.actor_s for u in recent)
    else:
        units, span = recent[1:], recent[-1].at - recent[0].at
        longest = max(b.at - a.at for a, b in pairwise(recent))
    span = max(span + max(0.0, at - recent[-1].at - 2 * longest), 1e-9)
    return sum(u.documents for u in units) / span, sum(u.tokens for u in units) / span


class Listener(Protocol):
    """Hears what happens; formats it for people."""

    every_s: float
    """Seconds between progress reports."""

    def __call__(self, stage: str, **fields: Any) -> None:
        """One thing that happened."""
        ...


Changed = tuple[str, Any, Any]
"""A setting that is ignored: its dotted name, the value that was used, the value now."""


def changed_settings(
    section: str, used: Mapping[str, Any], now: Mapping[str, Any]
) -> list[Changed]:
    """Each setting of a section that differs from what was used."""
    return [(f"{section}.{k}", used[k], v) for k, v in now.items() if k in used and used[k] != v]


class EmbedProgress:
    """Counts receipts; its thread reports, and says why it waits."""

    def __init__(
        self,
        run: Run,
        listener: Listener,
        *,
        total: int,
        done: int,
        units: tuple[int, int],
        actors: int,
    ) -> None:
        """`units` is (staged before, all); `done` and `total` count documents."""
        self._run, self._listener = run, listener
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

    def receipt(self, done: UnitDone) -> None:
        """A unit was staged."""
        stats = done.stats
        self._last = time.monotonic()
        if self._first is None:
            # The actor's clock may be another host's: its word is held to what is possible.
            age = min(
                max(time.time() - stats.started_at, stats.embed_s), self._last - self._started
            )
            self._first = self._last - age
        actor_s = stats.embed_s + stats.waited_s
        finished = _Finished(self._last, done.documents, stats.tokens, actor_s)
        self._recent = _recent([*self._recent, finished], self._actors)
        self._done += done.documents
        self._new += done.documents
        self._units_done += 1
        self._tokens += stats.tokens
        self._busy_s += stats.embed_s
        self._model_s += stats.model_s
        self._waited_s += stats.waited_s
        self._dead += done.dead_letters
        self._copied += stats.copied
        self._computed += stats.computed_tokens
        self._real += stats.model_tokens
        self._flop += stats.flop
        self._peak_s += stats.peak_flops * stats.embed_s
        self._path = f"{stats.path} on {stats.device}"
        if stats.notes and stats.notes not in self._noted:
            self._noted.add(stats.notes)
            self._listener("begin", what=f"embedding goes {self._path}: {stats.notes}")

    def figures(self) -> dict[str, Any]:
        """The figures now; rates are those of the last minute."""
        at = time.monotonic()
        docs_per_s, tokens_per_s = _rates(self._recent, self._actors, at)
        return self._figures(at) | {
            "docs_per_s": round(docs_per_s, 1),
            "tokens_per_s": round(tokens_per_s),
            "eta_s": self._eta(docs_per_s, at),
            "waiting": self._waiting(at),
        }

    def totals(self) -> dict[str, Any]:
        """The figures at the end; rates count from the first unit's start, start-up apart."""
        at = time.monotonic()
        elapsed = self._elapsed(at)
        return self._figures(at) | {
            "docs_per_s": round(self._new / elapsed, 1),
            "tokens_per_s": round(self._tokens / elapsed),
        }

    def _figures(self, at: float) -> dict[str, Any]:
        capacity = self._elapsed(at) * self._actors
        return {
            "done": self._done,
            "total": self._total,
            "actors": self._actors,
            "busy": self._share(self._model_s, capacity),
            "waits_for_input": self._share(self._waited_s, capacity),
            "waits_for_records": self._share(self._busy_s - self._model_s, capacity),
            "path": self._path,
            "padding": round(self._computed / self._real - 1, 4) if self._real else 0.0,
            "mfu": round(self._flop / self._peak_s, 3) if self._peak_s else None,
            "units_done": self._units_done,
            "units": self._units,
            "dead_letters": self._dead,
            "copied": self._copied,
            "startup_s": round((self._first or at) - self._started, 1),
        }

    def _elapsed(self, at: float) -> float:
        return max(at - (self._first or at), 1e-9)

    def _eta(self, docs_per_s: float, at: float) -> int | None:
        """Seconds that are left; what is under way since the last unit counts as done."""
        if not docs_per_s or self._done < _ETA_FROM * self._total:
            return None
        return max(1, round((self._total - self._done) / docs_per_s - (at - self._last)))

    def _share(self, seconds: float, capacity: float) -> float:
        return round(min(1.0, seconds / capacity), 3) if self._new else 0.0

    def _waiting(self, at: float) -> str | None:
        if self._first is None:
            return f"{self._actors} actor(s) load the model and embed their first unit"
        quiet = at - self._last
        return f"no unit was finished for {quiet:.0f} s" if quiet > _QUIET_S else None

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Report while the block runs, and once at its end."""
        try:
            with repeating(self._listener.every_s, self._report):
                yield
        finally:
            self._report()

    def _report(self) -> None:
        figures = self.figures()
        with suppress(OSError, BaseError):  # it must not hide what ended the run
            self._run.progress(figures)
        self._listener("embed", **figures)

"""Figures of a run while it goes on: to whoever listens, and into the run's folder."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from obstore.exceptions import BaseError

from reembed.runs import Run, repeating

_ETA_FROM = 0.01
_QUIET_S = 30.0


class Listener(Protocol):
    """Hears what happens; formats it for people."""

    every_s: float
    """Seconds between progress reports."""

    def __call__(self, stage: str, **fields: Any) -> None:
        """One thing that happened."""
        ...


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
        self._noted: set[str] = set()
        self._new = self._tokens = 0
        self._busy_s = self._model_s = self._waited_s = 0.0
        self._dead = 0
        self._computed = self._real = 0
        self._flop = self._peak_s = 0.0
        self._path = ""

    def receipt(self, row: dict[str, Any]) -> None:
        """A unit was staged."""
        self._last = time.monotonic()
        if self._first is None:
            # The actor's clock may be another host's: its word is held to what is possible.
            age = min(
                max(time.time() - row["started_at"], row["embed_s"]), self._last - self._started
            )
            self._first = self._last - age
        documents = row["rows"] + row["dead_letters"]
        self._done += documents
        self._new += documents
        self._units_done += 1
        self._tokens += row["tokens"]
        self._busy_s += row["embed_s"]
        self._model_s += row["model_s"]
        self._waited_s += row["waited_s"]
        self._dead += row["dead_letters"]
        self._computed += row["computed_tokens"]
        self._real += row["model_tokens"]
        self._flop += row["flop"]
        self._peak_s += row["peak_flops"] * row["embed_s"]
        self._path = f"{row['path']} on {row['device']}"
        if row["notes"] and row["notes"] not in self._noted:
            self._noted.add(row["notes"])
            self._listener("begin", what=f"embedding goes {self._path}: {row['notes']}")

    def figures(self) -> dict[str, Any]:
        """The figures now; rates count from the first unit's start, start-up apart."""
        at = time.monotonic()
        elapsed = max(at - (self._first or at), 1e-9)
        rate = self._new / elapsed if self._new else 0.0
        capacity = elapsed * self._actors
        share = self._done / self._total
        return {
            "done": self._done,
            "total": self._total,
            "docs_per_s": round(rate, 1),
            "tokens_per_s": round(self._tokens / elapsed) if self._new else 0,
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
            "eta_s": round((self._total - self._done) / rate)
            if rate and share >= _ETA_FROM
            else None,
            "startup_s": round((self._first or at) - self._started, 1),
            "waiting": self._waiting(at),
        }

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

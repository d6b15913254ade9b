"""The events of a run, in its folder.

runs/RUN/events.jsonl            one event a line, with the time
runs/RUN/progress.json           the latest figures of the embedding, for `status` in another process
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass

from obstore.exceptions import BaseError

from reembed.catalog.runs import Run
from reembed.clock import now
from reembed.events import Event, Planned, Progress, Resumed, Working
from reembed.store.records import encode
from reembed.store.storage import Storage

_EVENTS, _PROGRESS = "events.jsonl", "progress.json"
_PROGRESS_EVERY_S = 5.0


@dataclass(frozen=True)
class Figures(Progress):
    """The latest progress of a run's embedding, and when it was emitted."""

    at: str


class Journal:
    """A listener that keeps events in the folder of the run that they are about.

    Events are held until one tells which run is planned or resumed; a run that is refused before has
    no journal. `Working` is not kept. The process that drives the run is the only writer.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._run: Run | None = None
        self._body = b""
        self._progress_at = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Keep an event; figures at most every 5 s, and a failed write of them does not stop the run."""
        if isinstance(event, Progress):
            with suppress(OSError, BaseError):
                self._keep_figures(event)
        elif not isinstance(event, Working):
            self._body += _line(event)
            if self._run is None and isinstance(event, Planned | Resumed):
                self._open(Run(self._storage, event.run))
            if self._run is not None:  # stores cannot append
                self._storage.write_bytes(self._run.path(_EVENTS), self._body)

    def _open(self, run: Run) -> None:
        self._run = run
        with suppress(FileNotFoundError):
            self._body = self._storage.read_bytes(run.path(_EVENTS)) + self._body

    def _keep_figures(self, event: Progress) -> None:
        due = event.last or time.monotonic() - self._progress_at >= _PROGRESS_EVERY_S
        if self._run is not None and due:
            self._progress_at = time.monotonic()
            figures = Figures(**vars(event), at=now())
            self._storage.write(self._run.path(_PROGRESS), encode(figures))


def _line(event: Event) -> bytes:
    record = {"at": now(), "stage": event.stage, **encode(event)}
    return json.dumps(record, sort_keys=True).encode() + b"\n"


def latest_figures(run: Run) -> Figures | None:
    """Return the latest figures of a run's embedding, if there are any.

    Raises:
        IntegrityError: they are not as reembed writes them.
    """
    return run.storage.decode_if_there(Figures, run.path(_PROGRESS))

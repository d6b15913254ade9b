"""A worker's record: which unit its model is at, and which ones it may have gone on to since.

runs/RUN/workers/WORKER.json     one for each process that embeds

Several threads keep it: one lets the model work, others prepare units and finish them. A unit is recorded
before the model may take it and taken off after the model left it, so that the process that finds the record of a
process that was killed knows every unit that can have killed it. A unit that was tried before is recorded
alone, before and after the model is at it: for it the record is exact.
"""

from __future__ import annotations

import os
import threading
import uuid

from reembed.catalog.lease import UnitAttempt, Worker
from reembed.catalog.runs import Run
from reembed.clock import now
from reembed.engine.attempts import Attempt
from reembed.engine.executor import Host
from reembed.store.records import encode


class Presence:
    """The record of this process; all methods may be called from any thread."""

    def __init__(self, run: Run, host: Host) -> None:
        self._run, self._place = run, host.place()
        self._id = uuid.uuid4().hex
        self._units: list[UnitAttempt] = []
        self._is_alone = self._is_paused = False
        self._tries = self._changes = self._saved = 0
        self._state, self._saving = threading.Lock(), threading.Lock()

    def announce(self, attempt: Attempt) -> None:
        """Record that the model may take a unit from now on."""
        with self._state:
            self._units.append(attempt.as_recorded)
            self._changes += 1
        self.save()

    def take(self, attempt: Attempt) -> None:
        """The model begins with an announced unit, or goes on with it after a pause."""
        with self._state:
            self._units.remove(attempt.as_recorded)
            self._units.insert(0, attempt.as_recorded)
            self._is_alone = attempt.is_retried
            was_paused, self._is_paused = self._is_paused, False
            self._tries += was_paused
            self._changes += 1
        if attempt.is_retried or was_paused:
            self.save()

    def pause(self) -> None:
        """The model waits for its provider: nobody is at work."""
        with self._state:
            self._is_paused = True
            self._changes += 1
        self.save()

    def leave(self, attempt: Attempt) -> None:
        """The model is done with a unit, or will not take it; `save` makes it last."""
        with self._state:
            self._units.remove(attempt.as_recorded)
            self._is_alone = self._is_paused = False
            self._changes += 1
        if attempt.is_retried:
            self.save()

    def save(self) -> None:
        """Return once every change until now is in the store; one request stands for those of several threads."""
        wanted = self._changes
        with self._saving:
            if self._saved >= wanted:
                return
            with self._state:
                changes, record = self._changes, self._record()
            path = self._run.path(f"workers/{self._id}.json")
            if record is None:
                self._run.storage.remove(path)
            else:
                self._run.storage.write(path, encode(record))
            self._saved = changes

    def _record(self) -> Worker | None:
        if self._is_paused or not self._units:
            return None
        at, *following = self._units
        if self._is_alone:
            following = []
        return Worker(
            self._id, at.unit, at.attempt, tuple(following), self._tries, *self._place, os.getpid(), now()
        )  # fmt: skip

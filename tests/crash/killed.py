"""Attempts at a unit by a process that is killed in them."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

from reembed.catalog.runs import Run
from reembed.engine import attempts
from reembed.engine.attempts import Attempt, Range
from reembed.store.storage import Storage


def attempt_at(run: Run, rows: int, kills: Callable[[Range], bool]) -> Attempt | None:
    """One attempt at unit "u"; None when its process was killed, which then takes nothing back."""
    attempt = attempts.begin(run, "u", rows)
    with pytest.MonkeyPatch.context() as patch, attempts.working(attempt, uuid.uuid4().hex):
        died = any(kills(tried) for tried in attempt.ranges())
        if died:
            patch.setattr(Storage, "remove", lambda storage, path: None)
    return None if died else attempt

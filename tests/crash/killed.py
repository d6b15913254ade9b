"""Attempts at a unit by a process that is killed in them."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

from reembed.catalog.runs import Run
from reembed.engine import attempts
from reembed.engine.attempts import Attempt, Range
from reembed.engine.executor import ALONE, Host, WorkerPlace
from reembed.store.storage import Storage


class Outlived:
    """A host on which every worker that died did so alone, or none."""

    def __init__(self, answer: bool = True) -> None:
        self.answer = answer

    def place(self) -> WorkerPlace:
        return WorkerPlace()

    def outlived(self, node: str, job: str) -> bool:
        return self.answer


def attempt_at(
    run: Run, rows: int, kills: Callable[[Range], bool], host: Host = ALONE
) -> Attempt | None:
    """One attempt at unit "u"; None when its process was killed, which then takes nothing back."""
    attempt = attempts.begin(run, "u", rows, host)
    with pytest.MonkeyPatch.context() as patch, attempts.working(attempt, uuid.uuid4().hex):
        died = any(kills(tried) for tried in attempt.ranges())
        if died:
            patch.setattr(Storage, "remove", lambda storage, path: None)
    return None if died else attempt

"""Attempts at a unit by a process that is killed in them."""

from __future__ import annotations

from collections.abc import Callable

from reembed.catalog.runs import Run
from reembed.engine import attempts
from reembed.engine.attempts import Attempt, Range
from reembed.engine.executor import ALONE, Host, WorkerPlace
from reembed.engine.presence import Presence


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
    attempt, presence = attempts.begin(run, "u", rows, host), Presence(run, host)
    presence.announce(attempt)
    presence.take(attempt)
    if any(kills(tried) for tried in attempt.ranges()):
        return None
    presence.leave(attempt)
    presence.save()
    return attempt

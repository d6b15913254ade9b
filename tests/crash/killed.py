"""A process that is killed: in an attempt at a unit, or at a named point."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from reembed import faults
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


class Killed(Exception):
    pass


def killed_once(monkeypatch: pytest.MonkeyPatch, point: str, act: Callable[[], object]) -> None:
    """Do something that ends at a point as if its process had been killed there, and again until it is done."""
    met: list[str] = []

    def die(name: str) -> None:
        if name == point and not met:
            met.append(name)
            raise Killed(name)

    monkeypatch.setattr(faults, "point", die)
    with pytest.raises(Killed):
        act()
    act()
    assert met == [point]

"""How often a unit was tried, and which document kills its process.

Ray restarts a dead actor and runs its unit again, indefinitely. Each attempt leaves a create-only
record before it starts, and stands in the record of its worker (`presence`) until the model left it, with
or without an error: a worker whose record remains was killed. It counts as a death of the units in it if
its node and its driver live on. A unit that was prepared for the model may stand there by chance once: from its
second attempt on it stands there alone. After two deaths the unit is tried in ranges that are recorded
first. A range that kills is cut into sixteen; a single document that kills twice is poison.
"""

from __future__ import annotations

import math
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from reembed.catalog.lease import UnitAttempt, workers
from reembed.catalog.runs import Run
from reembed.engine.executor import ALONE, Host
from reembed.errors import RunFailed
from reembed.store.records import encode

MAX_ATTEMPTS = 30
"""Attempts at one unit under one driver, however they ended."""
_CARELESS_DEATHS = 2
_CUT = 16
_DEATHS_OF_POISON = 2

Range = tuple[int, int]


@dataclass(frozen=True)
class _Record:
    """An attempt, as it is stored."""

    driver: str
    trying: Range | None = None
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    """A random text that tells attempts apart: `Storage.create` takes an equal record for its own."""


@dataclass(frozen=True)
class Attempt:
    """One attempt at one unit."""

    run: Run
    unit: str
    number: int
    host: Host
    driver: str
    _ranges: tuple[Range, ...]
    poison: frozenset[int] = frozenset()
    """Row numbers that must not be tried again."""
    deaths: int = 0
    """Attempts that ended with the death of a worker alone; not counted before the third attempt."""
    _careful: bool = False

    @property
    def as_recorded(self) -> UnitAttempt:
        """The attempt, as a worker's record names it."""
        return UnitAttempt(self.unit, self.number)

    @property
    def is_retried(self) -> bool:
        """Whether there was another attempt before."""
        return self.number > 1

    def withdraw(self) -> None:
        """Take the attempt back: the model was never at the unit."""
        self.run.storage.remove(_path(self.run, self.unit, self.number))

    def ranges(self) -> Iterator[Range]:
        """Yield row ranges to embed; once the unit is suspect, each is recorded first."""
        for tried in self._ranges:
            if self._careful:
                path = _path(self.run, self.unit, self.number)
                self.run.storage.write(path, encode(_Record(self.driver, tried)))
            yield tried


def begin(run: Run, unit: str, rows: int, host: Host = ALONE, driver: str = "") -> Attempt:
    """Record that this unit is tried, and return in which ranges.

    Only attempts under `driver`, one start of the driver, count towards `MAX_ATTEMPTS`: what ends drivers,
    such as a store that fails for hours, says nothing about the unit.

    Raises:
        RunFailed: it was tried too often, and no single document explains why.
    """
    number = 1
    while not run.storage.create(_path(run, unit, number), encode(_Record(driver))):
        names = run.numbered(f"attempts/{unit}/")
        number = max(number, *(int(name.removesuffix(".json")) for name in names[-1:])) + 1
    whole = Attempt(run, unit, number, host, driver, ((0, rows),))
    if number <= _CARELESS_DEATHS:
        return whole
    alone = _died_alone(run, unit, host)
    if number > MAX_ATTEMPTS:
        first = _read(run, unit, number - MAX_ATTEMPTS)
        if first is not None and first.driver == driver:
            raise _tried_too_often(run, unit, len(alone))
    if len(alone) < _CARELESS_DEATHS:
        return replace(whole, deaths=len(alone))
    deaths = _deaths(run, unit, alone)
    poison = frozenset(a for (a, b), n in deaths.items() if b - a == 1 and n >= _DEATHS_OF_POISON)
    ranges = tuple(
        r for r in _cut((0, rows), deaths, whole=True) if r[0] not in poison or r[1] - r[0] > 1
    )
    return replace(whole, poison=poison, deaths=len(alone), _ranges=ranges, _careful=True)


def _tried_too_often(run: Run, unit: str, alone: int) -> RunFailed:
    plan = run.plan()
    assert plan is not None  # the unit is of it
    return RunFailed(
        f"unit {unit} was tried {MAX_ATTEMPTS} times and never embedded",
        f"{alone} of its workers died on their own, the others with their node;"
        " a single document is not the cause, the machine may be short of memory",
        f"{plan.restart} --set embed.batch_tokens=2048 --set embed.unit_documents=256",
    )


def _cut(piece: Range, deaths: Counter[Range], *, whole: bool = False) -> Iterator[Range]:
    start, stop = piece
    if stop - start == 1 or not (whole or deaths[piece]):
        yield piece
        return
    step = math.ceil((stop - start) / _CUT)
    for a in range(start, stop, step):
        yield from _cut((a, min(a + step, stop)), deaths)


def _died_alone(run: Run, unit: str, host: Host) -> list[int]:
    """Return the attempts whose worker was killed while its node and its driver lived on: others, and those
    that embedded all and failed later, say nothing about the documents.
    """
    tried = [(w, b.attempt) for w in workers(run) for b in w.at_work if b.unit == unit]
    return [attempt for w, attempt in tried if host.outlived(w.node, w.job)]


def _deaths(run: Run, unit: str, attempts: list[int]) -> Counter[Range]:
    records = (_read(run, unit, number) for number in attempts)
    return Counter(r.trying for r in records if r is not None and r.trying is not None)


def _read(run: Run, unit: str, number: int) -> _Record | None:
    return run.storage.decode_if_there(_Record, _path(run, unit, number))


def _path(run: Run, unit: str, number: int) -> str:
    return run.path(f"attempts/{unit}/{number:04d}.json")

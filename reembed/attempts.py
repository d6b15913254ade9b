"""Who began a unit, and how often it killed its process: finite attempts, and the document found.

Ray restarts a dead actor and runs its unit again, for ever if let. Each attempt leaves a create-only
record before it starts. After two deaths the unit is tried in ranges that are written down first, and
each range that kills is cut into sixteen for the next attempt, until single documents are left; one
that kills twice alone is poison.
"""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from reembed import cluster
from reembed.catalog import now
from reembed.errors import RunFailed
from reembed.runs import Run, Worker, process_started

MAX_ATTEMPTS = 30
_CARELESS_ATTEMPTS = 2
_CUT = 16
_DEATHS_OF_POISON = 2

Range = tuple[int, int]


@dataclass(frozen=True)
class Attempt:
    """One attempt at one unit."""

    run: Run
    unit: str
    number: int
    poison: frozenset[int]
    """Row numbers that must not be tried again."""
    _ranges: tuple[Range, ...]

    def ranges(self) -> Iterator[Range]:
        """Row ranges to embed, each written down before it is handed out once the unit is suspect."""
        for start, stop in self._ranges:
            if self.number > _CARELESS_ATTEMPTS:
                self.run.storage.write(
                    _path(self.run, self.unit, self.number), {"trying": [start, stop]}
                )
            yield start, stop


def begin(run: Run, unit: str, rows: int) -> Attempt:
    """Record that this unit is begun, and say how to go about it.

    Raises:
        RunFailed: it was begun too often, and no single document explains why.
    """
    number = 1
    # The token tells attempts apart: an equal record would be taken for our own lost answer.
    token = uuid.uuid4().hex
    while not run.storage.create(_path(run, unit, number), {"trying": None, "token": token}):
        number = max(number, _newest(run, unit)) + 1
    if number > MAX_ATTEMPTS:
        raise RunFailed(
            f"unit {unit} killed its worker {MAX_ATTEMPTS} times",
            "no single document is to blame; the machine may be short of memory",
            "reembed run --set embed.batch_tokens=2048 --set embed.unit_documents=256 --fresh",
        )
    if number <= _CARELESS_ATTEMPTS:
        return Attempt(run, unit, number, frozenset(), ((0, rows),))
    deaths = _deaths(run, unit, number)
    poison = frozenset(a for (a, b), n in deaths.items() if b - a == 1 and n >= _DEATHS_OF_POISON)
    ranges = tuple(
        r for r in _cut((0, rows), deaths, whole=True) if r[0] not in poison or r[1] - r[0] > 1
    )
    return Attempt(run, unit, number, poison, ranges)


@contextmanager
def working(run: Run, worker: str, unit: str, attempt: int) -> Iterator[None]:
    """Say who works on a unit, during the block; whoever is killed in it goes on saying so."""
    path = run.path(f"workers/{worker}.json")
    pid = os.getpid()
    who = Worker(worker, unit, attempt, cluster.node_id(), pid, process_started(pid) or "", now())
    run.storage.write(path, asdict(who))
    try:
        yield
    finally:
        run.storage.remove(path)


def _cut(piece: Range, deaths: Counter[Range], *, whole: bool = False) -> Iterator[Range]:
    start, stop = piece
    if stop - start == 1 or not (whole or deaths[piece]):
        yield piece
        return
    step = max(1, -(-(stop - start) // _CUT))
    for a in range(start, stop, step):
        yield from _cut((a, min(a + step, stop)), deaths)


def _deaths(run: Run, unit: str, before: int) -> Counter[Range]:
    tried = (
        run.storage.read_if_there(_path(run, unit, n))
        for n in range(_CARELESS_ATTEMPTS + 1, before)
    )
    return Counter((t["trying"][0], t["trying"][1]) for t in tried if t and t["trying"])


def _newest(run: Run, unit: str) -> int:
    paths = [path for path, _ in run.storage.objects(run.path(f"attempts/{unit}/"))]
    return int(paths[-1].rsplit("/", 1)[-1].removesuffix(".json")) if paths else 0


def _path(run: Run, unit: str, number: int) -> str:
    return run.path(f"attempts/{unit}/{number:04d}.json")

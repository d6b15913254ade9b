"""Nothing hangs quietly: a worker over its deadline is ended, and a job that stands still fails.

A worker that is stopped, loops or waits for ever in a driver's call cannot end itself; its process
is ended from outside, Ray starts another, and the unit's attempts are counted as those of any death.
Ages are taken by the driver's own monotonic clock, from when it first saw a worker on a unit.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from reembed.catalog import lease
from reembed.catalog.lease import Worker
from reembed.catalog.plan import EmbedUnit
from reembed.engine import cluster
from reembed.engine.job import EmbedJob
from reembed.engine.progress import UnitDone
from reembed.errors import NoCapacity, RunFailed

_EVERY_S = 5.0
_LEAST_S = 60.0
_TIMES = 10.0  # the median unit's time
_UNKNOWN_S = 900.0  # until a unit is finished
_ENOUGH = 3
_PATIENCE_S = 60.0  # before the wait for a node is spoken of


@dataclass
class _Seen:
    attempt: tuple[str, int]
    since: float
    ended: bool = False


class Watch:
    """Looks after the workers of one job."""

    def __init__(self, job: EmbedJob, units: list[EmbedUnit], say: Callable[[str], None]) -> None:
        """Nothing was heard yet; `say` hears of workers that were ended."""
        self._job, self._left, self._say = job, {u.id for u in units}, say
        self._times: list[float] = []
        self._seen: dict[str, _Seen] = {}
        self._heard = self._looked = time.monotonic()
        self._said_no_room = False

    def heard(self, done: UnitDone) -> None:
        """A unit was staged."""
        self._heard = time.monotonic()
        self._left.discard(done.unit)
        self._times.append(done.stats.embed_s)

    @property
    def deadline_s(self) -> float:
        """How long a unit may take."""
        if self._job.embed.unit_deadline_s is not None:
            return self._job.embed.unit_deadline_s
        if len(self._times) < _ENOUGH:
            return _UNKNOWN_S
        return max(_LEAST_S, _TIMES * statistics.median(self._times))

    def look(self) -> None:
        """End workers over their deadline.

        Raises:
            NoCapacity: for too long there was no node that an actor fits on.
            RunFailed: for too long no unit was finished at all.
        """
        now = time.monotonic()
        if now - self._looked < min(_EVERY_S, self.deadline_s / 4):
            return
        self._looked = now
        workers = lease.workers(self._job.run)
        for worker in workers:
            seen = self._seen.get(worker.id)
            if seen is None or seen.attempt != (worker.unit, worker.attempt):
                self._seen[worker.id] = _Seen((worker.unit, worker.attempt), now)
            elif not seen.ended and now - seen.since > self.deadline_s:
                seen.ended = True
                self._end(worker, now - seen.since)
        self._still(now - self._heard, workers)

    def _end(self, worker: Worker, age: float) -> None:
        ended = cluster.end_embedder(worker.actor, worker.pid)
        self._say(
            f"unit {worker.unit} was worked on for {age:.0f} s, over its deadline of"
            f" {self.deadline_s:.0f} s: its worker is {'ended' if ended else 'gone'}; trying it again"
        )
        self._job.run.event(
            "deadline",
            unit=worker.unit,
            attempt=worker.attempt,
            seconds=round(age, 1),
            deadline_s=round(self.deadline_s, 1),
            ended=ended,
        )

    def _still(self, seconds: float, workers: list[Worker]) -> None:
        """No unit was finished for so long: say so, and in the end give up."""
        embed = self._job.embed
        if seconds < min(_PATIENCE_S, embed.stall_s):
            self._said_no_room = False
            return
        cpus, gpus = embed.actor_cpus, embed.gpus_per_actor
        size = f"{cpus:g} CPUs and {gpus:g} GPUs"
        room = cluster.has_room(cpus, gpus)
        if room and self._said_no_room:  # a node came: it gets the time that others had
            self._said_no_room, self._heard = False, time.monotonic()
            return
        if not room and not self._said_no_room:
            self._said_no_room = True
            self._say(
                f"no node of the cluster has the {size} of an actor;"
                f" waiting for one, {embed.stall_s:,.0f} s in all (embed.stall_s)"
            )
        if seconds <= embed.stall_s:
            return
        what = f"no unit was finished for {seconds:,.0f} s (embed.stall_s)"
        fix = f"{self._job.plan.resume}     # what is staged is kept"
        if not room:
            raise NoCapacity(what, f"no node of the cluster has the {size} of an actor", fix)
        there = cluster.live_nodes()
        busy = [
            f"{w.unit} (attempt {w.attempt})"
            for w in workers
            if w.unit in self._left and w.node in there
        ]
        why = f"being embedded: {', '.join(busy[:3])}" if busy else cluster.why_nothing_starts()
        raise RunFailed(what, why, fix)

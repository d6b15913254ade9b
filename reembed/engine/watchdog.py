"""Ends workers over their deadline from outside, and a job that stands still.

A worker that is stopped, loops, or waits in a driver call cannot end itself. Ray starts another, and the
attempt counts like any other death. Ages are measured by the driver's monotonic clock.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from reembed.catalog import lease
from reembed.catalog.lease import Worker
from reembed.catalog.plan import EmbedUnit
from reembed.catalog.receipts import Receipt
from reembed.engine import nodes
from reembed.engine.executor import EmbedJob, Needs
from reembed.errors import NoCapacity, RunFailed
from reembed.events import Listener, WaitingForNode, WorkerEnded

_EVERY_S = 5.0
_LEAST_S = 60.0
_TIMES = 10.0  # the median unit's time
_UNKNOWN_S = 900.0  # until a unit is finished
_ENOUGH = 3
_PATIENCE_S = 60.0  # before it is told that no node has room


@dataclass
class _Seen:
    attempt: tuple[str, int, int]
    since: float
    ended: bool = False


class Watchdog:
    """Watches the workers of one job."""

    def __init__(self, job: EmbedJob, units: list[EmbedUnit], emit: Listener) -> None:
        self._job, self._left, self._emit = job, {u.id for u in units}, emit
        self._times: list[float] = []
        self._seen: dict[str, _Seen] = {}
        self._heard = self._looked = time.monotonic()
        self._told_no_room = False

    def heard(self, receipt: Receipt) -> None:
        """Note that a unit was staged."""
        assert receipt.stats is not None  # it was embedded
        self._heard = time.monotonic()
        self._left.discard(receipt.unit)
        self._times.append(receipt.stats.model_s)

    @property
    def deadline_s(self) -> float:
        """Seconds that a unit may take."""
        if self._job.embed.unit_deadline_s is not None:
            return self._job.embed.unit_deadline_s
        if len(self._times) < _ENOUGH:
            return _UNKNOWN_S
        return max(_LEAST_S, _TIMES * statistics.median(self._times))

    def look(self) -> None:
        """End workers over their deadline.

        Raises:
            NoCapacity, RunFailed: no unit was finished for `embed.stall_s`, and no node had room or one had.
        """
        now = time.monotonic()
        if now - self._looked < min(_EVERY_S, self.deadline_s / 4):
            return
        self._looked = now
        workers = lease.workers(self._job.run)
        for worker in workers:
            seen = self._seen.get(worker.id)
            attempt = (worker.unit, worker.attempt, worker.tries)
            if seen is None or seen.attempt != attempt:
                self._seen[worker.id] = _Seen(attempt, now)
            elif not seen.ended and now - seen.since > self.deadline_s:
                seen.ended = True
                self._emit(
                    WorkerEnded(
                        unit=worker.unit,
                        attempt=worker.attempt,
                        seconds=round(now - seen.since, 1),
                        deadline_s=round(self.deadline_s, 1),
                        ended=nodes.end_embedder(worker.actor, worker.pid),
                    )
                )
        self._still(now - self._heard, workers)

    def _still(self, seconds: float, workers: list[Worker]) -> None:
        """Tell that no unit was finished for so long, and give up after `embed.stall_s`."""
        embed = self._job.embed
        if seconds < min(_PATIENCE_S, embed.stall_s):
            self._told_no_room = False
            return
        cpus, gpus = embed.actor_cpus, embed.gpus_per_actor
        size = f"{cpus:g} CPUs and {gpus:g} GPUs"
        room = nodes.has_room(Needs(cpus, gpus))
        if room and self._told_no_room:  # a node came: it gets the full time
            self._told_no_room, self._heard = False, time.monotonic()
            return
        if not room and not self._told_no_room:
            self._told_no_room = True
            self._emit(WaitingForNode(cpus, gpus, embed.stall_s))
        if seconds <= embed.stall_s:
            return
        what = f"no unit was finished for {seconds:,.0f} s (embed.stall_s)"
        fix = f"{self._job.plan.resume}     # staged units are kept"
        if not room:
            raise NoCapacity(what, f"no node of the cluster has the {size} of an actor", fix)
        up = nodes.live_nodes()
        busy = [w for w in workers if w.unit in self._left and w.node in up]
        if not busy:
            raise RunFailed(what, nodes.why_nothing_starts(), fix)
        named = ", ".join(f"{w.unit} (attempt {w.attempt})" for w in busy[:3])
        raise RunFailed(what, f"being embedded: {named}", fix)

"""Sweep: batches of a lazy migration until a limit. What waits in the queue first, then what most queries showed, by
the log that gate.logged names, then the source in its order.

Each call continues where the last one ended: what is left follows from what the new side has.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

from reembed import encoders
from reembed.catalog import lazies
from reembed.catalog.lazies import LazyPlan
from reembed.catalog.lazy_queue import Queue
from reembed.catalog.releases import Catalog
from reembed.config.settings import Config
from reembed.engine.executor import Executor
from reembed.errors import UsageError
from reembed.evaluation.popularity import Popularity, popularity
from reembed.events import Listener, Notice
from reembed.plural import counted
from reembed.source.dataset import Source
from reembed.source.members import not_in
from reembed.store.paths import absolute_queries
from reembed.strategies.lazy import batch, running
from reembed.strategies.members import Sweeping

_IDLE = 2
"""Batches in a row that add nothing with an empty queue, after which a sweep ends."""
_LOOK_S = 1.0
"""Seconds between two looks whether the migration still runs, while a sweep waits."""


@dataclass(frozen=True)
class Limits:
    """When a sweep ends; without any, once every document is migrated."""

    budget: int | None = None
    """Documents that it migrates at most."""
    for_s: float | None = None
    """Seconds after which no batch is started."""
    until: float | None = None
    """Share of the documents that are migrated then."""
    every_s: float = 0.0
    """Seconds from the start of one batch to that of the next, at least."""


@dataclass(frozen=True)
class Swept:
    """What a sweep did."""

    alias: str
    added: int
    """Documents that it migrated."""
    batches: int
    migrated: int
    """Documents that are migrated now."""
    documents: int
    """Documents of the source, as the last batch saw it."""
    ended: str
    """Why it ended, in words."""

    @property
    def is_complete(self) -> bool:
        """Whether every document is migrated."""
        return self.migrated >= self.documents

    def to_json(self) -> dict[str, Any]:
        """Return what `reembed sweep --json` prints."""
        return {**vars(self), "complete": self.is_complete}


def sweep(
    catalog: Catalog, config: Config, limits: Limits, emit: Listener, *, executor: Executor
) -> Swept:
    """Migrate documents until a limit, or until the migration is paused or stopped.

    Raises:
        UsageError: no lazy migration is running, the config has another model, or the log cannot be read.
        Conflict: another process is at it.
        RunFailed, Interrupted: it stopped; the same command continues.
    """
    plan = running(catalog).plan
    _require_same_model(config, plan)
    log = popularity(absolute_queries(config.gate), dict(catalog.query_options))
    popular = deque(_without_gone(catalog, plan, log) if log else ())
    sweeping = Sweeping(popular, 1.0 if limits.until is None else limits.until)
    began, added, made, idle = time.monotonic(), 0, 0, 0
    with executor.connected(config) as connected:
        while True:
            started = time.monotonic()
            most = config.lazy.batch_documents
            if limits.budget is not None:
                most = min(most, limits.budget - added)
            found = batch(catalog, config, most, emit, executor=connected, sweeping=sweeping)
            added, made = added + found.added, made + 1
            waits = popular or Queue(catalog.storage, plan).files()
            idle = 0 if found.added or waits else idle + 1
            swept = Swept(
                catalog.alias, added, made, found.documents, found.source_documents, ended=""
            )
            emit(Notice(_so_far(swept)))
            following = max(time.monotonic(), started + limits.every_s)
            ended = _over(catalog, swept, limits, following - began)
            if idle == _IDLE:
                ended = ended or "nothing more is found to migrate"
            ended = ended or _paused_before(catalog, following)
            if ended is not None:
                return replace(swept, ended=ended)


def _without_gone(catalog: Catalog, plan: LazyPlan, log: Popularity) -> dict[str, int]:
    """Return the documents of a log that the source has: others would take places of a batch."""
    source = Source(plan.source, catalog.source_options).newest()
    return log.without(map(str, not_in(source, list(log.times)))).times


def _require_same_model(config: Config, plan: LazyPlan) -> None:
    """Refuse a config whose model is another one than documents are migrated to: `reembed run` would embed with it."""
    space = encoders.describe(config.encoder, config.table.dtype)
    if space.id != plan.space.id:
        raise UsageError(
            f"encoder is {space.model} (space {space.id}), lazy migration {plan.number} of {plan.alias} goes to"
            f" {plan.space.model} (space {plan.space.id})",
            "its end, `reembed run`, embeds with the config's model",
            "reembed config     # shows encoder; set it as it was when the migration started",
        )


def _paused_before(catalog: Catalog, following: float) -> str | None:
    """Wait until a time of `time.monotonic`; return why the migration does not run any more, if it is so earlier."""
    while (left := following - time.monotonic()) > 0:
        time.sleep(min(_LOOK_S, left))
        if ended := _not_running(catalog):
            return ended
    return None


def _not_running(catalog: Catalog) -> str | None:
    found = lazies.current(catalog)
    if found is not None and found.step.state == "running":
        return None
    return f"the lazy migration is {found.step.state if found else 'gone'}"


def _so_far(found: Swept) -> str:
    share = found.migrated / max(1, found.documents)
    return f"{found.migrated:,} of {counted(found.documents, 'document')} migrated ({share:.1%})"


def _over(catalog: Catalog, swept: Swept, limits: Limits, seconds: float) -> str | None:
    """Return why a sweep ends; None if it makes another batch, after so many seconds from its start."""
    if ended := _not_running(catalog):
        return ended
    if swept.is_complete:
        return "every document is migrated"
    if limits.budget is not None and swept.added >= limits.budget:
        return f"the budget of {counted(limits.budget, 'document')} is used"
    if limits.for_s is not None and seconds >= limits.for_s:
        return f"{limits.for_s:g} s are over"
    if limits.until is not None and swept.migrated >= limits.until * swept.documents:
        return f"{limits.until:.0%} of the documents are migrated"
    return None

"""Lazy migrations: documents get their new vector after they turned up in an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from reembed.api.opened import catalog_of, ray_executor
from reembed.config.settings import Config
from reembed.errors import UsageError
from reembed.events import Listener, ignore

if TYPE_CHECKING:
    from reembed.lifecycle.lazy_status import LazyStatus
    from reembed.strategies.simulate import Simulated, Wanted
    from reembed.strategies.sweep import Limits, Swept

LazyAction = Literal["start", "pause", "resume", "stop", "status"]


def lazy(
    config: Config,
    action: LazyAction,
    *,
    keep: bool = True,
    reason: str | None = None,
    emit: Listener = ignore,
) -> LazyStatus:
    """Start a lazy migration to the config's model, change its state, or look at it.

    Args:
        action: start: needs `strategy: lazy`, asks the gate, and embeds 300 documents. pause: nothing
            more is migrated, what was is served. stop: the live release answers alone, at once and everywhere.
            resume: after a pause, or after a stop that kept the new side. status: changes nothing.
        keep: of a stop: keep the new side; if not, gc removes it.
        reason: why, for the record; required to stop, and to start where too little is known of the model.

    Raises:
        UsageError: there is none, it is in another state, or the model is the live one.
        GateFailed, Inconclusive: the new model is worse on judged queries, or too little is known of it.
        Conflict: another process changes it at this moment.
        RunFailed: the start stopped; the same call continues.
    """
    from reembed.lifecycle.lazy_status import status_of
    from reembed.strategies import lazy as strategy

    catalog = catalog_of(config)
    if action == "start":
        run = ray_executor()
        found = strategy.start(catalog, config, reason, emit, executor=run)
    elif action == "pause":
        found = strategy.pause(catalog, reason)
    elif action == "resume":
        found = strategy.resume(catalog, reason)
    elif action == "stop":
        if not reason:
            what = "a stop needs a reason, which is recorded"
            raise UsageError(what, None, "reembed lazy stop --reason 'WHY'")
        found = strategy.stop(catalog, reason, keep=keep)
    else:
        found = strategy.there(catalog)
    return status_of(catalog, found, config.gate)


def sweep(config: Config, limits: Limits | None = None, *, emit: Listener = ignore) -> Swept:
    """Migrate documents: those that turned up first, then those that the queries of `gate.logged` showed, then others.

    It ends at a limit, once every document is migrated, or when the migration is paused or stopped.

    Args:
        limits: when it ends (`reembed.strategies.sweep.Limits`).

    Raises:
        UsageError: no lazy migration is running.
        Conflict: another process is at it.
        RunFailed, Interrupted: it stopped; the same call continues.
    """
    from reembed.strategies import sweep as strategy

    catalog, limits = catalog_of(config), limits or strategy.Limits()
    return strategy.sweep(catalog, config, limits, emit, executor=ray_executor())


def simulate(config: Config, wanted: Wanted | None = None, *, emit: Listener = ignore) -> Simulated:
    """Replay a query log against a lazy migration to the config's model: coverage and quality over time.

    Needs a live release and `gate.logged`. Quality needs `gate.queries`: live's first `lazy.depth` results of each of
    them are embedded with the new model. Nothing is stored.

    Args:
        wanted: how much is replayed, rules of fusion, and how fast a sweep is (`reembed.strategies.simulate.Wanted`).

    Raises:
        UsageError: nothing is live, the model is the live one, no log is named, or it cannot be used.
    """
    from reembed.strategies import simulate as strategy

    wanted = wanted or strategy.Wanted()
    return strategy.simulate(catalog_of(config), config, wanted, emit, executor=ray_executor())

"""Where an alias stands: live, previous, candidates, and the runs that are under way."""

from __future__ import annotations

import shlex
from typing import Any

from reembed import comparisons
from reembed.catalog import Catalog
from reembed.lag import lag
from reembed.promote import candidates, standing
from reembed.runs import Lease, Run, find_runs, read_lease, workers
from reembed.storage import is_remote


def status(catalog: Catalog) -> dict[str, Any]:
    """One record for people and scripts; reads small records, and what the source's newest version is."""
    log = catalog.log()
    stack = standing(log)
    live = stack[-1] if stack else None
    behind = lag(catalog, live).to_json() if live else None
    retired = [r.id for r in catalog.releases() if catalog.is_retired(r.id)]
    waiting = candidates(catalog)
    verdicts = comparisons.verdicts(catalog, live) if live else {}
    return {
        "alias": catalog.alias,
        "live": {**live.summary(), "lag": behind} if live else None,
        "generation": len(log),
        "forced": bool(log and log[-1].forced),
        "previous": stack[-2].summary() if len(stack) > 1 else None,
        "candidates": [{**r.summary(), "verdict": verdicts.get(r.origin)} for r in waiting],
        "retired": retired,
        "runs": [
            _run(run) for run in find_runs(catalog.storage, catalog.alias) if run.result() is None
        ],
    }


def _resume(run: Run) -> str:
    """The command that goes on with a run: by the settings it was started with."""
    if run.is_catch_up:
        plan = run.plan()
        return f"reembed catch-up {plan.base.release if plan and plan.base else 'live'}"
    if is_remote(run.storage.root):
        return f"reembed run     # with the settings of {run.path('config.yaml')}"
    return f"reembed run -c {shlex.quote(run.storage.uri(run.path('config.yaml')))}"


def _driven(lease: Lease | None) -> bool | None:
    """Whether a process drives a run; None where only its own machine could tell at once."""
    if lease is None or lease.released:
        return False
    return lease.process_lives if lease.on_this_machine else None


def _run(run: Run) -> dict[str, Any]:
    plan, lease = run.plan(), read_lease(run)
    return {
        "run": run.id,
        "driven": _driven(lease),
        "host": lease.host if lease else None,
        "resume": _resume(run),
        "units": len(plan.units) if plan else None,
        "staged": len(run.staged()),
        "workers": [{"unit": w.unit, "attempt": w.attempt, "since": w.at} for w in workers(run)],
        "progress": run.storage.read_if_there(run.path("progress.json")),
    }

"""Where an alias stands: live, previous, candidates, and the runs that are under way."""

from __future__ import annotations

from typing import Any

from reembed.catalog import Catalog, Release
from reembed.promote import comparison_path, standing
from reembed.runs import Run, find_runs, is_driven


def status(catalog: Catalog) -> dict[str, Any]:
    """One record for people and scripts; reads small records only."""
    log = catalog.log()
    stack = standing(log)
    live = stack[-1] if stack else None
    served = {r.release.id for r in log}
    retired = [r.id for r in catalog.releases() if catalog.is_retired(r.id)]
    waiting = [r for r in catalog.releases() if r.id not in served and r.id not in retired]
    return {
        "alias": catalog.alias,
        "live": live.summary() if live else None,
        "generation": len(log),
        "forced": bool(log and log[-1].forced),
        "previous": stack[-2].summary() if len(stack) > 1 else None,
        "candidates": [{**r.summary(), "verdict": _verdict(catalog, r, live)} for r in waiting],
        "retired": retired,
        "runs": [
            _run(run) for run in find_runs(catalog.storage, catalog.alias) if run.result() is None
        ],
    }


def _verdict(catalog: Catalog, release: Release, live: Release | None) -> str | None:
    record = catalog.storage.read_if_there(comparison_path(release.run_id))
    if record is None or live is None or record["live"]["release"] != live.id:
        return None
    return str(record["verdict"])


def _run(run: Run) -> dict[str, Any]:
    plan = run.plan()
    return {
        "run": run.id,
        "driven": is_driven(run, watch_s=0),
        "units": len(plan.units) if plan else None,
        "staged": len(run.staged()),
        "progress": run.storage.read_if_there(run.path("progress.json")),
    }

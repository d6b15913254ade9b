"""Where an alias stands: live, previous, candidates, and the runs that are under way.

However many releases and runs there are, few records are read: names say which wait or are open and what
their verdicts are, and only the newest of each are looked into.
"""

from __future__ import annotations

from typing import Any

from reembed.catalog.lease import Lease, read_lease, workers
from reembed.catalog.releases import AliasRecord, Catalog, line_of
from reembed.catalog.runs import Run, open_runs, started_with
from reembed.errors import IntegrityError
from reembed.evaluation import comparisons
from reembed.lifecycle.promote import candidates, previous
from reembed.source.lag import lag

_CANDIDATES, _RUNS = 5, 2
"""How many are looked into; the rest are named, candidates with their verdicts."""


def status(catalog: Catalog) -> dict[str, Any]:
    """One record for people and scripts; asks the source for its newest version, too."""
    live = catalog.live()
    stood = previous(catalog, live) if live else None
    behind = lag(catalog, live.release).to_json() if live else None
    waiting, runs = candidates(catalog, live), open_runs(catalog.storage, catalog.alias)
    compared = comparisons.pairs(catalog)
    return {
        "alias": catalog.alias,
        "live": {**live.release.summary(), "lag": behind} if live else None,
        "generation": live.generation if live else 0,
        "forced": bool(live and live.grounds.forced),
        "unknown": live.grounds.unknown if live else (),
        "previous": catalog.release(stood).summary() if stood else None,
        "candidates": [_candidate(catalog, r, live, compared) for r in waiting[-_CANDIDATES:]],
        "rolled_back": _rolled_back(catalog, live) if live else None,
        "older_candidates": [_verdict(catalog, r, live, compared) for r in waiting[:-_CANDIDATES]],
        "retired": catalog.retired(),
        "runs": [r for r in map(_run, runs[-_RUNS:]) if _is_a_run(r)],
        "older_runs": [run.id for run in runs[:-_RUNS]],
    }


def _rolled_back(catalog: Catalog, live: AliasRecord) -> dict[str, Any] | None:
    """What was rolled back from since the last promotion, when and why; None where nothing was."""
    if (found := catalog.rolled_back(live)) is None:
        return None
    step, undone = found
    return {"release": undone.release.id, "at": step.at, "reason": step.grounds.reason}


def _candidate(
    catalog: Catalog, release_id: str, live: AliasRecord | None, compared: comparisons.Pairs
) -> dict[str, Any]:
    """A candidate, the verdict against what is live, and what else it was compared with."""
    release = catalog.release(release_id)
    with_lines = sorted(other for line, other in compared if line == release.origin)
    found = compared.get((release.origin, live.release.origin)) if live else None
    verdict = str(comparisons.read(catalog, found.path)["verdict"]) if found else None
    return {**release.summary(), "verdict": verdict, "compared_with": with_lines}


def _verdict(
    catalog: Catalog, release_id: str, live: AliasRecord | None, compared: comparisons.Pairs
) -> dict[str, Any]:
    """A candidate that is not looked into, and the verdict against what is live."""
    found = compared.get((line_of(release_id), live.release.origin)) if live else None
    return {"release": release_id, "verdict": found.verdict(catalog) if found else None}


def _resume(run: Run) -> str:
    """The command that goes on with a run: by the settings it was started with."""
    if run.is_catch_up:
        plan = run.plan()
        return f"reembed catch-up {plan.base.release if plan and plan.base else 'live'}"
    return started_with(run)


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
        "progress": _progress(run),
    }


def _is_a_run(run: dict[str, Any]) -> bool:
    """Whether it has a plan or is about to: one that was killed before holds nothing."""
    return run["units"] is not None or run["driven"] is not False


def _progress(run: Run) -> dict[str, Any] | None:
    """The run's latest figures; nothing depends on them, so a damaged file is reported and status goes on."""
    try:
        return run.storage.read_if_there(run.path("progress.json"))
    except IntegrityError as error:
        return {"waiting": f"unknown: {error.what}"}

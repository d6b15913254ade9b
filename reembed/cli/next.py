"""The command that can follow a result."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reembed.catalog.releases import Release
    from reembed.lifecycle.status import Status
    from reembed.source.importer import Imported


def after_import(r: Imported) -> str:
    """Return the run of what was imported; the config says which model and where to."""
    from reembed.source.columns import likely_text, set_to

    columns = r.columns
    id_column = next((c for c in ("doc_id", "_id", "id") if c in columns), columns[0])
    strings = [c for c in columns if r.types[c].endswith("string") and c != id_column]
    text = likely_text(strings or columns[-1:])
    uri = f"source.uri={r.uri}"
    named = [set_to("source.id_column", id_column), set_to("source.text", text)]
    command = " ".join([f"reembed run --set {shlex.quote(uri)}", *named])
    others = ", ".join(c for c in strings if c != text)
    return f"{command}     # or another column as text: {others}" if others else command


def after_run(release: Release, live: Release | None) -> str:
    """Return the command that follows a build, given what is live."""
    if live is None:
        return _first_promotion(release.id)
    if live.origin == release.origin:
        return "reembed status"
    return f"reembed compare --candidate {release.id}"


def after_status(status: Status) -> list[str]:
    """Return the commands that can follow, the usual one first."""
    if any(run.driven for run in status.runs):
        return ["reembed status     # a run is under way"]
    stopped = [run for run in status.runs if run.driven is False]
    if status.runs and not stopped:
        return [f"reembed status     # on {status.runs[-1].host}, which may be driving a run"]
    of_candidates = [_after_candidates(status)] if status.candidates or not stopped else []
    if not stopped:
        return of_candidates
    run = stopped[-1]
    given_up = f"reembed gc --drop-run {run.run} --yes     # gives the stopped run up"
    return [run.resume, *of_candidates, given_up]


def _first_promotion(release: str) -> str:
    return f"reembed promote {release} --initial --reason 'the first release'"


def _after_candidates(status: Status) -> str:
    if not status.candidates:
        return "reembed search 'some words'" if status.live else "reembed run"
    if not status.live:
        return _first_promotion(status.candidates[-1].release.id)
    left = status.rolled_back.release if status.rolled_back else None
    waiting = [(c.verdict, c.release) for c in status.older_candidates]
    waiting += [(c.verdict, c.release.id) for c in status.candidates]
    by_verdict = {verdict: release for verdict, release in waiting if release != left}
    if not by_verdict:
        return "reembed history"
    if "pass" in by_verdict:
        return f"reembed promote {by_verdict['pass']}"
    if None in by_verdict:
        return f"reembed compare --candidate {by_verdict[None]}"
    if "inconclusive" in by_verdict:
        more = "--changed-queries --reason 'WHY'     # after judging more queries"
        return f"reembed compare --candidate {by_verdict['inconclusive']} {more}"
    why = "the candidates failed" if left is None else "no other candidate passed"
    return f"reembed run     # with another model: {why}"

"""What the verbs do beyond building: look at a release, compare it, move the alias, search it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from obstore.exceptions import BaseError

from reembed.catalog.releases import AliasRecord, Catalog, Release, VerifyRecord
from reembed.catalog.runs import Run, open_runs
from reembed.clock import now
from reembed.config.settings import RESERVED_COLUMNS, Config, FrozenGate
from reembed.engine.progress import Listener, changed_settings
from reembed.errors import (
    Conflict,
    EncoderError,
    IntegrityError,
    NotVerified,
    ReembedError,
    SourceError,
    UsageError,
)
from reembed.evaluation import comparisons
from reembed.evaluation.comparisons import Asked
from reembed.lifecycle.promote import (
    Reasons,
    admissible,
    candidate,
    follow,
    newest_of,
    none_built,
    previous,
    promote,
    release_of,
    require_kept,
    rollback,
)
from reembed.store.records import checked
from reembed.store.storage import Storage, absolute_queries
from reembed.table.provenance import verification_path

if TYPE_CHECKING:
    from reembed.lifecycle.verify import Journal
    from reembed.source.dataset import Source

_JOURNAL = "verifying.json"


def catalog_of(config: Config) -> Catalog:
    """The alias under its root, which must be there.

    Raises:
        UsageError: the root does not exist.
    """
    storage = Storage.existing(config.storage.root, config.storage.options)
    return Catalog(storage, config.alias)


def meant(config: Config, release_id: str | None) -> str:
    """Id of the release asked for; or of the config's own, if it never served; or else of what is live.

    Raises:
        UsageError: gc removed it, or nothing was built.
    """
    catalog = catalog_of(config)
    if release_id:
        return _kept(catalog, release_id).id
    own, log = release_of(catalog, config), catalog.log()
    if own is not None and own.origin not in {step.release.origin for step in log}:
        return own.id
    if not log:
        raise none_built(catalog, None)
    return log[-1].release.id


def verify_release(
    catalog: Catalog, release_id: str, *, level: int, sample: int, resume: bool
) -> dict[str, Any]:
    """Verify a registered release again; a full report is kept in its run's folder.

    Raises:
        IntegrityError: a record, the index or a version is gone or changed; its fix builds the release again.
        NotVerified: the store, the source or the model could not be read.
    """
    release = _kept(catalog, release_id)
    try:
        return _verified(catalog, release, level=level, sample=sample, resume=resume)
    except IntegrityError as error:
        failed = {"release": release.id, "passed": False, "why": str(error), "at": now()}
        catalog.storage.write(verification_path(release.run_id), failed)
        again = Run(catalog.storage, release.run_id).rebuild
        raise IntegrityError(error.what, error.why, again) from error
    except (OSError, ValueError, BaseError, SourceError, EncoderError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        again = f"reembed verify --release {release.id} --resume     # goes on with what was not read yet"
        raise NotVerified(
            f"release {release.id} could not be verified",
            f"{type(error).__name__}: {first}",
            getattr(error, "fix", None) or again,
        ) from error


def _verified(
    catalog: Catalog, release: Release, *, level: int, sample: int, resume: bool
) -> dict[str, Any]:
    import numpy as np

    from reembed.index import files as index_store
    from reembed.lifecycle import verify
    from reembed.source.lag import behind, newest_of
    from reembed.table import provenance
    from reembed.table.read import TableVersion
    from reembed.table.write import read_sealed

    storage, run = catalog.storage, Run(catalog.storage, release.run_id)
    provenance.require_manifest(storage, release)
    manifest = index_store.read_manifest(storage.store, release.index, release.index_sha256)
    provenance.require_index(release, manifest)
    with_index = level >= verify.ROWS
    index = index_store.load(storage.store, release.index, manifest) if with_index else None
    sealed = read_sealed(run, release.table, release.table_version)
    provenance.require_sealed(release, sealed.sha256)
    source = _equalled(catalog, release, read=level >= verify.IDS)
    newest, why = newest_of(source)
    moved_on = newest is not None and not newest.is_same(source)
    subject = verify.Subject(
        source,
        TableVersion(storage, release.table, release.table_version, release.space.dim),
        release.space,
        release.encoder,
        tuple(d.doc_id for d in sealed.dead_letters),
        np.sort(index.ids()) if index else None,
        sealed.proofs,
        release.table_manifest,
        newest if moved_on and level >= verify.IDS else None,
        release.origin,
    )
    key = {
        "table_version": release.table_version,
        "source": [source.version, subject.newest.version if subject.newest else None],
        "level": level,
        "sample": sample,
    }
    journal = _journal(run, key, resume=resume)
    failed = _failed_before(storage, run)
    # The rows that were found wrong are looked at again: others would say nothing of them.
    found = verify.verify(subject, sample, failed.get("seed"), level=level, journal=journal)
    standing = behind(source, newest, found.lacking, why)
    report = {"release": release.id, **found.to_json(), "lag": standing.to_json()}
    storage.remove(run.path(_JOURNAL))
    enough = level >= max(verify.ROWS, failed.get("level", 0))
    counts = not report["passed"] or (enough and report["sampled"] >= failed.get("sampled", 0))
    if counts:
        storage.write(verification_path(run.id), report)
    larger = _as_large(release, failed) if failed and not counts else None
    return {**report, "rebuild": run.rebuild, "larger": larger}


def _as_large(release: Release, failed: Mapping[str, Any]) -> str:
    """The verification whose passing replaces one that failed."""
    level, sample = max(failed.get("level", 3), 2), failed.get("sampled", 0)
    return f"reembed verify --release {release.id} --level {level} --sample {sample}"


def _failed_before(storage: Storage, run: Run) -> Mapping[str, Any]:
    """The newest verification, if it failed; a damaged record of it is replaced by the next one."""
    try:
        record = storage.read_if_there(verification_path(run.id))
        return {} if record is None or checked(VerifyRecord, record)["passed"] else record
    except IntegrityError:
        return {}


def is_fresh(report: dict[str, Any], within_s: float) -> bool:
    """Whether nothing that a verified release lacks was written longer ago than this.

    Raises:
        NotVerified: the newest version of the source could not be read.
    """
    lag = report["lag"]
    if lag["newest"] is None:
        raise NotVerified(
            f"how far release {report['release']} is behind its source is not known",
            lag["why"],
            "reembed verify --level 0     # without --fresh-within",
        )
    if lag["documents"] == 0:
        return True
    return lag["seconds"] is not None and bool(lag["seconds"] < within_s)


def _equalled(catalog: Catalog, release: Release, *, read: bool) -> Source:
    """The version of the source that the release must equal: what it was last caught up with.

    Raises:
        SourceError: it is to be read, and neither that nor what the release was made from is there.
    """
    from reembed.source.dataset import Source
    from reembed.source.lag import caught_up

    made_from = Source.of(release.source, catalog.storage.options)
    noted = caught_up(catalog, release)
    if not read or noted.is_as_planned(noted):
        return noted
    if made_from.is_as_planned(release.source):
        return made_from
    raise SourceError(
        f"version {made_from.version} of {made_from.uri} is gone, or another dataset took its place",
        "nothing is left that the release could be compared with",
        f"reembed catch-up {release.id}     # compares every row with what is there now",
    )


def _journal(run: Run, key: dict[str, Any], *, resume: bool) -> Journal:
    """What an interrupted verification of the same kind had done, if it is asked for."""
    from reembed.lifecycle.verify import Journal, JournalRecord

    kept = run.storage.read_if_there(run.path(_JOURNAL)) if resume else None
    done = checked(JournalRecord, kept)["done"] if kept is not None and kept["key"] == key else {}
    return Journal(
        done, lambda done: run.storage.write(run.path(_JOURNAL), {"key": key, "done": done})
    )


def compare_candidate(
    config: Config, release_id: str | None, say: Listener, asked: Asked
) -> dict[str, Any]:
    """Compare the candidate with what is live; the record and its HTML report are kept for good.

    Raises:
        UsageError: the judged queries changed since the plan, and no flag accepts that.
    """
    from reembed.evaluation import report
    from reembed.evaluation.compare import compare

    catalog = catalog_of(config)
    live = catalog.require_live()
    chosen = candidate(catalog, config, release_id)
    configured = absolute_queries(config.gate)
    record = compare(catalog, live.release, chosen, configured, asked)
    read = configured.model_dump(include=comparisons.PLACE) == record["queries"]["place"]
    judged = comparisons.PLACE if read else set()
    planned = FrozenGate(**record["planned_gate"])
    changed = changed_settings(
        "gate",
        planned.settings.model_dump(exclude=judged),
        configured.model_dump(exclude=judged),
    )
    if changed:
        say("ignored", settings=changed)
    record, page = comparisons.keep(catalog, live.release, chosen, record)
    catalog.storage.write_bytes(page, report.html(record, chosen, catalog.log()).encode())
    return {**record, "report": catalog.storage.uri(page)}


def promote_release(
    config: Config,
    release_id: str | None,
    reasons: Reasons,
    *,
    catch_up: bool,
    say: Listener,
) -> dict[str, Any]:
    """Catch up with the source, promote, and say what is still missing.

    The gate is asked first: a release that may not become live is not worth a pass.
    """
    from reembed.strategies import catch_up as strategy

    catalog = catalog_of(config)
    before = catalog.live()
    chosen = candidate(catalog, config, release_id)
    admissible(catalog, chosen, before, reasons)
    if catch_up and config.source.version is None:
        try:
            chosen = strategy.catch_up(config, newest_of(catalog, chosen), say)
        except SourceError as error:
            again = f"reembed promote {chosen.id} --no-catch-up{reasons.flags}"
            fix = f"{again}     # documents changed since the build are missing"
            raise SourceError(error.what, error.why, fix) from error
    record = promote(
        catalog,
        chosen.id,
        force_reason=reasons.force,
        initial_reason=reasons.initial,
        decided_on=before,
    )
    return _moved(before, record, catalog)


def catch_up_release(
    config: Config, which: str, say: Listener, *, retry_dead_letters: bool
) -> dict[str, Any]:
    """Bring live, previous or a release by id up to date; live moves on to the result.

    Raises:
        Conflict: live was rolled back to older documents of its model, before or meanwhile.
    """
    from reembed.strategies import catch_up as strategy

    catalog = catalog_of(config)
    began, chosen = catalog.live(), _named(catalog, which)
    newest = newest_of(catalog, chosen)
    if which == "live" and began is not None:
        _require_not_undone(catalog, began, newest)
    newest = strategy.catch_up(config, newest, say, retry_dead_letters=retry_dead_letters)
    before = catalog.live()
    serves = before is not None and before.release.origin == newest.origin
    record = follow(catalog, newest, decided_on=began) if serves else None
    moved = record is not None and before is not None and record.token != before.token
    newest = record.release if record else newest
    return {
        "alias": catalog.alias,
        "from": chosen.id,
        "to": newest.id,
        "rows": newest.rows,
        "dead_letters": newest.dead_letters,
        "generation": record.generation if record and moved else None,
        "serves": serves,
        "behind": _behind(catalog, newest),
    }


def _require_not_undone(catalog: Catalog, live: AliasRecord, newest: Release) -> None:
    """Refuse to catch up live after a rollback to older documents of its line.

    Raises:
        Conflict: `newest`, of the same line, has newer documents than what was rolled back to.
    """
    if live.action != "rollback" or newest.id == live.release.id:
        return
    reason = f": {live.grounds.reason}" if live.grounds.reason else ""
    raise Conflict(
        f"{catalog.alias} was rolled back to {live.release.id} at {live.at}{reason}",
        f"{newest.id} has its model and newer documents, and a catch-up of live would go there",
        f"reembed catch-up {shlex.quote(live.release.id)}     # goes there all the same",
    )


def dead_letters(config: Config, which: str | None) -> dict[str, Any]:
    """Documents without a vector, by id and reason: of a release, or of a run as far as it got.

    `which` is live, previous, a release or an unfinished run; None: the newest unfinished run that
    has some, or else what `verify` takes.

    Raises:
        UsageError: no release and no run has that id, or nothing was built.
        IntegrityError: the record of the release's table is not the one it was made with.
    """
    from reembed.table import provenance
    from reembed.table.write import read_sealed

    catalog = catalog_of(config)
    if (unfinished := _of_unfinished(catalog, which)) is not None:
        return unfinished
    release = _named(catalog, which or meant(config, None))
    sealed = read_sealed(Run(catalog.storage, release.run_id), release.table, release.table_version)
    provenance.require_sealed(release, sealed.sha256)
    found = [vars(d) for d in sealed.dead_letters]
    return _dead_letters(release.id, release.source.version, found) | {"finished": True}


def _of_unfinished(catalog: Catalog, which: str | None) -> dict[str, Any] | None:
    """Dead letters so far of the run asked for, or of the newest that has some; None: no such run."""
    for run in reversed(open_runs(catalog.storage, catalog.alias)):
        if which not in (None, run.id) or not (plan := run.plan()):
            continue
        found = [asdict(d) for r in run.receipts() for d in r.dead_letters]
        found += plan.base.dead_letters if plan.base else ()
        if found or which:
            return _dead_letters(run.id, plan.source.version, found) | {"finished": False}
    return None


def _dead_letters(of: str, version: int, found: list[dict[str, Any]]) -> dict[str, Any]:
    shown = [{"doc_id": d["doc_id"], "reason": d["reason"]} for d in found]
    return {"of": of, "source_version": version, "count": len(found), "dead_letters": shown}


def _named(catalog: Catalog, which: str) -> Release:
    if which == "live":
        return catalog.require_live().release
    if which == "previous":
        stood = previous(catalog, catalog.require_live())
        if stood is None:
            raise UsageError(f"{catalog.alias} has no previous release", None, "reembed history")
        return catalog.release(stood)
    return _kept(catalog, which)


def rollback_release(catalog: Catalog, to: str | None, reason: str | None) -> dict[str, Any]:
    """Roll back, and say what the old release lacks."""
    steps = catalog.last_steps()
    record = rollback(catalog, to, reason=reason, steps=steps)
    return _moved(steps[0], record, catalog)


def search(
    catalog: Catalog, queries: list[str], k: int, release_id: str | None, show: list[str]
) -> dict[str, Any]:
    """The k best documents of each query in one release."""
    from reembed.serving.live import OpenRelease, require_carried

    if own := [c for c in show if c in RESERVED_COLUMNS]:
        shown = [word for c in show if c not in own for word in ("--show", c)]
        chosen = ["--release", release_id] if release_id else []
        raise UsageError(
            f"{', '.join(own)} is not a carried column",
            "every result has its doc_id; the other columns of reembed's own are not shown",
            shlex.join(["reembed", "search", "-k", str(k), *chosen, *shown, "--", *queries]),
        )
    release = _kept(catalog, release_id) if release_id else catalog.require_live().release
    require_carried(release, show)
    results = OpenRelease.open(catalog.storage, release).search(queries, k, show)
    hits = [
        [
            {"doc_id": h.doc_id, "score": round(h.score, 6), "columns": _finite(h.columns)}
            for h in hits
        ]
        for hits in results
    ]
    return {
        "release": release.id,
        "model": release.space.model,
        "space": release.space.id,
        "results": [{"query": q, "hits": h} for q, h in zip(queries, hits, strict=True)],
    }


def _finite(value: Any) -> Any:
    """The value with null for what JSON has no number for, at every depth."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _kept(catalog: Catalog, release_id: str) -> Release:
    release = catalog.release(release_id)
    require_kept(catalog, release)
    return release


def _moved(before: AliasRecord | None, record: AliasRecord, catalog: Catalog) -> dict[str, Any]:
    return {
        "alias": catalog.alias,
        "action": record.action,
        "generation": record.generation,
        "from": before.release.id if before else None,
        "to": record.release.id,
        "model": record.release.space.model,
        "reason": record.grounds.reason,
        "forced": record.grounds.forced,
        "comparison": record.grounds.comparison,
        "unknown": record.grounds.unknown,
        "behind": _behind(catalog, record.release),
    }


def _behind(catalog: Catalog, release: Release) -> dict[str, Any]:
    """How far the source has moved since the release was caught up with it.

    The alias has already moved, so a source that cannot be read is reported, not raised.
    """
    from reembed.source.lag import Lag, lag

    try:
        return lag(catalog, release).to_json()
    except (ReembedError, OSError, BaseError) as error:
        why = str(error).splitlines()[0]
        return Lag(int(release.source.version), None, None, None, why).to_json()

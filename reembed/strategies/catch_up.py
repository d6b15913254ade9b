"""Catch up: bring a release to its source's newest version, embedding only what has another text.

changes -> embed -> keep -> table -> index -> verify -> release. The table's new version shares every
fragment that nothing left; a fragment that lost rows is written again without them, vectors as they
were. So no row of a version ever depends on a deletion file, and every file is proven by a receipt.
The index is built by the settings that its line's was built by: the gate judged that one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from reembed import encoders
from reembed.catalog.index_manifest import read_manifest
from reembed.catalog.lease import driving, is_driven
from reembed.catalog.plan import Base, EmbedRows, KeepFragment, Plan, RefreshRows, Unit
from reembed.catalog.releases import Catalog, Release, line_of, place_in_line
from reembed.catalog.runs import Run, find_runs, open_runs
from reembed.clock import now
from reembed.config.settings import Config
from reembed.engine.executor import Executor, RayExecutor
from reembed.engine.progress import Listener, changed_settings
from reembed.errors import IntegrityError, TooManyDeadLetters
from reembed.source.dataset import Source
from reembed.source.lag import caught_up, lag, newest_of, note, noted_place
from reembed.store.storage import Storage, storage_errors
from reembed.strategies import preflight
from reembed.strategies.changes import Changes, find_changes
from reembed.strategies.steps import (
    Work,
    build_index,
    embed_documents,
    embed_planned_otherwise,
    keep_rows,
    register,
    seal,
    stopping,
    tell_plan,
    verified,
)
from reembed.table import provenance
from reembed.table import write as table
from reembed.table.read import TableVersion
from reembed.table.write import read_sealed

_PASSES = 4


def catch_up(
    config: Config,
    release: Release,
    say: Listener,
    *,
    retry_dead_letters: bool = False,
    executor: Executor | None = None,
) -> Release:
    """The newest release that `release` grew into; itself when no document differs.

    While others write, a pass ends on a version that is no longer the newest: a few passes are made,
    each over what came in during the one before; `lag` says what is left.

    Raises:
        SourceError: the source is gone, or its columns changed.
        SpaceMismatch: the model is no longer the one of this release.
        IntegrityError: the release is not verified, or its data is not as it was written.
        Conflict: another process is catching up with the same version.
        RunFailed: it stopped; the same command resumes it.
    """
    on = executor or RayExecutor()
    retry = retry_dead_letters
    for _ in range(_PASSES):
        unfinished = _unfinished(_catalog(config), release)
        newer = _pass(config, release, say, on, unfinished, retry=retry)
        if newer is None:
            break
        if newer is not release:
            retry = retry and _leaves_dead_letters(unfinished)
        release = newer
    say("lag", release=release.id, **lag(_catalog(config), release).to_json())
    return release


def _pass(
    config: Config,
    release: Release,
    say: Listener,
    on: Executor,
    unfinished: Run | None,
    *,
    retry: bool,
) -> Release | None:
    """One pass, or the end of one that was interrupted; None when nothing is left to do.

    One that failed before and fails again gives way to a newer version of the source: it is abandoned,
    and `release` itself is returned.
    """
    catalog = _catalog(config)
    # What stays is taken over as it is, and the next release's sample may miss what is wrong with it.
    provenance.require_verified(catalog.storage, release)
    run, changes = unfinished, None
    if run is None:
        before, number = caught_up(catalog, release), _next_number(catalog, release)
        after = before.newest()  # after the number was taken: a later number has newer documents
        if after.is_same(before) and not retry:
            return None
        after.check_documents()
        changes = _changes(catalog, release, before, after, retry=retry)
        say("changes", **_figures(changes), before=before.version, after=after.version)
        if not changes.documents:
            note(catalog, release, number, after)
            return None
        preflight.require_changed_texts(config, release, after, changes, say)
        run = Run(catalog.storage, f"{release.origin}-u{after.version}-{number}")
    with driving(run):
        plan = run.plan()
        if plan is None:
            assert changes is not None  # an unfinished run is found by its plan
            plan = _write_plan(run, config.embed.unit_documents, release, after, changes, say)
        try:
            return _carry_out(config, run, plan, say, on)
        except (TooManyDeadLetters, IntegrityError) as error:
            # What is wrong with that version may be right in a newer one: do not insist on it. The
            # first time it is kept, as the fix that was named needs what is staged.
            planned = Source(plan.source, config.stores.source)
            newest, _ = newest_of(planned)
            if unfinished is None or newest is None or newest.is_same(planned):
                raise
            run.abandon()
            say("begin", what=f"{error.what}: given up for what came after {planned.version}")
            return release


def _leaves_dead_letters(run: Run | None) -> bool:
    """Whether a pass that was interrupted had been planned to leave dead letters as they were."""
    plan = run.plan() if run else None
    return bool(plan and plan.base and plan.base.dead_letters)


def _carry_out(config: Config, run: Run, plan: Plan, say: Listener, on: Executor) -> Release:
    source = Source(plan.source, config.stores.source)
    here = encoders.describe(plan.encoder, plan.space.vector_dtype)
    plan.space.require(here, f"run {run.id} embeds with the model of its release")
    preflight.require_rights(run.storage, plan)
    preflight.require_room(run, plan, source, say)
    config = _as_planned(config, plan, say)
    with on.connected(config) as connected, stopping(say) as stop:
        say("ray", where=connected.where)
        work = Work(run, plan, source, config, connected, say, stop)
        embed_documents(work)
        keep_rows(work)
        sealed = seal(work)
        manifest = build_index(work, sealed)
        receipt = verified(work, sealed, manifest)
    return register(work, sealed, manifest, receipt)


def _as_planned(config: Config, plan: Plan, say: Listener) -> Config:
    """The config with its line's index settings, on this machine's device.

    Reports the other settings that the plan fixed.
    """
    index = plan.index.model_copy(update={"device": config.index.device})
    changed = changed_settings("index", index.model_dump(), config.index.model_dump())
    if changed := changed + embed_planned_otherwise(plan, config):
        say("ignored", settings=changed)
    return config.model_copy(update={"index": index})


def _catalog(config: Config) -> Catalog:
    storage = Storage.open(config.storage.root, config.storage.options)
    return Catalog(storage, config.alias, config.stores)


def _unfinished(catalog: Catalog, release: Release) -> Run | None:
    """A pass over this release that was interrupted; those whose source was replaced are given up."""
    for run in reversed(open_runs(catalog.storage, catalog.alias)):
        if not run.is_catch_up:
            continue
        plan = run.plan()
        if plan is None or plan.base is None or plan.base.release != release.id:
            continue
        source = Source(plan.source, catalog.source_options)
        if source.is_as_planned(plan.source):
            return run
        source.newest()  # away for a moment, and not replaced: raises
        if not is_driven(run):
            run.abandon()
    return None


def _next_number(catalog: Catalog, release: Release) -> int:
    """Of the next catch-up of a line; runs' ids begin with the line's, so that lines never share one."""
    runs = [r for r in find_runs(catalog.storage, catalog.alias) if line_of(r.id) == release.origin]
    taken = [place_in_line(r.id)[0] for r in runs if r.is_catch_up and r.plan() is not None]
    return max([*taken, noted_place(catalog, release)[0]]) + 1


def _changes(
    catalog: Catalog, release: Release, before: Source, after: Source, *, retry: bool
) -> Changes:
    sealed = read_sealed(Run(catalog.storage, release.run_id), release.table, release.table_version)
    provenance.require_sealed(release, sealed.sha256)
    provenance.require_files(catalog.storage, release)
    dead = [vars(d) for d in sealed.dead_letters]
    failed = f"{release.table} of release {release.id} could not be compared with {after.uri}"
    with storage_errors(failed, f"reembed verify --release {release.id}"):
        return find_changes(before, after, _vectors(catalog.storage, release), dead, retry=retry)


def _vectors(storage: Storage, release: Release) -> TableVersion:
    return TableVersion(storage, release.table, release.table_version, release.space.dim)


def _write_plan(
    run: Run,
    unit_documents: int,
    release: Release,
    source: Source,
    changes: Changes,
    say: Listener,
) -> Plan:
    pinned = source.pin(run.pin_tag)
    built = read_manifest(run.storage, release.index, release.index_sha256)
    vectors = _vectors(run.storage, release)
    held = {f.fragment_id: f.count_rows() for f in vectors.dataset().get_fragments()}
    staying = tuple(f for f in held if f not in changes.dropped)
    plan = run.write_plan(
        Plan(
            kind="catch_up",
            run_id=run.id,
            alias=release.alias,
            space=release.space,
            encoder=release.encoder,
            source=source.ref,
            table=release.table,
            base_version=table.newest_version(run.storage, release.table),
            gate=release.gate,
            index=built.settings,
            rows=len(changes.embed),
            units=list(_units(vectors, changes, unit_documents)),
            created_at=now(),
            base=Base(
                release=release.id,
                run_id=release.run_id,
                origin=release.origin,
                table_version=release.table_version,
                fragments=staying,
                rows=sum(held[f] for f in staying),
                dead_letters=changes.dead_letters,
                how=changes.how,
            ),
        )
    )
    tell_plan(run, plan, say, pinned=pinned, **_figures(changes))
    return plan


def _units(vectors: TableVersion, changes: Changes, size: int) -> Iterator[Unit]:
    """Documents to embed, documents to refresh, and what stays of fragments that lost rows."""
    for start in range(0, len(changes.embed), size):
        rows = tuple(changes.embed[start : start + size].tolist())
        yield EmbedRows(f"embed-{start:09d}", rows)
    for start in range(0, len(changes.refresh), size):
        rows = tuple(changes.refresh[start : start + size].tolist())
        held = tuple(changes.refreshed[start : start + size].tolist())
        yield RefreshRows(f"refresh-{start:09d}", rows, held)
    counts = {f.fragment_id: f.count_rows() for f in vectors.dataset().get_fragments()}
    for fragment, dropped in changes.dropped.items():
        left = counts[fragment] - len(dropped)
        if left:
            rows = tuple(dropped.tolist())
            yield KeepFragment(f"keep-{fragment:06d}", fragment, left, rows)


def _figures(changes: Changes) -> dict[str, Any]:
    return {
        "documents": changes.documents,
        "embed": len(changes.embed),
        "refresh": len(changes.refresh) - changes.copied,
        "copied": changes.copied,
        "removed": changes.removed,
        "how": changes.how,
    }

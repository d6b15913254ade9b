"""Full rebuild: embed every document in a new space and index it. Nothing that is served changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml
from obstore.exceptions import BaseError

from reembed import encoders
from reembed.catalog.index_manifest import read_manifest
from reembed.catalog.lease import driving, is_driven
from reembed.catalog.plan import Plan
from reembed.catalog.releases import Catalog, Release
from reembed.catalog.runs import Run, find_runs
from reembed.clock import now
from reembed.config.settings import Config, EncoderConfig, FrozenGate
from reembed.engine import reuse
from reembed.engine.executor import Executor, RayExecutor
from reembed.engine.progress import Changed, Listener, changed_settings
from reembed.errors import Conflict, ReembedError
from reembed.evaluation import queries as evalset
from reembed.source.dataset import Source
from reembed.space import Space
from reembed.store.storage import Storage, absolute
from reembed.strategies import preflight
from reembed.strategies.steps import (
    Work,
    build_index,
    embed_documents,
    embed_planned_otherwise,
    register,
    seal,
    stopping,
    tell_plan,
    verified,
)
from reembed.table import write as table


def full_rebuild(
    config: Config, say: Listener, *, fresh: bool = False, executor: Executor | None = None
) -> Release:
    """source -> embed -> table -> index -> verify -> candidate release; resumes an unfinished run.

    Raises:
        SourceError, EncoderError, ConfigError: before anything is embedded.
        Conflict: another process drives this run.
        RunFailed: it stopped; the same command resumes it.
    """
    storage = Storage.open(config.storage.root, config.storage.options)
    catalog = Catalog(storage, config.alias, config.stores)
    source = Source.open(config)
    say("begin", what=f"reading the model's files: {config.encoder.model}")
    space = encoders.describe(config.encoder, config.table.dtype)
    gate = evalset.freeze(config.gate, dict(config.stores.queries))
    run = choose_run(config, catalog, source, space, fresh=fresh)
    with driving(run), _given_up_unless_planned(run):
        if (release := finished(run, catalog)) is not None:
            say("already", run=run.id, release=release.id)
            _say_ignored(
                [
                    *_planned_otherwise(run.plan(), config, gate),
                    *_built_otherwise(release, run, config),
                ],
                say,
            )
            return release
        plan = make_plan(run, config, gate, source, space, say)
        source = Source(plan.source, config.stores.source)
        preflight.require_rights(storage, plan)
        preflight.require_room(run, plan, source, say)
        executor = executor or RayExecutor()
        say("begin", what=f"starting {executor.where}")
        with executor.connected(config) as on, stopping(say) as stop:
            say("ray", where=on.where)
            work = Work(run, plan, source, config, on, say, stop)
            embed_documents(work)
            sealed = seal(work)
            manifest = build_index(work, sealed)
            receipt = verified(work, sealed, manifest)
        return register(work, sealed, manifest, receipt)


@contextmanager
def _given_up_unless_planned(run: Run) -> Iterator[None]:
    """A run that is refused before it has a plan leaves nothing to go on with."""
    try:
        yield
    except ReembedError:
        with suppress(OSError, BaseError):  # a full disk must not hide what was refused
            if run.plan() is None:
                run.abandon()
        raise


def choose_run(
    config: Config, catalog: Catalog, source: Source, space: Space, *, fresh: bool
) -> Run:
    """The unfinished run of these settings, the finished one of this source version, or a new one.

    Run ids follow from the settings and the source version, so that two processes started at once
    mean the same run, and one of them is told so.
    """
    prefix = config.run_prefix(source.uri)
    runs = find_runs(catalog.storage, config.alias)
    mine = [r for r in runs if r.id.startswith(prefix) and not r.is_catch_up]
    at_version = [r for r in mine if r.id.startswith(f"{prefix}{source.version}-")]
    last = mine[-1].number[0] if mine else 0
    new = Run(catalog.storage, f"{prefix}{source.version}-{last + 1}")
    if fresh:
        if (
            driven := next((r for r in mine if r.result() is None and is_driven(r)), None)
        ) is not None:
            raise Conflict(
                f"run {driven.id} of the same settings is being driven",
                "starting over beside it would embed everything twice at once",
                "reembed status",
            )
        for run in mine:
            if run.result() is None:
                run.abandon()
        return new
    candidates = at_version if config.source.version else mine
    unfinished = [r for r in candidates if r.result() is None]
    for run in reversed(unfinished):
        plan = run.plan()
        # One without a plan holds nothing; while it is driven, its plan is being made.
        if source.is_as_planned(plan.source) if plan else run in at_version or is_driven(run):
            return run
    complete = [r for r in at_version if _is_complete(r, catalog, source, space)]
    return complete[-1] if complete else new


def _is_complete(run: Run, catalog: Catalog, source: Source, space: Space) -> bool:
    """Whether the run ended in a release of this source and space that gc has not removed."""
    plan, result = run.plan(), run.result() or {}
    if plan is None or not result.get("release") or catalog.is_retired(result["release"]):
        return False
    return plan.space.id == space.id and plan.source.fingerprint == source.ref.fingerprint


def finished(run: Run, catalog: Catalog) -> Release | None:
    """The release this run ended in, if it did."""
    result = run.result()
    return catalog.release(result["release"]) if result and result["release"] else None


def make_plan(
    run: Run, config: Config, gate: FrozenGate, source: Source, space: Space, say: Listener
) -> Plan:
    """Fix what the run does, create-only; a resumed run keeps the plan it has.

    Raises:
        SpaceMismatch: the model is no longer the one the run was planned with.
    """
    plan = run.plan()
    if plan is not None:
        plan.space.require(
            space, f"run {run.id} was planned with another model (use --fresh to start over)"
        )
        _say_ignored(_planned_otherwise(plan, config, gate), say)
        say(
            "resume",
            run=run.id,
            staged=len(run.staged()),
            units=len(plan.units),
            source=plan.source,
        )
        return plan
    say("begin", what=f"reading every id of {source.uri} version {source.version}")
    rows = source.check_documents()
    if source.ref.filter is not None:
        say("begin", what=f"source.filter keeps {rows:,} of {source.count_rows():,} rows")
    preflight.require_texts(config, source, rows, say)
    pinned = source.pin(run.pin_tag)
    path = table.path_of(config.alias, space)
    units = source.units(config.embed.unit_documents, config.embed.actors)
    # First: what names a planned run's settings finds them.
    run.storage.write_bytes(run.path("config.yaml"), yaml.safe_dump(config.shown()).encode())
    plan = run.write_plan(
        Plan(
            kind="rebuild",
            run_id=run.id,
            alias=config.alias,
            space=space,
            encoder=_portable(config.encoder),
            source=source.ref,
            table=path,
            base_version=table.ensure_table(
                run.storage, path, table.schema(space, *source.schema())
            ),
            gate=gate,
            index=config.index,
            rows=rows,
            units=units,
            created_at=now(),
            reuse=config.embed.reuse,
            donors=reuse.find_donors(Catalog(run.storage, config.alias), space.id, say)
            if config.embed.reuse
            else (),
        )
    )
    _require_donors(run, plan)
    # gc may have taken the table, empty and of no run, between making it and naming it in the plan.
    table.ensure_table(run.storage, path, table.schema(space, *source.schema()))
    tell_plan(run, plan, say, pinned=pinned)
    if not config.gate.queries:
        say(
            "begin", what="no judged queries (gate.queries): `compare` will ask for them; embedding"
        )
    return plan


def _require_donors(run: Run, plan: Plan) -> None:
    """gc marks a release, then looks for plans that name it; this plan was written, now look for marks.

    Raises:
        Conflict: gc is removing a release that the plan copies from.
    """
    for donor in plan.donors:
        if Catalog(run.storage, donor.alias).is_retired(donor.release):
            run.abandon()
            raise Conflict(
                f"gc removed release {donor.release} while run {run.id} was planned",
                "its vectors were to be copied; the next run is planned without it",
                "reembed run",
            )


def _portable(section: EncoderConfig) -> EncoderConfig:
    """A relative model folder made absolute: the release must find it from anywhere."""
    if Path(section.model).expanduser().is_dir():
        return section.model_copy(update={"model": absolute(section.model)})
    return section


def _say_ignored(changed: list[Changed], say: Listener) -> None:
    if changed:
        say("ignored", settings=changed)


def _planned_otherwise(plan: Plan | None, config: Config, gate: FrozenGate) -> list[Changed]:
    """Settings that were fixed when the run was planned, and are different now.

    The gate is one of them, and so is what its judged queries hold.
    """
    if plan is None:
        return []
    changed = changed_settings("gate", plan.gate.model_dump(), gate.model_dump())
    return changed + embed_planned_otherwise(plan, config)


def _built_otherwise(release: Release, run: Run, config: Config) -> list[Changed]:
    """Settings that a release was built by, and are different now.

    Raises:
        IntegrityError: its index has no manifest, or a damaged one.
    """
    built = read_manifest(run.storage, release.index, release.index_sha256)
    changed = changed_settings("index", built.settings.model_dump(), config.index.model_dump())
    if release.dead_letters > config.embed.max_dead_letters:
        changed.append(
            ("embed.max_dead_letters", release.dead_letters, config.embed.max_dead_letters)
        )
    return changed

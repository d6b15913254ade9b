"""Choose the run that a rebuild resumes, and plan a new one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import yaml
from obstore.exceptions import BaseError

from reembed import encoders, faults
from reembed.catalog.index_manifest import read_manifest
from reembed.catalog.lease import is_driven
from reembed.catalog.lines import Place
from reembed.catalog.plan import Donor, Plan
from reembed.catalog.releases import Catalog, Release
from reembed.catalog.runs import Run
from reembed.clock import now
from reembed.config.gate import FrozenGate
from reembed.config.settings import Config, changed_settings
from reembed.engine import reuse
from reembed.engine.executor import Executor
from reembed.errors import Conflict, ReembedError
from reembed.evaluation import queries as evalset
from reembed.events import AlreadyBuilt, ChangedSetting, Listener, Notice, Working
from reembed.index.train import require_factory
from reembed.lifecycle.scratch import Scratch
from reembed.planning.unit_size import unit_documents
from reembed.source.dataset import Source
from reembed.space import Space
from reembed.store.paths import from_anywhere
from reembed.strategies import preflight
from reembed.strategies.context import (
    embed_settings_changed,
    emit_ignored,
    planned,
    resumed,
)
from reembed.strategies.differing import Comparing, at_work
from reembed.strategies.index_kind import changed_index_settings
from reembed.strategies.unique_ids import check_ids
from reembed.table import write as table
from reembed.table.vector_model import require_kind


@dataclass(frozen=True)
class Wanted:
    """The settings, documents, space and gate of a rebuild, as they are now."""

    config: Config
    catalog: Catalog
    source: Source
    space: Space
    gate: FrozenGate

    @classmethod
    def read(cls, config: Config, catalog: Catalog, emit: Listener) -> Wanted:
        """Open the source and read the model's files and the judged queries; raise what each of them raises."""
        source = Source.open(config)
        emit(Working(f"reading the model's files: {config.encoder.model}"))
        space = encoders.describe(config.encoder, config.table.dtype)
        fits = require_kind if config.index.kind == "lance" else require_factory
        fits(config.index.factory, space.dim)
        gate = evalset.freeze(config.gate, dict(config.stores.queries))
        return cls(config, catalog, source, space, gate)


def choose_run(wanted: Wanted, *, fresh: bool) -> Run:
    """Return the unfinished run of these settings, the finished one of this source version, or a new one.

    The id of a new run follows from the settings, the source version and the runs before it: two
    processes started at once choose the same run, and the second is refused.

    Raises:
        Conflict: `fresh`, and another process drives a run of these settings.
    """
    config, catalog, source = wanted.config, wanted.catalog, wanted.source
    settings = config.line_settings(source.uri)
    rebuilds = [e for e in catalog.entries() if e.place.settings == settings and e.id == e.origin]
    mine = [Run(catalog.storage, e.id) for e in rebuilds]
    at_version = [Run(catalog.storage, e.id) for e in rebuilds if e.place.version == source.version]
    name = f"{config.alias}-{settings}-v{source.version}-{len(mine) + 1}"
    new = Run(catalog.storage, name)
    if fresh:
        abandon_unfinished(catalog, mine)
        return new
    candidates = at_version if config.source.version else mine
    unfinished = [r for r in candidates if r.result() is None and catalog.registered(r) is None]
    for run in reversed(unfinished):
        plan = run.plan()
        if plan is not None and source.is_as_planned(plan.source):
            return run
        # A run without a plan holds nothing; while it is driven, its plan is being made.
        if plan is None and (run in at_version or is_driven(run)):
            return run
    complete = [r for r in at_version if _is_complete(r, wanted)]
    return complete[-1] if complete else new


def place_of(run: Run, wanted: Wanted) -> Place:
    """Return the place of a rebuild: it begins a line."""
    source = wanted.source
    return Place(wanted.config.line_settings(source.uri), run.id, 0, source.version)


def abandon_unfinished(catalog: Catalog, runs: list[Run]) -> None:
    """Give up those of the runs that have no result; Conflict if one of them is being driven."""
    unfinished = [r for r in runs if r.result() is None and catalog.registered(r) is None]
    if (driven := next(filter(is_driven, unfinished), None)) is not None:
        raise Conflict(
            f"run {driven.id} of the same settings is being driven",
            "starting over at the same time would embed everything twice",
            "reembed status",
        )
    for run in unfinished:
        run.abandon()


def _is_complete(run: Run, wanted: Wanted) -> bool:
    """Whether the run ended in a release of this source and space that gc has not removed."""
    plan, result = run.plan(), run.result()
    if plan is None or result is None or not result.release:
        return False
    if wanted.catalog.is_retired(wanted.catalog.release(result.release)):
        return False
    same_source = plan.source.fingerprint == wanted.source.ref.fingerprint
    return same_source and plan.space.id == wanted.space.id


@contextmanager
def abandoned_unless_planned(run: Run) -> Iterator[None]:
    """Give up a run that is refused in the block before it has a plan: nothing could be resumed."""
    try:
        yield
    except ReembedError:
        with suppress(OSError, BaseError):  # a full disk must not hide what was refused
            if run.plan() is None:
                run.abandon()
        raise


def emit_already_built(release: Release, run: Run, wanted: Wanted, emit: Listener) -> None:
    """Tell that the run is complete, and which settings differ from those it was built with."""
    emit(AlreadyBuilt(run.id, release.id))
    plan, config = run.plan(), wanted.config
    changed = _planned_otherwise(plan, wanted) if plan else []
    built = read_manifest(run.storage, release.index, release.index_sha256)
    changed += changed_index_settings(built, config.index)
    dead, allowed = release.dead_letters, config.embed.max_dead_letters
    if dead > allowed:
        changed.append(ChangedSetting("embed.max_dead_letters", dead, allowed))
    emit_ignored(changed, emit)


def make_plan(run: Run, wanted: Wanted, executor: Executor, emit: Listener) -> Plan:
    """Return the plan of the run; a new one is fixed, create-only.

    Raises:
        SourceError: documents have no id or text, or several have one id.
        SpaceMismatch: the model is no longer the one the run was planned with.
        Conflict: gc removes a release that vectors were to be copied from.
    """
    plan = run.plan()
    if plan is not None:
        planned_as = f"run {run.id} was planned with another model (use --fresh to start over)"
        plan.space.require(wanted.space, planned_as)
        emit_ignored(_planned_otherwise(plan, wanted), emit)
        emit(resumed(run, plan))
        return plan
    documents = _check_documents(run, wanted, executor, emit)
    pinned = wanted.source.pin(run.pin_tag)
    # Before the plan: messages that name a planned run's settings rely on this file.
    settings = yaml.safe_dump(wanted.config.shown())
    run.storage.write_bytes(run.path("config.yaml"), settings.encode())
    plan = _write_plan(run, wanted, documents, emit)
    emit(planned(run, plan, pinned=pinned))
    faults.point("run.after_plan")
    if not wanted.config.gate.queries:
        emit(Notice("no judged queries (gate.queries): `compare` will require them"))
    return plan


def _check_documents(run: Run, wanted: Wanted, executor: Executor, emit: Listener) -> int:
    """Check ids and texts; return how many documents there are."""
    source = wanted.source
    where = partial(at_work, wanted.config, executor, source.count_rows())
    emit(Working(f"reading every id and text of {source.uri} version {source.version}"))
    with Scratch.comparing(run) as scratch:
        checked = check_ids(source, Comparing(scratch, where), texts=True)
    if source.ref.filter is not None:
        emit(Notice(f"source.filter keeps {checked.documents:,} of {source.count_rows():,} rows"))
    preflight.require_texts(wanted.config, source, checked, emit)
    return checked.documents


def _write_plan(run: Run, wanted: Wanted, documents: int, emit: Listener) -> Plan:
    config, source, space = wanted.config, wanted.source, wanted.space
    path = table.path_of(config.alias, space)
    columns = table.schema(space, *source.schema())
    size = unit_documents(config.embed, documents, source.text_bytes(), space.dim)
    units = source.units(size, config.embed.actors)
    donors: tuple[Donor, ...] = ()
    if config.embed.reuse:
        donors = reuse.find_donors(wanted.catalog, space.id, emit)
    plan = run.write_plan(
        Plan(
            kind="rebuild",
            run_id=run.id,
            alias=config.alias,
            place=place_of(run, wanted),
            space=space,
            encoder=from_anywhere(config.encoder),
            source=source.ref,
            table=path,
            base_version=table.ensure_table(run.storage, path, columns),
            gate=wanted.gate,
            index=config.index,
            rows=sum(unit.rows for unit in units),
            documents=documents,
            units=units,
            created_at=now(),
            reuse=config.embed.reuse,
            donors=donors,
            unit_documents=size,
        )
    )
    _require_donors(run, plan)
    # gc may have taken the table, empty and of no run, between making it and naming it in the plan.
    table.ensure_table(run.storage, path, columns)
    return plan


def _require_donors(run: Run, plan: Plan) -> None:
    """Raise Conflict if gc is removing a release that the plan copies from: gc marks a release, then looks for
    plans that name it; this plan was written, now look for marks.
    """
    for donor in plan.donors:
        catalog = Catalog(run.storage, donor.alias)
        if catalog.is_retired(catalog.release(donor.release)):
            run.abandon()
            raise Conflict(
                f"gc removed release {donor.release} while run {run.id} was planned",
                "its vectors were to be copied; the next run is planned without it",
                "reembed run",
            )


def _planned_otherwise(plan: Plan, wanted: Wanted) -> list[ChangedSetting]:
    """Return settings that the plan fixed and that are different now; the judged queries are among them."""
    changed = changed_settings("gate", plan.gate.model_dump(), wanted.gate.model_dump())
    return changed + embed_settings_changed(plan, wanted.config)

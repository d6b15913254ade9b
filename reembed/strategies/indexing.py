"""Build the index of a sealed table: train once, fill shards in tasks, tune them together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import nsmallest

from reembed import digests
from reembed.catalog.index_manifest import (
    AnyManifest,
    IndexManifest,
    LanceManifest,
    Segment,
    read_manifest,
)
from reembed.catalog.plan import Plan
from reembed.catalog.runs import Run
from reembed.config.settings import Config
from reembed.errors import UsageError
from reembed.evaluation import queries as evalset
from reembed.events import Indexed, Notice, Working
from reembed.index import build as index
from reembed.index import files as index_store
from reembed.index.grow import Change, Older, grow
from reembed.index.target import TargetMissed
from reembed.store.paths import index_folder
from reembed.strategies import lance_indexing as in_lance
from reembed.strategies.context import (
    RunContext,
    base_of,
    building_index,
    emit_ignored,
    query_vectors,
)
from reembed.strategies.index_kind import changed_index_settings
from reembed.strategies.index_tasks import IndexTasks, needs_to_grow
from reembed.table.documents import rows_of
from reembed.table.read import TableVersion, added, grown
from reembed.table.seal import SealedTable

WORK = "index"
"""Folder below the run's own, for the records of the build."""
TUNING_QUERIES = 500
"""Most queries that an index is tuned on. A task holds what it found for each of them at each point of the ladder."""


@dataclass(frozen=True)
class _Job:
    """What the tasks of a build are given."""

    run: Run
    plan: Plan
    """Without its units."""
    config: Config
    build: index.Build


def build_index(context: RunContext, sealed: SealedTable) -> tuple[SealedTable, AnyManifest]:
    """Build, tune and save the index, or continue an interrupted build; or return the finished one of this sealed
    version, and name the settings that differ from those it was built by.

    Returns the version that the index belongs to, which is another one if Lance keeps it, and the manifest.

    Raises:
        UsageError: the factory does not fit, or no operating point reaches index.ann_recall.
    """
    run, config = context.run, context.config
    manifest = index_store.finished(run.storage, index_folder(run.id), sealed.version)
    if manifest is not None:
        emit_ignored(changed_index_settings(manifest, config.index), context.emit)
        return _indexed(sealed, manifest), manifest
    started = time.monotonic()
    build = _in_lance if config.index.kind == "lance" else _in_faiss
    manifest = build(context, sealed)
    context.emit(
        Indexed(
            factory=manifest.factory,
            device=manifest.device,
            rows=manifest.rows,
            shards=sum(s.kind == "base" for s in manifest.segments),
            seconds=round(time.monotonic() - started, 1),
            operating_point=manifest.operating_point,
            ann_recall_at_10=manifest.ann_recall_at_10,
            num_queries=manifest.num_queries,
            tuned_on=manifest.tuned_on,
            deltas=sum(s.kind == "delta" for s in manifest.segments),
            tombstones=manifest.buried,
        )
    )
    return _indexed(sealed, manifest), manifest


def _indexed(sealed: SealedTable, manifest: AnyManifest) -> SealedTable:
    """Return the version of the sealed rows that the index belongs to."""
    if isinstance(manifest, IndexManifest):
        return sealed
    return replace(sealed, version=manifest.table_version, tag=manifest.table_tag)


def _in_faiss(context: RunContext, sealed: SealedTable) -> IndexManifest:
    job = _job(context, sealed)
    manifest = _grown(context, job, context.vectors(sealed))
    if manifest is None:
        queries = _announced(context)
        job = replace(job, build=replace(job.build, queries=queries))
        manifest = _built_or_finer(context, sealed, job)
    return manifest


def _in_lance(context: RunContext, sealed: SealedTable) -> LanceManifest:
    table = context.vectors(sealed)
    job = in_lance.Job(context.run, context.plan.without_units(), context.config, table)
    older = _older_in_lance(context, table)
    if older is not None and not context.config.storage.erase_deleted:
        before = replace(table, version=older.manifest.table_version)
        manifest = in_lance.grown(context, job, older, added(before, table), sealed)
        if manifest is not None:
            return manifest
    if older is not None and older.rows_since > table.rows / 2:
        older = None
    job = replace(job, queries=_announced(context), trained=older)
    try:
        return in_lance.built(context, job, sealed)
    except TargetMissed as missed:
        if older is None:
            raise
        context.emit(_trained_again(missed))
        return in_lance.built(context, replace(job, trained=None), sealed)


def _announced(context: RunContext) -> tuple[str, ...]:
    """Tell that an index is built, and return the texts to tune it on."""
    context.emit(Working("building the index, and tuning it on judged queries if there are any"))
    return tuple(_tuning_texts(context))


def _older_in_lance(context: RunContext, table: TableVersion) -> in_lance.Older | None:
    """Return Lance's index of the base if it was built by the same settings."""
    plan, settings = context.plan, context.config.index
    base = base_of(table.storage, plan)
    if base is None:
        return None
    manifest = read_manifest(table.storage, base.index, base.index_sha256)
    if not isinstance(manifest, LanceManifest) or (
        (manifest.settings.factory, manifest.settings.shard_rows)
        != (settings.factory, settings.shard_rows)
    ):
        return None
    since = manifest.rows_since_training + rows_of(plan.documents)
    return in_lance.Older(base.index, manifest, since)


def _trained_again(missed: TargetMissed) -> Notice:
    return Notice(f"{missed.what}: it was trained on other vectors, and is trained again")


def _built_or_finer(context: RunContext, sealed: SealedTable, job: _Job) -> IndexManifest:
    """Build the index; one that misses its recall is trained again, or gets finer codes, if `auto` may."""
    while True:
        try:
            return _built(context, sealed, job)
        except TargetMissed as missed:
            if job.build.trained is not None:
                context.emit(_trained_again(missed))
                build = replace(job.build, trained=None)
            elif (found := job.build.finer()) is not None:
                context.emit(Notice(f"{missed.what}: {found.factory} is built instead"))
                coarser = index.required(index.prepared(job.build))
                build = replace(found, lists=coarser.trained)
            else:
                raise
            job = replace(job, build=build)


def _built(context: RunContext, sealed: SealedTable, job: _Job) -> IndexManifest:
    return index.finish(
        job.build,
        _fill(context, job),
        space=context.plan.space.id,
        table=sealed.path,
        table_version=sealed.version,
    )


def _job(context: RunContext, sealed: SealedTable) -> _Job:
    run, config = context.run, context.config
    folder, work = index_folder(run.id), run.path(WORK)
    build = index.Build(
        run.storage,
        folder,
        work,
        context.vectors(sealed),
        config.index,
        gate_recall=context.plan.gate.ann_recall,
        catch_up=context.plan.catch_up,
    )
    if (base := _base(context.plan, build)) is not None:
        build = build.like(base[1].factory)
        build = replace(build, trained=_trained(context.plan, build, *base))
    return _Job(run, context.plan.without_units(), config, build)


def _grown(context: RunContext, job: _Job, vectors: TableVersion) -> IndexManifest | None:
    """Return the index of the base, grown by what changed; None if it is built from the whole table."""
    if job.build.trained is None or context.config.storage.erase_deleted:
        return None
    needs = needs_to_grow(context.config, job.build.factory, vectors, context.executor)
    manifest = context.executor.call(_grow_task, job, vectors, needs=needs)
    if manifest is not None:
        _tell_copied(context, manifest)
    return manifest


def _tell_copied(context: RunContext, manifest: IndexManifest) -> None:
    """Tell of files that catch-ups copy through a task, as the object store does not copy them by itself."""
    large = index_store.too_large(context.run.storage, manifest.files)
    if large:
        what = f"{len(large)} of {len(manifest.files)} files of the index are larger than 5 GiB"
        context.emit(
            Notice(
                f"{what}, which each catch-up downloads and uploads; a rebuild with a lower index.shard_rows"
                " avoids it (docs/sizing.md)"
            )
        )


def _fill(context: RunContext, job: _Job) -> index.Prepared:
    """Train, and fill the shards that have no proof yet, each as a task."""
    executor, build = context.executor, job.build
    tasks = IndexTasks.of(context.config, build.factory, build.source, executor)
    prepared = index.prepared(build)
    if prepared is not None and not _unfilled(build, prepared):
        return prepared
    tasks.require_nodes(executor, context.emit, resume=context.plan.catch_up)
    if prepared is None:
        prepared = executor.call(_prepare_task, job, needs=tasks.train)
    work = [(job, prepared, number) for number in _unfilled(build, prepared)]
    executor.each(_shard_task, work, tasks.fill)
    return prepared


def _unfilled(build: index.Build, prepared: index.Prepared) -> list[int]:
    """Return the shards that have no proof yet."""
    return [n for n in range(len(prepared.shards)) if index.filled(build, n) is None]


def _tuning_texts(context: RunContext) -> list[str]:
    """Return the planned queries to tune the index on; none if they changed or cannot be read now."""
    gate = context.plan.gate
    if not gate.queries:
        return []
    instead = "the index is tuned on documents, not on queries"
    try:
        found = evalset.load(evalset.place_of(gate), dict(context.config.stores.queries))
    except UsageError as error:  # a catch-up of what serves must not depend on them
        context.emit(Notice(f"{error.what}: {instead}"))
        return []
    if found.sha256 != gate.sha256:
        context.emit(Notice(f"{found.source} is not what was planned: {instead}"))
        return []
    return sampled(found.texts)


def sampled(texts: Sequence[str]) -> list[str]:
    """Return at most TUNING_QUERIES of the texts: always the same ones, also if they come in another order."""
    if len(texts) <= TUNING_QUERIES:
        return list(texts)
    return nsmallest(
        TUNING_QUERIES,
        texts,
        key=lambda text: digests.digest(text.encode("utf-8", "surrogatepass")),
    )


def _prepare_task(job: _Job) -> index.Prepared:
    with building_index(job.run):
        queries = query_vectors(job.run, job.plan, job.config, job.build.queries)
        return index.prepare(job.build, queries)


def _grow_task(job: _Job, vectors: TableVersion) -> IndexManifest | None:
    plan, storage = job.plan, job.run.storage
    base = base_of(storage, plan)
    assert base is not None
    with building_index(job.run):
        held = read_manifest(storage, base.index, base.index_sha256)
        assert isinstance(held, IndexManifest)  # a trained index was taken from it
        older = Older(base.index, held)
        before = TableVersion(storage, base.table, base.table_version, base.space.dim)
        found = grown(before, vectors)
        change = Change(found.added, found.left, found.losing, rows_of(plan.documents))
        return grow(job.build, older, change, table_version=vectors.version)


def _shard_task(job: _Job, prepared: index.Prepared, number: int) -> index.Shard:
    with building_index(job.run):
        return index.fill_shard(job.build, prepared, number)


def _base(plan: Plan, build: index.Build) -> tuple[str, Segment] | None:
    """Return the folder of the index that a catch-up continues, and its first segment."""
    base = base_of(build.storage, plan)
    if base is None:
        return None
    manifest = read_manifest(build.storage, base.index, base.index_sha256)
    return (base.index, manifest.base) if isinstance(manifest, IndexManifest) else None


def _trained(plan: Plan, build: index.Build, path: str, held: Segment) -> index.Trained | None:
    """Return the base's trained index, which holds while most vectors are those it was trained on."""
    since = held.rows_since_training + rows_of(plan.documents)
    if since > build.source.rows / 2 or held.factory != build.factory:
        return None
    return index.Trained(path, held.trained, since)

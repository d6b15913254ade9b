"""Build Lance's own index of a sealed table: train a model, build segments in tasks, one commit, tune.

Each step ends with a create-only record, so that a build that was killed goes on where it was:

runs/RUN/index/BUILD/prepared.json     the model, the queries, the cut
runs/RUN/index/BUILD/segments/N.json   one segment: its files by sha256, its rows
runs/RUN/index/BUILD/SHA256.npz        queries, or the true best of a segment's rows for them
indexes/RUN/SHA256.npz                 the model
tables/TABLE/_indices/UUID/            the segment; it counts through its record, then through the commit

Shapes: Q queries, D dimensions, E exact results.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from reembed import faults
from reembed.catalog.index_manifest import (
    LanceManifest,
    LanceSegment,
    StoredFile,
    segment_folder,
)
from reembed.catalog.plan import Plan
from reembed.catalog.runs import Run
from reembed.config.settings import Config
from reembed.errors import IntegrityError
from reembed.events import Notice
from reembed.index import build as index
from reembed.index import files as index_store
from reembed.index.exact import EXACT_K, ExactSearch, checked_batches
from reembed.index.target import Target
from reembed.index.tune import Tuned, first_to_reach, most_lists
from reembed.index.types import RECALL_K, Float32, Int64
from reembed.index.wider import best
from reembed.serving.lance_index import LanceIndex
from reembed.space import sha256_of
from reembed.store.paths import index_folder
from reembed.store.records import encode
from reembed.strategies.context import RunContext, building_index, query_vectors
from reembed.strategies.index_tasks import IndexTasks, needs_of, needs_to_grow
from reembed.strategies.lance_growing import Again, again, beside
from reembed.table import vector_index, vector_model
from reembed.table.read import TableVersion
from reembed.table.seal import SealedTable

K_FACTORS = (1, 2, 4, 10, 20, 40)
"""Candidates scored again per result: each is a vector read from the store."""


@dataclass(frozen=True)
class Older:
    """The index of an older version of the table, whose model may be taken."""

    path: str
    manifest: LanceManifest
    rows_since: int
    """Rows embedded since its model was trained, including those of the index to build."""


@dataclass(frozen=True)
class Job:
    """What the tasks of a build are given. Picklable."""

    run: Run
    plan: Plan
    """Without its units."""
    config: Config
    table: TableVersion
    """The sealed version."""
    queries: tuple[str, ...] = ()
    """Texts to tune on; none: it is tuned on documents."""
    trained: Older | None = None
    """Whose model is taken instead of training one."""

    @functools.cached_property
    def records(self) -> str:
        """Folder of the records of its steps: builds by other settings share nothing."""
        settings = self.config.index
        told = {
            "kind": "lance",
            "factory": settings.factory,
            "shard_rows": settings.shard_rows,
            "queries": list(self.queries),
            "table_version": self.table.version,
            "model": self.trained and self.trained.manifest.model.sha256,
        }
        return f"{self.run.path('index')}/{sha256_of(told)[:16]}"

    @property
    def folder(self) -> str:
        return index_folder(self.run.id)


@dataclass(frozen=True)
class Prepared:
    """What all segments of a build share."""

    model: StoredFile
    queries: StoredFile
    """float32 [Q, D]."""
    tuned_on: str
    segments: tuple[tuple[int, ...], ...]
    """Fragment ids of each."""


@dataclass(frozen=True)
class SegmentProof:
    """One segment that was built, and the true best of its rows for the queries."""

    built: vector_index.Built
    exact: StoredFile


def built(context: RunContext, job: Job, sealed: SealedTable) -> LanceManifest:
    """Build and commit the whole index, or continue an interrupted build.

    Raises:
        UsageError: the factory does not fit the vectors.
        TargetMissed: no operating point reaches index.ann_recall.
    """
    executor, config = context.executor, context.config
    tasks = IndexTasks.of(config, _factory(job), job.table, executor)
    prepared = context.run.storage.decode_if_there(Prepared, f"{job.records}/prepared.json")
    if prepared is None or _unbuilt(job, prepared):
        tasks.require_nodes(executor, context.emit, resume=context.plan.catch_up)
    if prepared is None:
        prepared = executor.call(_prepare_task, job, needs=tasks.train)
    if todo := [(job, prepared, number) for number in _unbuilt(job, prepared)]:
        executor.each(_segment_task, todo, tasks.fill)
    searched = min(tasks.size.serve, executor.largest_node_bytes()) if tasks.size else 0
    return executor.call(
        _finish_task, job, prepared, sealed, needs=needs_of(config, searched, executor)
    )


def _unbuilt(job: Job, prepared: Prepared) -> list[int]:
    """Return the segments that have no proof yet."""
    return [n for n in range(len(prepared.segments)) if _proof_of(job, n) is None]


def _factory(job: Job) -> str:
    """Return the name of the kind of index to build."""
    if job.trained is not None:
        return job.trained.manifest.factory
    return vector_model.kind_of(job.config.index.factory, job.table.rows, job.table.dim).name


def grown(
    context: RunContext, job: Job, older: Older, came: Sequence[int], sealed: SealedTable
) -> LanceManifest | None:
    """Add a segment of the fragments that came; None if the index is built again instead, for a reason that is emitted.

    Operating point and recall stay those of the older index: the segment is of the same model, and rows that left
    are not found.
    """
    factory, executor = older.manifest.factory, context.executor
    needs = needs_to_grow(context.config, factory, job.table, executor)
    found = executor.call(_grow_task, job, older, came, sealed, needs=needs)
    if isinstance(found, LanceManifest):
        return found
    if found.why:
        context.emit(Notice(f"the index is built again: {found.why}"))
    return None


def _prepare_task(job: Job) -> Prepared:
    storage, table, config = job.run.storage, job.table, job.config
    with building_index(job.run):
        if not table.rows:
            raise IntegrityError("the vector table has no rows to index")
        queries = query_vectors(job.run, job.plan, config, job.queries)
        vectors, tuned_on = index.tuning_queries(table, queries)
        if job.trained is not None:
            model = job.trained.manifest.model
            index_store.share(storage, job.trained.path, model, job.folder)
        else:
            unit_length = job.plan.space.normalize
            made = vector_model.train(table, config.index.factory, unit_length=unit_length)
            model = index_store.put_arrays(storage, job.folder, made.arrays())
        faults.point("index.after_train")
        record = Prepared(
            model,
            index_store.put_arrays(storage, job.records, {"queries": vectors}),
            tuned_on,
            index.cut_into_shards(table.fragments(), config.index.shard_rows),
        )
        path = f"{job.records}/prepared.json"
        storage.create(path, encode(record))
        return index.required(storage.decode_if_there(Prepared, path))


def _segment_task(job: Job, prepared: Prepared, number: int) -> SegmentProof:
    """Build one segment, and search its rows exactly; of two attempts the first one's proof stays."""
    storage, fragments = job.run.storage, prepared.segments[number]
    with building_index(job.run):
        built = vector_index.build_segment(job.table, _model(job, prepared.model), fragments)
        exact = ExactSearch(_queries(job, prepared), EXACT_K)
        for ids, _, vectors in checked_batches(job.table, fragments):
            exact.add(ids, vectors)
        found = {"ids": exact.ids, "scores": exact.scores}
        proof = SegmentProof(built, index_store.put_arrays(storage, job.records, found))
        faults.point("index.before_shard")
        _leave(job, f"{job.records}/segments/{number:05d}.json", proof)
        return index.required(_proof_of(job, number))


def _finish_task(job: Job, prepared: Prepared, sealed: SealedTable) -> LanceManifest:
    storage, table, settings = job.run.storage, job.table, job.config.index
    with building_index(job.run):
        proofs = [index.required(_proof_of(job, n)) for n in range(len(prepared.segments))]
        held = [fragment for p in proofs for fragment in p.built.fragments]
        index.require_all_rows(table, held, sum(p.built.rows for p in proofs), "segments")
        model = _model(job, prepared.model)
        public = vector_index.publish(job.run, sealed, [p.built for p in proofs])
        tuned = _tuned(job, prepared, proofs, replace(table, version=public.version))
        faults.point("index.before_manifest")
        manifest = LanceManifest(
            segments=tuple(_segment("base", p.built) for p in proofs),
            model=prepared.model,
            factory=model.kind.name,
            operating_point=tuned.operating_point,
            rows=table.rows,
            rows_since_training=job.trained.rows_since if job.trained else 0,
            metric=model.metric,
            dim=table.dim,
            space=job.plan.space.id,
            table=sealed.path,
            table_version=public.version,
            sealed_version=sealed.version,
            table_tag=public.tag,
            ann_recall_at_10=float(tuned.recalls.mean()),
            ann_recall_lower=index_store.lower_bound(tuned.recalls),
            tuned_on=prepared.tuned_on,
            num_queries=len(tuned.recalls),
            settings=settings,
        )
        return index_store.put_manifest(storage, job.folder, manifest)


def _tuned(
    job: Job, prepared: Prepared, proofs: Sequence[SegmentProof], table: TableVersion
) -> Tuned:
    """Return the cheapest point of the committed index that reaches the target.

    Raises:
        TargetMissed: none does.
    """
    wanted = job.config.index.ann_recall
    model = _model(job, prepared.model)
    queries = _queries(job, prepared)
    opened = LanceIndex(
        table, rows=table.rows, lists=model.kind.lists, metric=model.metric, point={}
    )
    whole = model.kind.codes == "FLAT"
    tuned = first_to_reach(
        lambda point: opened.operating_at(point).search(queries, RECALL_K),
        _exact(job, proofs),
        wanted,
        k_factors=(0,) if whole else K_FACTORS,
        most=most_lists(model.kind.lists, table.rows),
    )
    better = "reembed run --set index.kind=lance --set index.factory=IVF_FLAT     # whole vectors"
    if whole:
        better = "reembed run --set index.kind=faiss --set index.factory=Flat     # exact: every vector is compared"
    target = Target(wanted, job.plan.gate.ann_recall, job.plan.catch_up)
    target.require(model.kind.name, tuned, prepared.tuned_on, better)
    return tuned


def _exact(job: Job, proofs: Sequence[SegmentProof]) -> tuple[Int64, Float32]:
    """Return row ids and scores [Q, E] of the true best of all segments."""
    storage = job.run.storage
    found = [index_store.get_arrays(storage, job.records, p.exact) for p in proofs]
    ids, scores = (np.hstack([f[name] for f in found]) for name in ("ids", "scores"))
    return best(ids, scores, EXACT_K)


def _grow_task(
    job: Job, older: Older, came: Sequence[int], sealed: SealedTable
) -> LanceManifest | Again:
    storage, table, held = job.run.storage, job.table, older.manifest
    with building_index(job.run):
        rows = dict(table.fragments())
        kept, fragments = beside(held, came, rows, job.config.index.shard_rows)
        new = sum(rows[f] for f in fragments)
        outgrown = again(table, held, kept, new, job.config.index.shard_rows)
        if outgrown is not None:
            return outgrown
        index_store.share(storage, older.path, held.model, job.folder)
        proof = _delta(job, held, fragments) if new else None
        more = [proof.built] if proof else []
        public = vector_index.publish(job.run, sealed, more, [s.uuid for s in kept])
        faults.point("index.before_grown")
        manifest = replace(
            held,
            segments=(*kept, *(_segment("delta", one) for one in more)),
            rows=table.rows,
            rows_since_training=older.rows_since,
            table_version=public.version,
            sealed_version=sealed.version,
            table_tag=public.tag,
        )
        return index_store.put_manifest(storage, job.folder, manifest)


def _delta(job: Job, held: LanceManifest, fragments: Sequence[int]) -> SegmentProof:
    """Build the segment of these fragments by the model of the index, or take the one that was built."""
    storage, path = job.run.storage, f"{job.records}/delta.json"
    found = storage.decode_if_there(SegmentProof, path)
    if found is not None:
        return found
    built = vector_index.build_segment(job.table, _model(job, held.model), fragments)
    faults.point("index.before_delta")
    _leave(job, path, SegmentProof(built, held.model))
    return index.required(storage.decode_if_there(SegmentProof, path))


def _leave(job: Job, path: str, proof: SegmentProof) -> None:
    """Create the record; if another attempt was first, remove this one's segment."""
    storage = job.run.storage
    if not storage.create(path, encode(proof)):
        storage.delete_tree(f"{segment_folder(job.table.path, proof.built.uuid)}/")


def _segment(kind: Literal["base", "delta"], built: vector_index.Built) -> LanceSegment:
    return LanceSegment(kind, built.uuid, built.files, built.rows, built.fragments, built.seconds)


def _model(job: Job, file: StoredFile) -> vector_model.Model:
    return vector_model.Model.of(index_store.get_arrays(job.run.storage, job.folder, file))


def _queries(job: Job, prepared: Prepared) -> Float32:
    return index_store.get_arrays(job.run.storage, job.records, prepared.queries)["queries"]


def _proof_of(job: Job, number: int) -> SegmentProof | None:
    path = f"{job.records}/segments/{number:05d}.json"
    return job.run.storage.decode_if_there(SegmentProof, path)

"""The steps that every strategy goes through: embed -> table -> index -> verify -> register."""

from __future__ import annotations

import functools
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa

from reembed import encoders, faults
from reembed.catalog.index_manifest import IndexManifest, read_manifest
from reembed.catalog.plan import (
    Donor,
    EmbedRange,
    EmbedRows,
    EmbedUnit,
    KeepFragment,
    Plan,
    RefreshRows,
)
from reembed.catalog.releases import Catalog, Release
from reembed.catalog.runs import Run
from reembed.config.settings import Config
from reembed.engine import pipeline as embed
from reembed.engine import reuse
from reembed.engine.executor import Executor
from reembed.engine.job import EmbedJob
from reembed.engine.progress import Changed, EmbedProgress, Listener, changed_settings
from reembed.engine.signals import Stop
from reembed.errors import Conflict, IntegrityError, UsageError
from reembed.evaluation import queries as evalset
from reembed.index import build as index
from reembed.index import files as index_store
from reembed.lifecycle import verify
from reembed.source.dataset import Source
from reembed.store.records import encode
from reembed.store.storage import storage_errors
from reembed.strategies import keep
from reembed.table import write as table
from reembed.table.read import Proof, TableVersion, manifest_proof
from reembed.table.write import SealedTable


@dataclass(frozen=True)
class Work:
    """A run under way: what it does, by which settings, where, and who hears of it."""

    run: Run
    plan: Plan
    source: Source
    """At the planned version."""
    config: Config
    on: Executor
    say: Listener
    stop: Stop = field(default_factory=Stop)

    @functools.cached_property
    def columns(self) -> pa.Schema:
        """Columns of the table."""
        return table.schema(self.plan.space, *self.source.schema())

    def vectors(self, sealed: SealedTable) -> TableVersion:
        """The sealed version, to read."""
        return TableVersion(self.run.storage, sealed.path, sealed.version, self.plan.space.dim)


def tell_plan(run: Run, plan: Plan, say: Listener, *, pinned: bool, **more: Any) -> None:
    """A plan was written: in the run's events, and to whoever listens."""
    version, units = plan.source.version, len(plan.units)
    more = {"rows": plan.rows, "units": units, "source_version": version, **more}
    run.event("plan", space=plan.space.id, pinned=pinned, **more)
    faults.point("run.after_plan")
    say(
        "plan",
        run=run.id,
        rows=plan.rows,
        units=units,
        space=plan.space.to_json(),
        source=plan.source,
        pinned=pinned,
    )


def embed_planned_otherwise(plan: Plan, config: Config) -> list[Changed]:
    """Settings of the section embed that were fixed when the run was planned, and are different now."""
    now_set = config.embed.model_dump(include={"unit_documents", "reuse"})
    planned = dict(now_set)
    if (rows := _unit_rows(plan)) is not None:
        planned["unit_documents"] = rows
    if plan.donors or not plan.reuse:  # else there was nothing to copy, whatever is asked for
        planned["reuse"] = plan.reuse
    return changed_settings("embed", planned, now_set)


def _unit_rows(plan: Plan) -> int | None:
    """Documents in a whole unit; None where nothing was cut, and any larger number would do.

    What stays of a table's fragment is one unit, however large.
    """
    ranges = [u for u in plan.units if isinstance(u, EmbedRange)]
    largest = max((u.rows for u in ranges), default=0)
    ends = {(u.fragment, u.offset + u.rows) for u in ranges if u.rows == largest}
    if any((u.fragment, u.offset) in ends for u in ranges):
        return largest
    for kind in (EmbedRows, RefreshRows):
        rows = [u.rows for u in plan.units if isinstance(u, kind)]
        if len(rows) > 1:
            return max(rows)
    return None


def stopping(say: Listener) -> AbstractContextManager[Stop]:
    """Signals during the block end the run as they should: drained, and said."""
    return Stop(lambda words: say("begin", what=words)).listening()


def embed_documents(work: Work) -> None:
    """Embed and stage every unit that has no receipt yet."""
    run, plan, config = work.run, work.plan, work.config
    staged = run.staged()
    units = [u for u in plan.units if isinstance(u, EmbedUnit)]
    todo = [u for u in units if u.id not in staged]
    done = plan.rows - sum(u.rows for u in todo)
    if not todo:
        return
    _prove_donors(work)
    progress = EmbedProgress(
        run,
        work.say,
        total=plan.rows,
        done=done,
        units=(len(units) - len(todo), len(units)),
        actors=config.embed.actors,
    )
    run.event("embed", todo=len(todo), reused=len(staged))
    encoder = plan.encoder
    job = EmbedJob(run, embed.slim(plan), work.source, encoder, config.embed, work.columns)
    with progress.reporting():
        work.on.embed(job, todo, progress.receipt, work.stop)
    figures = progress.totals()
    run.event("embedded", **figures)
    work.say("embedded", **figures)


def _prove_donors(work: Work) -> None:
    """Hold every file that vectors are copied from against its receipt.

    Raises:
        IntegrityError: a file is damaged, or the records of a donor were changed.
    """
    storage, donors = work.run.storage, work.plan.donors
    files = [
        (storage, donor.table, name, proof)
        for donor in donors
        for name, proof in _proofs(work, donor).items()
    ]
    if not files:
        return
    named = ", ".join(d.release for d in donors)
    work.say("begin", what=f"vectors of equal texts are copied from {named}; checking its files")
    if damaged := [name for found in work.on.each(reuse.damaged, files) for name in found]:
        raise IntegrityError(
            f"{len(damaged)} files of {named} are damaged: {damaged[0]}",
            "vectors would be copied from them",
            work.run.rebuild,
        )


def _proofs(work: Work, donor: Donor) -> dict[str, Proof]:
    """What the files of a donor must be; where its records are damaged, this run is to do without it."""
    try:
        return reuse.proofs(work.run.storage, donor)
    except IntegrityError as error:
        raise IntegrityError(error.what, error.why, work.run.rebuild) from error


def keep_rows(work: Work) -> None:
    """Stage what a catch-up takes over from its base without embedding it."""
    run, plan = work.run, work.plan
    staged = run.staged()
    kept = [u for u in plan.units if isinstance(u, KeepFragment | RefreshRows)]
    todo = [u for u in kept if u.id not in staged]
    common = (run, embed.slim(plan), work.columns, work.source)
    work.on.each(keep.stage_unit, ((*common, unit) for unit in todo))
    run.event("kept", units=len(todo))


def seal(work: Work) -> SealedTable:
    """All staged units into the table, in one commit."""
    run = work.run
    sealed = table.seal(run, work.plan, work.columns, work.config.embed.max_dead_letters)
    run.event(
        "table", version=sealed.version, rows=sealed.rows, dead_letters=len(sealed.dead_letters)
    )
    work.say(
        "table",
        path=sealed.path,
        version=sealed.version,
        rows=sealed.rows,
        dead_letters=len(sealed.dead_letters),
    )
    return sealed


def build_index(work: Work, sealed: SealedTable) -> IndexManifest:
    """Build, tune and save the index, unless a finished one of this table version is there.

    A finished one is taken, by whatever settings it was built; those that differ now are named.
    """
    run, config, on = work.run, work.config, work.on
    finished = index_store.finished(run.storage, f"indexes/{run.id}", sealed.version)
    if finished is not None:
        used, now_set = finished.settings.model_dump(), config.index.model_dump()
        if changed := changed_settings("index", used, now_set):
            work.say("ignored", settings=changed)
        return finished
    started = time.monotonic()
    work.say(
        "begin", what="building the index, and tuning it on judged queries where there are some"
    )
    gpus = 1 if config.index.device != "cpu" and on.has_gpu() else 0
    cpus = min(config.embed.actors * config.embed.cpus_per_actor, on.largest_node_cpus(gpus))
    texts = _tuning_texts(work)
    manifest = on.call(
        _index_task, run, work.plan, work.vectors(sealed), config, texts, cpus=cpus, gpus=gpus
    )
    figures = {**encode(manifest), **asdict(manifest.base), "rows": manifest.rows}
    fields = figures | {"seconds": round(time.monotonic() - started, 1)}
    run.event("index", **fields)
    work.say("index", **fields)
    return manifest


def _tuning_texts(work: Work) -> list[str]:
    """The planned queries to tune the index on; none where they changed or cannot be read now."""
    gate = work.plan.gate
    if not gate.queries:
        return []
    try:
        found = evalset.load_eval_set(gate.queries, gate.split, dict(work.config.stores.queries))
    except UsageError as error:  # a catch-up of what serves must not depend on them
        work.say("begin", what=f"{error.what}: the index is tuned on documents, not on queries")
        return []
    if found.sha256 != gate.sha256:
        what = f"{found.source} is not what was planned: the index is tuned on documents, not on queries"
        work.say("begin", what=what)
        return []
    return found.texts


def _index_task(
    run: Run, plan: Plan, vectors: TableVersion, config: Config, texts: list[str]
) -> IndexManifest:
    with storage_errors(f"the index of run {run.id} could not be built below {run.storage.root}"):
        return _indexed(run, plan, vectors, config, texts)


def _indexed(
    run: Run, plan: Plan, vectors: TableVersion, config: Config, texts: list[str]
) -> IndexManifest:
    queries = None
    if texts:
        encoder = encoders.load_encoder(plan.encoder, dtype=config.embed.dtype)
        queries = encoder.embed_queries(texts)
    built = index.build(vectors, config.index, queries, trained=_trained(run, plan, vectors.rows))
    return index_store.save(
        built,
        run.storage,
        f"indexes/{run.id}",
        space=plan.space.id,
        table=vectors.path,
        table_version=vectors.version,
    )


def _trained(run: Run, plan: Plan, rows: int) -> index.Trained | None:
    """The base's index, for a catch-up: what it learned holds while most vectors are those it learned from."""
    if plan.base is None:
        return None
    base = Catalog(run.storage, plan.alias).release(plan.base.release)
    manifest = read_manifest(run.storage, base.index, base.index_sha256)
    since = manifest.base.rows_since_training + plan.rows
    if since > rows / 2:
        return None
    loaded = index_store.load(run.storage, base.index, manifest)
    return index.Trained(manifest.base.factory, loaded.segments[0], since)


def verified(work: Work, sealed: SealedTable, manifest: IndexManifest) -> dict[str, Any]:
    """Row-exact, or it is not a candidate.

    Raises:
        IntegrityError: the table or the index differs from the source.
    """
    run, plan = work.run, work.plan
    subject = verify.Subject(
        work.source,
        work.vectors(sealed),
        plan.space,
        plan.encoder,
        tuple(d.doc_id for d in sealed.dead_letters),
        proofs=sealed.proofs,
        origin=plan.origin,
    )
    again = min(verify.SAMPLE, sealed.rows)
    work.say("begin", what=f"comparing every row with its source, embedding {again:,} again")
    report = work.on.call(_verify_task, subject, f"indexes/{run.id}", manifest, cpus=1)
    run.storage.write(run.path("verify.json"), report)
    run.event("verify", passed=report["passed"], sampled=report["sampled"])
    work.say("verify", **report)
    if not report["passed"]:
        wrong = ", ".join(
            f"{d['count']} {k}" for k, d in report["differences"].items() if d["count"]
        )
        raise IntegrityError(f"the table is not what its source says: {wrong}", None, run.rebuild)
    return report


def _verify_task(subject: verify.Subject, path: str, manifest: IndexManifest) -> dict[str, Any]:
    storage = subject.table.storage
    with storage_errors(f"{subject.table.path} below {storage.root} could not be verified"):
        ids = index_store.load(storage, path, manifest).ids()
        return verify.verify(replace(subject, index_ids=ids)).to_json()


def register(
    work: Work,
    sealed: SealedTable,
    manifest: IndexManifest,
    receipt: dict[str, Any],
) -> Release:
    """Make it a candidate. Serving does not notice."""
    run, plan = work.run, work.plan
    catalog = Catalog(run.storage, plan.alias)
    table_manifest = manifest_proof(run.storage, sealed.path, sealed.version)
    if table_manifest is None:
        raise IntegrityError(f"{sealed.path} has lost version {sealed.version}", None, run.rebuild)
    if (result := run.result()) is not None and result["release"] is None:
        raise Conflict(
            f"run {run.id} was given up while this process was building it",
            "somebody ran it with --fresh or dropped it, believing this process dead",
            "reembed run",
        )
    faults.point("run.before_register")
    release = catalog.register(
        Release(
            id=run.id,
            alias=plan.alias,
            run_id=run.id,
            space=plan.space,
            encoder=plan.encoder,
            table=sealed.path,
            table_version=sealed.version,
            table_tag=sealed.tag,
            sealed_sha256=sealed.sha256,
            table_manifest=table_manifest,
            index=f"indexes/{run.id}",
            index_sha256=manifest.sha256,
            rows=sealed.rows,
            dead_letters=len(sealed.dead_letters),
            source=plan.source,
            verify=receipt,
            gate=plan.gate,
            number=catalog.next_number(),
        )
    )
    faults.point("run.after_register")
    run.finish(release.id)
    run.event("candidate", release=release.id)
    live = catalog.live()
    work.say("candidate", release=release.id, live=live.release.id if live else None)
    return release

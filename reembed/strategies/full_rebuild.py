"""Full rebuild: embed every document in a new space and index it. Nothing that is served changes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from reembed import cluster, embed, encoders, evalset, faults, index, index_store, table, verify
from reembed.catalog import Catalog, Release, now
from reembed.config import Config, EncoderConfig, GateConfig
from reembed.errors import IntegrityError
from reembed.progress import EmbedProgress, Listener
from reembed.runs import Plan, Run, driving, find_runs, is_driven
from reembed.source import Source
from reembed.spaces import Space
from reembed.storage import Storage, absolute
from reembed.table import SealedTable
from reembed.table_version import TableVersion


def full_rebuild(config: Config, say: Listener, *, fresh: bool = False) -> Release:
    """source -> embed -> table -> index -> verify -> candidate release; resumes an unfinished run.

    Raises:
        SourceError, EncoderError, ConfigError: before anything is embedded.
        Conflict: another process drives this run.
        RunFailed: it stopped; the same command resumes it.
    """
    storage = Storage.open(config.storage.root, config.storage.options)
    catalog = Catalog(storage, config.alias)
    source = Source.open(config)
    space = encoders.describe(config.encoder, config.table.dtype)
    if config.gate.queries:
        evalset.load_eval_set(config.gate.queries, config.gate.split, config.storage.options)
    run = choose_run(config, catalog, source, space, fresh=fresh)
    with driving(run):
        if (release := finished(run, catalog)) is not None:
            say("already", run=run.id, release=release.id)
            _say_ignored(run.plan(), config, say)
            return release
        plan = make_plan(run, config, source, space, say)
        source = Source.from_json(plan.source, storage.options)
        columns = table.schema(space, *source.schema())
        with cluster.connected(config) as where:
            say("ray", where=where)
            embed_documents(run, plan, source, columns, config, say)
            sealed = seal(run, plan, columns, config, say)
            vectors = TableVersion(storage, sealed.path, sealed.version, space.dim)
            manifest = build_index(run, plan, vectors, config, say)
            receipt = verified(run, plan, source, vectors, sealed, say)
        return register(run, plan, sealed, manifest, receipt, say)


def choose_run(
    config: Config, catalog: Catalog, source: Source, space: Space, *, fresh: bool
) -> Run:
    """The unfinished run of these settings, the finished one of this source version, or a new one.

    Run ids follow from the settings and the source version, so that two processes started at once
    mean the same run, and one of them is told so.
    """
    prefix = f"{config.alias}-{config.result_key(source.uri)[:8]}"
    mine = [r for r in find_runs(catalog.storage, config.alias) if r.id.startswith(prefix)]
    at_version = [r for r in mine if r.id.startswith(f"{prefix}-v{source.version}-")]
    last = at_version[-1].number[1] if at_version else 0
    new = Run(catalog.storage, f"{prefix}-v{source.version}-{last + 1}")
    if fresh:
        for run in mine:
            if run.result() is None and not is_driven(run):
                run.storage.create(
                    run.path("result.json"), {"release": None, "abandoned": True, "at": now()}
                )
        return new
    candidates = at_version if config.source.version else mine
    unfinished = [r for r in candidates if r.result() is None]
    for run in reversed(unfinished):
        plan = run.plan()
        if plan is None or source.is_as_planned(plan.source):
            return run
    complete = [r for r in at_version if _is_complete(r, catalog, source, space)]
    return complete[-1] if complete else new


def _is_complete(run: Run, catalog: Catalog, source: Source, space: Space) -> bool:
    """Whether the run ended in a release of this source and space that gc has not removed."""
    plan, result = run.plan(), run.result() or {}
    if plan is None or not result.get("release") or catalog.is_retired(result["release"]):
        return False
    return plan.space.id == space.id and plan.source["fingerprint"] == source.fingerprint


def finished(run: Run, catalog: Catalog) -> Release | None:
    """The release this run ended in, if it did."""
    result = run.result()
    return catalog.release(result["release"]) if result and result["release"] else None


def make_plan(run: Run, config: Config, source: Source, space: Space, say: Listener) -> Plan:
    """Fix what the run does, create-only; a resumed run keeps the plan it has.

    Raises:
        SpaceMismatch: the model is no longer the one the run was planned with.
    """
    plan = run.plan()
    if plan is not None:
        plan.space.require(
            space, f"run {run.id} was planned with another model (use --fresh to start over)"
        )
        _say_ignored(plan, config, say)
        say(
            "resume",
            run=run.id,
            staged=len(run.staged()),
            units=len(plan.units),
            source=plan.source,
        )
        return plan
    rows = source.check_documents()
    pinned = source.pin(run.pin_tag)
    path = f"tables/{config.alias}-{space.id}.lance"
    plan = run.write_plan(
        Plan(
            run_id=run.id,
            alias=config.alias,
            space=space,
            encoder=_portable(config.encoder).model_dump(),
            source=source.to_json(),
            table=path,
            base_version=table.ensure_table(
                run.storage, path, table.schema(space, *source.schema())
            ),
            gate=_absolute_queries(config.gate).model_dump(),
            index=config.index.model_dump(),
            rows=rows,
            units=source.units(config.embed.unit_documents),
            created_at=now(),
        )
    )
    run.storage.write_bytes(
        run.path("config.yaml"), yaml.safe_dump(config.model_dump(mode="json")).encode()
    )
    run.event(
        "plan",
        rows=rows,
        units=len(plan.units),
        space=space.id,
        source_version=source.version,
        pinned=pinned,
    )
    faults.point("run.after_plan")
    say(
        "plan",
        run=run.id,
        rows=rows,
        units=len(plan.units),
        space=space.to_json(),
        source=plan.source,
        pinned=pinned,
    )
    return plan


def embed_documents(
    run: Run, plan: Plan, source: Source, columns: Any, config: Config, say: Listener
) -> None:
    """Embed and stage every unit that has no receipt yet."""
    staged = run.staged()
    todo = [u for u in plan.units if u.id not in staged]
    done = plan.rows - sum(u.rows for u in todo)
    if not todo:
        return
    progress = EmbedProgress(
        run,
        say,
        total=plan.rows,
        done=done,
        units=(len(plan.units) - len(todo), len(plan.units)),
        actors=config.embed.actors,
    )
    run.event("embed", todo=len(todo), reused=len(staged))
    job = embed.EmbedJob(
        run, embed.slim(plan), source, EncoderConfig(**plan.encoder), config.embed, columns
    )
    with progress.reporting():
        embed.embed_units(job, todo, progress.receipt)
    run.event("embedded", **progress.figures())


def seal(run: Run, plan: Plan, columns: Any, config: Config, say: Listener) -> SealedTable:
    """All staged units into the table, in one commit."""
    sealed = table.seal(run, plan, columns, config.embed.max_dead_letters)
    run.event(
        "table", version=sealed.version, rows=sealed.rows, dead_letters=len(sealed.dead_letters)
    )
    say(
        "table",
        path=sealed.path,
        version=sealed.version,
        rows=sealed.rows,
        dead_letters=len(sealed.dead_letters),
    )
    return sealed


def build_index(
    run: Run, plan: Plan, vectors: TableVersion, config: Config, say: Listener
) -> index_store.IndexManifest:
    """Build, tune and save the index, unless a finished one of this table version is there."""
    path = f"indexes/{run.id}"
    if run.storage.read_if_there(f"{path}/manifest.json") is not None:
        manifest = index_store.read_manifest(run.storage.store, path)
        if manifest.table_version == vectors.version:
            return manifest
    started = time.monotonic()
    say("begin", what="building the index, and tuning it on judged queries where there are some")
    cpus = min(config.embed.actors * config.embed.cpus_per_actor, cluster.largest_node_cpus())
    gpus = 1 if config.index.device != "cpu" and cluster.has_gpu() else 0
    manifest = cluster.call(_index_task, run, plan, vectors, config, cpus=cpus, gpus=gpus)
    fields = manifest.to_json() | {"seconds": round(time.monotonic() - started, 1)}
    run.event("index", **fields)
    say("index", **fields)
    return manifest


def _index_task(
    run: Run, plan: Plan, vectors: TableVersion, config: Config
) -> index_store.IndexManifest:
    queries = None
    gate = GateConfig(**plan.gate)
    if gate.queries:
        encoder = encoders.load_encoder(EncoderConfig(**plan.encoder), dtype=config.embed.dtype)
        texts = evalset.load_eval_set(gate.queries, gate.split, dict(run.storage.options)).texts
        queries = encoder.embed(encoder.tokenize(texts, "query"))
    built = index.build(vectors, config.index, queries)
    return index_store.save(
        built,
        run.storage.store,
        f"indexes/{run.id}",
        space=plan.space.id,
        table=vectors.path,
        table_version=vectors.version,
    )


def verified(
    run: Run, plan: Plan, source: Source, vectors: TableVersion, sealed: SealedTable, say: Listener
) -> dict[str, Any]:
    """Row-exact, or it is not a candidate.

    Raises:
        IntegrityError: the table or the index differs from the source.
    """
    subject = verify.Subject(
        source,
        vectors,
        plan.space,
        EncoderConfig(**plan.encoder),
        tuple(d.doc_id for d in sealed.dead_letters),
        proofs=sealed.proofs,
    )
    say("begin", what=f"comparing every row with its source, embedding {verify.SAMPLE} again")
    report = cluster.call(_verify_task, subject, f"indexes/{run.id}", cpus=1)
    run.storage.write(run.path("verify.json"), report)
    run.event("verify", passed=report["passed"], sampled=report["sampled"])
    say("verify", **report)
    if not report["passed"]:
        wrong = ", ".join(
            f"{d['count']} {k}" for k, d in report["differences"].items() if d["count"]
        )
        raise IntegrityError(
            f"the table is not what its source says: {wrong}", None, "reembed run --fresh"
        )
    return report


def _verify_task(subject: verify.Subject, index_path: str) -> dict[str, Any]:
    store = subject.table.storage.store
    ids = np.sort(index_store.load(store, index_path).ids())
    with_index = verify.Subject(**{**vars(subject), "index_ids": ids})
    return verify.verify(with_index).to_json()


def register(
    run: Run,
    plan: Plan,
    sealed: SealedTable,
    manifest: index_store.IndexManifest,
    receipt: dict[str, Any],
    say: Listener,
) -> Release:
    """Make it a candidate. Serving does not notice."""
    catalog = Catalog(run.storage, plan.alias)
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
            index=f"indexes/{run.id}",
            index_sha256=manifest.sha256,
            rows=sealed.rows,
            dead_letters=len(sealed.dead_letters),
            source=plan.source,
            verify=receipt,
            gate=plan.gate,
        )
    )
    faults.point("run.after_register")
    run.storage.create(run.path("result.json"), {"release": release.id, "at": now()})
    run.event("candidate", release=release.id)
    live = catalog.live()
    say("candidate", release=release.id, live=live.release.id if live else None)
    return release


def _portable(section: EncoderConfig) -> EncoderConfig:
    """A relative model folder made absolute: the release must find it from anywhere."""
    if Path(section.model).expanduser().is_dir():
        return section.model_copy(update={"model": absolute(section.model)})
    return section


def _say_ignored(plan: Plan | None, config: Config, say: Listener) -> None:
    """Settings that were fixed when the run was planned, and are different now."""
    now_set = {
        "gate": _absolute_queries(config.gate).model_dump(),
        "index": config.index.model_dump(),
    }
    if plan is not None:
        differ = [s for s, v in now_set.items() if v != getattr(plan, s)]
        if differ:
            say("ignored", sections=differ)


def _absolute_queries(section: GateConfig) -> GateConfig:
    return (
        section.model_copy(update={"queries": absolute(section.queries)})
        if section.queries
        else section
    )

"""Query-only: the new model embeds queries, and the documents stay as they are. No document is embedded again.

The candidate is a line of its own with the live release's documents and index: the same vectors, of the model that
made them. It is judged, promoted and rolled back as any other, and a catch-up of it embeds documents with
their own model. Between spaces that are not the same, a bridge may bring the queries to the documents.
"""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from reembed import encoders, faults
from reembed.catalog.index_manifest import read_manifest
from reembed.catalog.journal import Journal
from reembed.catalog.lease import driving, is_driven
from reembed.catalog.lines import Place, begin
from reembed.catalog.plan import Base, Donor, Plan
from reembed.catalog.query_model import Bridge, QueryModel
from reembed.catalog.releases import Catalog, Release
from reembed.catalog.runs import Run
from reembed.clock import now
from reembed.config.settings import Config, EmbedConfig
from reembed.encoders import bridge, golden
from reembed.encoders.base import Encoder, Vectors
from reembed.engine.documents import texts_of
from reembed.engine.executor import HERE, Executor, Needs, Tasks
from reembed.errors import GateFailed, SourceError, UsageError
from reembed.evaluation import queries as evalset
from reembed.events import AlreadyBuilt, Listener, Notice, Working, to_all
from reembed.plural import counted
from reembed.source.dataset import Source
from reembed.source.lag import caught_up
from reembed.space import Space, sha256_of
from reembed.store.paths import absolute, from_anywhere
from reembed.store.storage import Storage
from reembed.strategies import rebuild_plan, steps
from reembed.strategies.catch_up_plan import as_planned
from reembed.strategies.context import planned, resumed, running
from reembed.strategies.indexing import build_index
from reembed.strategies.rebuild_plan import abandoned_unless_planned
from reembed.table import provenance
from reembed.table.read import TableVersion, as_vectors, fragments_of, open_table

_BATCH = 512
"""Documents whose texts are held at a time."""


def query_only(
    config: Config,
    emit: Listener,
    *,
    executor: Executor,
    pairs: int | None = None,
    fresh: bool = False,
) -> Release:
    """Return a verified candidate with live's documents and the config's model for queries.

    query model -> plan -> seal -> index -> verify -> register

    Args:
        config: `encoder` is the model of the queries.
        emit: is told what happens.
        executor: runs the steps.
        pairs: documents of live that the new model embeds to fit a bridge; None: no bridge.
        fresh: build it again.

    Raises:
        UsageError: nothing is live, its queries are by this model already, or no judged queries are named.
        GateFailed: without a bridge, vectors of the new model have another number of dimensions.
        SourceError: the source version that live equals is gone.
        Conflict: another process drives this run.
    """
    storage = Storage.open(config.storage.root, config.storage.options)
    catalog = Catalog(storage, config.alias, config.stores)
    emit = to_all(Journal(storage), emit)
    live = catalog.require_live().release
    asked = _Asked.of(catalog, config, live, pairs)
    place, is_planned = _place(asked, fresh=fresh)
    run = Run(storage, place.origin)
    begin(storage, config.alias, run.id, place)
    with driving(run), abandoned_unless_planned(run):
        steps.require_open(run)
        if (release := catalog.registered(run)) is not None:
            emit(AlreadyBuilt(run.id, release.id))
            return release
        plan = run.plan() if is_planned else None
        if plan is None:
            plan = _write_plan(asked, run, place, executor, emit)
        else:
            emit(resumed(run, plan))
        with running(run, plan, as_planned(config, plan, emit), executor, emit) as context:
            sealed, manifest = build_index(context, steps.seal(context))
            report = steps.verify_rows(context, sealed, manifest)
        return steps.register(context, sealed, manifest, report)


@dataclass(frozen=True)
class _Asked:
    """What is asked for, and what it stands on."""

    catalog: Catalog
    config: Config
    live: Release
    source: Source
    """At the version that live equals."""
    space: Space
    """Of the query model."""
    pairs: int | None

    @classmethod
    def of(cls, catalog: Catalog, config: Config, live: Release, pairs: int | None) -> _Asked:
        if not config.gate.queries:
            raise UsageError(
                "no judged queries are named: nothing would show that such queries find anything",
                "gate.queries is empty, and vectors of two models are searched together",
                "reembed run --query-only --set gate.queries=FOLDER     # FOLDER: judged queries (docs/evaluate.md)",
            )
        space = encoders.describe(config.encoder, live.space.vector_dtype)
        is_same = space.id == live.query_model.space.id
        if is_same and (live.queries is None or (pairs, live.queries.bridge) == (None, None)):
            raise UsageError(
                f"{live.id}, which is live, has this model for its queries already",
                f"encoder names {space.model}, space {space.id}",
                "reembed config     # shows encoder; set it to the new model",
            )
        if pairs is None and space.dim != live.space.dim:
            raise GateFailed(
                f"vectors of {space.model} have {space.dim} dimensions, those of the documents of {live.id}"
                f" {live.space.dim}",
                "such queries cannot be searched on these documents as they are",
                "reembed run     # embeds the documents with the new model; or: reembed run --query-only --bridge 1000",
            )
        _require_same_documents(config, live)
        source = caught_up(catalog, live)
        if not source.is_as_planned(source.ref):
            raise SourceError(
                f"version {source.version} of {source.uri}, which {live.id} equals, is gone",
                "the candidate would have the same documents, and is verified by them",
                "reembed catch-up live     # then the same command again",
            )
        return cls(catalog, config, live, source, space, pairs)

    @property
    def settings(self) -> str:
        """What the lines of the same models are filed under: not with rebuilds of the query model."""
        decides = {"documents": self.live.origin, "queries": self.space.id, "pairs": self.pairs}
        return sha256_of({"alias": self.config.alias, **decides})[:8]


def _require_same_documents(config: Config, live: Release) -> None:
    """Refuse other settings than those by which live has its documents: they would have no effect."""
    used = {
        "source.uri": live.source.uri,
        "source.id_column": live.source.id_column,
        "source.text": live.source.text,
        "source.filter": live.source.filter,
        "table.carry": list(live.source.carry),
    }
    asked = {
        "source.uri": absolute(config.source.uri),
        "source.id_column": config.source.id_column,
        "source.text": config.source.text,
        "source.filter": config.source.filter,
        "table.carry": list(config.table.carry),
    }
    differ = [f"{n} is {asked[n]!r}, of live {used[n]!r}" for n in used if asked[n] != used[n]]
    if differ:
        raise UsageError(
            f"such a release has the documents of {live.id}, which other settings decide",
            "; ".join(differ),
            "reembed run     # embeds the documents with these settings",
        )


def _place(asked: _Asked, *, fresh: bool) -> tuple[Place, bool]:
    """Return the place of the run over live as it is: one that is there, or a new one; and whether it has a plan.

    Raises:
        Conflict: `fresh`, and another process drives it.
    """
    catalog, version = asked.catalog, asked.source.version
    mine = [e for e in catalog.entries() if e.place.settings == asked.settings and e.id == e.origin]
    if fresh:
        rebuild_plan.abandon_unfinished(catalog, [Run(catalog.storage, e.id) for e in mine])
    for entry in [] if fresh else reversed(mine):
        run = Run(catalog.storage, entry.id)
        plan, result = run.plan(), run.result()
        if entry.retired or (result is not None and result.release is None):
            continue
        if plan is None or (plan.base is not None and plan.base.release == asked.live.id):
            return entry.place, plan is not None
        if not entry.released and not is_driven(run):
            run.abandon()  # live has other documents since
    name = f"{asked.config.alias}-{asked.settings}-q{version}-{len(mine) + 1}"
    return Place(asked.settings, name, 0, version), False


def _write_plan(asked: _Asked, run: Run, place: Place, executor: Executor, emit: Listener) -> Plan:
    config, live, storage = asked.config, asked.live, run.storage
    provenance.require_verified(storage, live)
    queries = _query_model(asked, run, executor, emit)
    golden.copy(storage, live.origin, run.id)
    pinned = asked.source.pin(run.pin_tag)
    storage.write_bytes(run.path("config.yaml"), yaml.safe_dump(config.shown()).encode())
    held = fragments_of(_vectors(storage, live).dataset())
    built = read_manifest(storage, live.index, live.index_sha256)
    plan = run.write_plan(
        Plan(
            kind="catch_up",
            run_id=run.id,
            alias=live.alias,
            place=place,
            space=live.space,
            encoder=live.encoder,
            source=asked.source.ref,
            table=live.table,
            base_version=open_table(storage, live.table).version,
            gate=evalset.freeze(config.gate, dict(config.stores.queries)),
            index=built.settings,
            rows=0,
            documents=0,
            units=[],
            unit_documents=1,
            created_at=now(),
            base=Base(
                release=live.id,
                table_version=live.table_version,
                fragments=tuple(held),
                rows=live.rows,
                documents=live.documents,
                dead_letters=provenance.require_sealed(storage, live).dead_letters,
                how="the documents stay as they are",
            ),
            donors=(
                Donor(live.id, live.alias, live.origin, live.table, live.table_version, live.rows),
            ),
            queries=queries,
        )
    )
    emit(planned(run, plan, pinned=pinned))
    faults.point("run.after_plan")
    return plan


def _query_model(asked: _Asked, run: Run, executor: Executor, emit: Listener) -> QueryModel:
    """Return the model of the queries; a task loads it, leaves its golden vectors and fits its bridge."""
    config = asked.config
    where: AbstractContextManager[Tasks] = nullcontext(HERE)
    model = QueryModel(asked.space, from_anywhere(config.encoder), "0" * 64)
    sample = None
    if asked.pairs is not None:
        sample = _Sample.drawn(asked, asked.pairs)
        least = max(asked.space.dim, asked.live.space.dim)
        if len(sample.rows) <= least:
            fitted = counted(len(sample.rows), "document")
            emit(Notice(f"a bridge of {fitted} is weak: {least} dimensions need more documents"))
        emit(Working(f"embedding {counted(len(sample.rows), 'document')} with {asked.space.model}"))
        where = executor.connected(config)
    with where as tasks:
        needs = Needs(config.embed.actor_cpus, config.embed.gpus_per_actor)
        return tasks.call(_made, run, model, config.embed, sample, needs=needs)


@dataclass(frozen=True)
class _Sample:
    """Documents of live that a bridge is fitted to. Picklable: it holds no text and no vector."""

    pairs: int
    """Asked for."""
    source: Source
    table: TableVersion
    places: npt.NDArray[np.int64]
    """Of their rows in the table."""
    rows: npt.NDArray[np.int64]
    """Ids of their rows in the source."""

    @classmethod
    def drawn(cls, asked: _Asked, pairs: int) -> _Sample:
        """Draw rows of live's table at random, always the same ones."""
        table = _vectors(asked.catalog.storage, asked.live)
        count = min(pairs, table.rows)
        drawn = np.sort(np.random.default_rng(0).choice(table.rows, count, replace=False))
        ids = [str(d) for d in table.at(drawn, ["doc_id"])["doc_id"].to_pylist()]
        known = asked.source.rows_of(ids)
        there = np.array([d in known for d in ids])
        rows = np.array([known[d] for d in ids if d in known], np.int64)
        return cls(pairs, asked.source, table, drawn[there], rows)

    def bridge(self, encoder: Encoder) -> tuple[Vectors, int]:
        """Return the bridge from an encoder's space to that of the documents, and how many fitted it."""
        theirs, documents = [], []
        for start in range(0, len(self.rows), _BATCH):
            some = slice(start, start + _BATCH)
            texts = texts_of(self.source.take(self.rows[some].tolist()))
            vectors = encoder.embed_documents(texts).vectors
            good = np.isfinite(vectors).all(axis=1)
            theirs.append(vectors[good])
            held = self.table.at(self.places[some], ["vector"])
            documents.append(as_vectors(held["vector"])[good])
        new, old = np.concatenate(theirs), np.concatenate(documents)
        return bridge.fitted(new, old), len(new)


def _made(run: Run, model: QueryModel, embed: EmbedConfig, sample: _Sample | None) -> QueryModel:
    """Load the model, fit its bridge, and leave what it makes of the golden texts."""
    options: dict[str, Any] = {"dtype": embed.dtype, "batch_tokens": embed.batch_tokens}
    if sample is not None:
        encoder = encoders.load_encoder(model.encoder, **options)
        matrix, fitted = sample.bridge(encoder)
        body = bridge.to_bytes(matrix)
        path, sha256 = run.path("bridge.npy"), hashlib.sha256(body).hexdigest()
        run.storage.write_bytes(path, body)
        model = replace(model, bridge=Bridge(path, sha256, sample.pairs, fitted))
    golden.leave(run.storage, run.id, bridge.load(run.storage, model, **options), queries=True)
    return replace(model, golden_sha256=golden.sha256_of(run.storage, run.id, queries=True))


def _vectors(storage: Storage, release: Release) -> TableVersion:
    return TableVersion(storage, release.table, release.table_version, release.space.dim)

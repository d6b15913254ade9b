"""A run in progress: what every step of a strategy needs."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa

from reembed import encoders
from reembed.catalog.plan import KeepFragments, Plan, ThinFragment
from reembed.catalog.releases import Catalog, Release
from reembed.catalog.runs import Run
from reembed.config.settings import Config, changed_settings
from reembed.encoders import bridge
from reembed.engine.executor import Executor
from reembed.engine.patience import Patience
from reembed.engine.signals import Stop
from reembed.events import (
    ChangedSetting,
    Connected,
    Ignored,
    Listener,
    Planned,
    Resumed,
    Working,
    to_all,
)
from reembed.index.types import Float32
from reembed.source.dataset import Source
from reembed.store.storage import Storage, storage_errors
from reembed.strategies import preflight
from reembed.strategies.index_kind import resolved as with_index_kind
from reembed.strategies.index_tasks import IndexTasks, Vectors, factory_for
from reembed.table import write as table
from reembed.table.read import TableVersion
from reembed.table.seal import SealedTable


@dataclass(frozen=True)
class RunContext:
    """A run in progress: its plan, its settings, where it runs and who listens."""

    run: Run
    plan: Plan
    source: Source
    """The source at the planned version."""
    config: Config
    executor: Executor
    emit: Listener
    stop: Stop = field(default_factory=Stop)

    @functools.cached_property
    def columns(self) -> pa.Schema:
        return table.schema(self.plan.space, *self.source.schema())

    def vectors(self, sealed: SealedTable) -> TableVersion:
        """Return the sealed version, to read."""
        return TableVersion(self.run.storage, sealed.path, sealed.version, self.plan.space.dim)


@contextmanager
def running(
    run: Run, plan: Plan, config: Config, executor: Executor, emit: Listener
) -> Iterator[RunContext]:
    """Check rights and room, then connect the executor and handle signals during the block.

    Raises:
        UsageError, RunFailed: a folder cannot be written to, the index cannot be trained on so few vectors, or
            the disk or every node is too small.
        Interrupted: a signal came.
    """
    source = Source(plan.source, config.stores.source)
    preflight.require_rights(run.storage, plan)
    preflight.require_room(run, plan, source, emit)
    config = with_index_kind(config, plan, emit)
    # A catch-up usually grows the index of its base; where all is embedded, it is asked before the build.
    embeds = plan.base is None and len(run.staged()) < len(plan.units)
    vectors = Vectors(plan.rows, plan.space.dim)
    factory = factory_for(config.index, vectors.rows, vectors.dim) if embeds else ""
    emit(Working(f"connecting to {executor.where}"))
    with executor.connected(config) as connected, Stop(emit).listening() as stop:
        emit(Connected(connected.where))
        if embeds:
            IndexTasks.of(config, factory, vectors, connected).require_nodes(connected, emit)
        emit = to_all(emit, connected.metrics(plan.alias, run.id))
        yield RunContext(run, plan, source, config, connected, emit, stop)


def planned(run: Run, plan: Plan, *, pinned: bool) -> Planned:
    """Return the event that a run was planned."""
    return Planned(
        run=run.id,
        documents=plan.documents,
        units=len(plan.units),
        source=plan.source.uri,
        source_version=plan.source.version,
        pinned=pinned,
        space=plan.space.id,
        model=plan.space.model,
        dim=plan.space.dim,
    )


def resumed(run: Run, plan: Plan) -> Resumed:
    """Return the event that a planned run is resumed."""
    return Resumed(run.id, len(run.staged()), len(plan.units), plan.source.version)


def patience_of(plan: Plan, config: Config) -> Patience:
    """Return how long the tasks of a run wait for the model's provider."""
    return Patience(config.embed.stall_s, f"{plan.resume}     # staged units are kept")


def query_vectors(run: Run, plan: Plan, config: Config, texts: Sequence[str]) -> Float32 | None:
    """Return the vectors of the queries that an index is tuned on; None without texts."""
    if not texts:
        return None
    if plan.queries is None:
        encoder = encoders.load_encoder(plan.encoder, dtype=config.embed.dtype)
    else:
        encoder = bridge.load(run.storage, plan.queries, dtype=config.embed.dtype)
    return patience_of(plan, config).through(partial(encoder.embed_queries, list(texts)))


def building_index(run: Run) -> AbstractContextManager[None]:
    """Raise an error of the store in the block as one that names the index."""
    return storage_errors(f"the index of run {run.id} could not be built below {run.storage.root}")


def base_of(storage: Storage, plan: Plan) -> Release | None:
    """Return the release that a catch-up builds on; None for a rebuild."""
    if plan.base is None:
        return None
    return Catalog(storage, plan.alias).release(plan.base.release)


def emit_ignored(changed: list[ChangedSetting], emit: Listener) -> None:
    """Emit settings that have no effect any more, if there are any."""
    if changed:
        emit(Ignored(tuple(changed)))


def embed_settings_changed(plan: Plan, config: Config) -> list[ChangedSetting]:
    """Return settings of the section embed that the plan fixed and that are different now."""
    now = config.embed.model_dump(include={"unit_documents", "reuse"})
    asked = config.embed.unit_documents or plan.unit_documents
    cut = (u for u in plan.units if not isinstance(u, KeepFragments | ThinFragment))
    largest = max((u.documents for u in cut), default=0)
    now["unit_documents"] = asked
    used = dict(now)
    if largest >= min(plan.unit_documents, asked):  # else neither cuts anything
        used["unit_documents"] = plan.unit_documents
    if plan.donors or not plan.reuse:  # else there was nothing to copy
        used["reuse"] = plan.reuse
    return changed_settings("embed", used, now)

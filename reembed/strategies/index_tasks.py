"""What the tasks that build an index ask of a node, and whether there is a node that has it.

A task that asks for more than any node has would wait until the run gives up. So what cannot fit is refused,
with what could be done: before anything is embedded, and again before the index is built.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, replace
from typing import Protocol

from reembed.config.settings import Config, IndexConfig
from reembed.engine.executor import Executor, Needs
from reembed.errors import UsageError
from reembed.events import Listener, Notice
from reembed.index.factories import is_filled_on_gpu, kind_of
from reembed.index.grow import most_in_delta
from reembed.index.train import factory_of, require_gpu, require_trainable
from reembed.planning.sizing import IndexSize, size_of
from reembed.store.storage import readable
from reembed.table import vector_model

_WORTH_SAYING = 2**30
_OFFERED = 0.7
"""Share of a machine's memory that Ray offers tasks."""
_LEAST_SHARD = 50_000
_POSITION_BYTES = 9
"""A row of a segment that lost rows: its row id, and whether it is one of them."""


class Shape(Protocol):
    """N vectors of D dimensions."""

    @property
    def rows(self) -> int:
        """N."""

    @property
    def dim(self) -> int:
        """D."""


@dataclass(frozen=True)
class Vectors:
    """The vectors that a run will have."""

    rows: int
    dim: int


def needs_to_grow(config: Config, factory: str, table: Shape, executor: Executor) -> Needs:
    """Return what the task that grows an index asks for.

    It fills the largest delta that there may be (the driver does not know which rows come) and looks up the rows
    that left in one segment after the other. It asks for no more than a node has: the index was filled there.
    """
    rows = most_in_delta(table.rows, config.index.shard_rows)
    size = size_of(factory, rows, table.dim, rows)
    segment = min(table.rows, config.index.shard_rows)
    memory = size.fill + _POSITION_BYTES * segment if size else 0
    return needs_of(config, min(memory, executor.largest_node_bytes()), executor)


def needs_of(config: Config, memory: int, executor: Executor, gpus: int = 0) -> Needs:
    """Return bytes of memory and GPUs, with the CPUs that the run may use, if a node with the rest has them."""
    most = executor.largest_node_cpus(gpus, memory)
    return Needs(min(config.embed.actors * config.embed.cpus_per_actor, most), gpus, memory)


@dataclass(frozen=True)
class IndexTasks:
    """The tasks of one index."""

    factory: str
    device: str
    """The setting index.device."""
    size: IndexSize | None
    """None if the size of this kind of index is not known."""
    awaits_gpu: bool
    """Whether the models run on GPUs: their nodes may come up only for them."""
    train: Needs
    fill: Needs

    @classmethod
    def of(cls, config: Config, factory: str, table: Shape, executor: Executor) -> IndexTasks:
        """Return the tasks that build an index of this kind; GPUs train, and fill what FAISS has there."""
        wanted = config.index.device
        size = size_of(factory, table.rows, table.dim, config.index.shard_rows)
        asked = []
        for memory, on_gpu in (
            (size.train if size else 0, _is_trained_on_gpu(factory, wanted)),
            (size.fill if size else 0, wanted == "gpu" or is_filled_on_gpu(factory, wanted)),
        ):
            fits = wanted == "gpu" or memory <= executor.largest_node_bytes(1)
            gpus = int(on_gpu and executor.has_gpu() and fits)
            asked.append(needs_of(config, memory, executor, gpus))
        awaits_gpu = config.embed.gpus_per_actor > 0
        return cls(factory, wanted, size, awaits_gpu, *asked)

    def require_nodes(self, executor: Executor, emit: Listener, *, resume: str = "") -> None:
        """Refuse tasks that fit no node, and tell what a large index takes.

        `resume` is the command of the catch-up that builds it, by the settings of its line; "" of a rebuild.

        Raises:
            UsageError: a task needs more memory than the largest node offers, or a GPU where there is none.
            ReembedError: the FAISS of the nodes cannot use their GPUs.
        """
        if self.device == "gpu":
            self._require_gpu(executor, emit, resume or "reembed run")
        size = self.size
        if size is None:
            emit(
                Notice(
                    f"the size of an index {self.factory} is not known, so its tasks reserve no memory"
                )
            )
            return
        offered = {
            asked: executor.largest_node_bytes(asked.gpus) for asked in (self.train, self.fill)
        }
        if not all(offered.values()):
            emit(Notice("no node that can build the index is up, so its size was not checked"))
            return
        for asked, most in offered.items():
            if asked.memory > most:
                choices = _choices(size, most)
                if resume:
                    choices = f"{_elsewhere(resume, size)}; only a rebuild changes the settings of an index"
                raise _does_not_fit(size, asked, most, asked == self.train, choices)
        self._tell_of_gpu(executor, emit)
        largest = max(offered, key=lambda asked: asked.memory)
        if size.bytes >= _WORTH_SAYING:
            emit(
                Notice(
                    f"index: {readable(size.bytes)} in {size.shards} files, {size.factory}; its largest task needs"
                    f" {readable(largest.memory)}, a node offers {readable(offered[largest])}"
                )
            )

    def _require_gpu(self, executor: Executor, emit: Listener, command: str) -> None:
        """Refuse index.device gpu where it cannot be had."""
        fix = f"{command} --set index.device=auto"
        if vector_model.Kind.named(self.factory) is not None:
            why = f"{self.factory} is an index of Lance, which is built on CPUs"
            raise UsageError("index.device is gpu, which index.kind lance cannot use", why, fix)
        if not executor.has_gpu() and self.awaits_gpu:
            emit(Notice("no node with a GPU is up, so index.device gpu was not checked"))
            return
        if not executor.has_gpu():
            why = "no node with a GPU is up"
            raise UsageError(f"index.device is gpu, and {executor.where} has no GPU", why, fix)
        executor.call(require_gpu, needs=Needs(1, 1))

    def _tell_of_gpu(self, executor: Executor, emit: Listener) -> None:
        """Tell that lists are trained on CPUs although there is a GPU."""
        on_gpu = _is_trained_on_gpu(self.factory, self.device) and executor.has_gpu()
        if on_gpu and not self.train.gpus and _is_trained(self.factory):
            offered = executor.largest_node_bytes(1)
            emit(
                Notice(
                    f"the index is trained on CPUs: that takes {readable(self.train.memory)}, and the largest node"
                    f" with a GPU offers {readable(offered)}"
                )
            )


def factory_for(settings: IndexConfig, rows: int, dim: int) -> str:
    """Return the factory string, with all sizes, that the settings mean for N vectors of D dimensions.

    Raises:
        UsageError: such an index cannot be trained on so few vectors.
    """
    if settings.kind == "lance":
        return vector_model.kind_of(settings.factory, rows, dim).name
    factory = factory_of(settings, rows, dim)
    require_trainable(factory, rows, dim)
    return factory


def _does_not_fit(
    size: IndexSize, asked: Needs, most: int, trains: bool, choices: str
) -> UsageError:
    step = "filling a shard"
    if trains:
        step = "training" if _is_trained(size.factory) else "preparing it"
    return UsageError(
        f"the index fits no node: {step} takes {readable(asked.memory)}, the largest node offers {readable(most)}",
        f"{size.factory} of {size.rows:,} x {size.dim} takes {readable(size.bytes)} in {size.shards} files;"
        f" Ray offers tasks about {_OFFERED:.0%} of a machine's memory (docs/sizing.md)",
        choices,
    )


def _is_trained_on_gpu(factory: str, wanted: str) -> bool:
    return wanted != "cpu" and vector_model.Kind.named(factory) is None


def _is_trained(factory: str) -> bool:
    kind = kind_of(factory)
    return (
        kind is None or bool(kind.lists) or (kind.codes, kind.refine or "Flat") != ("Flat", "Flat")
    )


def _elsewhere(command: str, size: IndexSize) -> str:
    """Return the command on a cluster whose nodes are large enough."""
    machine = readable(math.ceil(size.largest_task / _OFFERED))
    return (
        f"{command} --set ray.address=ADDRESS     # of a cluster with a machine of {machine},"
        f" which offers {readable(size.largest_task)} (docs/cluster.md)"
    )


def _choices(size: IndexSize, most: int) -> str:
    """Return what could be done, as commands; each of the settings makes the whole index fit."""
    bigger = f"a node that offers {readable(size.largest_task)}"
    fitting = []
    if (rows := _shard_rows(size, most)) is not None:
        fitting.append([f"index.shard_rows={rows}"])
    for factory in _smaller(size, most):
        # `auto` takes Lance for no factory that is named.
        kind = ["index.kind=lance"] if vector_model.Kind.named(factory) else []
        fitting.append([*kind, f"index.factory={factory}"])
    if not fitting:
        return _elsewhere("reembed run", size)
    first, *others = fitting
    more = "".join(f", or {_set_to(other)}" for other in others)
    return f"reembed run {_set_to(first)}     # or {bigger}{more}"


def _set_to(settings: list[str]) -> str:
    return " ".join(f"--set {shlex.quote(setting)}" for setting in settings)


def _shard_rows(size: IndexSize, most: int) -> int | None:
    """Return the largest round number of rows whose shard fits, if training fits."""
    rows: int = 10 ** len(str(size.rows))
    while rows >= _LEAST_SHARD:
        found = size_of(size.factory, size.rows, size.dim, rows)
        if found is not None and found.largest_task <= most:
            return rows
        rows //= 2
    return None


def _smaller(size: IndexSize, most: int) -> list[str]:
    """Return a smaller kind of index that fits, if there is one."""
    kind, in_lance = kind_of(size.factory), vector_model.Kind.named(size.factory)
    lists = kind.lists if kind and kind.lists else 65_536
    if in_lance is not None:
        lists = in_lance.lists
    shard_rows = -(-size.rows // size.shards)
    while lists >= 64 and size.dim % 2 == 0:
        factory = f"IVF{lists},PQ{size.dim // 2}x4fs,Refine(SQ8)"
        if in_lance is not None:
            factory = replace(in_lance, lists=lists).name
        found = size_of(factory, size.rows, size.dim, shard_rows)
        if found is not None and found.largest_task <= most and factory != size.factory:
            return [factory]
        lists //= 2
    return []

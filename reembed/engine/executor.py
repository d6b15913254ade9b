"""Where the work of a strategy runs, and what its stages are given. Does not import Ray: `ray_executor` does."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import pyarrow as pa

from reembed.catalog.plan import EmbedUnit, Plan
from reembed.catalog.receipts import Receipt
from reembed.catalog.runs import Run
from reembed.config.settings import Config, EmbedConfig, EncoderConfig
from reembed.engine.signals import Stop
from reembed.events import Listener
from reembed.source.dataset import Source
from reembed.store.records import encode

T = TypeVar("T")

DRAIN = "drain.json"
INDEX_NODES = "reembed_index"
"""Custom resource of the nodes of a cluster that run single tasks; without such nodes any node does."""


@dataclass(frozen=True)
class _Drain:
    """A request that no other unit is started."""

    token: str


@dataclass(frozen=True)
class EmbedJob:
    """Everything a stage needs, small enough to travel with each task."""

    run: Run
    plan: Plan
    """The run's plan, without its units."""
    source: Source
    encoder: EncoderConfig
    embed: EmbedConfig
    columns: pa.Schema
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Names this start of the driver: requests to drain and the limit of attempts are for it only."""

    @property
    def is_draining(self) -> bool:
        """Whether the driver was asked to end: no other unit is started."""
        asked = self.run.storage.decode_if_there(_Drain, self.run.path(DRAIN))
        return asked == _Drain(self.token)

    def drain(self) -> None:
        """Ask that no other unit is started."""
        self.run.storage.write(self.run.path(DRAIN), encode(_Drain(self.token)))


@dataclass(frozen=True)
class Needs:
    """What a task or an actor takes of a node."""

    cpus: float = 1
    gpus: float = 0
    memory: int = 0
    """Bytes; 0 if it is not known."""

    def __str__(self) -> str:
        more = f" and {self.memory / 2**30:.1f} GiB of memory" if self.memory else ""
        return f"{self.cpus:g} CPUs, {self.gpus:g} GPUs{more}"


ONE_CPU = Needs()


class Tasks(Protocol):
    """Runs single tasks."""

    def call(self, function: Callable[..., T], *args: Any, needs: Needs = ONE_CPU) -> T:
        """Run a function once, on a node that has what it needs, and wait for its result."""

    def each(
        self,
        function: Callable[..., T],
        items: Iterable[tuple[Any, ...]],
        needs: Needs = ONE_CPU,
    ) -> list[T]:
        """Run a function over items in any order; return the results in the items' order."""


class Here:
    """Runs tasks in this process, one after the other."""

    def call(self, function: Callable[..., T], *args: Any, needs: Needs = ONE_CPU) -> T:
        return function(*args)

    def each(
        self,
        function: Callable[..., T],
        items: Iterable[tuple[Any, ...]],
        needs: Needs = ONE_CPU,
    ) -> list[T]:
        return [function(*item) for item in items]


HERE: Tasks = Here()


class Executor(Tasks, Protocol):
    """Runs units and single tasks away from the driver."""

    where: str
    """For people."""

    def connected(self, config: Config) -> AbstractContextManager[Executor]:
        """Be ready for work during the block."""

    def embed(
        self,
        job: EmbedJob,
        units: list[EmbedUnit],
        on_receipt: Callable[[Receipt], None],
        stop: Stop,
    ) -> None:
        """Embed and stage units; call `on_receipt` for each; end early when `stop` says so."""

    def largest_node_cpus(self, gpus: float = 0, memory: int = 0) -> int:
        """Return the most CPUs that one call can ask for on a node with so many GPUs and bytes; 1 without one."""

    def largest_node_bytes(self, gpus: float = 0) -> int:
        """Return the most memory, in bytes, that one call can ask for on a node with `gpus` GPUs; 0 without a node."""

    def has_gpu(self) -> bool:
        """Return whether a call can ask for a GPU."""

    def metrics(self, alias: str, run_id: str) -> Listener:
        """Return a listener that exports the figures of a run to where this executor is monitored."""


class WorkerPlace(NamedTuple):
    """Ids of a process's node, of its driver's job and of its actor; empty outside a cluster."""

    node: str = ""
    job: str = ""
    actor: str = ""


class Host(Protocol):
    """Tells a worker where it runs, and whether another one died alone."""

    def place(self) -> WorkerPlace:
        """Return where this process runs."""

    def outlived(self, node: str, job: str) -> bool:
        """Return whether a process there died while its node and its driver lived on."""


class _Alone:
    """A process outside a cluster: nothing is known about others."""

    def place(self) -> WorkerPlace:
        return WorkerPlace()

    def outlived(self, node: str, job: str) -> bool:
        return False


ALONE = _Alone()

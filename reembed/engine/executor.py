"""Where the work of a strategy runs: Ray, or whatever a test puts in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeVar

from reembed.catalog.plan import EmbedUnit
from reembed.config.settings import Config
from reembed.engine import cluster
from reembed.engine import pipeline as embed
from reembed.engine.job import EmbedJob
from reembed.engine.progress import UnitDone
from reembed.engine.signals import Stop

T = TypeVar("T")


class Executor(Protocol):
    """Runs units and single tasks away from the driver."""

    where: str
    """For people."""

    def connected(self, config: Config) -> AbstractContextManager[Executor]:
        """Ready for work during the block."""

    def embed(
        self,
        job: EmbedJob,
        units: list[EmbedUnit],
        on_receipt: Callable[[UnitDone], None],
        stop: Stop,
    ) -> None:
        """Embed and stage units; `on_receipt` hears of each; ends early when `stop` says so."""

    def call(self, function: Callable[..., T], *args: Any, cpus: int = 1, gpus: float = 0) -> T:
        """Run a function once and wait for it."""

    def each(self, function: Callable[..., T], items: Iterable[tuple[Any, ...]]) -> list[T]:
        """Run a function over items, in any order; results in theirs."""

    def largest_node_cpus(self, gpus: float = 0) -> int:
        """The most cores that one call can ask for, beside so many GPUs."""

    def has_gpu(self) -> bool:
        """Whether a call can ask for a GPU."""


class RayExecutor:
    """A Ray cluster, or a private one on this machine."""

    where = "Ray"

    @contextmanager
    def connected(self, config: Config) -> Iterator[RayExecutor]:
        """As `cluster.connected`."""
        self._patience_s = config.embed.stall_s
        with cluster.connected(config) as self.where:
            yield self

    def call(self, function: Callable[..., T], *args: Any, cpus: int = 1, gpus: float = 0) -> T:
        """As `cluster.call`."""
        return cluster.call(function, *args, cpus=cpus, gpus=gpus, patience_s=self._patience_s)

    def each(self, function: Callable[..., T], items: Iterable[tuple[Any, ...]]) -> list[T]:
        """As `cluster.each`."""
        return cluster.each(function, items, patience_s=self._patience_s)

    embed = staticmethod(embed.embed_units)
    largest_node_cpus = staticmethod(cluster.largest_node_cpus)
    has_gpu = staticmethod(cluster.has_gpu)

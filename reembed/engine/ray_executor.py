"""The executor of production: a Ray cluster, or a private Ray on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from reembed.config.settings import Config
from reembed.engine import cluster, nodes, pipeline, tasks

T = TypeVar("T")


class RayExecutor:
    """Runs work on Ray, as `Executor` describes."""

    where = "Ray"

    @contextmanager
    def connected(self, config: Config) -> Iterator[RayExecutor]:
        """As `cluster.connected`."""
        self._patience_s = config.embed.stall_s
        with cluster.connected(config) as self.where:
            yield self

    def call(self, function: Callable[..., T], *args: Any, cpus: int = 1, gpus: float = 0) -> T:
        """As `tasks.call`."""
        return tasks.call(function, *args, cpus=cpus, gpus=gpus, patience_s=self._patience_s)

    def each(self, function: Callable[..., T], items: Iterable[tuple[Any, ...]]) -> list[T]:
        """As `tasks.each`."""
        return tasks.each(function, items, patience_s=self._patience_s)

    embed = staticmethod(pipeline.embed_units)
    largest_node_cpus = staticmethod(nodes.largest_node_cpus)
    has_gpu = staticmethod(nodes.has_gpu)

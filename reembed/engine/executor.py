"""Where the work of a strategy runs, and its workers. This module does not import Ray: `ray_executor` does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, TypeVar

from reembed.catalog.plan import EmbedUnit
from reembed.catalog.receipts import Receipt
from reembed.config.settings import Config
from reembed.engine.job import EmbedJob
from reembed.engine.signals import Stop

T = TypeVar("T")


class Executor(Protocol):
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

    def call(self, function: Callable[..., T], *args: Any, cpus: int = 1, gpus: float = 0) -> T:
        """Run a function once and wait for its result."""

    def each(self, function: Callable[..., T], items: Iterable[tuple[Any, ...]]) -> list[T]:
        """Run a function over items in any order; return the results in the items' order."""

    def largest_node_cpus(self, gpus: float = 0) -> int:
        """Return the most CPUs that one call can ask for on a node with `gpus` GPUs."""

    def has_gpu(self) -> bool:
        """Return whether a call can ask for a GPU."""


class Place(NamedTuple):
    """Ids of a process's node, of its driver's job and of its actor; empty outside a cluster."""

    node: str = ""
    job: str = ""
    actor: str = ""


class Host(Protocol):
    """Tells a worker where it runs, and whether another one died alone."""

    def place(self) -> Place:
        """Return where this process runs."""

    def outlived(self, node: str, job: str) -> bool:
        """Return whether a process there died while its node and its driver lived on."""


class _Alone:
    """A process outside a cluster: nothing is known about others."""

    def place(self) -> Place:
        return Place()

    def outlived(self, node: str, job: str) -> bool:
        return False


ALONE = _Alone()

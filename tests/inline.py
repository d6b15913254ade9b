"""An executor without Ray: units one after the other in this process, for faults by the hundred.

All that is real but Ray: source, encoder, staging, commit, index, verification, catalog.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from reembed.catalog.plan import EmbedUnit
from reembed.catalog.receipts import Receipt
from reembed.config.settings import Config
from reembed.engine import worker as work
from reembed.engine.documents import prepared, read
from reembed.engine.executor import EmbedJob, Here
from reembed.engine.signals import Stop
from reembed.engine.worker import UnitEmbedder
from reembed.events import Event, Listener, ignore


class Inline(Here):
    """As `reembed.engine.executor.Executor` asks."""

    where = "this process"
    wait = staticmethod(time.sleep)
    """For a model's provider."""
    memory = 2**40
    """Of its node, in bytes."""

    @contextmanager
    def connected(self, config: Config) -> Iterator[Inline]:
        yield self

    def embed(
        self,
        job: EmbedJob,
        units: list[EmbedUnit],
        on_receipt: Callable[[Receipt], None],
        stop: Stop,
    ) -> None:
        embedder = UnitEmbedder(job, self.wait)
        for unit in self.order(units):
            documents = prepared(job, read(job, unit))
            on_receipt(work.write(job, unit.id, embedder.embed(unit.id, documents)))

    def order(self, units: list[EmbedUnit]) -> list[EmbedUnit]:
        """In which they are done."""
        return units

    def largest_node_cpus(self, gpus: float = 0, memory: int = 0) -> int:
        return 1

    def largest_node_bytes(self, gpus: float = 0) -> int:
        return self.memory

    def metrics(self, alias: str, run_id: str) -> Listener:
        return ignore

    def has_gpu(self) -> bool:
        return False


class Silent:
    """A listener that does not."""

    def __call__(self, event: Event) -> None:
        pass

"""The Ray Data stages: read and tokenize (CPU tasks) -> embed (actors) -> write (CPU tasks).

A row of the Ray dataset is one unit, its documents inside as Arrow IPC: Ray can neither split nor
mix units, and what is inside an actor may be sorted and packed as the model likes.
"""

from __future__ import annotations

import functools
import json
import logging
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from obstore.exceptions import BaseError
from ray.data import ActorPoolStrategy, DataContext, Datasource, ExecutionResources, ReadTask
from ray.data.block import BlockMetadata
from ray.exceptions import RayError

from reembed.catalog.plan import EmbedUnit
from reembed.catalog.receipts import Receipt
from reembed.engine import nodes, worker
from reembed.engine.cluster import READER
from reembed.engine.documents import documents_of, prepared, read
from reembed.engine.executor import EmbedJob
from reembed.engine.ray_errors import reason, unwrapped
from reembed.engine.signals import Stop
from reembed.engine.turns import ModelThread
from reembed.engine.watchdog import Watchdog
from reembed.engine.worker import UnitEmbedder
from reembed.errors import ReembedError, RunFailed
from reembed.store.records import decode, encode
from reembed.store.storage import storage_errors
from reembed.table.documents import rows_of

# CPUs of a reading, tokenizing or writing task. Not a whole number: Ray Data fuses stages with equal
# resources, and the model would wait for a tokenizer in its own actor.
_TASK_CPUS = 0.5
_ONE_UNIT: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow", "zero_copy_batch": True}
_ROW = pa.schema({"unit": pa.string(), "payload": pa.large_binary()})
AT_ONCE = 3
"""Units in an actor: one is prepared and one finished while the model is at a third."""
_MIN_STORE_BYTES = 256 << 20
_LOOK_S = 1.0
_ASK_S = 1.0
_DISK = "df -h     # there; then the same command resumes"


def embed_units(
    job: EmbedJob, units: list[EmbedUnit], on_receipt: Callable[[Receipt], None], stop: Stop
) -> None:
    """Embed and stage these units; call `on_receipt` for each as it is staged.

    Raises:
        RunFailed: the job stopped or stands still; staged units stay.
        Interrupted: it was asked to stop.
    """
    _set_context(job, units)
    dataset = ray.data.read_datasource(
        _Units(job, units),
        override_num_blocks=len(units),
        num_cpus=_TASK_CPUS,
        concurrency=job.embed.tokenizer_workers or None,
    )
    dataset = dataset.map_batches(
        _Embedder,
        **_ONE_UNIT,
        fn_constructor_kwargs={"job": job},
        compute=ActorPoolStrategy(
            size=job.embed.actors,
            max_concurrent_calls_per_actor=AT_ONCE,
            max_tasks_in_flight_per_actor=AT_ONCE + 1,  # the next one's input is fetched
            enable_true_multi_threading=True,
        ),
        num_cpus=job.embed.actor_cpus,
        num_gpus=job.embed.gpus_per_actor or None,
    )
    dataset = dataset.map_batches(_write, **_ONE_UNIT, fn_kwargs={"job": job}, num_cpus=_TASK_CPUS)
    watchdog = Watchdog(job, units, stop.emit)

    def look() -> None:
        stop.check()
        watchdog.look()

    with stop.draining(job.drain, job.embed.drain_s):
        for written in _receipts(dataset, look):
            receipt = decode(Receipt, json.loads(written))
            watchdog.heard(receipt)
            on_receipt(receipt)
    stop.check(drained=True)


def _receipts(dataset: Any, meanwhile: Callable[[], None]) -> Iterator[str]:
    """Yield receipts as JSON, as they come; call `meanwhile` at least every second."""
    arrived: queue.SimpleQueue[str | Exception | None] = queue.SimpleQueue()

    def consume() -> None:
        try:
            for row in dataset.iter_rows():
                arrived.put(row["receipt"])
            arrived.put(None)
        except Exception as error:  # noqa: BLE001 - handed on, none is lost
            arrived.put(error)

    threading.Thread(target=consume, name=READER, daemon=True).start()
    while True:
        try:
            found = arrived.get(timeout=_LOOK_S)
        except queue.Empty:
            meanwhile()
            continue
        if found is None:
            return
        if isinstance(found, BaseException):
            cause = unwrapped(found)
            if cause is not found:
                raise cause from found
            if not isinstance(found, RayError):
                raise found
            fix = "reembed status     # the same command resumes"
            raise RunFailed("the embedding job stopped", reason(found), fix) from found
        yield found
        meanwhile()


def _set_context(job: EmbedJob, units: list[EmbedUnit]) -> None:
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = 0  # else one bad document silently drops its whole unit
    context.checkpoint_config = None
    context.raise_original_map_exception = True  # else it says "UDF failed" and hides the cause
    context.execution_no_progress_timeout_s = -1  # embed.stall_s is the limit
    context.target_max_block_size = None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with _reading(job, units[0]):
        text = documents_of(job, units[0]).nbytes
    vectors = rows_of(units[0].documents) * job.plan.space.dim * 4
    unit_bytes = 2 * text + vectors  # text, token ids, vectors
    in_flight = job.embed.units_in_flight * job.embed.actors
    context.execution_options.resource_limits = ExecutionResources.for_limits(
        object_store_memory=max(_MIN_STORE_BYTES, in_flight * unit_bytes)
    )


def _reading(job: EmbedJob, unit: EmbedUnit) -> AbstractContextManager[None]:
    where = f"{job.source.uri} version {job.source.version}"
    return storage_errors(f"unit {unit.id} could not be read from {where}")


class _Units(Datasource):
    """One read task, one block, one row per unit."""

    def __init__(self, job: EmbedJob, units: list[EmbedUnit]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._job = job
        self._units = units

    def estimate_inmemory_data_size(self) -> int:
        return sum(u.rows for u in self._units) * 1_024

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        metadata = BlockMetadata(num_rows=1, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(functools.partial(_read, self._job, u), metadata) for u in self._units]


def _read(job: EmbedJob, unit: EmbedUnit) -> Iterator[pa.Table]:
    """Yield one unit; if it is tokenized in this task, its text never enters the object store."""
    if job.is_draining:
        yield _ROW.empty_table()
        return
    with _reading(job, unit):
        documents = read(job, unit)
    yield _row(unit.id, prepared(job, documents))


def _row(unit: str, documents: pa.Table) -> pa.Table:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, documents.schema) as writer:
        writer.write_table(documents)
    body = sink.getvalue()
    offsets = pa.py_buffer(np.array([0, body.size], np.int64))
    payload = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, body])  # no copy
    return pa.table([[unit], payload], _ROW)


def _documents(batch: pa.Table) -> tuple[str, pa.Table]:
    body = batch["payload"].combine_chunks()[0].as_buffer()
    return batch["unit"][0].as_py(), pa.ipc.open_stream(body).read_all()


class _Embedder:
    """A model replica as Ray Data's actor, which calls it from several threads."""

    def __init__(self, job: EmbedJob) -> None:
        self._job = job
        self._is_draining = False
        self._started: UnitEmbedder | ReembedError
        try:
            with storage_errors(f"an actor of run {job.run.id} could not start{_at(job)}"):
                self._started = UnitEmbedder(
                    job, host=nodes, turns=ModelThread(), is_ending=lambda: self._is_draining
                )
        except ReembedError as error:  # raised here, only Ray's words would remain
            self._started = error
        threading.Thread(target=self._ask, daemon=True).start()

    def __call__(self, batch: pa.Table) -> pa.Table:
        if self._is_draining:
            return batch.slice(0, 0)
        if isinstance(self._started, ReembedError):
            raise self._started
        unit, documents = _documents(batch)
        with storage_errors(f"the records of unit {unit} could not be kept{_at(self._job)}"):
            embedded = self._started.embed(unit, documents)
        return batch.slice(0, 0) if embedded is None else _row(unit, embedded)

    def _ask(self) -> None:
        """Look once a second whether to drain: a request per unit would cost a GPU more than its work."""
        while not self._is_draining:
            with suppress(OSError, BaseError):  # the next one may succeed
                self._is_draining = self._job.is_draining
            time.sleep(_ASK_S)


def _write(batch: pa.Table, job: EmbedJob) -> pa.Table:
    if not batch.num_rows:
        return batch
    unit, documents = _documents(batch)
    with storage_errors(f"unit {unit} could not be written to {job.plan.table}{_at(job)}", _DISK):
        receipt = worker.write(job, unit, documents)
    return pa.table({"receipt": [json.dumps(encode(receipt))]})


def _at(job: EmbedJob) -> str:
    return f" below {job.run.storage.root} on {socket.gethostname()}"

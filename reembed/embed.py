"""The Ray Data stages: read and tokenize (CPU tasks) -> embed (actors) -> write (CPU tasks).

A row of the Ray dataset is one unit, its documents inside as Arrow IPC: Ray can neither split nor
mix units, and what is inside an actor may be sorted and packed as the model likes.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Datasource, ExecutionResources, ReadTask
from ray.data.block import BlockMetadata
from ray.exceptions import RayError

from reembed import attempts, digests, encoders, faults, table
from reembed.cluster import reason, unwrapped
from reembed.config import EmbedConfig, EncoderConfig
from reembed.encoders.base import Encoder, Tokenizer, Tokens
from reembed.errors import RunFailed, SpaceMismatch
from reembed.runs import Plan, Run, Unit
from reembed.source import TEXT, Source
from reembed.table_version import from_vectors

# What a document can make a tokenizer or a model raise. Anything else is not the document's fault.
DOCUMENT_ERRORS = (
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    RuntimeError,
    AssertionError,
    OverflowError,
)
_TOKENS, _ERROR = "__tokens", "__error"
_SYSTEMATIC = 0.5  # more than this share of a unit failing is not poison but a broken set-up
_SYSTEMATIC_ROWS = 8
_NO_TEXT = "its text is null"
# Of reading, tokenizing and writing tasks. Not a whole number: Ray Data fuses stages whose resources
# are equal, and tokenizing inside the actor would leave the model waiting for it.
_TASK_CPUS = 0.5
_ONE_UNIT: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow", "zero_copy_batch": True}
_MIN_STORE_BYTES = 256 << 20


@dataclass(frozen=True)
class EmbedJob:
    """Everything a stage needs, small enough to travel with each task."""

    run: Run
    plan: Plan
    """Without its units."""
    source: Source
    encoder: EncoderConfig
    embed: EmbedConfig
    columns: pa.Schema


def embed_units(
    job: EmbedJob, units: list[Unit], on_receipt: Callable[[dict[str, Any]], None]
) -> None:
    """Embed and stage these units; `on_receipt` hears of each as it is staged.

    Raises:
        RunFailed: the job stopped; what is staged stays.
    """
    _set_context(job, units)
    dataset = ray.data.read_datasource(
        _Units(job, units), override_num_blocks=len(units), num_cpus=_TASK_CPUS
    )
    dataset = dataset.map_batches(
        _Embedder,
        **_ONE_UNIT,
        fn_constructor_kwargs={"job": job},
        compute=ActorPoolStrategy(size=job.embed.actors, max_tasks_in_flight_per_actor=2),
        num_cpus=job.embed.cpus_per_actor if not job.embed.gpus_per_actor else 1,
        num_gpus=job.embed.gpus_per_actor or None,
    )
    dataset = dataset.map_batches(
        _write,
        **_ONE_UNIT,
        fn_kwargs={"job": job},
        num_cpus=_TASK_CPUS,
    )
    try:
        for row in dataset.iter_rows():
            on_receipt(row)
    except RayError as error:
        cause = unwrapped(error)
        if cause is not error:
            raise cause from error
        raise RunFailed("the embedding job stopped", reason(error), "reembed run") from error


def _set_context(job: EmbedJob, units: list[Unit]) -> None:
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = 0  # else one bad document silently drops its whole unit
    context.checkpoint_config = None
    context.target_max_block_size = None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    in_flight = job.embed.units_in_flight * job.embed.actors
    limit = max(_MIN_STORE_BYTES, in_flight * _unit_bytes(job, units[0]))
    context.execution_options.resource_limits = ExecutionResources.for_limits(
        object_store_memory=limit
    )


def _unit_bytes(job: EmbedJob, unit: Unit) -> int:
    text = job.source.read(unit).nbytes
    return int(2 * text + unit.rows * job.plan.space.dim * 4)  # text, its token ids, its vectors


class _Units(Datasource):
    """One read task, one block, one row per unit."""

    def __init__(self, job: EmbedJob, units: list[Unit]) -> None:
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


def _read(job: EmbedJob, unit: Unit) -> Iterator[pa.Table]:
    """One unit, read and tokenized in one task: its text never enters the object store."""
    yield _row(unit.id, _tokenized(job.source.read(unit), _tokenizer(job.encoder)))


def _row(unit: str, documents: pa.Table) -> pa.Table:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, documents.schema) as writer:
        writer.write_table(documents)
    body = sink.getvalue()
    offsets = pa.py_buffer(np.array([0, body.size], np.int64))
    payload = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, body])  # no copy
    return pa.table({"unit": [unit], "payload": payload})


def _documents(batch: pa.Table) -> tuple[str, pa.Table]:
    body = batch["payload"].combine_chunks()[0].as_buffer()
    return batch["unit"][0].as_py(), pa.ipc.open_stream(body).read_all()


@functools.cache
def _tokenizer(config: EncoderConfig) -> Tokenizer:
    # Ray runs as many of these tasks as there are cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return encoders.load_tokenizer(config)


def _tokenized(documents: pa.Table, tokenizer: Tokenizer) -> pa.Table:
    """doc_id, text -> doc_id, text_hash, tokens, error (null where all is well)."""
    raw = documents[TEXT].to_pylist()
    errors: list[str | None] = [_NO_TEXT if text is None else None for text in raw]
    texts = [(text or b"").decode("utf-8", "replace") for text in raw]
    every = np.arange(len(texts))
    parts = _each(
        every, lambda rows: tokenizer.tokenize([texts[r] for r in rows], "document"), errors
    )
    tokens: list[Any] = [None] * len(texts)
    prompt_length = 0
    for rows, found in parts:
        prompt_length = found.prompt_length
        for i, row in enumerate(rows):
            tokens[row] = found.ids[found.offsets[i] : found.offsets[i + 1]]
    columns = {
        "text_hash": pa.array([digests.digest(t or b"") for t in raw], pa.binary(digests.BYTES)),
        _TOKENS: pa.array(tokens, pa.large_list(pa.int32())),
        _ERROR: pa.array(errors, pa.string()),
    }
    out = documents.drop_columns([TEXT])
    for name, column in columns.items():
        out = out.append_column(name, column)
    return out.replace_schema_metadata({"prompt_length": str(prompt_length)})


def _each(
    rows: npt.NDArray[np.int64],
    work: Callable[[npt.NDArray[np.int64]], Any],
    errors: list[str | None],
) -> list[tuple[npt.NDArray[np.int64], Any]]:
    """`work` over rows, halved where it fails until the failing documents stand alone in `errors`."""
    rows = np.array([r for r in rows if errors[r] is None], np.int64)
    if not len(rows):
        return []
    try:
        return [(rows, work(rows))]
    except DOCUMENT_ERRORS as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise RunFailed(
                "the device ran out of memory",
                str(error).splitlines()[0],
                "reembed run --set embed.batch_tokens=4096",
            ) from error
        if len(rows) == 1:
            errors[rows[0]] = (
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
            )
            return []
    half = len(rows) // 2
    return [*_each(rows[:half], work, errors), *_each(rows[half:], work, errors)]


class _Embedder:
    """One model replica."""

    def __init__(self, job: EmbedJob) -> None:
        here = encoders.describe(job.encoder, job.plan.space.vector_dtype)
        job.plan.space.require(here, "the model this actor would load")
        self._job = job
        self._encoder: Encoder = encoders.load_encoder(
            job.encoder, dtype=job.embed.dtype, batch_tokens=job.embed.batch_tokens
        )
        if self._encoder.dim != job.plan.space.dim:
            raise SpaceMismatch(
                f"{job.encoder.model} makes vectors of {self._encoder.dim} dimensions",
                f"its folder says {job.plan.space.dim}, and so does the plan",
                "reembed config",
            )

    def __call__(self, batch: pa.Table) -> pa.Table:
        started, started_at = time.perf_counter(), time.time()
        unit, documents = _documents(batch)
        attempt = attempts.begin(self._job.run, unit, documents.num_rows)
        tokens = _tokens(documents)
        errors: list[str | None] = documents[_ERROR].to_pylist()
        for row in attempt.poison:
            errors[row] = "its embedding kills the process"
        vectors = np.full((documents.num_rows, self._job.plan.space.dim), np.nan, np.float32)
        for start, stop in attempt.ranges():
            for rows, found in _each(
                np.arange(start, stop), lambda rows: self._encoder.embed(tokens.take(rows)), errors
            ):
                vectors[rows] = found
        self._check(unit, vectors, errors)
        stats = {
            "tokens": int(tokens.lengths.sum()),
            "started_at": started_at,
            "embed_s": time.perf_counter() - started,
            "attempt": attempt.number,
            "device": self._encoder.device,
        }
        faults.point("embed.before_write")
        return _row(unit, self._embedded(documents, vectors, errors, stats))

    def _check(self, unit: str, vectors: npt.NDArray[np.float32], errors: list[str | None]) -> None:
        """Find vectors that cannot be stored; they would vanish from every search without an error."""
        stored_as = np.dtype(self._job.plan.space.vector_dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            stored = vectors.astype(stored_as, copy=False)
            norms = np.linalg.norm(stored.astype(np.float32), axis=1)
        for row in np.flatnonzero(~(np.isfinite(norms) & (norms > 0))):
            errors[row] = (
                errors[row]
                or "its vector is not finite or zero: the model has nothing for this text"
            )
        failed = [e for e in errors if e not in (None, _NO_TEXT)]
        allowed = max(_SYSTEMATIC * len(errors), self._job.embed.max_dead_letters)
        if len(errors) >= _SYSTEMATIC_ROWS and len(failed) > allowed:
            raise RunFailed(
                f"{len(failed):,} of {len(errors):,} documents of unit {unit} could not be embedded",
                f"so many is no accident of single documents; the first: {failed[0]}",
                "reembed config --check",
            )

    def _embedded(
        self,
        documents: pa.Table,
        vectors: npt.NDArray[np.float32],
        errors: list[str | None],
        stats: dict[str, Any],
    ) -> pa.Table:
        vector_type = self._job.columns.field("vector").type
        usable = np.where(np.isfinite(vectors), vectors, 0)
        out = documents.drop_columns([_TOKENS, _ERROR])
        out = out.append_column("vector", from_vectors(usable, vector_type.value_type))
        out = out.append_column(_ERROR, pa.array(errors, pa.string()))
        return out.replace_schema_metadata({k: str(v) for k, v in stats.items()})


def _tokens(documents: pa.Table) -> Tokens:
    column = documents[_TOKENS].combine_chunks().fill_null([])
    offsets = column.offsets.to_numpy()
    ids = column.values.to_numpy(zero_copy_only=False)
    prompt_length = int((documents.schema.metadata or {}).get(b"prompt_length", b"0"))
    return Tokens(ids, offsets.astype(np.int64), prompt_length)


def _write(batch: pa.Table, job: EmbedJob) -> pa.Table:
    unit, documents = _documents(batch)
    stats = {k.decode(): _number(v.decode()) for k, v in (documents.schema.metadata or {}).items()}
    failed = documents[_ERROR].is_valid()
    rows = documents.filter(documents[_ERROR].is_null()).drop_columns([_ERROR])
    dead = [
        table.DeadLetter(d["doc_id"], d[_ERROR], d["text_hash"].hex())
        for d in documents.filter(failed).select(["doc_id", _ERROR, "text_hash"]).to_pylist()
    ]
    receipt = table.stage(job.run, job.plan, job.columns, table.Staged(unit, rows, dead, stats))
    return pa.table(
        {
            "unit": [unit],
            "rows": [receipt["rows"]],
            "dead_letters": [len(receipt["dead_letters"])],
            **{k: [v] for k, v in stats.items()},
        }
    )


def _number(text: str) -> int | float | str:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


def slim(plan: Plan) -> Plan:
    """The plan without its units, to travel."""
    return replace(plan, units=[])

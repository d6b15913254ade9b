"""What is done with one unit, wherever it runs: tokenize -> embed -> write.

Documents travel as Arrow tables: doc_id, text_hash, carried columns, then tokens or vectors, and
`reembed.error`, which is null where all is well.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from reembed import digests, encoders, faults
from reembed.catalog.plan import EmbedUnit, Plan
from reembed.catalog.receipts import DeadLetter, UnitStats
from reembed.catalog.runs import Run
from reembed.config.settings import EmbedConfig, EncoderConfig
from reembed.encoders import golden
from reembed.encoders.base import Encoder, Tokenizer, Tokens
from reembed.engine import attempts, reuse
from reembed.engine.progress import UnitDone
from reembed.errors import RunFailed, SpaceMismatch
from reembed.source.dataset import TEXT, Source
from reembed.table import write as table
from reembed.table.read import as_vectors, from_vectors

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
# With a dot, as TEXT: no carried column can be called so.
_TOKENS, _ERROR, _GIVEN = "reembed.tokens", "reembed.error", "reembed.given"
_STATS = "reembed.stats"
_SYSTEMATIC = 0.5  # more than this share of a unit failing is not poison but a broken set-up
_SYSTEMATIC_ROWS = 8
_NO_TEXT = "its text is null"
_NORM_SLACK = 0.02  # of unit vectors in half precision
DRAIN = "drain.json"


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
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Of this start of the driver: a request to drain means this one only."""

    @property
    def is_draining(self) -> bool:
        """Whether the driver was asked to end: no further unit is begun."""
        asked = self.run.storage.read_if_there(self.run.path(DRAIN))
        return asked is not None and bool(asked["token"] == self.token)

    def drain(self) -> None:
        """Ask that no further unit is begun."""
        self.run.storage.write(self.run.path(DRAIN), {"token": self.token})


@functools.cache
def tokenizer_of(config: EncoderConfig, sha256: str) -> Tokenizer:
    """The tokenizer of this process.

    Raises:
        SpaceMismatch: its files are not those of the plan's space.
    """
    # Ray runs as many of these tasks as there are cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    here = encoders.tokenizer_sha256(config)
    if here != sha256:
        raise SpaceMismatch(
            f"{config.model} has another tokenizer on {socket.gethostname()}",
            f"sha256 {here[:12]} where the plan has {sha256[:12]}: its ids would mean other words",
            "reembed config --check     # on that node: every node needs the same model folder",
        )
    return encoders.load_tokenizer(config)


def read(job: EmbedJob, unit: EmbedUnit) -> pa.Table:
    """The unit's documents; `reembed.given` beside those whose vector the run's donors hold."""
    documents = job.source.read(unit)
    known = reuse.known(job.run.storage, job.plan)
    if known is None:
        return documents
    places = known.find(digests.stack(digests.of_column(documents[TEXT])))
    found = (places >= 0) & documents[TEXT].is_valid().to_numpy()
    vectors = np.zeros((documents.num_rows, job.plan.space.dim), np.float32)
    vectors[found] = known.vectors(places[found])
    given = from_vectors(vectors, pa.float32(), valid=found)
    return documents.append_column(_GIVEN, given)


def _given(documents: pa.Table, dim: int) -> npt.NDArray[np.float32]:
    """float32 [N, dim]: vectors that are copied; NaN for documents to embed."""
    vectors = np.full((documents.num_rows, dim), np.nan, np.float32)
    if _GIVEN in documents.column_names:
        column = documents[_GIVEN].combine_chunks()
        found = column.is_valid()
        vectors[found.to_numpy(zero_copy_only=False)] = as_vectors(column.filter(found))
    return vectors


def tokenized(documents: pa.Table, tokenizer: Tokenizer) -> pa.Table:
    """doc_id, text -> doc_id, text_hash, `reembed.tokens` large_list<uint16 or int32>, `reembed.error`
    (null where all is well); how many tokens the prompt has is in the metadata. Documents with a
    given vector get no tokens."""
    raw = documents[TEXT].to_pylist()
    errors: list[str | None] = [_NO_TEXT if text is None else None for text in raw]
    texts = [(text or b"").decode("utf-8", "replace") for text in raw]
    parts = _each(
        _to_embed(documents),
        lambda rows: tokenizer.tokenize([texts[r] for r in rows], "document"),
        errors,
    )
    lengths = np.zeros(len(texts), np.int64)
    for rows, found in parts:
        lengths[rows] = found.lengths
    ids = np.concatenate([np.empty(0, np.int32), *(found.ids for _, found in parts)])
    prompt_length = max((found.prompt_length for _, found in parts), default=0)
    columns = {
        "text_hash": pa.array(
            [digests.NULL if t is None else digests.digest(t) for t in raw],
            pa.binary(digests.BYTES),
        ),
        _TOKENS: _column(ids, lengths),
        _ERROR: pa.array(errors, pa.string()),
    }
    out = documents.drop_columns([TEXT])
    for name, column in columns.items():
        out = out.append_column(name, column)
    return out.replace_schema_metadata({"prompt_length": str(prompt_length)})


def _to_embed(documents: pa.Table) -> npt.NDArray[np.int64]:
    """int64: rows without a given vector."""
    if _GIVEN not in documents.column_names:
        return np.arange(documents.num_rows)
    return np.flatnonzero(documents[_GIVEN].is_null().to_numpy())


def _column(ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64]) -> pa.Array:
    """Ids of texts one after the other, without a copy; in 16 bits where all fit: half the bytes."""
    small = not len(ids) or (ids.min() >= 0 and ids.max() < 1 << 16)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    values = pa.array(ids.astype(np.uint16) if small else ids)
    return pa.LargeListArray.from_arrays(pa.array(offsets), values)


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
        if len(rows) == 1:
            errors[rows[0]] = (
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
            )
            return []
    half = len(rows) // 2
    return [*_each(rows[:half], work, errors), *_each(rows[half:], work, errors)]


class UnitEmbedder:
    """One model replica."""

    def __init__(self, job: EmbedJob) -> None:
        """Load the model, and hold it against the plan and against the run's other replicas.

        Raises:
            SpaceMismatch: it is another model, or makes other vectors of the same texts.
        """
        here = encoders.describe(job.encoder, job.plan.space.vector_dtype)
        job.plan.space.require(here, "the model this actor would load")
        cores = job.embed.actor_cpus  # its own, and the model waits for the tokenizer
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if cores > 1 else "false")
        os.environ.setdefault("RAYON_NUM_THREADS", str(cores))
        self._job = job
        self._worker = uuid.uuid4().hex
        self._encoder: Encoder = encoders.load_encoder(
            job.encoder,
            dtype=job.embed.dtype,
            batch_tokens=job.embed.batch_tokens,
            compile_layers=True,
        )
        if self._encoder.dim != job.plan.space.dim:
            raise SpaceMismatch(
                f"{job.encoder.model} makes vectors of {self._encoder.dim} dimensions",
                f"its folder says {job.plan.space.dim}, and so does the plan",
                "reembed config",
            )
        for donor in job.plan.donors:
            golden.require(job.run.storage, donor.origin, self._encoder)
        self._other_path = golden.leave(job.run.storage, job.plan.origin, self._encoder)
        self._idle_since: float | None = None
        self._model_s = 0.0

    def embed(self, unit: str, documents: pa.Table) -> pa.Table:
        """Tokens, or texts, to `vector`, a list of dim floats; documents that fail get a
        `reembed.error`.

        `UnitStats`, as JSON, are in the metadata.

        Raises:
            RunFailed: so many fail, or all vectors are the same, that it is the set-up.
        """
        started, started_at = time.perf_counter(), time.time()
        waited = started - (self._idle_since or started)
        before, model_s = replace(self._encoder.work), self._model_s
        attempt = attempts.begin(self._job.run, unit, documents.num_rows)
        with attempts.working(attempt, self._worker):
            if TEXT in documents.column_names:
                with self._timing():
                    documents = tokenized(documents, self._encoder)
            tokens = _tokens(documents)
            errors: list[str | None] = documents[_ERROR].to_pylist()
            for row in attempt.poison:
                errors[row] = "its embedding kills the process, or does not end"
            vectors = _given(documents, self._job.plan.space.dim)
            todo = _to_embed(documents)
            for start, stop in attempt.ranges():
                for rows, found in _each(
                    todo[(todo >= start) & (todo < stop)],
                    lambda rows: self._embed(tokens.take(rows)),
                    errors,
                ):
                    vectors[rows] = found
        self._check(unit, vectors, errors)
        self._check_variety(unit, vectors, documents)
        done = self._encoder.work - before
        stats = UnitStats(
            device=self._encoder.device,
            path=self._encoder.path,
            notes="; ".join([*self._encoder.notes, *self._other_path]),
            batch_tokens=self._encoder.batch_tokens,
            attempt=attempt.number,
            copied=documents.num_rows - len(todo),
            tokens=int(tokens.lengths.sum()),
            model_tokens=done.tokens,
            computed_tokens=done.computed,
            flop=done.flop,
            peak_flops=self._encoder.peak_flops * self._share,
            started_at=started_at,
            waited_s=waited,
            embed_s=time.perf_counter() - started,
            model_s=self._model_s - model_s,
        )
        faults.point("embed.before_write")
        return self._embedded(documents, vectors, errors, stats)

    def idle(self) -> None:
        """From now on it waits for a unit."""
        self._idle_since = time.perf_counter()

    def _embed(self, tokens: Tokens) -> npt.NDArray[np.float32]:
        with self._timing():
            return self._encoder.embed(tokens)

    @contextmanager
    def _timing(self) -> Iterator[None]:
        """Seconds of the model's work, its tokenizing included where the same cores do it."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._model_s += time.perf_counter() - started

    @property
    def _share(self) -> float:
        """Of the device: less than 1 where replicas share a GPU."""
        on_gpu = self._encoder.device.startswith("cuda")
        return min(1.0, self._job.embed.gpus_per_actor or 1.0) if on_gpu else 1.0

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
        if self._job.plan.space.normalize:
            for row in np.flatnonzero(np.abs(norms - 1) > _NORM_SLACK):
                errors[row] = errors[row] or f"its vector has length {norms[row]:.3f}, not 1"
        failed = [e for e in errors if e not in (None, _NO_TEXT)]
        allowed = max(_SYSTEMATIC * len(errors), self._job.embed.max_dead_letters)
        if len(errors) >= _SYSTEMATIC_ROWS and len(failed) > allowed:
            raise RunFailed(
                f"{len(failed):,} of {len(errors):,} documents of unit {unit} could not be embedded",
                f"so many is no accident of single documents; the first: {failed[0]}",
                "reembed config --check",
            )

    def _check_variety(
        self, unit: str, vectors: npt.NDArray[np.float32], documents: pa.Table
    ) -> None:
        """Different texts with one and the same vector: the model is broken, whatever its norm."""
        usable = np.isfinite(vectors).all(axis=1)
        texts = documents["text_hash"].filter(pa.array(usable)).unique()
        if len(texts) >= _SYSTEMATIC_ROWS and (vectors[usable] == vectors[usable][0]).all():
            raise RunFailed(
                f"all {len(texts):,} different texts of unit {unit} got the same vector",
                "the model's weights or its device are broken",
                "reembed config --check",
            )

    def _embedded(
        self,
        documents: pa.Table,
        vectors: npt.NDArray[np.float32],
        errors: list[str | None],
        stats: UnitStats,
    ) -> pa.Table:
        vector_type = self._job.columns.field("vector").type
        usable = np.where(np.isfinite(vectors), vectors, 0)
        internal = [c for c in (_TOKENS, _ERROR, _GIVEN) if c in documents.column_names]
        out = documents.drop_columns(internal)
        out = out.append_column("vector", from_vectors(usable, vector_type.value_type))
        out = out.append_column(_ERROR, pa.array(errors, pa.string()))
        return out.replace_schema_metadata({_STATS: json.dumps(asdict(stats))})


def _tokens(documents: pa.Table) -> Tokens:
    column = documents[_TOKENS].combine_chunks()
    ids = column.values.to_numpy().astype(np.int32, copy=False)
    prompt_length = int((documents.schema.metadata or {}).get(b"prompt_length", b"0"))
    return Tokens(ids, column.offsets.to_numpy(), prompt_length)


def stats_of(documents: pa.Table) -> UnitStats:
    """How an embedded unit was made."""
    return UnitStats(**json.loads(documents.schema.metadata[_STATS.encode()]))


def write(job: EmbedJob, unit: str, documents: pa.Table) -> UnitDone:
    """Stage an embedded unit, for the driver's progress."""
    stats = stats_of(documents)
    failed = documents[_ERROR].is_valid()
    rows = documents.filter(documents[_ERROR].is_null()).drop_columns([_ERROR])
    dead = tuple(
        DeadLetter(d["doc_id"], d[_ERROR], d["text_hash"].hex())
        for d in documents.filter(failed).select(["doc_id", _ERROR, "text_hash"]).to_pylist()
    )
    receipt = table.stage(job.run, job.plan, job.columns, table.Staged(unit, rows, dead, stats))
    return UnitDone(unit, receipt.rows, len(receipt.dead_letters), stats)

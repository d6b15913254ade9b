"""What is done with one unit, wherever it runs: read -> tokenize -> embed -> write.

Documents travel as Arrow tables: doc_id, text_hash, carried columns, then text, tokens or vectors, and
`reembed.error`, which is null for a document without an error.
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
from dataclasses import asdict, dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from reembed import digests, encoders, faults
from reembed.catalog.plan import EmbedUnit, Plan
from reembed.catalog.receipts import DeadLetter, UnitStats
from reembed.catalog.runs import Run
from reembed.config.settings import EmbedConfig, EncoderConfig
from reembed.encoders import golden
from reembed.encoders.base import Embedded, Encoder, EncoderStats, Rows, Vectors, apart
from reembed.encoders.tokens import Tokenizer, Tokens, require_tokens
from reembed.engine import attempts, reuse
from reembed.engine.attempts import Attempt
from reembed.engine.patience import Patience
from reembed.engine.progress import UnitDone
from reembed.errors import ProviderError, RunFailed, SpaceMismatch
from reembed.source.dataset import TEXT, Source
from reembed.table import write as table
from reembed.table.read import as_vectors, from_vectors

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
        """Whether the driver was asked to end: no other unit is started."""
        asked = self.run.storage.read_if_there(self.run.path(DRAIN))
        return asked is not None and bool(asked["token"] == self.token)

    def drain(self) -> None:
        """Ask that no other unit is started."""
        self.run.storage.write(self.run.path(DRAIN), {"token": self.token})


@functools.cache
def tokenizer_of(config: EncoderConfig, sha256: str) -> Tokenizer:
    """Return this process's tokenizer.

    Raises:
        SpaceMismatch: its files are not those of the plan's space.
    """
    # Ray runs as many of these tasks as there are cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = encoders.load_tokenizer(config)
    if tokenizer.sha256 != sha256:
        raise SpaceMismatch(
            f"{config.model} has another tokenizer on {socket.gethostname()}",
            f"sha256 {tokenizer.sha256[:12]} where the plan has {sha256[:12]}: its ids would mean other words",
            "reembed config --check     # on that node: every node needs the same model folder",
        )
    return tokenizer


def read(job: EmbedJob, unit: EmbedUnit) -> pa.Table:
    """Return the unit's documents: text, text_hash, `reembed.error` (null, or why it is not embedded).

    Where the run's donors hold a document's vector, `reembed.given` has it.
    """
    documents = job.source.read(unit)
    texts = documents[TEXT]
    hashes = [digests.NULL if t is None else digests.digest(t) for t in texts.to_pylist()]
    errors = pc.if_else(texts.is_null(), _NO_TEXT, pa.scalar(None, pa.string()))
    documents = documents.append_column("text_hash", pa.array(hashes, pa.binary(digests.BYTES)))
    documents = documents.append_column(_ERROR, errors)
    known = reuse.known(job.run.storage, job.plan)
    if known is None:
        return documents
    places = known.find(digests.stack(digests.of_column(texts)))
    found = (places >= 0) & texts.is_valid().to_numpy()
    vectors = np.zeros((documents.num_rows, job.plan.space.dim), np.float32)
    vectors[found] = known.vectors(places[found])
    given = from_vectors(vectors, pa.float32(), valid=found)
    return documents.append_column(_GIVEN, given)


def tokenized(documents: pa.Table, tokenizer: Tokenizer) -> pa.Table:
    """Replace the texts by `reembed.tokens`, large_list<uint16 or int32>.

    A text that cannot be tokenized gets a `reembed.error`; documents with an error or a given vector
    get no tokens. The length of the prompt is in the metadata.
    """
    texts, errors = _texts(documents), documents[_ERROR].to_pylist()
    parts, failures = apart(
        _to_embed(documents),
        lambda rows: tokenizer.tokenize([texts[r] for r in rows], "document"),
    )
    for row, why in failures.items():
        errors[row] = why
    lengths = np.zeros(len(texts), np.int64)
    for rows, found in parts:
        lengths[rows] = found.lengths
    ids = np.concatenate([np.empty(0, np.int32), *(found.ids for _, found in parts)])
    prompt_length = max((found.prompt_length for _, found in parts), default=0)
    out = documents.drop_columns([TEXT, _ERROR])
    out = out.append_column(_TOKENS, _column(ids, lengths))
    out = out.append_column(_ERROR, pa.array(errors, pa.string()))
    return out.replace_schema_metadata({"prompt_length": str(prompt_length)})


def prepared(job: EmbedJob, documents: pa.Table) -> pa.Table:
    """Return documents as an actor takes them: tokenized, if that is to be done apart from the model."""
    sha256 = job.plan.space.tokenizer_sha256
    if sha256 is None or not job.embed.tokenizes_apart:
        return documents
    return tokenized(documents, tokenizer_of(job.encoder, sha256))


def _texts(documents: pa.Table) -> list[str]:
    return [(text or b"").decode("utf-8", "replace") for text in documents[TEXT].to_pylist()]


def _to_embed(documents: pa.Table) -> Rows:
    """Rows without an error and without a given vector."""
    todo = documents[_ERROR].is_null().to_numpy()
    if _GIVEN in documents.column_names:
        todo = todo & documents[_GIVEN].is_null().to_numpy()
    return np.flatnonzero(todo)


def _column(ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64]) -> pa.Array:
    """Return ids of consecutive texts as lists, without a copy; in 16 bits where all fit."""
    small = not len(ids) or (ids.min() >= 0 and ids.max() < 1 << 16)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    values = pa.array(ids.astype(np.uint16) if small else ids)
    return pa.LargeListArray.from_arrays(pa.array(offsets), values)


@dataclass
class _Unit:
    """A unit while it is embedded; what is done outlasts a wait for the provider."""

    vectors: Vectors
    """float32 [N, dim]; NaN for documents without a vector."""
    errors: list[str | None]
    todo: Rows
    stats: EncoderStats | None = None

    @classmethod
    def begin(cls, documents: pa.Table, dim: int) -> _Unit:
        """Take the vectors that are given; the rest is to do."""
        vectors = np.full((documents.num_rows, dim), np.nan, np.float32)
        if _GIVEN in documents.column_names:
            column = documents[_GIVEN].combine_chunks()
            found = column.is_valid()
            vectors[found.to_numpy(zero_copy_only=False)] = as_vectors(column.filter(found))
        return cls(vectors, documents[_ERROR].to_pylist(), _to_embed(documents))

    def take(self, rows: Rows, found: Embedded) -> None:
        """These rows are done."""
        self.vectors[rows] = found.vectors
        for row, why in found.failures.items():
            self.errors[rows[row]] = why
        self.todo = np.setdiff1d(self.todo, rows)
        self.stats = self.stats + found.stats if self.stats else found.stats


class UnitEmbedder:
    """One model replica."""

    def __init__(self, job: EmbedJob, wait: Callable[[float], None] = time.sleep) -> None:
        """Load the model, and compare it with the plan and with the run's other replicas.

        `wait` pauses for so many seconds, while the model's provider does not answer.

        Raises:
            SpaceMismatch: it is another model, or makes other vectors of the same texts.
            ProviderError: its provider did not answer in time.
        """
        here = encoders.describe(job.encoder, job.plan.space.vector_dtype)
        job.plan.space.require(here, "the model this actor would load")
        cores = job.embed.actor_cpus  # its own, and the model waits for the tokenizer
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if cores > 1 else "false")
        os.environ.setdefault("RAYON_NUM_THREADS", str(cores))
        self._job = job
        self._worker = uuid.uuid4().hex
        self._patience = Patience(job.embed.stall_s, job.plan.resume, wait)
        self._encoder: Encoder = encoders.load_encoder(
            job.encoder,
            dtype=job.embed.dtype,
            batch_tokens=job.embed.batch_tokens,
            for_job=True,
        )
        self._other_path = self._patience.through(self._compare)
        self._idle_since: float | None = None
        self._model_s = 0.0

    def _compare(self) -> list[str]:
        """Notes on how the model differs from the line's first replica, within the space."""
        storage, plan = self._job.run.storage, self._job.plan
        found = self._encoder.embed_documents(["word"]).vectors.shape[1]
        if found != plan.space.dim:
            raise SpaceMismatch(
                f"{self._job.encoder.model} makes vectors of {found} dimensions",
                f"its description and the plan say {plan.space.dim}",
                "reembed config",
            )
        for donor in plan.donors:
            golden.require(storage, donor.origin, self._encoder)
        return golden.leave(storage, plan.origin, self._encoder)

    def embed(self, name: str, documents: pa.Table) -> pa.Table:
        """Return the documents of a unit with `vector`, a list of dim floats, for text or tokens.

        Documents that fail get a `reembed.error`. `UnitStats`, as JSON, are in the metadata.

        Raises:
            RunFailed: so many fail, or all vectors are the same, that the set-up must be broken.
            ProviderError: the model's provider did not answer in time.
        """
        started, started_at = time.perf_counter(), time.time()
        waited, model_s = started - (self._idle_since or started), self._model_s
        attempt = attempts.begin(self._job.run, name, documents.num_rows)
        unit = _Unit.begin(documents, self._job.plan.space.dim)
        for row in attempt.poison:
            unit.errors[row] = "its embedding kills the process, or does not end"
        embed = self._embedding(documents)
        self._patience.through(lambda: self._try(unit, attempt, embed))
        self._check(name, unit.vectors, unit.errors)
        self._check_variety(name, unit.vectors, documents)
        done = unit.stats or self._encoder.embed_documents([]).stats
        stats = UnitStats(
            device=done.device,
            path=done.path,
            notes="; ".join([*done.notes, *self._other_path]),
            batch_tokens=done.batch_tokens,
            attempt=attempt.number,
            copied=_copied(documents),
            tokens=done.tokens,
            model_tokens=done.model_tokens,
            computed_tokens=done.computed_tokens,
            flop=done.flop,
            peak_flops=done.peak_flops * self._share(done.device),
            started_at=started_at,
            waited_s=waited,
            embed_s=time.perf_counter() - started,
            model_s=self._model_s - model_s,
        )
        faults.point("embed.before_write")
        return self._embedded(documents, unit.vectors, unit.errors, stats)

    def idle(self) -> None:
        """From now on it waits for a unit."""
        self._idle_since = time.perf_counter()

    def _try(self, unit: _Unit, attempt: Attempt, embed: Callable[[Rows], Embedded]) -> None:
        """Embed what is left to do.

        After a provider's error the worker takes another id, so that the time it waited does not count
        against the unit's deadline.
        """
        with attempts.working(attempt, self._worker):
            for start, stop in attempt.ranges():
                rows = unit.todo[(unit.todo >= start) & (unit.todo < stop)]
                if not len(rows):
                    continue
                try:
                    with self._timing():
                        found = embed(rows)
                except ProviderError:
                    self._worker = uuid.uuid4().hex
                    raise
                unit.take(rows, found)

    def _embedding(self, documents: pa.Table) -> Callable[[Rows], Embedded]:
        """What embeds rows of these documents: their tokens, or their texts."""
        encoder = self._encoder
        if _TOKENS not in documents.column_names:
            texts = _texts(documents)
            return lambda rows: encoder.embed_documents([texts[r] for r in rows])
        tokens, model = _tokens(documents), require_tokens(encoder)
        return lambda rows: model.embed_tokens(tokens.take(rows))

    @contextmanager
    def _timing(self) -> Iterator[None]:
        """Count the seconds of the model's work, its tokenizing included if it tokenizes itself."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._model_s += time.perf_counter() - started

    def _share(self, device: str) -> float:
        """Share of the device: less than 1 where replicas share a GPU."""
        if not device.startswith("cuda"):
            return 1.0
        return min(1.0, self._job.embed.gpus_per_actor or 1.0)

    def _check(self, unit: str, vectors: npt.NDArray[np.float32], errors: list[str | None]) -> None:
        """Give an error to vectors that cannot be stored: no search would find them, or say so."""
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
                f"too many failures to blame single documents; the first: {failed[0]}",
                "reembed config --check",
            )

    def _check_variety(
        self, unit: str, vectors: npt.NDArray[np.float32], documents: pa.Table
    ) -> None:
        """Refuse one vector for different texts: the model is broken."""
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
        internal = [c for c in (TEXT, _TOKENS, _ERROR, _GIVEN) if c in documents.column_names]
        out = documents.drop_columns(internal)
        out = out.append_column("vector", from_vectors(usable, vector_type.value_type))
        out = out.append_column(_ERROR, pa.array(errors, pa.string()))
        return out.replace_schema_metadata({_STATS: json.dumps(asdict(stats))})


def _copied(documents: pa.Table) -> int:
    """How many vectors are given."""
    if _GIVEN not in documents.column_names:
        return 0
    return int(documents.num_rows - documents[_GIVEN].null_count)


def _tokens(documents: pa.Table) -> Tokens:
    column = documents[_TOKENS].combine_chunks()
    ids = column.values.to_numpy().astype(np.int32, copy=False)
    prompt_length = int((documents.schema.metadata or {}).get(b"prompt_length", b"0"))
    return Tokens(ids, column.offsets.to_numpy(), prompt_length)


def stats_of(documents: pa.Table) -> UnitStats:
    """Return how a unit was embedded."""
    return UnitStats(**json.loads(documents.schema.metadata[_STATS.encode()]))


def write(job: EmbedJob, unit: str, documents: pa.Table) -> UnitDone:
    """Stage an embedded unit; return what the driver's progress needs."""
    stats = stats_of(documents)
    failed = documents[_ERROR].is_valid()
    rows = documents.filter(documents[_ERROR].is_null()).drop_columns([_ERROR])
    dead = tuple(
        DeadLetter(d["doc_id"], d[_ERROR], d["text_hash"].hex())
        for d in documents.filter(failed).select(["doc_id", _ERROR, "text_hash"]).to_pylist()
    )
    receipt = table.stage(job.run, job.plan, job.columns, table.Staged(unit, rows, dead, stats))
    return UnitDone(unit, receipt.rows, len(receipt.dead_letters), stats)

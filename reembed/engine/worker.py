"""The work on one unit, in a Ray actor or anywhere else: embed its documents, and stage them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from reembed import encoders, faults
from reembed.catalog.receipts import Receipt, UnitStats
from reembed.catalog.releases import Catalog
from reembed.encoders import golden
from reembed.encoders.base import Embedded, Encoder, EncoderStats, Rows, Vectors
from reembed.encoders.tokens import require_tokens
from reembed.engine import attempts
from reembed.engine.attempts import Attempt
from reembed.engine.documents import (
    ERROR,
    GIVEN,
    NO_TEXT,
    TOKENS,
    texts_of,
    to_embed,
    tokens_of,
)
from reembed.engine.executor import ALONE, EmbedJob, Host
from reembed.engine.patience import Patience
from reembed.engine.presence import Presence
from reembed.engine.turns import CALLER, Turns
from reembed.errors import ProviderError, RunFailed, SpaceMismatch
from reembed.source.dataset import TEXT
from reembed.store.records import decode, encode
from reembed.table import write as table
from reembed.table.documents import distinct, whole_documents
from reembed.table.read import as_vectors, from_vectors

_STATS = "reembed.stats"
# If more than this share of a unit fails, the set-up is broken, not the documents.
_SYSTEMATIC = 0.5
_SYSTEMATIC_ROWS = 8
_NORM_SLACK = 0.02  # of unit vectors in half precision
_NO_VECTOR = "the model returned no usable vector: not finite, or zero"


@dataclass
class _Unit:
    """A unit while it is embedded; finished rows are kept during a wait for the provider."""

    vectors: Vectors
    """float32 [N, dim]; NaN for documents without a vector."""
    errors: list[str | None]
    todo: Rows
    arrived: float
    """By `time.perf_counter`."""
    copied: int = 0
    stats: EncoderStats = field(default_factory=EncoderStats)
    model_s: float = 0.0

    @classmethod
    def begin(cls, documents: pa.Table, dim: int) -> _Unit:
        """Take over the given vectors; all other documents are to do."""
        arrived = time.perf_counter()
        vectors = np.full((documents.num_rows, dim), np.nan, np.float32)
        unit = cls(vectors, documents[ERROR].to_pylist(), to_embed(documents), arrived)
        if GIVEN in documents.column_names:
            column = documents[GIVEN].combine_chunks()
            found = column.is_valid()
            vectors[found.to_numpy(zero_copy_only=False)] = as_vectors(column.filter(found))
            unit.copied = len(column) - column.null_count
        return unit

    def take(self, rows: Rows, found: Embedded) -> None:
        """Take over the vectors and failures of `rows`, which are done."""
        self.vectors[rows] = found.vectors
        for row, why in found.failures.items():
            self.errors[rows[row]] = why
        self.todo = np.setdiff1d(self.todo, rows, assume_unique=True)
        self.stats += found.stats


class UnitEmbedder:
    """One model replica. Several threads may embed a unit each: all but the model's part is done side by side."""

    def __init__(
        self,
        job: EmbedJob,
        wait: Callable[[float], None] = time.sleep,
        host: Host = ALONE,
        turns: Turns = CALLER,
        is_ending: Callable[[], bool] = lambda: False,
    ) -> None:
        """Load the model, and compare it with the plan and with the run's other replicas.

        `wait` sleeps for the given seconds while the model's provider does not answer; `turns` says where
        the model works, and `is_ending` whether no other unit is to begin.

        Raises:
            SpaceMismatch: it is another model, or produces different vectors from the same texts.
            ProviderError: its provider did not answer in time.
        """
        here = encoders.describe(job.encoder, job.plan.space.vector_dtype)
        job.plan.space.require(here, "the model this actor would load")
        cores = job.embed.actor_cpus  # its own, and the model waits for the tokenizer
        os.environ.setdefault("TOKENIZERS_PARALLELISM", str(cores > 1).lower())
        os.environ.setdefault("RAYON_NUM_THREADS", str(cores))
        self._job, self._host, self._turns, self._is_ending = job, host, turns, is_ending
        self._presence = Presence(job.run, host)
        resume = f"{job.plan.resume}     # staged units are kept"
        self._patience = Patience(job.embed.stall_s, resume, wait)
        self._encoder: Encoder = turns.run(self._load)
        self._other_path = turns.run(lambda: self._patience.through(self._compare))
        self._free_since: float | None = None

    def _load(self) -> Encoder:
        job = self._job
        return encoders.load_encoder(
            job.encoder,
            dtype=job.embed.dtype,
            batch_tokens=job.embed.batch_tokens,
            for_job=True,
        )

    def _compare(self) -> list[str]:
        """Compare the model with the plan; return notes on how it differs from the first replica."""
        storage, plan = self._job.run.storage, self._job.plan
        found = self._encoder.embed_documents(["word"]).vectors.shape[1]
        if found != plan.space.dim:
            raise SpaceMismatch(
                f"{self._job.encoder.model} produces vectors of {found} dimensions",
                f"its description and the plan say {plan.space.dim}",
                "reembed config",
            )
        for donor in plan.donors:
            release = Catalog(storage, donor.alias).release(donor.release)
            golden.require(storage, donor.origin, self._encoder, release.golden_sha256)
        return golden.leave(storage, plan.origin, self._encoder)

    def embed(self, name: str, documents: pa.Table) -> pa.Table | None:
        """Return the documents of a unit with `vector`, a list of dim floats, for text or tokens.

        Documents that fail get a `reembed.error`. `UnitStats`, as JSON, are in the metadata. None: the job
        is ending, and the unit was not begun.

        Raises:
            RunFailed: too many documents fail, or all vectors are the same: the set-up is broken.
            ProviderError: the model's provider did not answer in time.
        """
        job = self._job
        unit = _Unit.begin(documents, job.plan.space.dim)
        embed = self._embedding(documents)
        attempt = attempts.begin(job.run, name, documents.num_rows, self._host, job.token)
        for row in attempt.poison:
            unit.errors[row] = "embedding it kills or hangs the process"
        self._presence.announce(attempt)
        try:
            stats = self._turns.run(lambda: self._turn(unit, attempt, embed), attempt.deaths)
        finally:
            self._presence.save()
        if stats is None:
            attempt.withdraw()
            return None
        self._check(name, unit.vectors, unit.errors, documents["doc_id"])
        self._check_variety(name, unit.vectors, documents)
        faults.point("embed.before_write")
        return self._embedded(documents, unit.vectors, unit.errors, stats)

    def _turn(
        self, unit: _Unit, attempt: Attempt, embed: Callable[[Rows], Embedded]
    ) -> UnitStats | None:
        """The model's part: nothing else is done while the model waits. None: the job is ending."""
        try:
            if self._is_ending():
                return None
            self._patience.through(lambda: self._try(unit, attempt, embed))
            done = unit.stats + self._encoder.embed_documents([]).stats
        finally:
            self._presence.leave(attempt)
            was_free_since, self._free_since = self._free_since, time.perf_counter()
        waited = 0.0 if was_free_since is None else unit.arrived - was_free_since
        seconds = self._free_since - unit.arrived + min(waited, 0.0)
        more = {
            "notes": "; ".join([*done.notes, *self._other_path]),
            "peak_flops": done.peak_flops * self._share(done.device),
        }
        return UnitStats(
            **(vars(done) | more),
            attempt=attempt.number,
            copied=unit.copied,
            started_at=time.time() - seconds,
            waited_s=max(0.0, waited),
            embed_s=seconds,
            model_s=unit.model_s,
        )

    def _try(self, unit: _Unit, attempt: Attempt, embed: Callable[[Rows], Embedded]) -> None:
        """Embed what is left to do. While a provider is waited for nobody is at work: that time must not
        count against the unit's deadline.
        """
        self._presence.take(attempt)
        for start, stop in attempt.ranges():
            rows = unit.todo[(unit.todo >= start) & (unit.todo < stop)]
            if not len(rows):
                continue
            started = time.perf_counter()
            try:
                found = embed(rows)
            except ProviderError:
                self._presence.pause()
                raise
            finally:  # the model's seconds, its tokenizing included if it tokenizes itself
                unit.model_s += time.perf_counter() - started
            unit.take(rows, found)

    def _embedding(self, documents: pa.Table) -> Callable[[Rows], Embedded]:
        """Return the function that embeds rows of these documents, by their tokens or their texts."""
        encoder = self._encoder
        if TOKENS not in documents.column_names:
            texts = texts_of(documents)
            return lambda rows: encoder.embed_documents([texts[r] for r in rows])
        tokens, model = tokens_of(documents), require_tokens(encoder)
        return lambda rows: model.embed_tokens(tokens.take(rows))

    def _share(self, device: str) -> float:
        """Return the replica's share of the device: less than 1 if replicas share a GPU."""
        if not device.startswith("cuda"):
            return 1.0
        return min(1.0, self._job.embed.gpus_per_actor or 1.0)

    def _check(
        self,
        unit: str,
        vectors: Vectors,
        errors: list[str | None],
        doc_ids: pa.ChunkedArray,
    ) -> None:
        """Give an error to vectors that cannot be stored: a search would silently never find them."""
        stored_as = np.dtype(self._job.plan.space.vector_dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            stored = vectors.astype(stored_as, copy=False)
            norms = np.linalg.norm(stored.astype(np.float32), axis=1)
        for row in np.flatnonzero(~(np.isfinite(norms) & (norms > 0))):
            errors[row] = errors[row] or _NO_VECTOR
        if self._job.plan.space.normalize:
            for row in np.flatnonzero(np.abs(norms - 1) > _NORM_SLACK):
                errors[row] = errors[row] or f"its vector has length {norms[row]:.3f}, not 1"
        failed = [error not in (None, NO_TEXT) for error in errors]
        dead, tried = distinct(doc_ids.filter(pa.array(failed))), distinct(doc_ids)
        allowed = max(_SYSTEMATIC * tried, self._job.embed.max_dead_letters)
        if tried >= _SYSTEMATIC_ROWS and dead > allowed:
            raise RunFailed(
                f"{dead:,} of {tried:,} documents of unit {unit} could not be embedded",
                f"too many failures to blame single documents; the first: {errors[failed.index(True)]}",
                "reembed config --check",
            )

    def _check_variety(self, unit: str, vectors: Vectors, documents: pa.Table) -> None:
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
        self, documents: pa.Table, vectors: Vectors, errors: list[str | None], stats: UnitStats
    ) -> pa.Table:
        vector_type = self._job.columns.field("vector").type
        usable = np.where(np.isfinite(vectors), vectors, 0)
        internal = [c for c in (TEXT, TOKENS, ERROR, GIVEN) if c in documents.column_names]
        out = documents.drop_columns(internal)
        out = out.append_column("vector", from_vectors(usable, vector_type.value_type))
        out = out.append_column(ERROR, pa.array(errors, pa.string()))
        return out.replace_schema_metadata({_STATS: json.dumps(encode(stats))})


def stats_of(documents: pa.Table) -> UnitStats:
    """Return how a unit was embedded."""
    return decode(UnitStats, json.loads(documents.schema.metadata[_STATS.encode()]))


def write(job: EmbedJob, unit: str, documents: pa.Table) -> Receipt:
    """Stage an embedded unit; return the receipt that counts."""
    rows, dead = whole_documents(documents, ERROR)
    staged = table.Staged(unit, rows, dead, stats_of(documents))
    return table.stage(job.run, job.plan, job.columns, staged)

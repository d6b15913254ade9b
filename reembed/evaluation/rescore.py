"""Scores that a model gives to documents of a source before anything of them is stored.

Shapes: D documents, Q queries, P pairs of a document and a query.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reembed import digests, encoders
from reembed.config.settings import EmbedConfig, EncoderConfig
from reembed.digests import Digests
from reembed.encoders.base import Encoder
from reembed.evaluation.answers import encoded
from reembed.source.dataset import TEXT, Source

_BATCH = 512
"""Documents whose texts and vectors are held at a time."""
Int64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Asked:
    """What is to be scored. Small enough to travel with a task: it holds no text of a document."""

    encoder: EncoderConfig
    embed: EmbedConfig
    dtype: str
    """Number type that vectors are stored in."""
    source: Source
    rows: Int64
    """Row ids of the documents in the source [D]."""
    hashes: Digests
    """Digest of the text that each document must have [D]."""
    queries: tuple[str, ...]
    document: Int64
    """The document of each pair, ascending [P]."""
    query: Int64
    """The query of each pair [P]."""


@dataclass(frozen=True)
class Scored:
    """What a model gave."""

    scores: Float32
    """Inner product of each pair [P]; NaN where one of the two has no vector."""
    changed: Bools
    """Documents that have another text, and were not embedded [D]."""
    failed: Bools
    """Documents that the model cannot embed [D]."""
    unknown: Bools
    """Queries that it cannot embed [Q]."""
    tokens: int
    """Of the documents that were embedded; 0 where the model does not say."""
    seconds: float
    """With loading the model."""


@dataclass(frozen=True)
class Vectors:
    """What a model made of documents and queries."""

    documents: Float32
    """[D, dim] as they would be stored; NaN where there is no vector."""
    queries: Float32
    """[Q, dim]; NaN where the model cannot embed one."""
    changed: Bools
    """As of `Scored`."""
    tokens: int
    seconds: float


def score(asked: Asked) -> Scored:
    """Load the model and score the pairs, batch by batch of documents, each of which is embedded once."""
    began, work = time.perf_counter(), _Work.of(asked)
    scores_P = np.full(len(asked.document), np.nan, np.float32)
    for start, vectors in work.batches():
        pairs = slice(*np.searchsorted(asked.document, (start, start + len(vectors))).tolist())
        document, query = asked.document[pairs] - start, asked.query[pairs]
        scores_P[pairs] = np.einsum("pd,pd->p", vectors[document], work.queries[query])
    unknown_Q = np.array(~np.isfinite(work.queries).all(axis=1), bool)
    seconds = time.perf_counter() - began
    return Scored(scores_P, work.changed, work.failed, unknown_Q, work.tokens, seconds)


def embed(asked: Asked) -> Vectors:
    """Load the model and embed the documents and the queries; pairs are not looked at."""
    began, work = time.perf_counter(), _Work.of(asked)
    documents = np.concatenate([work.queries[:0], *(vectors for _, vectors in work.batches())])
    seconds = time.perf_counter() - began
    return Vectors(documents, work.queries, work.changed, work.tokens, seconds)


@dataclass
class _Work:
    """One pass of a model over what is asked."""

    asked: Asked
    encoder: Encoder
    queries: Float32
    """[Q, dim]; NaN where the model cannot embed one."""
    changed: Bools
    failed: Bools
    tokens: int = 0

    @classmethod
    def of(cls, asked: Asked) -> _Work:
        """Load the model, and embed the queries."""
        encoder = encoders.load_encoder(
            asked.encoder, dtype=asked.embed.dtype, batch_tokens=asked.embed.batch_tokens
        )
        queries = encoded(encoder, encoder.describe().dim, asked.queries)
        return cls(asked, encoder, queries, *np.zeros((2, len(asked.rows)), bool))

    def batches(self) -> Iterator[tuple[int, Float32]]:
        """Yield the place of the first of some documents, and their vectors as they would be stored, or NaN."""
        asked = self.asked
        for start in range(0, len(asked.rows), _BATCH):
            batch = np.arange(start, min(start + _BATCH, len(asked.rows)))
            texts = asked.source.take(asked.rows[batch].tolist())[TEXT]
            hashes = digests.stack(digests.of_column(texts))
            same = np.array(hashes == asked.hashes[batch], bool)
            self.changed[batch] = ~same
            found = self.encoder.embed_documents(
                [t.decode("utf-8", "replace") for t in texts.filter(same).to_pylist()]
            )
            stored = found.vectors.astype(asked.dtype).astype(np.float32)
            usable = np.array(np.isfinite(stored).all(axis=1) & stored.any(axis=1), bool)
            vectors = np.full((len(batch), self.queries.shape[1]), np.nan, np.float32)
            vectors[same] = np.where(usable[:, None], stored, np.nan)
            self.failed[batch[same]] = np.logical_not(usable)
            self.tokens += found.stats.tokens
            yield start, vectors

"""A bridge: a matrix that brings vectors of one model into another model's space, so that queries by the one
search documents by the other.

It is a rotation, the solution of the orthogonal Procrustes problem (Schoenemann 1966, Psychometrika 31; for word
vectors Smith et al. 2017, arXiv 1702.03859), fitted to pairs of vectors of the same texts. Between spaces of other
dimensions it is the same problem with zeros in place of the missing ones. Ridge regression was measured, too, and
found less in every pair of models (docs/query-only.md): a rotation keeps how the new model's vectors lie to each
other, and has nothing else to fit.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from reembed import encoders
from reembed.catalog.query_model import Bridge, QueryModel
from reembed.encoders.base import Embedded, Encoder, Vectors
from reembed.errors import IntegrityError
from reembed.space import Space
from reembed.store.storage import Storage


class Bridged:
    """A model whose vectors a matrix brings into another space; they keep its unit length, if it has one."""

    def __init__(self, model: Encoder, matrix: Vectors) -> None:
        self.model, self._matrix = model, matrix
        self._normalize = model.describe().normalize

    def describe(self) -> Space:
        """Return the space of the model itself."""
        return self.model.describe()

    def embed_documents(self, texts: Sequence[str]) -> Embedded:
        """Embed documents, as `Encoder` says, into the other space."""
        found = self.model.embed_documents(texts)
        return replace(found, vectors=self._across(found.vectors))

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """Embed queries, as `Encoder` says, into the other space."""
        return self._across(self.model.embed_queries(texts))

    def _across(self, vectors: Vectors) -> Vectors:
        mapped: Vectors = vectors @ self._matrix
        if self._normalize:
            mapped /= np.maximum(np.linalg.norm(mapped, axis=1, keepdims=True), np.float32(1e-12))
        return mapped


def fitted(theirs: Vectors, documents: Vectors) -> Vectors:
    """Return the rotation, float32 [a, b], that brings vectors [N, a] next to those of the same texts [N, b].

    It maximises the sum of their inner products: U V' of the singular value decomposition of theirs' documents.
    """
    u, _, v = np.linalg.svd(theirs.T.astype(np.float64) @ documents, full_matrices=False)
    return np.asarray(u @ v, np.float32)


def to_bytes(matrix: Vectors) -> bytes:
    """Return a matrix as it is stored."""
    out = io.BytesIO()
    np.save(out, matrix, allow_pickle=False)
    return out.getvalue()


def load(storage: Storage, model: QueryModel, **options: Any) -> Encoder:
    """Return a release's query model, with its bridge; `options` are those of `encoders.load_encoder`.

    Raises:
        SetupError: as `encoders.load_encoder`.
        IntegrityError: the bridge is gone, or is not the one that was fitted.
    """
    encoder = encoders.load_encoder(model.encoder, **options)
    if model.bridge is None:
        return encoder
    return Bridged(encoder, _matrix(storage, model.bridge))


def _matrix(storage: Storage, bridge: Bridge) -> Vectors:
    with suppress(FileNotFoundError, ValueError):  # gone, or no array of numbers
        body = storage.read_bytes(bridge.path)
        matrix: Vectors = np.load(io.BytesIO(body), allow_pickle=False)
        if hashlib.sha256(body).hexdigest() == bridge.sha256:
            return matrix
    raise IntegrityError(
        f"{storage.uri(bridge.path)} is gone, or is not the bridge that the release was judged with",
        "vectors of the new model mean nothing to the documents without it",
        "reembed rollback     # to the release before",
    )

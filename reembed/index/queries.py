"""Checks of what is asked of an index."""

from __future__ import annotations

from math import isfinite

import numpy as np
import numpy.typing as npt

from reembed.errors import EncoderError, SpaceMismatch, require_whole
from reembed.index.types import Float32


def require_k(k: object) -> None:
    """Refuse a number of results that cannot be one.

    Raises:
        UsageError: it is not a whole number from 1 up.
    """
    if type(k) is not int or k < 1:  # a call less in each search
        require_whole("k", k, 1, 10)


def checked_queries(queries: npt.ArrayLike, dim: int, k: int) -> Float32:
    """Return queries float32 [Q, D], contiguous, as FAISS takes them."""
    require_k(k)
    if not (isinstance(queries, np.ndarray) and queries.dtype == np.float32):
        try:
            with np.errstate(over="ignore"):  # infinity is refused later
                queries = np.asarray(queries, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise SpaceMismatch("queries must be an array of numbers [Q, D]", str(error)) from error
    vectors = np.ascontiguousarray(queries)
    if vectors.size == 0 and vectors.ndim <= 2 and len(vectors) == 0:
        return np.empty((0, dim), np.float32)
    if vectors.ndim == 1:
        raise SpaceMismatch(
            f"queries of shape {vectors.shape}, where [Q, {dim}] is needed",
            "each row is a query; vector[None] is the array of a single one",
        )
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise SpaceMismatch(
            f"queries of shape {vectors.shape} against an index of {dim} dimensions",
            "they come from another model, or were truncated differently",
        )
    # The sum of squares is finite only if each number is; it can overflow, so then each is looked at.
    if not isfinite(np.vdot(vectors, vectors)) and not np.isfinite(vectors).all():
        raise EncoderError("a query vector holds NaN or infinity")
    return vectors

"""Arrays, answers and settings: what all kinds of index have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

RECALL_K = 10


class Answer(NamedTuple):
    """The best rows of each query, best first."""

    positions: Int64
    """[Q, K]; -1 where rows ran out."""
    scores: Float32
    """[Q, K] inner products with the query; -inf where rows ran out."""
    doc_ids: Callable[[Int64], list[str | int]]
    """Returns the document ids [R] of some of these positions [R]."""
    row_ids: Callable[[Int64], Int64]
    """Returns the row ids [R] of some of these positions [R]."""


@dataclass(frozen=True)
class Setting:
    """A setting of an index that trades speed for recall."""

    name: str
    """nprobe or ef_search."""
    value: int
    """What searches use."""
    least: int
    most: int


@dataclass(frozen=True)
class Lists:
    """Lists near to queries, best first."""

    queries: Float32
    """float32 [Q, .] as the lists have them: rotated or reduced, if the index does that first."""
    numbers: Int64
    """[Q, nprobe]."""
    scores: Float32

"""Rows that a search may find, as FAISS takes them: one bit for each position.

Shapes: N positions, of one index or of several shards that are searched as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


class Selector:
    """The selected positions of one FAISS index."""

    def __init__(self, mask: Mask) -> None:
        """Take which of the positions [N] are selected."""
        bits = np.packbits(mask, bitorder="little")
        self.faiss: Any = faiss.IDSelectorBitmap(bits)  # type: ignore[arg-type, call-arg]  # keeps the array
        self.size_bytes = bits.nbytes
        self.count = int(mask.sum())
        self.share = self.count / max(1, len(mask))
        """Of all positions."""


class Selection:
    """The selected positions of an index: one row at least."""

    def __init__(self, mask: Mask, rows: Sequence[int]) -> None:
        """Take which of the positions [N] are selected, and the rows of each shard."""
        cuts = np.cumsum([0, *rows]).tolist()
        self.selectors = tuple(Selector(mask[start:end]) for start, end in pairwise(cuts))
        self.count = sum(s.count for s in self.selectors)
        self.share = self.count / len(mask)
        self.size_bytes = sum(s.size_bytes for s in self.selectors)

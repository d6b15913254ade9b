"""128-bit digests of ids and texts (BLAKE2b): how rows of a source and a table are matched.

Sets of them are compared sorted, as bytes: 16 per row, whatever an id or a text holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

BYTES = 16

Digests = npt.NDArray[np.void]
"""V16 [N]."""


def digest(content: bytes) -> bytes:
    """16 bytes that identify this content."""
    return hashlib.blake2b(content, digest_size=BYTES).digest()


def of_id(doc_id: str | int) -> bytes:
    """Digest of a document's id; 7 and "7" are one id, as no dataset holds both types."""
    return digest(str(doc_id).encode("utf-8", "surrogatepass"))


def of_ids(doc_ids: Iterable[str | int]) -> Digests:
    """Digests of ids, in their order."""
    return stack(b"".join(of_id(d) for d in doc_ids))


def of_values(values: Iterable[Any]) -> bytes:
    """Digest of one row's carried values; NaN equals itself."""
    return digest(repr(tuple(values)).encode("utf-8", "surrogatepass"))


def stack(joined: bytes | bytearray) -> Digests:
    """Joined digests as an array."""
    return np.frombuffer(bytes(joined), dtype=f"V{BYTES}")

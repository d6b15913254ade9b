"""What every segment of Lance's vector index shares: its kind, centroids and codebook, trained once.

Shapes: N rows, D dimensions, L lists.
"""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lance.indices import IndicesBuilder
from lance.lance import indices as native

from reembed.errors import UsageError
from reembed.table.read import TableVersion

SMALL = 50_000
"""Rows up to which `auto` keeps whole vectors: they are searched as fast as codes."""
ROWS_PER_LIST = 4_096
"""Lists are larger than FAISS's: looking into one is a request to the store."""
LEAST_PER_LIST = 39
_MOST_PER_LIST = 64
_TRAIN_BYTES = 16 * 2**30
_CODEBOOK = 256
_RQ_BITS = 5
_FORM = re.compile(r"IVF(?P<lists>[1-9]\d*)?_(?P<codes>FLAT|RQ|PQ(?P<bytes>[1-9]\d*)?)")


@dataclass(frozen=True)
class Kind:
    """A kind of Lance's index, with all its sizes."""

    lists: int
    codes: str
    """FLAT, PQ or RQ."""
    bytes: int
    """Of PQ: bytes of a vector's code; else 0."""

    @property
    def name(self) -> str:
        """The factory string that means exactly this kind."""
        return f"IVF{self.lists}_{self.codes}{self.bytes or ''}"

    @classmethod
    def named(cls, name: str) -> Kind | None:
        """Return the kind that has this `name`; None for others, such as those of FAISS."""
        form = _FORM.fullmatch(name)
        if form is None or not form["lists"]:
            return None
        return cls(int(form["lists"]), form["codes"].rstrip("0123456789"), int(form["bytes"] or 0))

    def code_bytes(self, dim: int) -> int:
        """Return the bytes of a vector's code."""
        if self.codes == "PQ":
            return self.bytes
        return math.ceil(dim * _RQ_BITS / 8) if self.codes == "RQ" else 4 * dim

    def bytes_of_model(self, dim: int) -> int:
        """Return the bytes of centroids and codebook."""
        return 4 * dim * (self.lists + _CODEBOOK * (self.codes == "PQ"))

    def rows_per_list(self, rows: int, dim: int) -> int:
        """Return how many of N vectors are read for each list, to train its centroid."""
        return max(2, min(_MOST_PER_LIST, _most_sampled(rows, dim) // self.lists))

    def rows_trained_on(self, rows: int, dim: int) -> int:
        """Return how many of N vectors are read to train on."""
        codebook = _MOST_PER_LIST * _CODEBOOK if self.codes == "PQ" else 0
        return max(self.lists * self.rows_per_list(rows, dim), min(rows, codebook))


def require_kind(factory: str, dim: int) -> None:
    """Check that Lance can make an index of this kind for D dimensions; "auto" always can.

    Raises:
        UsageError: the factory string is wrong, or does not fit the dimensions.
    """
    if factory == "auto":
        return
    form = _FORM.fullmatch(factory)
    if form is None:
        raise _not_made(factory, "Lance's are IVF_FLAT, IVF_PQ and IVF_RQ, such as IVF256_PQ96")
    codes, length = form["codes"], int(form["bytes"] or _code_bytes(dim))
    if codes.startswith("PQ") and (not length or dim % length):
        raise _not_made(factory, f"{dim} dimensions cannot be cut into {length or 'equal'} parts")
    if codes == "RQ" and dim % 8:
        raise _not_made(factory, f"RQ takes dimensions by eight, not {dim}")


def kind_of(factory: str, rows: int, dim: int) -> Kind:
    """Return the kind that a factory string means for N vectors of D dimensions.

    Up to 50k rows `auto` keeps whole vectors. Above, codes of four dimensions a byte (PQ), which a search scores
    again by the table's own vectors; where the dimensions cannot be cut so, RQ with 5 bits for each.

    Raises:
        UsageError: it does not fit the vectors.
    """
    require_kind(factory, dim)
    form = _FORM.fullmatch(factory)
    codes = form["codes"] if form else _codes(rows, dim)
    lists = int(form["lists"] or 0) if form else 0
    kind = Kind(lists or _lists(rows, dim), codes[:2] if codes != "FLAT" else codes, 0)
    if kind.codes == "PQ":
        length = form["bytes"] if form else None
        kind = Kind(kind.lists, kind.codes, int(length or _code_bytes(dim)))
    if kind.codes == "PQ" and rows < 2 * _CODEBOOK:
        raise _not_made(
            factory, f"its codebook is trained on {2 * _CODEBOOK} vectors, not {rows:,}"
        )
    if kind.lists > 1 and kind.lists * LEAST_PER_LIST > _most_sampled(rows, dim):
        raise _not_made(
            factory,
            f"{kind.lists:,} lists are trained on {kind.lists * LEAST_PER_LIST:,} vectors of {rows:,}",
        )
    return kind


@dataclass(frozen=True)
class Model:
    """What every segment of an index shares."""

    kind: Kind
    metric: str
    """cosine or dot."""
    centroids: npt.NDArray[Any]
    """[L, D] in the table's number type."""
    codebook: npt.NDArray[Any]
    """[256, D]; of PQ, else empty."""
    rotation: str
    """The model of RQ as Lance writes it, else ""."""

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return it as arrays, which `of` takes."""
        return {
            "kind": np.array([self.kind.lists, self.kind.bytes]),
            "names": np.array([self.kind.codes, self.metric, self.rotation]),
            "centroids": self.centroids,
            "codebook": self.codebook,
        }

    @classmethod
    def of(cls, arrays: dict[str, npt.NDArray[Any]]) -> Model:
        """Return the model that `arrays` gave."""
        lists, length = arrays["kind"].tolist()
        codes, metric, rotation = arrays["names"].tolist()
        kind = Kind(lists, codes, length)
        return cls(kind, metric, arrays["centroids"], arrays["codebook"], rotation)

    def parameters(self) -> dict[str, Any]:
        """Return what Lance takes to build a segment by this model."""
        given: dict[str, Any] = {
            "index_type": f"IVF_{self.kind.codes}",
            "metric": self.metric,
            "num_partitions": self.kind.lists,
            "ivf_centroids": _as_lists(self.centroids),
        }
        if self.kind.codes == "PQ":
            given |= {"num_sub_vectors": self.kind.bytes, "pq_codebook": _as_lists(self.codebook)}
        if self.kind.codes == "RQ":
            given |= {"num_bits": _RQ_BITS, "rabitq_model": self.rotation}
        return given


def train(table: TableVersion, factory: str, *, unit_length: bool) -> Model:
    """Train centroids and codebook on a sample of the table.

    `unit_length`: vectors have length 1, so that their inner product is their cosine. Lance codes what is left of
    a vector beside its centroid only then.

    Raises:
        UsageError: the factory string is wrong, or does not fit the vectors.
    """
    rows, metric = table.rows, "cosine" if unit_length else "dot"
    kind = kind_of(factory, rows, table.dim)
    builder = IndicesBuilder(table.dataset(), "vector")
    each = kind.rows_per_list(rows, table.dim)
    ivf = builder.train_ivf(kind.lists, distance_type=metric, sample_rate=each)
    codebook, rotation = np.empty((0, table.dim), np.float32), ""
    if kind.codes == "PQ":
        each = max(2, min(_MOST_PER_LIST, rows // _CODEBOOK))
        trained = builder.train_pq(ivf, kind.bytes, sample_rate=each)
        codebook = _as_array(trained.codebook)
    if kind.codes == "RQ":
        rotation = native.build_rq_model(table.dim, num_bits=_RQ_BITS, dtype=_dtype(table))
    return Model(kind, metric, _as_array(ivf.centroids), codebook, rotation)


def _codes(rows: int, dim: int) -> str:
    if rows <= SMALL:
        return "FLAT"
    if _code_bytes(dim):
        return "PQ"
    return "FLAT" if dim % 8 else "RQ"


def _code_bytes(dim: int) -> int:
    """Return into how many equal parts of 4 to 16 dimensions a vector is cut, the most; 0 if it cannot be."""
    return next((dim // part for part in range(4, 17) if dim % part == 0), 0)


def _lists(rows: int, dim: int) -> int:
    lists = 2 ** max(0, round(math.log2(max(1, rows) / ROWS_PER_LIST)))
    while lists > 1 and lists * LEAST_PER_LIST > _most_sampled(rows, dim):
        lists //= 2
    return int(lists)


def _most_sampled(rows: int, dim: int) -> int:
    """Return how many vectors can be read to train on."""
    return min(rows, max(1, _TRAIN_BYTES // (4 * dim)))


def _dtype(table: TableVersion) -> str:
    half = table.dataset().schema.field("vector").type.value_type == pa.float16()
    return "float16" if half else "float32"


def _as_array(lists: pa.FixedSizeListArray) -> npt.NDArray[Any]:
    flat: npt.NDArray[Any] = lists.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(lists), -1)


def _as_lists(array: npt.NDArray[Any]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])


def _not_made(factory: str, why: str) -> UsageError:
    return UsageError(
        f"index.factory {factory!r} does not fit index.kind lance",
        why,
        f"reembed run --set {shlex.quote('index.factory=auto')}",
    )

"""Lance's own vector index of a table: train its model, build its segments, commit them, search them.

A model (centroids, and for PQ a codebook) is trained once and given to every segment, so that all answer alike.
A segment is built of whole fragments and lies in `_indices/UUID/` below the table; it counts once a commit
names it. That commit is a version of the table of its own, with the rows of the version that was sealed.

Shapes: N rows, D dimensions, L lists, Q queries, K results.
"""

from __future__ import annotations

import io
import math
import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lance.bitmap import Bitmap
from lance.commit import CommitConflictError
from lance.dataset import Index, IndexFile
from lance.file import LanceFileReader
from lance.indices import IndicesBuilder
from lance.lance import indices as native

from reembed import faults
from reembed.catalog.index_manifest import FIX, segment_folder
from reembed.catalog.receipts import FileProof
from reembed.catalog.runs import Run
from reembed.errors import Conflict, IntegrityError, UsageError
from reembed.space import sha256_of
from reembed.store.paths import indexed_tag
from reembed.store.storage import Storage, first_line
from reembed.table.read import TableVersion, files_of, open_table
from reembed.table.seal import (
    COMMIT_TRIES,
    RUN_PROPERTY,
    SEALED_PROPERTY,
    SealedTable,
    brought_back,
    properties_of,
    tagged,
)

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

NAME = "vector_idx"
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

    def to_bytes(self) -> bytes:
        """Return the arrays as `from_bytes` reads them."""
        out = io.BytesIO()
        np.savez(
            out,
            kind=np.array([self.kind.lists, self.kind.bytes]),
            names=np.array([self.kind.codes, self.metric, self.rotation]),
            centroids=self.centroids,
            codebook=self.codebook,
        )
        return out.getvalue()

    @classmethod
    def from_bytes(cls, body: bytes) -> Model:
        """Return what `to_bytes` gave."""
        with np.load(io.BytesIO(body), allow_pickle=False) as held:
            lists, length = held["kind"].tolist()
            codes, metric, rotation = held["names"].tolist()
            kind = Kind(lists, codes, length)
            return cls(kind, metric, held["centroids"], held["codebook"], rotation)

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


@dataclass(frozen=True)
class Built:
    """The proof of one segment, with all that its commit needs."""

    uuid: str
    files: dict[str, FileProof]
    fragments: tuple[int, ...]
    rows: int
    read_version: int
    fields: tuple[int, ...]
    format: int
    details_type: str
    details: str
    """In hex."""
    seconds: float

    def as_index(self) -> Index:
        """Return it as Lance commits it."""
        return Index(
            uuid=self.uuid,
            name=NAME,
            fields=list(self.fields),
            dataset_version=self.read_version,
            fragment_ids=Bitmap(self.fragments),
            index_version=self.format,
            files=[IndexFile(name, proof.size_bytes) for name, proof in self.files.items()],
            index_details=(self.details_type, bytes.fromhex(self.details)),
        )


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
    most = _most_sampled(rows, table.dim)
    each = max(2, min(_MOST_PER_LIST, most // kind.lists))
    ivf = builder.train_ivf(kind.lists, distance_type=metric, sample_rate=each)
    codebook, rotation = np.empty((0, table.dim), np.float32), ""
    if kind.codes == "PQ":
        each = max(2, min(_MOST_PER_LIST, rows // _CODEBOOK))
        trained = builder.train_pq(ivf, kind.bytes, sample_rate=each)
        codebook = _as_array(trained.codebook)
    if kind.codes == "RQ":
        rotation = native.build_rq_model(table.dim, num_bits=_RQ_BITS, dtype=_dtype(table))
    return Model(kind, metric, _as_array(ivf.centroids), codebook, rotation)


def build_segment(table: TableVersion, model: Model, fragments: Sequence[int]) -> Built:
    """Build a segment of these fragments below the table; nothing names it yet.

    Raises:
        IntegrityError: a file is not as Lance says it wrote it, or the segment does not hold every row once.
    """
    started = time.monotonic()
    rows = dict(table.fragments())
    made = table.dataset().create_index_uncommitted(
        "vector", name=NAME, replace=True, fragment_ids=list(fragments), **model.parameters()
    )
    faults.point("index.before_proof")
    type_url, details = made.index_details or ("", b"")
    built = Built(
        uuid=str(made.uuid),
        files={f.path: _proof(table, str(made.uuid), f) for f in made.files or ()},
        fragments=tuple(fragments),
        rows=sum(rows[f] for f in fragments),
        read_version=made.dataset_version,
        fields=tuple(made.fields),
        format=made.index_version,
        details_type=type_url,
        details=details.hex(),
        seconds=round(time.monotonic() - started, 3),
    )
    held = len(row_ids(table.storage, table.path, built.uuid))
    if held != built.rows or set(made.fragment_ids) != set(fragments):
        raise IntegrityError(
            f"a segment of Lance's index holds {held:,} rows of {sorted(made.fragment_ids)}",
            f"the table has {built.rows:,} in fragments {sorted(fragments)}",
            "reembed verify",
        )
    return built


def row_ids(storage: Storage, table: str, uuid: str) -> Int64:
    """Return the row ids int64 [N] that a segment holds, read from its file, in its order.

    Raises:
        IntegrityError: the file cannot be read, or names a row twice.
    """
    path = f"{segment_folder(table, uuid)}/auxiliary.idx"
    try:
        reader = LanceFileReader(storage.uri(path), storage.lance_options, columns=["_rowid"])
        found = reader.read_all(batch_size=65_536).to_table()["_rowid"]
    except (OSError, ValueError, RuntimeError) as error:
        raise IntegrityError(f"{path} cannot be read", first_line(error), FIX) from error
    ids: Int64 = found.to_numpy().astype(np.int64)
    if len(np.unique(ids)) != len(ids):
        raise IntegrityError(f"{path} holds rows twice", None, FIX)
    return ids


def segments_of(dataset: lance.LanceDataset) -> dict[str, Any]:
    """Return the segments of the index that a version has, by uuid."""
    described = [d for d in dataset.describe_indices() if d.name == NAME]
    return {str(s.uuid): s for d in described for s in d.segments}


def publish(
    run: Run, sealed: SealedTable, built: Sequence[Built], kept: Sequence[str] = ()
) -> SealedTable:
    """Make a version of the sealed rows whose index has these segments and those `kept`; return it, tagged.

    A version is made once, however often this is called.

    Raises:
        Conflict: other runs kept committing to this table.
    """
    wanted = {*kept, *(b.uuid for b in built)}
    named = sha256_of({"segments": sorted(wanted)})
    tag = indexed_tag(run.id, named)
    version = _committed(run, sealed, wanted)
    for _ in range(COMMIT_TRIES):
        if version is not None:
            break
        _commit(run, sealed, built, wanted)
        version = _committed(run, sealed, wanted)
    if version is None:
        raise Conflict(
            f"{sealed.path} changed at each of {COMMIT_TRIES} attempts to commit the index of run {run.id}",
            "other runs of the same alias and model commit to it at the same time",
            f"{run.rebuild}     # its segments are kept",
        )
    faults.point("index.after_commit")
    version = tagged(open_table(run.storage, sealed.path), tag, version)
    return SealedTable(sealed.path, version, sealed.content, tag)


def _commit(run: Run, sealed: SealedTable, built: Sequence[Built], wanted: set[str]) -> None:
    storage, path = run.storage, sealed.path
    base = brought_back(run, path, sealed.version)
    held = segments_of(open_table(storage, path, base))
    new = [b.as_index() for b in built if b.uuid not in held]
    fields = list(built[0].fields) if built else []
    gone = [_named(s, fields) for uuid, s in held.items() if uuid not in wanted]
    properties = {RUN_PROPERTY: run.id, SEALED_PROPERTY: sealed.content.sha256}
    operation = lance.LanceOperation.CreateIndex(new, gone)
    transaction = lance.Transaction(base, operation, transaction_properties=properties)
    faults.point("index.before_commit")
    try:
        lance.LanceDataset.commit(
            storage.uri(path), transaction, storage_options=storage.lance_options
        )
    except CommitConflictError:
        return


def _committed(run: Run, sealed: SealedTable, wanted: set[str]) -> int | None:
    """Return the newest version of this run with the sealed rows and exactly these segments."""
    newest = open_table(run.storage, sealed.path)
    since = [v["version"] for v in newest.versions() if v["version"] >= sealed.version]
    for version in reversed(since):
        if properties_of(newest, version).get(RUN_PROPERTY) != run.id:
            continue
        found = open_table(run.storage, sealed.path, version)
        if segments_of(found).keys() == wanted and files_of(found) == sealed.content.files.keys():
            return int(version)
    return None


def _named(segment: Any, fields: list[int]) -> Index:
    """Return a segment of a version as a commit names it to take it out."""
    return Index(
        uuid=str(segment.uuid),
        name=NAME,
        fields=fields,
        dataset_version=segment.dataset_version_at_last_update,
        fragment_ids=segment.fragment_ids,
        index_version=segment.index_version,
    )


def find(
    table: TableVersion, queries: Float32, k: int, nprobe: int, k_factor: int | None
) -> pa.Table:
    """Return query_index, _rowid, doc_id and _distance of the k nearest rows of each query [Q, D], best first.

    Fragments without a segment are searched row by row; deleted rows are never found. With `k_factor`, k times as many
    candidates are scored again by the table's own vectors.
    """
    nearest = {"column": "vector", "q": queries, "k": k, "nprobes": nprobe}
    if k_factor is not None:
        nearest["refine_factor"] = k_factor
    scanner = table.dataset().scanner(
        columns=["doc_id", "_distance"],
        with_row_id=True,
        nearest=nearest,
        disable_scoring_autoprojection=True,
    )
    return scanner.to_table()


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


def _proof(table: TableVersion, uuid: str, file: IndexFile) -> FileProof:
    """Return size and sha256 of a segment's file as it is in the store now."""
    path = f"{segment_folder(table.path, uuid)}/{file.path}"
    size, sha256 = table.storage.digest(path) or (0, "")
    if size != file.size_bytes:
        what = f"{path} has {size:,} bytes where {file.size_bytes:,} were written"
        raise IntegrityError(what, "the last write failed without an error", "df -h")
    return FileProof(size, sha256)


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

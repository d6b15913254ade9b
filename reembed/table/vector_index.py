"""Lance's own vector index of a table: build its segments, commit them, search them.

Every segment is given the same model (vector_model.py), so that all answer alike.
A segment is built of whole fragments and lies in `_indices/UUID/` below the table; it counts once a commit
names it. That commit is a version of the table of its own, with the rows of the version that was sealed.

Shapes: N rows, D dimensions, L lists, Q queries, K results.
"""

from __future__ import annotations

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

from reembed import faults
from reembed.catalog.index_manifest import FIX, segment_folder
from reembed.catalog.receipts import FileProof
from reembed.catalog.runs import Run
from reembed.errors import Conflict, IntegrityError
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
from reembed.table.vector_model import Model

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

NAME = "vector_idx"


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
    if (np.diff(np.sort(ids)) == 0).any():
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
    table: TableVersion,
    queries: Float32,
    k: int,
    nprobe: int,
    k_factor: int | None,
    condition: str | None = None,
) -> pa.Table:
    """Return query_index, _rowid, doc_id and _distance of the k nearest rows of each query [Q, D], best first.

    `condition`: SQL that each row must meet; it is applied first.

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
        filter=condition,
        prefilter=condition is not None,
        disable_scoring_autoprojection=True,
    )
    return scanner.to_table()


def _proof(table: TableVersion, uuid: str, file: IndexFile) -> FileProof:
    """Return size and sha256 of a segment's file as it is in the store now."""
    path = f"{segment_folder(table.path, uuid)}/{file.path}"
    size, sha256 = table.storage.digest(path) or (0, "")
    if size != file.size_bytes:
        what = f"{path} has {size:,} bytes where {file.size_bytes:,} were written"
        raise IntegrityError(what, "the last write failed without an error", "df -h")
    return FileProof(size, sha256)

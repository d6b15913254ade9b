"""A vector table as the index, the comparison and `verify` read it: one immutable version."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from lance.fragment import FragmentMetadata

from reembed.catalog.receipts import FileProof
from reembed.catalog.releases import ManifestProof
from reembed.errors import IntegrityError
from reembed.store import conditions
from reembed.store.lance import open_dataset
from reembed.store.storage import Storage

_BATCH_ROWS = 4_096
DELETIONS = "_deletions/"
INDICES = "_indices/"
_RANGE_ROWS = 1_024
_READ_AHEAD = 1
"""Batches and fragments."""
_READ_AHEAD_BYTES = 128 * 2**20
"""Lance's default is 2 GiB."""


def open_table(storage: Storage, path: str, version: int | None = None) -> lance.LanceDataset:
    """Return a table, at a version or at its newest; errors as those of `open_dataset`."""
    return open_dataset(storage.uri(path), version, storage.lance_options)


def file_path(table: str, name: str) -> str:
    """Return the path under the root of a table's file: data files are named as in Lance's manifests,
    deletion files with their folder.
    """
    return f"{table}/{name}" if name.startswith(DELETIONS) else f"{table}/data/{name}"


def files_present(storage: Storage, table: str) -> dict[str, int]:
    """Return the sizes, in bytes, of the data and deletion files below a table, by path under the root."""
    found = (*storage.objects(f"{table}/data/"), *storage.objects(f"{table}/{DELETIONS}"))
    return dict(found)


def missing_files(storage: Storage, path: str, version: int) -> list[str]:
    """Return the files of a table version that are gone, or of another size if its manifest says the size.

    Raises FileNotFoundError if the version itself is gone.
    """
    there = files_present(storage, path)
    fragments = [f.metadata for f in open_table(storage, path, version).get_fragments()]
    sizes = {f.path: f.file_size_bytes for m in fragments for f in m.files}
    lost = [name for name, size in sizes.items() if there.get(file_path(path, name)) != size]
    deletions = filter(None, map(deletion_file, fragments))
    return lost + [name for name in deletions if file_path(path, name) not in there]


def manifest_proof(storage: Storage, path: str, version: int) -> ManifestProof | None:
    """Return name, size and sha256 of a version's manifest as it is now; None if it is gone."""
    for name in (f"{2**64 - 1 - version:020d}.manifest", f"{version}.manifest"):
        if found := storage.digest(f"{path}/_versions/{name}"):
            return ManifestProof(name, *found)
    return None


def used_files(storage: Storage, path: str) -> set[str]:
    """Return the names of the files of every version of a table, and the folders of their indexes; none without it."""
    try:
        dataset = open_table(storage, path)
    except FileNotFoundError:
        return set()
    versions = (open_table(storage, path, v["version"]) for v in dataset.versions())
    return {name for v in versions for name in (*files_of(v), *index_folders(v))}


def files_of(dataset: lance.LanceDataset) -> set[str]:
    """Return the names of the data and deletion files of one version."""
    return {name for f in dataset.get_fragments() for name in files_of_fragment(f.metadata)}


def index_folders(dataset: lance.LanceDataset) -> set[str]:
    """Return the folders, below the table, of the segments of Lance's own indexes of one version."""
    return {f"{INDICES}{s.uuid}" for d in dataset.describe_indices() for s in d.segments}


def files_of_fragment(fragment: FragmentMetadata) -> list[str]:
    """Return the names of its data files and of its deletion file, if it has one."""
    deletions = deletion_file(fragment)
    return [*(f.path for f in fragment.files), *([deletions] if deletions else [])]


class FragmentRows(NamedTuple):
    """Rows of a fragment."""

    rows: int
    """Those that are not deleted."""
    written: int
    """Those that its data files hold."""


def fragments_of(dataset: lance.LanceDataset) -> dict[int, FragmentRows]:
    """Return the rows of each fragment of one version, by its id."""
    found = (f.metadata for f in dataset.get_fragments())
    return {m.id: FragmentRows(m.num_rows, m.physical_rows) for m in found}


class Grown(NamedTuple):
    """What a newer version of a table has that an older one does not have, and the other way round."""

    added: tuple[int, ...]
    """Fragments that only the newer version has."""
    left: npt.NDArray[np.int64]
    """Row ids that only the older version has, sorted."""
    losing: frozenset[int]
    """Fragments of the older version that had these rows."""


def added(older: TableVersion, newer: TableVersion) -> tuple[int, ...]:
    """Return the fragments that only the newer version has, told by their ids and data files."""
    before = {f.fragment_id: f.metadata.files for f in older.dataset().get_fragments()}
    after = {f.fragment_id: f.metadata.files for f in newer.dataset().get_fragments()}
    return tuple(i for i, files in after.items() if before.get(i) != files)


def grown(older: TableVersion, newer: TableVersion) -> Grown:
    """Compare two versions of a table by their fragments, and read row ids of those that differ."""
    before = {f.fragment_id: f.metadata for f in older.dataset().get_fragments()}
    after = {f.fragment_id: f.metadata for f in newer.dataset().get_fragments()}
    came = added(older, newer)
    kept = after.keys() - set(came)
    left = {-1: np.empty(0, np.int64)}
    for i, m in before.items():
        if i not in kept:
            left[i] = older.row_ids(i)
        elif files_of_fragment(m) != files_of_fragment(after[i]):
            left[i] = np.setdiff1d(older.row_ids(i), newer.row_ids(i), assume_unique=True)
    losing = frozenset(i for i, rows in left.items() if len(rows))
    return Grown(came, np.sort(np.concatenate([*left.values()])), losing)


def deletion_file(fragment: FragmentMetadata) -> str | None:
    """Return the name of the file that says which of a fragment's rows are deleted; None without one."""
    found = fragment.deletion_file
    return found.path(fragment.id) if found else None


def damaged_files(storage: Storage, path: str, proofs: Mapping[str, FileProof]) -> list[str]:
    """Return the files whose bytes differ from their receipt; reads them all."""
    return [name for name, proof in proofs.items() if proof_of(storage, path, name) != proof]


def proof_of(storage: Storage, path: str, name: str) -> FileProof | None:
    """Return size and sha256 of a file as it is in the store now; None if it is gone."""
    found = storage.digest(file_path(path, name))
    return FileProof(*found) if found else None


@dataclass(frozen=True)
class TableVersion:
    """One immutable version of a vector table, as the index and the comparison read it. Picklable."""

    storage: Storage
    path: str
    version: int
    dim: int

    def dataset(self) -> lance.LanceDataset:
        """Return the Lance dataset at this version."""
        return self._opened

    @functools.cached_property
    def _opened(self) -> lance.LanceDataset:
        """Opened once, which costs more than a look-up; not for all of the process: a table that gc
        removed and a rebuild recreated has the same path and version, but other files."""
        return open_table(self.storage, self.path, self.version)

    def __getstate__(self) -> dict[str, object]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def rows(self) -> int:
        """Number of vectors, as the version's manifest says."""
        return sum(f.rows for f in fragments_of(self.dataset()).values())

    def sample(self, n: int, seed: int) -> npt.NDArray[np.float32]:
        """Return float32 [min(n, rows), dim]: a random sample without replacement."""
        dataset = self.dataset()
        rows = dataset.count_rows()
        chosen = np.sort(np.random.default_rng(seed).choice(rows, min(n, rows), replace=False))
        return as_vectors(dataset.take(chosen.tolist(), columns=["vector"])["vector"])

    def sample_ranges(self, n: int, seed: int) -> npt.NDArray[np.float32]:
        """Return float32 [min(n, rows), dim]: one range of rows, chosen at random, of each of many fragments.

        Every fragment gives its share, but at least a range that is worth a request; so few requests are made, and
        nothing is read that is not returned.
        """
        held = self.fragments()
        n = min(n, self.rows)
        out = np.empty((n, self.dim), np.float32)
        random, filled, share = np.random.default_rng(seed), 0, n / max(self.rows, 1)
        for place in random.permutation(len(held)):
            fragment, rows = held[place]
            length = min(rows, max(_RANGE_ROWS, math.ceil(share * rows)), n - filled)
            offset = int(random.integers(rows - length + 1))
            out[filled : filled + length] = self._range(fragment, offset, length)
            filled += length
            if filled == n:
                break
        return out

    def _range(self, fragment_id: int, offset: int, rows: int) -> npt.NDArray[np.float32]:
        scanner = self.dataset().scanner(
            columns=["vector"], fragments=[self._fragment(fragment_id)], offset=offset, limit=rows
        )
        return as_vectors(scanner.to_table()["vector"])

    def batches(
        self, fragments: Sequence[int] | None = None
    ) -> Iterator[tuple[npt.NDArray[np.int64], pa.Array, npt.NDArray[np.float32]]]:
        """Yield row ids int64 [B], document ids [B] and vectors float32 [B, dim], in table order.

        `fragments` are ids, in the order of the table; default: all.
        """
        for batch in self.scan(["doc_id", "vector"], fragments):
            row_ids = batch.column("_rowid").to_numpy().astype(np.int64)
            yield row_ids, batch.column("doc_id"), as_vectors(batch.column("vector"))

    def fragments(self) -> list[tuple[int, int]]:
        """Return id and rows of every fragment, in table order."""
        return [(id_, found.rows) for id_, found in fragments_of(self.dataset()).items()]

    def _fragment(self, fragment_id: int) -> lance.LanceFragment:
        fragment = self.dataset().get_fragment(fragment_id)
        assert fragment is not None  # a version is immutable, and the id is from it
        return fragment

    def scan(
        self, columns: list[str], fragments: Sequence[int] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield batches of these columns and _rowid; of all fragments, or of those with these ids."""
        scanner = self.dataset().scanner(
            columns=columns,
            fragments=None if fragments is None else [self._fragment(f) for f in fragments],
            with_row_id=True,
            batch_size=_BATCH_ROWS,
            scan_in_order=True,
            batch_readahead=_READ_AHEAD,
            fragment_readahead=_READ_AHEAD,
            io_buffer_size=_READ_AHEAD_BYTES,
        )
        yield from scanner.to_batches()

    def scan_fragments(self, columns: list[str]) -> Iterator[tuple[int, pa.Table]]:
        """Yield (fragment id, rows with these columns and _rowid), fragment by fragment."""
        for fragment in self.dataset().get_fragments():
            yield fragment.fragment_id, self.fragment(fragment.fragment_id, columns)

    def fragment(self, fragment_id: int, columns: list[str]) -> pa.Table:
        """Return the rows of one fragment in order, with these columns and _rowid."""
        scanner = self.dataset().scanner(
            columns=columns,
            fragments=[self._fragment(fragment_id)],
            with_row_id=True,
            scan_in_order=True,
        )
        return scanner.to_table()

    def matching(self, values: Mapping[str, pa.Array], columns: list[str]) -> pa.Table:
        """Return the rows with one of these values in one of its columns: `columns`, _rowid and _rowaddr.

        `columns`, which include those with values, are read of all rows, and as many are held as there are values.
        """
        scanner = self.dataset().scanner(
            columns=columns, with_row_id=True, with_row_address=True, scan_in_order=True
        )
        found = [scanner.projected_schema.empty_table()]
        most = max(map(len, values.values()))
        for rows in _grouped(scanner.to_batches(), most):
            hits = [pc.is_in(rows[name], one) for name, one in values.items()]
            found.append(rows.filter(functools.reduce(pc.or_, hits)))
        return pa.concat_tables(found)

    def where(self, condition: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Yield batches of these columns and _rowid of the rows that meet a condition in Lance's SQL.

        Raises:
            ValueError: the condition cannot be evaluated.
        """
        scanner = self.dataset().scanner(
            columns=columns,
            filter=condition,
            with_row_id=True,
            io_buffer_size=_READ_AHEAD_BYTES,
        )
        yield from scanner.to_batches()

    def error_of(self, condition: str, columns: Sequence[str]) -> str | None:
        """Return what Lance says against a condition over these columns of the table; None if it takes it.

        Reads no row.
        """
        fields = [self.dataset().schema.field(name) for name in columns]
        alone = lance.write_dataset(pa.schema(fields).empty_table(), "memory://")
        return conditions.error_of(alone, condition)

    def at(self, places: npt.NDArray[np.int64], columns: list[str]) -> pa.Table:
        """Return the rows at these places of a scan, in the order asked."""
        return self.dataset().take(places.tolist(), columns=columns)

    def row_ids(self, fragment_id: int) -> npt.NDArray[np.int64]:
        """Return the row ids int64 [N] of one fragment's rows."""
        return np.asarray(self.fragment(fragment_id, [])["_rowid"], np.int64)

    def take(self, row_ids: npt.NDArray[np.int64], columns: list[str]) -> pa.Table:
        """Return rows by id, in the order of the ids.

        Raises:
            IntegrityError: an id names no row (Lance itself would leave it out silently).
        """
        table = self.dataset()._take_rows(row_ids.tolist(), columns=columns)
        if table.num_rows != len(row_ids):
            raise IntegrityError(
                f"the index names rows that {self.path} version {self.version} does not have",
                f"{len(row_ids)} asked, {table.num_rows} found",
                "reembed verify",
            )
        return table

    def vectors_of(self, row_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return the vectors float32 [R, D] of rows by id, and raise errors, as `take`."""
        return as_vectors(self.take(row_ids, ["vector"])["vector"])


def _grouped(batches: Iterable[pa.RecordBatch], least: int) -> Iterator[pa.Table]:
    """Yield batches together, at least this many rows: each look-up hashes all the values that it looks for."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(b.num_rows for b in held) >= least:
            yield pa.Table.from_batches(held)
            held = []
    if held:
        yield pa.Table.from_batches(held)


def as_vectors(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """Return a fixed-size-list column as float32 [N, dim]."""
    flat = pc.list_flatten(column).to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(flat, dtype=np.float32).reshape(-1, column.type.list_size)


def from_vectors(
    vectors: npt.NDArray[np.float32],
    value: pa.DataType,
    valid: npt.NDArray[np.bool_] | None = None,
) -> pa.FixedSizeListArray:
    """Return float32 [N, dim] as a fixed-size-list column in the table's type; null where not `valid`."""
    flat = pa.array(vectors.astype(value.to_pandas_dtype(), copy=False).reshape(-1))
    mask = None if valid is None else pa.array(~valid)
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1], mask=mask)

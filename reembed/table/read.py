"""A vector table as the index, the comparison and `verify` read it: one immutable version."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from reembed.catalog.receipts import FileProof
from reembed.catalog.releases import ManifestProof
from reembed.errors import IntegrityError
from reembed.store.lance import open_dataset
from reembed.store.storage import Storage

_BATCH_ROWS = 8_192


def open_table(storage: Storage, path: str, version: int | None = None) -> lance.LanceDataset:
    """Return a table, at a version or at its newest; errors as those of `open_dataset`."""
    return open_dataset(storage.uri(path), version, storage.lance_options)


def missing_files(storage: Storage, path: str, version: int) -> list[str]:
    """Return the data files of a table version that are gone or of another size.

    Raises FileNotFoundError if the version itself is gone.
    """
    there = dict(storage.objects(f"{path}/data/"))
    files = [f for m in open_table(storage, path, version).get_fragments() for f in m.data_files()]
    return [f.path for f in files if there.get(f"{path}/data/{f.path}") != f.file_size_bytes]


def manifest_proof(storage: Storage, path: str, version: int) -> ManifestProof | None:
    """Return name, size and sha256 of a version's manifest as it is now; None if it is gone."""
    for name in (f"{2**64 - 1 - version:020d}.manifest", f"{version}.manifest"):
        if found := storage.digest(f"{path}/_versions/{name}"):
            return ManifestProof(name, *found)
    return None


def used_files(storage: Storage, path: str) -> set[str]:
    """Return the names of the data files of every version of a table; none if there is no table."""
    try:
        dataset = open_table(storage, path)
    except FileNotFoundError:
        return set()
    versions = (open_table(storage, path, v["version"]) for v in dataset.versions())
    return {name for version in versions for name in files_of(version)}


def files_of(dataset: lance.LanceDataset) -> set[str]:
    """Return the names of the data files of one version."""
    return {f.path for m in dataset.get_fragments() for f in m.data_files()}


def damaged_files(storage: Storage, path: str, proofs: Mapping[str, FileProof]) -> list[str]:
    """Return the data files whose bytes differ from their receipt; reads them all."""
    return [name for name, proof in proofs.items() if proof_of(storage, path, name) != proof]


def proof_of(storage: Storage, path: str, name: str) -> FileProof | None:
    """Return size and sha256 of a data file as it is in the store now; None if it is gone."""
    found = storage.digest(f"{path}/data/{name}")
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
        """Number of vectors."""
        return int(self.dataset().count_rows())

    def sample(self, n: int, seed: int) -> npt.NDArray[np.float32]:
        """Return float32 [min(n, rows), dim]: a random sample without replacement."""
        dataset = self.dataset()
        rows = dataset.count_rows()
        chosen = np.sort(np.random.default_rng(seed).choice(rows, min(n, rows), replace=False))
        return as_vectors(dataset.take(chosen.tolist(), columns=["vector"])["vector"])

    def batches(self) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        """Yield (row ids int64 [B], vectors float32 [B, dim]) in table order."""
        for batch in self.scan(["vector"]):
            row_ids = batch.column("_rowid").to_numpy().astype(np.int64)
            yield row_ids, as_vectors(batch.column("vector"))

    def ids(self) -> Iterator[tuple[npt.NDArray[np.int64], pa.Array]]:
        """Yield row ids int64 [B] and document ids [B], in table order, which is that of `batches`."""
        for batch in self.scan(["doc_id"]):
            yield batch.column("_rowid").to_numpy().astype(np.int64), batch.column("doc_id")

    def scan(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Yield batches of these columns and _rowid."""
        scanner = self.dataset().scanner(
            columns=columns, with_row_id=True, batch_size=_BATCH_ROWS, scan_in_order=True
        )
        yield from scanner.to_batches()

    def scan_fragments(self, columns: list[str]) -> Iterator[tuple[int, pa.Table]]:
        """Yield (fragment id, rows with these columns and _rowid), fragment by fragment."""
        for fragment in self.dataset().get_fragments():
            yield fragment.fragment_id, self.fragment(fragment.fragment_id, columns)

    def fragment(self, fragment_id: int, columns: list[str]) -> pa.Table:
        """Return the rows of one fragment in order, with these columns and _rowid."""
        fragment = self.dataset().get_fragment(fragment_id)
        assert fragment is not None  # a version is immutable, and the id is from it
        scanner = self.dataset().scanner(
            columns=columns, fragments=[fragment], with_row_id=True, scan_in_order=True
        )
        return scanner.to_table()

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

"""Vectors -> staged fragments with receipts -> one commit; and reading a table version back.

Exactly once: a unit's fragments count only through its create-only receipt, and all receipts enter
the table in a single Overwrite commit that carries the run's id in its transaction properties
(facts: Lance has no idempotency key, and the same append committed twice doubles the rows).
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import lance
import numpy as np
import numpy.typing as npt
import obstore
import pyarrow as pa
from lance.commit import CommitConflictError
from lance.fragment import FragmentMetadata, write_fragments

from reembed import faults
from reembed.errors import Conflict, IntegrityError, RunFailed
from reembed.runs import Plan, Run
from reembed.spaces import Space
from reembed.storage import Storage

STORAGE_VERSION: Literal["2.2"] = "2.2"
TEXT_HASH_BYTES = 16
_BATCH_ROWS = 8_192
_RUN_PROPERTY = "reembed.run"
_COMMIT_TRIES = 8
_EXAMPLES = 5


def schema(space: Space, id_type: pa.DataType, carried: list[pa.Field]) -> pa.Schema:
    """Columns of a vector table: what identifies, proves and searches a row, then what is carried."""
    value = pa.float16() if space.vector_dtype == "float16" else pa.float32()
    own = [
        pa.field("doc_id", id_type, nullable=False),
        pa.field("vector", pa.list_(value, space.dim)),
        pa.field("space", pa.string()),
        pa.field("text_hash", pa.binary(TEXT_HASH_BYTES)),
        pa.field("source_version", pa.int64()),
    ]
    return pa.schema([*own, *carried])


def ensure_table(storage: Storage, path: str, columns: pa.Schema) -> int:
    """Create the table empty if it is not there; its newest version."""
    uri = storage.uri(path)
    if not any(True for _ in storage.objects(f"{path}/_versions/")):
        try:
            lance.write_dataset(
                columns.empty_table(),
                uri,
                mode="create",
                enable_stable_row_ids=True,
                data_storage_version=STORAGE_VERSION,
                storage_options=storage.lance_options,
            )
        except OSError:  # another process created it in the meantime, or nobody can: opening tells
            return open_table(storage, path).version
    return open_table(storage, path).version


def open_table(storage: Storage, path: str, version: int | None = None) -> lance.LanceDataset:
    """A table, at a version or at its newest."""
    return lance.dataset(storage.uri(path), version=version, storage_options=storage.lance_options)


@functools.lru_cache(maxsize=16)
def _open_version(storage: Storage, path: str, version: int) -> lance.LanceDataset:
    """A version is immutable, so a process opens it once: opening costs more than a look-up."""
    return open_table(storage, path, version)


@dataclass(frozen=True)
class DeadLetter:
    """A document that has no vector, and why. Its text is not kept."""

    doc_id: Any
    reason: str


@dataclass(frozen=True)
class Staged:
    """One unit's vectors on the way to the table."""

    unit: str
    rows: pa.Table
    """doc_id, vector (float32), text_hash, carried columns."""
    dead_letters: list[DeadLetter]
    stats: dict[str, Any]


def stage(run: Run, plan: Plan, columns: pa.Schema, staged: Staged) -> dict[str, Any]:
    """Write one unit's fragments, prove them, and leave the receipt; the receipt that counts.

    Of several attempts at one unit the first receipt wins; the others delete their files.
    """
    table = _with_constants(staged.rows, plan, columns)
    fragments = _write(run.storage, plan.table, table) if table.num_rows else []
    faults.point("table.after_fragments")
    files = {f.path: _proof(run.storage, plan.table, f) for m in fragments for f in m.files}
    receipt = {
        "schema_version": 1,
        "unit": staged.unit,
        "space": plan.space.id,
        "columns": _fingerprint(columns),
        "rows": table.num_rows,
        "dead_letters": [vars(d) for d in staged.dead_letters],
        "fragments": [m.to_json() for m in fragments],
        "files": files,
        **staged.stats,
    }
    path = run.path(f"units/{staged.unit}.json")
    won = run.storage.create(path, receipt)
    faults.point("table.after_receipt")
    if won:
        return receipt
    for name in files:
        run.storage.remove(f"{plan.table}/data/{name}")
    return run.storage.read(path)


def _with_constants(rows: pa.Table, plan: Plan, columns: pa.Schema) -> pa.Table:
    n = rows.num_rows
    arrays = {
        "space": pa.repeat(plan.space.id, n),
        "source_version": pa.repeat(pa.scalar(plan.source["version"], pa.int64()), n),
    }
    return pa.table(
        [
            arrays.get(f.name, rows[f.name] if f.name in rows.column_names else None)
            for f in columns
        ],
        columns,
    )


def _write(storage: Storage, path: str, table: pa.Table) -> list[FragmentMetadata]:
    fragments = write_fragments(
        table,
        storage.uri(path),
        schema=table.schema,
        mode="overwrite",  # "append" would hold the schema to the table's newest version
        data_storage_version=STORAGE_VERSION,
        storage_options=storage.lance_options,
    )
    written = sum(f.physical_rows for f in fragments)
    if written != table.num_rows:
        raise IntegrityError(f"{table.num_rows} rows were given to Lance and {written} written")
    return list(fragments)


def _proof(storage: Storage, path: str, file: Any) -> dict[str, Any]:
    """Size and sha256 of a data file as it now is in the store.

    Lance has no checksums, and reports success on a file whose last write failed (disk full).
    """
    proof = _digest(storage, path, file.path)
    size = proof["size_bytes"] if proof else 0
    if size != file.file_size_bytes:
        raise IntegrityError(
            f"{path}/data/{file.path} has {size:,} bytes where {file.file_size_bytes:,} were written",
            "the disk is full, or the last write failed without an error",
            "df -h",
        )
    assert proof is not None
    return proof


def _fingerprint(columns: pa.Schema) -> str:
    return hashlib.sha256(columns.remove_metadata().to_string().encode()).hexdigest()[:16]


@dataclass(frozen=True)
class SealedTable:
    """A committed, tagged table version."""

    path: str
    version: int
    tag: str
    rows: int
    dead_letters: list[DeadLetter]
    tokens: int


def seal(run: Run, plan: Plan, columns: pa.Schema, max_dead_letters: int) -> SealedTable:
    """Check every receipt, then bring all units into the table in one commit; once, however often called.

    Raises:
        RunFailed: units are missing, or more documents are dead letters than allowed.
        IntegrityError: a staged file is missing or has another size.
        Conflict: other runs kept committing to this table.
    """
    receipts = run.receipts()
    dead = [DeadLetter(**d) for r in receipts for d in r["dead_letters"]]
    version = _committed(run, plan)
    if version is None:
        _check_receipts(plan, receipts, _fingerprint(columns))
        _check_dead_letters(plan, dead, max_dead_letters)
        _check_files(run.storage, plan, receipts)
        version = _commit(run, plan, columns, receipts)
    tag = f"reembed-{run.id}"
    _tag(open_table(run.storage, plan.table), tag, version)
    faults.point("table.after_tag")
    rows = sum(r["rows"] for r in receipts)
    return SealedTable(
        plan.table, version, tag, rows, dead, sum(r.get("tokens", 0) for r in receipts)
    )


def _check_receipts(plan: Plan, receipts: list[dict[str, Any]], fingerprint: str) -> None:
    planned = {u.id: u.rows for u in plan.units}
    found = {r["unit"]: r["rows"] + len(r["dead_letters"]) for r in receipts}
    if missing := sorted(set(planned) - set(found)):
        raise RunFailed(
            f"{len(missing):,} of {len(planned):,} units are not staged: {', '.join(missing[:_EXAMPLES])} ...",
            "the run was interrupted",
            "reembed run (the same command resumes it)",
        )
    wrong = [u for u, rows in found.items() if planned.get(u) != rows]
    wrong += [
        r["unit"] for r in receipts if (r["space"], r["columns"]) != (plan.space.id, fingerprint)
    ]
    if wrong:
        raise IntegrityError(
            f"receipts do not fit the plan: {', '.join(wrong[:_EXAMPLES])}",
            None,
            "reembed run --fresh",
        )


def _check_dead_letters(plan: Plan, dead: list[DeadLetter], limit: int) -> None:
    if len(dead) > limit:
        listed = "; ".join(f"{d.doc_id!r}: {d.reason}" for d in dead[:_EXAMPLES])
        raise RunFailed(
            f"{len(dead):,} of {plan.rows:,} documents could not be embedded, {limit:,} are allowed",
            f"{listed}{' ...' if len(dead) > _EXAMPLES else ''}",
            f"reembed run --set embed.max_dead_letters={len(dead)}     (the other vectors are kept)",
        )


def _check_files(storage: Storage, plan: Plan, receipts: list[dict[str, Any]]) -> None:
    there = dict(storage.objects(f"{plan.table}/data/"))
    for receipt in receipts:
        for name, proof in receipt["files"].items():
            size = there.get(f"{plan.table}/data/{name}")
            if size != proof["size_bytes"]:
                found = (
                    "is gone"
                    if size is None
                    else f"has {size:,} bytes instead of {proof['size_bytes']:,}"
                )
                raise IntegrityError(
                    f"staged file {name} of unit {receipt['unit']} {found}",
                    "somebody cleaned up or damaged the table while the run was under way",
                    "reembed run --fresh",
                )


def _commit(run: Run, plan: Plan, columns: pa.Schema, receipts: list[dict[str, Any]]) -> int:
    fragments = [
        FragmentMetadata.from_json(json.dumps(f)) for r in receipts for f in r["fragments"]
    ]
    operation = lance.LanceOperation.Overwrite(columns, fragments)
    properties = {_RUN_PROPERTY: run.id, "reembed.space": plan.space.id}
    for _ in range(_COMMIT_TRIES):
        # Only the newest state says whether ours is in: an answer may be lost, and a commit below
        # versions that were cleaned away "succeeds" without effect.
        if (version := _committed(run, plan)) is not None:
            return version
        newest = open_table(run.storage, plan.table).version
        transaction = lance.Transaction(newest, operation, transaction_properties=properties)
        faults.point("table.before_commit")
        try:
            lance.LanceDataset.commit(
                run.storage.uri(plan.table), transaction, storage_options=run.storage.lance_options
            )
        except CommitConflictError:
            continue
        faults.point("table.after_commit")
    raise Conflict(
        f"{plan.table} changed at each of {_COMMIT_TRIES} attempts to commit run {run.id}",
        "other runs of the same alias and model commit to it at the same time",
        "reembed run     (the staged vectors are kept)",
    )


def _committed(run: Run, plan: Plan) -> int | None:
    """Version of the table that this run's commit made, read from the newest state."""
    dataset = open_table(run.storage, plan.table)
    for version in range(dataset.version, plan.base_version, -1):
        transaction = dataset.read_transaction(version)
        if transaction and (transaction.transaction_properties or {}).get(_RUN_PROPERTY) == run.id:
            return version
    return None


def missing_files(storage: Storage, path: str, version: int) -> list[str]:
    """Data files of a table version that are gone or have another size than the version says.

    Raises:
        ValueError, OSError: the version itself is gone.
    """
    there = dict(storage.objects(f"{path}/data/"))
    files = [f for m in open_table(storage, path, version).get_fragments() for f in m.data_files()]
    return [f.path for f in files if there.get(f"{path}/data/{f.path}") != f.file_size_bytes]


def damaged_files(storage: Storage, path: str, receipts: list[dict[str, Any]]) -> list[str]:
    """Data files whose bytes are no longer those their receipt proves; reads them all."""
    proofs = {name: proof for r in receipts for name, proof in r["files"].items()}
    return [name for name, proof in proofs.items() if _digest(storage, path, name) != proof]


def _digest(storage: Storage, path: str, name: str) -> dict[str, Any] | None:
    digest, size = hashlib.sha256(), 0
    try:
        chunks = obstore.get(storage.store, f"{path}/data/{name}").stream(min_chunk_size=8 << 20)
    except FileNotFoundError:
        return None
    for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
    return {"size_bytes": size, "sha256": digest.hexdigest()}


def _tag(dataset: lance.LanceDataset, tag: str, version: int) -> None:
    if tag not in dataset.tags.list():
        try:
            dataset.tags.create(tag, version)
        except ValueError:
            if tag not in dataset.tags.list():
                raise


@dataclass(frozen=True)
class TableVersion:
    """One immutable version of a vector table, as the index and the comparison read it. Picklable."""

    storage: Storage
    path: str
    version: int
    dim: int

    def dataset(self) -> lance.LanceDataset:
        """The Lance dataset at this version."""
        return _open_version(self.storage, self.path, self.version)

    @property
    def rows(self) -> int:
        """Number of vectors."""
        return int(self.dataset().count_rows())

    def sample(self, n: int, seed: int) -> npt.NDArray[np.float32]:
        """float32 [min(n, rows), dim]: a random sample without replacement."""
        dataset = self.dataset()
        rows = dataset.count_rows()
        chosen = np.sort(np.random.default_rng(seed).choice(rows, min(n, rows), replace=False))
        return as_vectors(dataset.take(chosen.tolist(), columns=["vector"])["vector"])

    def batches(self) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        """(row ids int64 [B], vectors float32 [B, dim]), in table order."""
        for batch in self.scan(["vector"]):
            yield (
                batch.column("_rowid").to_numpy().astype(np.int64),
                as_vectors(batch.column("vector")),
            )

    def scan(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Batches of these columns and _rowid."""
        scanner = self.dataset().scanner(
            columns=columns, with_row_id=True, batch_size=_BATCH_ROWS, scan_in_order=True
        )
        yield from scanner.to_batches()

    def take(self, row_ids: npt.NDArray[np.int64], columns: list[str]) -> pa.Table:
        """Rows by id, in the order asked.

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
    """float32 [N, dim] of a fixed-size-list column."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    flat = array.flatten().to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(flat, dtype=np.float32).reshape(-1, array.type.list_size)


def from_vectors(vectors: npt.NDArray[np.float32], value: pa.DataType) -> pa.FixedSizeListArray:
    """A fixed-size-list column of float32 [N, dim], in the type the table stores."""
    flat = vectors.astype(np.float16) if pa.types.is_float16(value) else vectors
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), vectors.shape[1])

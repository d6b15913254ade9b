"""Write vectors as staged fragments with receipts; `seal` brings them into the table.

Exactly once: a unit's fragments count only through its create-only receipt.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

import lance
import pyarrow as pa
from lance.fragment import FragmentMetadata, write_fragments

from reembed import digests, faults
from reembed.catalog.plan import Plan, ThinFragment
from reembed.catalog.receipts import DeadLetter, Deletions, FileProof, Receipt, UnitStats
from reembed.catalog.runs import Run
from reembed.errors import IntegrityError
from reembed.space import Space
from reembed.store.records import encode
from reembed.store.storage import Storage
from reembed.table.documents import documents_in
from reembed.table.read import TableVersion, file_path, open_table, proof_of

STORAGE_VERSION: Literal["2.2"] = "2.2"


def path_of(alias: str, space: Space) -> str:
    """Return the path, under the root, of the table with an alias's vectors of a space."""
    return f"tables/{alias}-{space.id}.lance"


def schema(space: Space, id_type: pa.DataType, carried: list[pa.Field]) -> pa.Schema:
    """Return the columns of a vector table: its own, then the carried ones."""
    value = pa.float16() if space.vector_dtype == "float16" else pa.float32()
    own = [
        pa.field("doc_id", id_type, nullable=False),
        pa.field("vector", pa.list_(value, space.dim)),
        pa.field("space", pa.string()),
        pa.field("text_hash", pa.binary(digests.BYTES)),
        pa.field("source_version", pa.int64()),
    ]
    return pa.schema([*own, *carried])


def ensure_table(storage: Storage, path: str, columns: pa.Schema) -> int:
    """Create an empty table if there is none; return its newest version."""
    if not any(p.endswith(".manifest") for p, _ in storage.objects(f"{path}/_versions/")):
        try:
            lance.write_dataset(
                columns.empty_table(),
                storage.uri(path),
                mode="create",
                enable_stable_row_ids=True,
                data_storage_version=STORAGE_VERSION,
                storage_options=storage.lance_options,
            )
        except OSError as error:  # another process created it in the meantime, or nobody can
            try:
                return open_table(storage, path).version
            except FileNotFoundError:
                raise error from None
    return open_table(storage, path).version


@dataclass(frozen=True)
class Staged:
    """One unit's vectors on the way to the table."""

    unit: str
    rows: pa.Table
    """doc_id, vector (float32), text_hash, carried columns."""
    dead_letters: tuple[DeadLetter, ...] = ()
    stats: UnitStats | None = None
    """None for rows that are kept."""


def stage(run: Run, plan: Plan, columns: pa.Schema, staged: Staged) -> Receipt:
    """Write one unit's fragments, check them and create the receipt; return the receipt that counts.

    If there are several attempts at one unit, the first receipt wins and the others delete their files.
    """
    table = _with_constants(staged.rows, plan, columns)
    fragments = _write(run.storage, plan.table, table) if table.num_rows else []
    faults.point("table.after_fragments")
    receipt = Receipt(
        unit=staged.unit,
        space=plan.space.id,
        columns=fingerprint(columns),
        rows=table.num_rows,
        documents=documents_in(table.num_rows),
        dead_letters=staged.dead_letters,
        fragments=tuple(json.dumps(m.to_json()) for m in fragments),
        files={f.path: _proof(run.storage, plan.table, f) for m in fragments for f in m.files},
        stats=staged.stats,
    )
    return _leave(run, plan, receipt)


def stage_deletions(
    run: Run, plan: Plan, columns: pa.Schema, table: TableVersion, unit: ThinFragment
) -> Receipt:
    """Write the deletion file of a fragment that loses rows; return the receipt that counts, as `stage`.

    Raises:
        IntegrityError: Lance deleted other rows than the unit names.
    """
    fragment = table.dataset().get_fragment(unit.fragment)
    assert fragment is not None  # a version is immutable, and the plan was made from it
    leaving = unit.leaving.read(run)
    thinned = fragment.delete(f"_rowid IN ({', '.join(map(str, leaving))})")
    left = thinned.num_rows if thinned else 0
    if thinned is None or thinned.deletion_file is None or left != unit.rows:
        raise IntegrityError(
            f"fragment {unit.fragment} of {table.path} version {table.version} has {left:,} rows left",
            f"{unit.rows:,} were planned, without the {len(leaving):,} that leave",
            plan.restart,
        )
    faults.point("table.after_fragments")
    name, found = thinned.deletion_file.path(unit.fragment), thinned.deletion_file.asdict()
    receipt = Receipt(
        unit=unit.id,
        space=plan.space.id,
        columns=fingerprint(columns),
        rows=unit.rows,
        documents=unit.documents,
        dead_letters=(),
        fragments=(),
        files={name: _deletions_proof(run, plan, name, thinned.num_deletions)},
        stats=None,
        deletions=Deletions(
            unit.fragment,
            found["read_version"],
            found["id"],
            found["file_type"],
            found["num_deleted_rows"],
        ),
    )
    return _leave(run, plan, receipt)


def _leave(run: Run, plan: Plan, receipt: Receipt) -> Receipt:
    """Create the receipt; if another attempt was first, remove this one's files and return the other."""
    won = run.storage.create(run.path(f"units/{receipt.unit}.json"), encode(receipt))
    faults.point("table.after_receipt")
    if won:
        return receipt
    for name in receipt.files:
        run.storage.remove(file_path(plan.table, name))
    return run.receipt(receipt.unit)


def _with_constants(rows: pa.Table, plan: Plan, columns: pa.Schema) -> pa.Table:
    """Return rows with the table's columns; rows kept from an earlier version already have all."""
    n = rows.num_rows
    constants = {
        "space": pa.repeat(plan.space.id, n),
        "source_version": pa.repeat(pa.scalar(plan.source.version, pa.int64()), n),
    }
    given = rows.column_names
    return pa.table(
        [rows[f.name] if f.name in given else constants[f.name] for f in columns], columns
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


def _proof(storage: Storage, path: str, file: Any) -> FileProof:
    """Return size and sha256 of a data file as it is in the store now.

    Lance has no checksums, and reports success on a file whose last write failed (disk full).
    """
    proof = proof_of(storage, path, file.path)
    size = proof.size_bytes if proof else 0
    if proof is None or size != file.file_size_bytes:
        raise IntegrityError(
            f"{path}/data/{file.path} has {size:,} bytes where {file.file_size_bytes:,} were written",
            "the disk is full, or the last write failed without an error",
            "df -h",
        )
    return proof


def _deletions_proof(run: Run, plan: Plan, name: str, rows: int) -> FileProof:
    """Return size and sha256 of a deletion file as it is in the store now.

    A file that names few rows is read back: it must name this many. Verification reads what is left.
    """
    path = file_path(plan.table, name)
    body = run.storage.read_bytes(path)
    if name.endswith(".arrow") and (found := _rows_in(body)) != rows:
        raise IntegrityError(
            f"{path} names {found:,} deleted rows, not {rows:,}", "the disk is full", "df -h"
        )
    return FileProof(len(body), hashlib.sha256(body).hexdigest())


def _rows_in(body: bytes) -> int:
    try:
        return int(pa.ipc.open_file(pa.py_buffer(body)).read_all().num_rows)
    except pa.ArrowException:
        return 0


def fingerprint(columns: pa.Schema) -> str:
    """Return 16 hex digits that name columns and their types."""
    return hashlib.sha256(columns.remove_metadata().to_string().encode()).hexdigest()[:16]

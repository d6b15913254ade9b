"""Rows of a table version that a catch-up writes again without embedding them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from reembed.catalog.plan import KeepFragment, KeptUnit, Plan, RefreshRows, ThinFragment
from reembed.catalog.receipts import FileProof, Receipt
from reembed.catalog.runs import Run
from reembed.errors import IntegrityError
from reembed.source.dataset import TEXT, Source
from reembed.store.storage import storage_errors
from reembed.table.read import TableVersion, file_path, files_of_fragment, proof_of
from reembed.table.seal import read_sealed
from reembed.table.write import Staged, stage, stage_deletions


def stage_unit(run: Run, plan: Plan, columns: pa.Schema, source: Source, unit: KeptUnit) -> Receipt:
    """Stage a unit that a catch-up takes over; return its receipt.

    Raises IntegrityError if a file differs from its receipt: a damaged vector would get a new, valid one.
    """
    assert plan.base is not None
    version = plan.base.table_version
    table = TableVersion(run.storage, plan.table, version, plan.space.dim)
    with storage_errors(f"unit {unit.id} could not be staged below {run.storage.root}"):
        if isinstance(unit, ThinFragment):
            return stage_deletions(run, plan, columns, table, unit)
        files = read_sealed(Run(run.storage, plan.base.release), plan.table, version).files
        if isinstance(unit, KeepFragment):
            _require_sound(run, table, files, {unit.fragment})
            rows = _kept(table, columns, unit)
        else:
            _require_sound(run, table, files, _fragments_of(table, unit.table_rows))
            rows = _refreshed(table, source, unit)
        return stage(run, plan, columns, Staged(unit.id, rows))


def _kept(table: TableVersion, columns: pa.Schema, unit: KeepFragment) -> pa.Table:
    held = table.fragment(unit.fragment, columns.names)
    leaves = np.isin(held["_rowid"].to_numpy(), unit.leaving)
    return held.filter(pa.array(~leaves)).drop_columns(["_rowid"])


def _refreshed(table: TableVersion, source: Source, unit: RefreshRows) -> pa.Table:
    held = table.take(np.array(unit.table_rows, np.int64), ["vector", "text_hash"])
    rows = source.take(unit.row_ids).drop_columns([TEXT])
    return rows.append_column("vector", held["vector"]).append_column(
        "text_hash", held["text_hash"]
    )


def _fragments_of(table: TableVersion, row_ids: tuple[int, ...]) -> set[int]:
    wanted = np.array(row_ids, np.int64)
    return {
        fragment
        for fragment, rows in table.scan_fragments([])
        if np.isin(rows["_rowid"].to_numpy().astype(np.int64), wanted).any()
    }


def _require_sound(
    run: Run, table: TableVersion, proofs: dict[str, FileProof], fragments: set[int]
) -> None:
    held = [f for f in table.dataset().get_fragments() if f.fragment_id in fragments]
    for name in (name for fragment in held for name in files_of_fragment(fragment.metadata)):
        if proof_of(table.storage, table.path, name) != proofs.get(name):
            raise IntegrityError(
                f"{file_path(table.path, name)} is damaged",
                "its sha256 differs from its receipt",
                run.rebuild,
            )

"""Rows of a table version that a catch-up writes again without embedding them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from reembed.catalog.plan import KeepFragments, KeptUnit, Plan, RefreshRows, ThinFragment
from reembed.catalog.receipts import FileProof, Receipt
from reembed.catalog.runs import Run
from reembed.errors import IntegrityError
from reembed.source.dataset import TEXT, Source
from reembed.store.storage import storage_errors
from reembed.table.read import TableVersion, file_path, files_of_fragment, proof_of
from reembed.table.seal import read_sealed
from reembed.table.write import Staged, stage, stage_deletions

Int64 = npt.NDArray[np.int64]
Context = tuple[Run, Plan, pa.Schema, Source]
Proofs = Mapping[str, FileProof | None]
"""What files must be, by name; None: no record proves it."""


def with_proofs(
    run: Run, plan: Plan, units: Sequence[KeptUnit]
) -> Iterator[tuple[KeptUnit, Proofs]]:
    """Yield each unit with what the files that its rows are read from must be.

    Raises IntegrityError if the record of the base's files was changed.
    """
    assert plan.base is not None
    version = plan.base.table_version
    files = read_sealed(Run(run.storage, plan.base.release), plan.table, version).files
    dataset = TableVersion(run.storage, plan.table, version, plan.space.dim).dataset()
    names = {f.fragment_id: files_of_fragment(f.metadata) for f in dataset.get_fragments()}
    for unit in units:
        yield unit, {name: files.get(name) for f in _read_from(unit) for name in names[f]}


def _read_from(unit: KeptUnit) -> tuple[int, ...]:
    """Return the fragments that rows are read from; a deletion file needs none."""
    if isinstance(unit, ThinFragment):
        return ()
    return unit.fragments


def stage_unit(context: Context, unit: KeptUnit, proofs: Proofs) -> Receipt:
    """Stage a unit that a catch-up takes over; return its receipt. `context` has the plan without its units.

    Raises IntegrityError if a file is not as proven: a damaged vector would get a new, valid receipt.
    """
    run, plan, columns, _ = context
    assert plan.base is not None
    table = TableVersion(run.storage, plan.table, plan.base.table_version, plan.space.dim)
    with storage_errors(f"unit {unit.id} could not be staged below {run.storage.root}"):
        if isinstance(unit, ThinFragment):
            return stage_deletions(run, plan, columns, table, unit)
        _require_sound(run, table, proofs)
        rows = _rows(context, table, unit)
        return stage(run, plan, columns, Staged(unit.id, rows))


def _rows(context: Context, table: TableVersion, unit: KeepFragments | RefreshRows) -> pa.Table:
    run, _, columns, source = context
    if isinstance(unit, KeepFragments):
        return _kept(table, columns, unit.fragments, unit.leaving.read(run))
    held = _held(run, table, unit)
    rows = source.take(unit.row_ids.read(run).tolist()).drop_columns([TEXT])
    return rows.append_column("vector", held["vector"]).append_column(
        "text_hash", held["text_hash"]
    )


def _kept(
    table: TableVersion, columns: pa.Schema, fragments: Sequence[int], leaving: Int64
) -> pa.Table:
    held = pa.concat_tables(table.fragment(f, columns.names) for f in fragments)
    leaves = np.isin(held["_rowid"].to_numpy(), leaving)
    return held.filter(pa.array(~leaves)).drop_columns(["_rowid"])


def _held(run: Run, table: TableVersion, unit: RefreshRows) -> pa.Table:
    """Return the vectors and digests of texts that a unit takes over."""
    wanted = unit.table_rows.read(run)
    there = np.concatenate([table.row_ids(fragment) for fragment in unit.fragments])
    if not np.isin(wanted, there).all():
        what = f"unit {unit.id} names rows outside the fragments whose files were checked"
        raise IntegrityError(what, "its plan was changed", run.rebuild)
    return table.take(wanted, ["vector", "text_hash"])


def _require_sound(run: Run, table: TableVersion, proofs: Proofs) -> None:
    for name, proof in proofs.items():
        if proof_of(table.storage, table.path, name) != proof:
            raise IntegrityError(
                f"{file_path(table.path, name)} is damaged",
                "its sha256 differs from its receipt",
                run.rebuild,
            )

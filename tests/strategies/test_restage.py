"""Rows that a catch-up writes again come from proven files only, each of the files they lie in."""

from __future__ import annotations

import dataclasses

import lance
import numpy as np
import pyarrow as pa
import pytest
from inline import Inline, Silent

from reembed.catalog.plan import Base, KeepFragments, RefreshRows
from reembed.catalog.row_ids import RowIdFile
from reembed.catalog.runs import Run
from reembed.errors import IntegrityError
from reembed.source.dataset import Source
from reembed.store.storage import Storage
from reembed.strategies import restage
from reembed.strategies.full_rebuild import full_rebuild
from reembed.table.read import TableVersion
from reembed.table.seal import read_sealed
from reembed.table.write import schema

FRAGMENTS = 5


@pytest.fixture
def again(corpus, make_config, monkeypatch):
    """again(unit, damaged=fragments) stages the unit over a table whose named fragments are damaged."""
    config = make_config(corpus(300), table={"carry": ["title"]})
    release = full_rebuild(config, Silent(), executor=Inline())
    storage = Storage.open(config.storage.root)
    first = Run(storage, release.id)
    base = Base(release.id, release.table_version, (), 0, 0, (), "a test")
    plan = dataclasses.replace(first.plan(), run_id=f"{first.id}-u2-1", base=base)
    source = Source.open(config)
    columns = schema(release.space, *source.schema())
    table = TableVersion(storage, release.table, release.table_version, release.space.dim)
    sealed = read_sealed(first, release.table, release.table_version)

    def stage(unit, damaged=()):
        gone = {f.path for n in damaged for f in table.dataset().get_fragment(n).data_files()}
        proofs = {
            name: dataclasses.replace(proof, sha256="0" * 64) if name in gone else proof
            for name, proof in sealed.files.items()
        }
        found = dataclasses.replace(sealed, files=proofs)
        monkeypatch.setattr(restage, "read_sealed", lambda *arguments: found)
        run = Run(storage, plan.run_id)
        ((_, proofs),) = restage.with_proofs(run, plan, [unit])
        receipt = restage.stage_unit((run, plan, columns, source), unit, proofs)
        fragments = [lance.FragmentMetadata.from_json(f) for f in receipt.fragments]
        made = lance.LanceOperation.Overwrite(columns, fragments)
        uri = storage.uri(release.table)
        return lance.LanceDataset.commit(
            uri, made, read_version=lance.dataset(uri).version
        ).to_table()

    def ids(rows):
        """Row ids in a file of the run, as a unit names them."""
        file = RowIdFile()
        named = file.add(np.array(rows, np.int64))
        file.write(Run(storage, plan.run_id))
        return named

    stage.ids, stage.table = ids, table
    stage.source = lance.dataset(config.source.uri)
    stage.rows = [held["_rowid"].to_pylist() for _, held in table.scan_fragments([])]
    return stage


def kept(again, fragment, leaving=()):
    rows = again.rows[fragment]
    left = len(rows) - len(leaving)
    return KeepFragments(f"keep-{fragment}", (fragment,), left, left, again.ids(leaving))


def refreshed(again, rows):
    """A unit of table rows (fragment, place), with the source rows of the same documents."""
    held = [again.rows[f][at] for f, at in rows]
    names = again.table.take(pa.array(held).to_numpy(), ["doc_id"])["doc_id"].to_pylist()
    there = again.source.to_table(columns=["doc_id"], with_row_id=True).to_pylist()
    row_of = {r["doc_id"]: r["_rowid"] for r in there}
    ids = tuple(row_of[n] for n in names)
    fragments = tuple(sorted({f for f, _ in rows}))
    return RefreshRows("refresh-0", again.ids(ids), again.ids(held), len(ids), fragments), names


@pytest.mark.parametrize("fragment", range(FRAGMENTS))
def test_what_stays_of_a_damaged_fragment_is_not_written_again(again, fragment):
    assert len(again.rows) == FRAGMENTS
    with pytest.raises(IntegrityError, match="is damaged"):
        again(kept(again, fragment, again.rows[fragment][:3]), damaged=[fragment])


def test_a_fragment_is_written_again_without_the_rows_that_left_whatever_others_are(again):
    leaving = [again.rows[2][0], again.rows[2][7], again.rows[2][-1]]
    held = again.table.fragment(2, ["doc_id", "vector", "title"])
    others = [n for n in range(FRAGMENTS) if n != 2]
    written = again(kept(again, 2, leaving), damaged=others)
    stays = held.filter(pa.array([r not in leaving for r in held["_rowid"].to_pylist()]))
    assert written.select(["doc_id", "vector", "title"]) == stays.drop_columns(["_rowid"])


@pytest.mark.parametrize("damaged", [0, 2, 4])
def test_vectors_of_several_fragments_are_not_copied_if_one_of_them_is_damaged(again, damaged):
    unit, _ = refreshed(again, [(4, 1), (0, 3), (2, 0), (0, 5)])
    with pytest.raises(IntegrityError, match="is damaged"):
        again(unit, damaged=[damaged])


def test_refreshed_rows_take_the_vectors_of_their_own_rows_whatever_other_fragments_are(again):
    unit, names = refreshed(again, [(4, 1), (0, 3), (2, 0), (0, 5)])
    written = again(unit, damaged=[1, 3])
    held = again.table.dataset().to_table(columns=["doc_id", "vector", "text_hash"]).to_pylist()
    vector_of = {r["doc_id"]: (r["vector"], r["text_hash"]) for r in held}
    assert written["doc_id"].to_pylist() == names
    found = zip(written["vector"].to_pylist(), written["text_hash"].to_pylist(), strict=True)
    assert list(found) == [vector_of[n] for n in names]


def test_rows_outside_the_fragments_that_were_checked_are_not_read(again):
    unit, _ = refreshed(again, [(4, 1), (0, 3)])
    with pytest.raises(IntegrityError, match="names rows outside the fragments"):
        again(dataclasses.replace(unit, fragments=(4,)))

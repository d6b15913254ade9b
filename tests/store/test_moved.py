"""Rows of two versions that are not said to have moved are the same, whatever happened between them."""

from __future__ import annotations

import random
from collections import Counter

import lance
import pyarrow as pa
import pytest

from reembed.store.moved import moved


def rows(first, count, text="x"):
    return pa.table({"i": range(first, first + count), "t": [f"{text} {n}" for n in range(count)]})


def content(table):
    return Counter(zip(table["i"].to_pylist(), table["t"].to_pylist(), strict=True))


def read(dataset, fragments):
    if not fragments:
        return Counter()
    some = [dataset.get_fragment(i) for i in fragments]
    return content(dataset.scanner(columns=["i", "t"], fragments=some).to_table())


def taken(dataset, row_ids):
    return content(dataset._take_rows(row_ids.tolist(), columns=["i", "t"]))


def change(uri, chance):
    dataset = lance.dataset(uri)
    at = chance.randrange(60)
    match chance.choice(["append", "delete", "update", "merge", "compact", "restore", "overwrite"]):
        case "append":
            lance.write_dataset(rows(chance.randrange(100, 999), 5), uri, mode="append")
        case "delete":
            dataset.delete(f"i >= {at} and i < {at + 4}")
        case "update":
            dataset.update({"t": "'another'"}, where=f"i = {at} or i = {at + 9}")
        case "merge":
            merge = dataset.merge_insert("i").when_matched_update_all()
            merge.when_not_matched_insert_all().execute(rows(at, 3, "merged"))
        case "compact":
            dataset.optimize.compact_files(target_rows_per_fragment=20)
        case "restore":
            lance.dataset(uri, version=chance.randrange(1, dataset.version + 1)).restore()
        case "overwrite":
            lance.write_dataset(rows(0, 30, "new"), uri, mode="overwrite", max_rows_per_file=7)


@pytest.mark.parametrize("stable", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_what_did_not_move_is_the_same_in_both_versions(tmp_path, seed, stable):
    chance, uri = random.Random(seed), str(tmp_path / "t.lance")
    lance.write_dataset(rows(0, 60), uri, max_rows_per_file=10, enable_stable_row_ids=stable)
    for _ in range(4):
        for _ in range(chance.randrange(1, 4)):
            change(uri, chance)
        newer = lance.dataset(uri)
        older = lance.dataset(uri, version=chance.randrange(1, newer.version + 1))
        for whole in (False, True):
            found = moved(older, newer, whole=whole)
            assert found is not None
            gone = read(older, found.left) + taken(older, found.thinned)
            came = read(newer, found.come)
            before, after = content(older.to_table()), content(newer.to_table())
            before.subtract(gone)
            assert min(before.values(), default=0) >= 0
            assert +before + came == after
            assert found.rows == gone.total() + came.total()
            assert not (whole and len(found.thinned))


def test_a_small_change_moves_few_rows(tmp_path):
    uri = str(tmp_path / "t.lance")
    lance.write_dataset(rows(0, 1000), uri, max_rows_per_file=100, enable_stable_row_ids=True)
    lance.dataset(uri).update({"t": "'another'"}, where="i = 5 or i = 777")
    lance.dataset(uri).delete("i = 200")
    lance.write_dataset(rows(5000, 4), uri, mode="append")
    found = moved(lance.dataset(uri, version=1), lance.dataset(uri))
    assert (found.left, found.thinned.tolist(), found.rows) == ((), [5, 200, 777], 3 + 2 + 4)
    nothing = moved(lance.dataset(uri), lance.dataset(uri))
    assert (nothing.left, nothing.come, nothing.rows) == ((), (), 0)


@pytest.mark.parametrize("how", ["values", "columns", "renamed", "retyped"])
def test_a_column_written_in_place_moves_its_rows_and_other_columns_compare_nothing(tmp_path, how):
    uri = str(tmp_path / "t.lance")
    made = lance.write_dataset(rows(0, 30), uri, max_rows_per_file=10)
    if how == "columns":
        made.add_columns({"more": "i + 1"})
    if how == "renamed":
        made.alter_columns({"path": "t", "name": "text"})
    if how == "retyped":
        made.alter_columns({"path": "i", "data_type": pa.int32()})
    if how == "values":
        fragment = made.get_fragment(1)
        updated, fields = fragment.update_columns(
            pa.table({"i": [12], "t": ["in place"]}), left_on="i", right_on="i"
        )
        change = lance.LanceOperation.Update(
            removed_fragment_ids=[],
            updated_fragments=[updated],
            new_fragments=[],
            fields_modified=fields,
        )
        lance.LanceDataset.commit(uri, change, read_version=made.version)
        newer = lance.dataset(uri)
        assert "in place" in newer.to_table()["t"].to_pylist()
        found = moved(lance.dataset(uri, version=1), newer)
        assert (found.left, found.come) == ((1,), (1,))
    else:
        assert moved(lance.dataset(uri, version=1), lance.dataset(uri)) is None

"""A version of a table: its own files, looked at one by one, and rows by id or not at all."""

from __future__ import annotations

import types
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from reembed.errors import IntegrityError, SourceError
from reembed.source.dataset import Source
from reembed.store.storage import Storage
from reembed.table import read as reading
from reembed.table.read import (
    TableVersion,
    damaged_files,
    manifest_proof,
    missing_files,
    proof_of,
    used_files,
)

TABLE = "tables/t.lance"


@pytest.fixture
def storage(tmp_path):
    return Storage.open(str(tmp_path))


def rows(start, count):
    vectors = pa.array([[float(start + i)] * 4 for i in range(count)], pa.list_(pa.float32(), 4))
    return pa.table({"doc_id": [f"d{start + i}" for i in range(count)], "vector": vectors})


@pytest.fixture
def versions(storage):
    """Two versions of a table, of five and of three other files."""
    uri = storage.uri(TABLE)
    options = {"max_rows_per_file": 10, "enable_stable_row_ids": True}
    lance.write_dataset(rows(0, 50), uri, **options)
    lance.write_dataset(rows(100, 30), uri, mode="overwrite", **options)
    return [
        sorted(f.path for m in lance.dataset(uri, v).get_fragments() for f in m.data_files())
        for v in (1, 2)
    ]


def data(storage, name):
    return Path(storage.uri(f"{TABLE}/data/{name}"))


@pytest.mark.parametrize("version", [1, 2])
def test_every_file_of_the_version_is_looked_for_and_no_other(storage, versions, version):
    mine, others = versions[version - 1], versions[2 - version]
    assert missing_files(storage, TABLE, version) == []
    data(storage, others[0]).unlink()
    assert missing_files(storage, TABLE, version) == []
    with data(storage, mine[1]).open("ab") as file:
        file.write(b"x")
    data(storage, mine[2]).unlink()
    assert sorted(missing_files(storage, TABLE, version)) == [mine[1], mine[2]]


def test_files_of_every_version_are_used(storage, versions):
    assert used_files(storage, TABLE) == {*versions[0], *versions[1]}
    assert used_files(storage, "tables/none.lance") == set()


def test_each_damaged_file_is_named(storage, versions):
    names = versions[0]
    proofs = {n: proof_of(storage, TABLE, n) for n in names}
    for name in (names[0], names[3]):
        file = data(storage, name)
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    data(storage, names[4]).unlink()
    assert damaged_files(storage, TABLE, proofs) == [names[0], names[3], names[4]]


@pytest.mark.parametrize("version", [1, 2])
def test_each_version_has_a_manifest_of_its_own(storage, versions, version):
    found = manifest_proof(storage, TABLE, version)
    file = Path(storage.uri(f"{TABLE}/_versions/{found.name}"))
    assert found.size_bytes == file.stat().st_size
    assert found != manifest_proof(storage, TABLE, 3 - version)
    file.unlink()
    assert manifest_proof(storage, TABLE, version) is None
    assert manifest_proof(storage, TABLE, 3 - version) is not None


def test_rows_come_in_the_order_asked_and_all_or_none(storage, versions):
    table = TableVersion(storage, TABLE, 2, 4)
    ids = np.concatenate([i for i, _, _ in table.batches()])
    asked = ids[[29, 0, 15, 0]]
    assert table.take(asked, ["doc_id"])["doc_id"].to_pylist() == ["d129", "d100", "d115", "d100"]
    with pytest.raises(IntegrityError, match="does not have") as refused:
        table.take(np.append(ids[:3], 10**6), ["doc_id"])
    assert refused.value.why == "4 asked, 3 found"


def test_documents_of_a_source_come_by_id_all_or_none(corpus, make_config):
    uri = corpus(300)
    source = Source.open(make_config(uri))
    ids = lance.dataset(uri).to_table(columns=["doc_id"], with_row_id=True)["_rowid"].to_pylist()
    asked = [ids[250], ids[3], ids[130]]
    assert source.take(asked)["doc_id"].to_pylist() == ["d00250", "d00003", "d00130"]
    with pytest.raises(SourceError, match="has 3 of 4 rows by id"):
        source.take([*asked, 10**6])


def test_ranges_of_many_fragments_are_sampled_without_repetition(storage):
    rows = pa.table({"doc_id": pa.array(range(10_000)), "vector": vectors(range(10_000))})
    uri = storage.uri("tables/many.lance")
    lance.write_dataset(rows, uri, max_rows_per_file=2_500, enable_stable_row_ids=True)
    lance.dataset(uri).delete("doc_id % 10 = 3")
    table = TableVersion(storage, "tables/many.lance", 2, 2)
    assert [rows for _, rows in table.fragments()] == [2_250] * 4
    for wanted, fragments in ((500, 1), (1_500, 2), (6_000, 4), (9_000, 4), (99_999, 4)):
        found = table.sample_ranges(wanted, seed=0)[:, 0].astype(int)
        assert len(set(found.tolist())) == len(found) == min(wanted, 9_000)
        assert not (found % 10 == 3).any()
        assert len(set((found // 2_500).tolist())) == fragments
        np.testing.assert_array_equal(table.sample_ranges(wanted, seed=0)[:, 0].astype(int), found)
    assert not np.array_equal(
        table.sample_ranges(500, seed=1)[:, 0], table.sample_ranges(500, 0)[:, 0]
    )
    ids, names, _ = zip(*table.batches([1, 3]), strict=True)
    assert sorted({n // 2_500 for part in names for n in part.to_pylist()}) == [1, 3]
    assert sum(map(len, ids)) == 4_500


def vectors(numbers):
    flat = np.repeat(np.array(numbers, np.float32), 2)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), 2)


def test_values_that_are_looked_for_are_not_hashed_once_for_each_batch(storage, monkeypatch):
    uri, count = storage.uri(TABLE), 40_000
    lance.write_dataset(rows(0, count), uri, max_rows_per_file=1_000, enable_stable_row_ids=True)
    table = TableVersion(storage, TABLE, 1, 4)
    wanted = pa.array([f"d{n}" for n in range(0, 2 * count, 8)])
    hashed = []

    def is_in(found, values):
        hashed.append(len(values))
        return pc.is_in(found, values)

    monkeypatch.setattr(reading, "pc", types.SimpleNamespace(is_in=is_in, or_=pc.or_))
    found = table.matching({"doc_id": wanted}, ["doc_id"])
    assert found["doc_id"].to_pylist() == [f"d{n}" for n in range(0, count, 8)]
    assert sum(hashed) <= count + len(wanted)

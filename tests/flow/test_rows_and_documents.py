"""Several rows of one document: each step counts rows and documents apart, and a hit is a document."""

from __future__ import annotations

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from flow_tables import rows_of
from inline import Inline, Silent

from reembed.catalog.releases import Catalog
from reembed.config.settings import Config
from reembed.engine.worker import UnitEmbedder
from reembed.errors import SourceError
from reembed.lifecycle.promote import promote
from reembed.serving.index import Index
from reembed.store.storage import Storage
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild
from reembed.table import documents

ROWS = 3


@pytest.fixture
def split(monkeypatch):
    """Each document has three rows: the vector of its text, and two that are turned a little."""
    embedded = UnitEmbedder._embedded

    def in_parts(self, found, vectors, errors, stats):
        parts = np.repeat(vectors, ROWS, axis=0)
        for part in range(ROWS):
            parts[part::ROWS, part] += 0.01 * part
        parts /= np.linalg.norm(parts, axis=1, keepdims=True)
        rows = found.take(np.repeat(np.arange(found.num_rows), ROWS))
        return embedded(self, rows, parts, list(np.repeat(errors, ROWS)), stats)

    monkeypatch.setattr(UnitEmbedder, "_embedded", in_parts)
    monkeypatch.setattr(documents, "ROWS", ROWS)


@pytest.fixture
def place(tmp_path):
    """A source of 40 documents, one without a text, in two fragments, and its config."""
    uri = str(tmp_path / "source.lance")
    rows = {
        "doc_id": [f"d{n:02d}" for n in range(40)],
        "text": [None if n == 7 else f"the text of {n}" for n in range(40)],
        "year": list(range(40)),
    }
    lance.write_dataset(pa.table(rows), uri, enable_stable_row_ids=True, max_rows_per_file=20)
    config = Config(
        alias="a",
        source={"uri": uri},
        encoder={"model": "hashing:32"},
        table={"carry": ["year"]},
        embed={"unit_documents": 8, "max_dead_letters": 1},
        storage={"root": str(tmp_path / "root")},
    )
    return uri, config


def counted(table: pa.Table) -> dict[str, int]:
    """Rows of each document."""
    return {c["values"]: c["counts"] for c in pc.value_counts(table["doc_id"]).to_pylist()}


def test_a_document_of_several_rows_is_built_caught_up_and_found_as_one(place, split):
    uri, config = place
    storage = Storage.open(config.storage.root)
    first = full_rebuild(config, Silent(), executor=Inline())
    assert (first.rows, first.documents, first.dead_letters) == (39 * ROWS, 39, 1)
    report = first.verify
    assert (report.documents, report.rows, report.table_documents) == (40, 39 * ROWS, 39)
    assert set(counted(rows_of(storage, first)).values()) == {ROWS}

    source = lance.dataset(uri)
    source.delete("doc_id in ('d03', 'd21')")
    source.update({"text": "'another text'"}, where="doc_id in ('d10', 'd30')")
    source.update({"year": "year + 100"}, where="year % 10 = 5")
    lance.write_dataset(
        pa.table({"doc_id": ["d50", "d51"], "text": ["the text of 1", "new"], "year": [50, 51]}),
        uri,
        mode="append",
    )
    second = catch_up(config, first, Silent(), executor=Inline())
    assert (second.rows, second.documents) == (39 * ROWS, 39)
    table = rows_of(storage, second)
    there = lance.dataset(uri).to_table(filter="text is not null")
    assert counted(table) == dict.fromkeys(there["doc_id"].to_pylist(), ROWS)
    years = dict(zip(there["doc_id"].to_pylist(), there["year"].to_pylist(), strict=True))
    assert all(years[r["doc_id"]] == r["year"] for r in table.to_pylist())
    vectors = {name: [] for name in years}
    for row in table.to_pylist():
        vectors[row["doc_id"]].append(row["vector"])
    assert sorted(vectors["d50"]) == sorted(vectors["d01"]), "a copied text has all its rows"

    catalog = Catalog(storage, config.alias)
    promote(catalog, second.id, initial_reason="test")
    found = Index(catalog).search(["the text of 5", "new"], 12)
    names = [[hit.doc_id for hit in hits] for hits in found]
    assert [n[0] for n in names] == ["d05", "d51"]
    assert [len(set(n)) for n in names] == [12, 12]
    assert [[h.score for h in hits] for hits in found] == [
        sorted((h.score for h in hits), reverse=True) for hits in found
    ]
    everything = Index(catalog).search(["the text of 5"], 500)[0]
    assert {h.doc_id for h in everything} == set(years)
    assert len(everything) == len(years)


def test_a_source_without_documents_is_refused_however_many_rows_they_had(place, split):
    uri, config = place
    first = full_rebuild(config, Silent(), executor=Inline())
    lance.dataset(uri).delete("true")
    with pytest.raises(SourceError, match="has no documents"):
        catch_up(config, first, Silent(), executor=Inline())


def test_one_failed_row_leaves_the_whole_document_out_with_the_first_reason():
    rows = pa.table(
        {
            "doc_id": ["a", "a", "b", "b", "b", "c"],
            "text_hash": pa.array([n * 16 for n in (b"a", b"a", b"b", b"b", b"b", b"c")]),
            "error": [None, None, None, "first", "second", None],
        }
    )
    whole, dead = documents.whole_documents(rows, "error")
    assert whole["doc_id"].to_pylist() == ["a", "a", "c"]
    assert whole.column_names == ["doc_id", "text_hash"]
    assert [(d.doc_id, d.reason, d.text_hash) for d in dead] == [("b", "first", "62" * 16)]

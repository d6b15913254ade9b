"""Columns that are renamed, written apart or get another type: a release never answers by the old ones."""

from __future__ import annotations

import dataclasses
import datetime as dt
from decimal import Decimal

import lance
import pyarrow as pa
import pytest
from inline import Inline, Silent

from reembed.catalog.index_manifest import read_manifest
from reembed.catalog.releases import Catalog
from reembed.digests import digest
from reembed.errors import IntegrityError
from reembed.events import Notice
from reembed.serving.live import OpenRelease
from reembed.source.dataset import Source
from reembed.store.storage import Storage
from reembed.strategies import changes
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild
from reembed.table import seal as sealing

ROWS = 40


def write(tmp_path, carried: pa.Array) -> str:
    uri = str(tmp_path / "source.lance")
    rows = {
        "doc_id": [f"d{n:02d}" for n in range(ROWS)],
        "text": [f"the text of {n}" for n in range(ROWS)],
        "body": [f"the body of {n}" for n in range(ROWS)],
        "at": carried,
    }
    lance.write_dataset(pa.table(rows), uri, enable_stable_row_ids=True, max_rows_per_file=15)
    return uri


def build(config):
    return full_rebuild(config, Silent(), executor=Inline())


def follow(config, release):
    return catch_up(config, release, Silent(), executor=Inline())


def catalog_of(config) -> Catalog:
    return Catalog(Storage.open(config.storage.root), config.alias)


def rows_of(config, release) -> dict:
    path = catalog_of(config).storage.uri(release.table)
    table = lance.dataset(path, version=release.table_version).to_table()
    return {r["doc_id"]: r for r in table.to_pylist()}


def rename_another_column(uri):
    lance.dataset(uri).alter_columns(
        {"path": "text", "name": "before"}, {"path": "body", "name": "text"}
    )


def update_a_column_of_a_fragment(uri):
    dataset = lance.dataset(uri)
    ids = [f"d{n:02d}" for n in range(15, 22)]
    rows = pa.table({"doc_id": ids, "text": ["other"] * len(ids)})
    changed, fields = dataset.get_fragment(1).update_columns(rows, "doc_id", "doc_id")
    operation = lance.LanceOperation.Update(updated_fragments=[changed], fields_modified=fields)
    lance.LanceDataset.commit(uri, operation, read_version=dataset.version)


@pytest.mark.parametrize("change", [rename_another_column, update_a_column_of_a_fragment])
def test_texts_written_by_column_are_embedded_by_a_catch_up(tmp_path, make_config, change):
    uri = write(tmp_path, pa.array(range(ROWS)))
    config = make_config(uri, table={"carry": ["at"]})
    first = build(config)
    change(uri)
    release = follow(config, first)
    texts = {r["doc_id"]: r["text"] for r in lance.dataset(uri).to_table().to_pylist()}
    found = {i: r["text_hash"] for i, r in rows_of(config, release).items()}
    assert found == {i: digest(t.encode()) for i, t in texts.items()}


def test_an_index_is_trained_again_once_most_of_its_vectors_are_others(tmp_path, make_config):
    """Scalars outside the range that it learned would be cut off, and the scores with them."""
    uri = write(tmp_path, pa.array(range(ROWS)))
    config = make_config(uri, index={"factory": "SQ8"})
    first = build(config)
    rename_another_column(uri)
    served = OpenRelease.open(catalog_of(config).storage, follow(config, first))
    texts = {f"d{n:02d}": f"the body of {n}" for n in range(ROWS)}
    found = served.search(list(texts.values()), k=ROWS)
    own = {
        h.doc_id: h.score
        for i, hits in zip(texts, found, strict=True)
        for h in hits
        if h.doc_id == i
    }
    assert own.keys() == texts.keys()
    assert min(own.values()) > 0.98


def test_an_index_is_trained_again_once_several_catch_ups_changed_most_of_its_vectors(
    tmp_path, make_config
):
    uri = write(tmp_path, pa.array(range(ROWS)))
    config = make_config(uri, index={"factory": "SQ8", "ann_recall": 0.5})
    release, since = build(config), []
    for first in (0, 16, 32):
        names = ", ".join(f"'d{n:02d}'" for n in range(first, min(first + 16, ROWS)))
        lance.dataset(uri).update({"text": "body"}, where=f"doc_id in ({names})")
        release = follow(config, release)
        storage = catalog_of(config).storage
        manifest = read_manifest(storage, release.index, release.index_sha256)
        since.append(manifest.base.rows_since_training)
    assert since == [16, 0, 8]


def test_an_index_that_misses_its_recall_with_what_others_taught_it_is_trained_again(
    tmp_path, make_config, quiet
):
    uri = write(tmp_path, pa.array(range(ROWS)))
    config = make_config(uri, index={"factory": "SQ8", "ann_recall": 0.98})
    first = build(config)
    names = ", ".join(f"'d{n:02d}'" for n in range(16))
    lance.dataset(uri).update({"text": "body"}, where=f"doc_id in ({names})")
    release = catch_up(config, first, quiet, executor=Inline())
    manifest = read_manifest(catalog_of(config).storage, release.index, release.index_sha256)
    assert manifest.base.rows_since_training == 0
    assert manifest.ann_recall_at_10 >= 0.98
    notice = quiet.of(Notice)[-1]
    assert notice.what.startswith("SQ8 does not reach index.ann_recall 0.98: 0.9025")
    assert notice.what.endswith("it was trained on other vectors, and is trained again")


STAMPS = [dt.datetime(2024, 1, 1) + dt.timedelta(days=n) for n in range(ROWS)]
RETYPED = {
    "timestamp unit": (pa.array(STAMPS, pa.timestamp("s")), pa.timestamp("us")),
    "time zone": (pa.array(STAMPS, pa.timestamp("us")), pa.timestamp("us", "UTC")),
    "float width": (pa.array([n / 4 for n in range(ROWS)], pa.float64()), pa.float32()),
    "integer width": (pa.array(range(ROWS), pa.int32()), pa.int64()),
    "decimal digits": (
        pa.array([Decimal(n) for n in range(ROWS)], pa.decimal128(9, 2)),
        pa.decimal128(12, 4),
    ),
    "list length": (
        pa.array([[1.0, float(n)] for n in range(ROWS)], pa.list_(pa.float32(), 2)),
        pa.list_(pa.float32(), 4),
    ),
    "dictionary": (
        pa.array([f"v{n % 3}" for n in range(ROWS)]),
        pa.dictionary(pa.int32(), pa.string()),
    ),
    "struct": (
        pa.array([{"a": n} for n in range(ROWS)], pa.struct([("a", pa.int32())])),
        pa.struct([("a", pa.int64()), ("b", pa.string())]),
    ),
}


def retype(uri: str, column: str, values: pa.Array) -> None:
    """Give a column another type, in place or by writing it again; the values stay what they were."""
    rows = lance.dataset(uri).to_table()
    place = rows.column_names.index(column)
    rows = rows.set_column(place, column, values)
    lance.write_dataset(rows, uri, mode="overwrite", max_rows_per_file=15)


def as_type(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        return pa.array([[*v, 0.0, 0.0] for v in values.to_pylist()], kind)
    if pa.types.is_struct(kind):
        return pa.array([{**v, "b": "b"} for v in values.to_pylist()], kind)
    if pa.types.is_dictionary(kind):
        return values.dictionary_encode()
    return values.cast(kind)


@pytest.mark.parametrize("kind", RETYPED)
def test_a_carried_column_of_another_type_is_written_again(tmp_path, make_config, kind):
    values, other = RETYPED[kind]
    uri = write(tmp_path, values)
    config = make_config(uri, table={"carry": ["at"]})
    first = build(config)
    retype(uri, "at", as_type(values, other))
    release = follow(config, first)
    expected = {r["doc_id"]: r["at"] for r in lance.dataset(uri).to_table().to_pylist()}
    assert {i: r["at"] for i, r in rows_of(config, release).items()} == expected
    path = catalog_of(config).storage.uri(release.table)
    assert lance.dataset(path, version=release.table_version).schema.field("at").type == other
    run = catalog_of(config).storage.read(f"runs/{release.id}/plan.json")
    assert run["rows"] == 0, "documents were embedded again"


def test_ids_that_become_text_are_written_again_with_their_vectors(tmp_path, make_config):
    uri = str(tmp_path / "source.lance")
    rows = {"doc_id": list(range(ROWS)), "text": [f"the text of {n}" for n in range(ROWS)]}
    rows["text"][3] = None
    lance.write_dataset(pa.table(rows), uri, enable_stable_row_ids=True, max_rows_per_file=15)
    config = make_config(uri, embed={"max_dead_letters": 1})
    first = build(config)
    retype(uri, "doc_id", pa.array([str(n) for n in range(ROWS)]))
    lance.dataset(uri).delete("doc_id = '7'")
    release = follow(config, first)
    found = rows_of(config, release)
    assert found.keys() == {str(n) for n in range(ROWS)} - {"3", "7"}
    before = rows_of(config, first)
    assert all(found[i]["vector"] == before[int(i)]["vector"] for i in found)
    plan = catalog_of(config).storage.read(f"runs/{release.id}/plan.json")
    assert (plan["rows"], release.dead_letters) == (0, 1)


def cast_in_place(uri):
    lance.dataset(uri).alter_columns({"path": "at", "data_type": pa.int64()})


def nullable(uri):
    lance.dataset(uri).alter_columns({"path": "at", "nullable": True})


@pytest.mark.parametrize(("change", "written"), [(cast_in_place, ROWS), (nullable, 0)])
def test_a_column_altered_in_place(tmp_path, make_config, change, written):
    uri = str(tmp_path / "source.lance")
    columns = pa.schema(
        [("doc_id", pa.string()), ("text", pa.string()), pa.field("at", pa.int32(), nullable=False)]
    )
    data = [[f"d{n}" for n in range(ROWS)], [f"text {n}" for n in range(ROWS)], list(range(ROWS))]
    lance.write_dataset(pa.table(data, columns), uri, max_rows_per_file=15)
    config = make_config(uri, table={"carry": ["at"]})
    first = build(config)
    change(uri)
    release = follow(config, first)
    assert (release.id != first.id) == bool(written)
    assert sorted(r["at"] for r in rows_of(config, release).values()) == list(range(ROWS))
    path = catalog_of(config).storage.uri(release.table)
    found = lance.dataset(path, version=release.table_version).schema.field("at").type
    assert found == lance.dataset(uri).schema.field("at").type


def test_rows_under_a_new_type_are_damage_to_verify_even_where_catch_up_let_them_stay(
    tmp_path, make_config, monkeypatch
):
    """The fault as it was: the schema of the source laid over fragments that were kept."""
    uri = write(tmp_path, pa.array(STAMPS, pa.timestamp("s")))
    config = make_config(uri, table={"carry": ["at"]}, embed={"unit_documents": 15})
    first = build(config)
    retype(uri, "at", pa.array(STAMPS, pa.timestamp("us")))
    lance.dataset(uri).delete("doc_id = 'd00'")
    monkeypatch.setattr(Source, "retyped", lambda self, schema: [])
    monkeypatch.setattr(sealing, "_check_staying", lambda run, plan, columns: None)
    monkeypatch.setattr(changes, "_compare", _only_texts)
    with pytest.raises(IntegrityError, match=r"differs from its source: 39 carried"):
        follow(config, first)


_honest = changes._compare


def _only_texts(held, found, left, dead_letters, **options):
    held = dataclasses.replace(held, carried=held.carried[:1].repeat(len(held.carried)))
    found = dataclasses.replace(found, carried=held.carried[:1].repeat(len(found.carried)))
    return _honest(held, found, left, dead_letters, **options)

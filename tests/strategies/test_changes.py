"""What changed in a source is found whatever operation of Lance changed it, and nothing else is."""

from __future__ import annotations

import datetime as dt
import os
import shutil
from collections.abc import Sequence

import lance
import numpy as np
import pyarrow as pa
import pytest
from lance.file import LanceFileWriter
from lance.fragment import DataFile

from reembed import digests, encoders
from reembed.catalog.receipts import DeadLetter
from reembed.catalog.runs import Run
from reembed.config.settings import Config, EncoderConfig
from reembed.lifecycle import reading, verify
from reembed.lifecycle.scratch import Scratch
from reembed.source import delta as source_delta
from reembed.source import versions
from reembed.source.dataset import Source
from reembed.source.delta import Delta
from reembed.store.storage import Storage
from reembed.strategies.changes import find_changes
from reembed.strategies.differing import Comparing
from reembed.table import write as table
from reembed.table.read import TableVersion, from_vectors

ROWS = 60
COLUMNS = ("doc_id", "text", "body", "year", "lang")
Operation = lance.LanceOperation


def document(n: int, text: str = "") -> dict[str, object]:
    """A document whose columns all say which one it is."""
    return {
        "doc_id": f"d{n:03d}",
        "text": text or f"the text of {n}",
        "body": f"the body of {n}",
        "year": 2000 + n,
        "lang": "en" if n % 3 else "de",
    }


@pytest.fixture
def source(tmp_path):
    """A dataset of three fragments."""
    uri = str(tmp_path / "source.lance")
    rows = pa.Table.from_pylist([document(n) for n in range(ROWS)])
    lance.write_dataset(rows, uri, enable_stable_row_ids=True, max_rows_per_file=20)
    return uri


@pytest.fixture
def opened(source, tmp_path):
    """opened(**source settings) -> the newest version; carries `year`."""

    def open_(**settings):
        config = Config(
            alias="a",
            source={"uri": source, **settings},
            encoder={"model": "hashing:8"},
            table={"carry": ["year"]},
            storage={"root": str(tmp_path / "root")},
        )
        return Source.open(config)

    return open_


def vectors_of(source: Source, tmp_path) -> TableVersion:
    """A vector table as a run would have made it of this version, in two fragments."""
    space = encoders.describe(EncoderConfig(model="hashing:8"), "float32")
    storage = Storage.open(str(tmp_path / "root"))
    columns = table.schema(space, *source.schema())
    found = pa.concat_tables(source.scan())
    rows = found.num_rows
    made = {
        "doc_id": found["doc_id"],
        "vector": from_vectors(np.ones((rows, 8), np.float32), pa.float32()),
        "space": [space.id] * rows,
        "text_hash": [digests.digest(t) for t in found["reembed.text"].to_pylist()],
        "source_version": [source.version] * rows,
        "year": found["year"],
    }
    written = lance.write_dataset(
        pa.table([made[n] for n in columns.names], columns),
        storage.uri("tables/t.lance"),
        max_rows_per_file=40,
        enable_stable_row_ids=True,
    )
    return TableVersion(storage, "tables/t.lance", written.version, space.dim)


# --- what writers do to a source; each takes its URI ---


def merge(uri, *documents):
    writer = lance.dataset(uri).merge_insert("doc_id").when_matched_update_all()
    writer.when_not_matched_insert_all().execute(pa.Table.from_pylist(list(documents)))


def append(uri):
    rows = pa.Table.from_pylist([document(n) for n in (100, 101)])
    lance.write_dataset(rows, uri, mode="append")


def delete_some(uri):
    lance.dataset(uri).delete("year % 7 = 0")


def delete_a_fragment(uri):
    lance.dataset(uri).delete("year < 2020")


def update_some(uri):
    lance.dataset(uri).update({"text": "concat('again ', text)"}, where="year % 5 = 0")


def update_all(uri):
    lance.dataset(uri).update({"text": "concat('again ', text)"})


def update_carried(uri):
    lance.dataset(uri).update({"year": "year + 100"}, where="year % 5 = 0")


def rename_ids(uri):
    lance.dataset(uri).update({"doc_id": "concat('x', doc_id)"}, where="year % 5 = 0")


def upsert(uri):
    merge(uri, document(3, "other"), document(44, "other"), document(200))


def upsert_two_columns(uri):
    rows = pa.table({"doc_id": ["d001", "d041"], "text": ["other", "other"]})
    lance.dataset(uri).merge_insert("doc_id").when_matched_update_all().execute(rows)


def upsert_and_delete(uri):
    writer = lance.dataset(uri).merge_insert("doc_id").when_matched_update_all()
    writer = writer.when_not_matched_by_source_delete("year > 2050")
    writer.execute(pa.Table.from_pylist([document(1, "other")]))


def delete_and_insert_again(uri):
    lance.dataset(uri).delete("doc_id in ('d004', 'd005')")
    merge(uri, document(4), document(5, "other"))


def compact(uri):
    lance.dataset(uri).optimize.compact_files()


def delete_and_compact(uri):
    delete_some(uri)
    compact(uri)


def index(uri):
    lance.dataset(uri).create_scalar_index("year", "BTREE")
    append(uri)
    lance.dataset(uri).optimize.optimize_indices()


def settings(uri):
    lance.dataset(uri).update_config({"a": "b"})
    lance.dataset(uri).update_schema_metadata({"a": "b"})
    lance.dataset(uri).update_field_metadata({"text": {"a": "b"}})


def add_a_column(uri):
    lance.dataset(uri).add_columns({"length": "year + 1"})


def drop_a_column(uri):
    lance.dataset(uri).drop_columns(["body"])


def rename_another_column_to_text(uri):
    lance.dataset(uri).alter_columns(
        {"path": "text", "name": "before"}, {"path": "body", "name": "text"}
    )


def rename_another_column_to_the_carried(uri):
    dataset = lance.dataset(uri)
    dataset.add_columns({"other_year": "year + 100"})
    dataset.alter_columns(
        {"path": "year", "name": "before"}, {"path": "other_year", "name": "year"}
    )


def swap_twice(uri):
    dataset = lance.dataset(uri)
    rename_another_column_to_text(uri)
    dataset = lance.dataset(uri)
    dataset.alter_columns({"path": "text", "name": "body"}, {"path": "before", "name": "text"})


def drop_text_and_add_it_again(uri):
    lance.dataset(uri).drop_columns(["text"])
    lance.dataset(uri).add_columns({"text": "concat('again ', doc_id)"})


def merge_columns_of_fragments(uri):
    """As a distributed job adds a column: Merge."""
    lance.dataset(uri).drop_columns(["text"])
    dataset = lance.dataset(uri)

    def text(batch):
        return pa.record_batch(
            [pa.array([f"again {d}" for d in batch["doc_id"].to_pylist()])], ["text"]
        )

    merged = [f.merge_columns(text, columns=["doc_id"]) for f in dataset.get_fragments()]
    operation = Operation.Merge([m for m, _ in merged], merged[0][1])
    lance.LanceDataset.commit(uri, operation, read_version=dataset.version)


def update_columns(uri):
    """As a distributed job writes a column of some rows: Update, of which Lance lists no row."""
    dataset = lance.dataset(uri)
    ids = [f"d{n:03d}" for n in range(20, 35)]
    rows = pa.table({"doc_id": ids, "text": ["other"] * len(ids)})
    changed, fields = dataset.get_fragment(1).update_columns(
        rows, left_on="doc_id", right_on="doc_id"
    )
    operation = Operation.Update(updated_fragments=[changed], fields_modified=list(fields))
    lance.LanceDataset.commit(uri, operation, read_version=dataset.version)


def update_columns_and_compact(uri):
    """After which no fragment is left that shows it."""
    update_columns(uri)
    compact(uri)


def update_columns_first(uri):
    """Only the first of several later versions changes what is there."""
    update_columns(uri)
    append(uri)
    delete_some(uri)


def replace_a_data_file(uri):
    lance.dataset(uri).drop_columns(["text"])
    lance.dataset(uri).add_columns({"text": "concat('the text of ', cast(year - 2000 as string))"})
    dataset = lance.dataset(uri)
    path = os.path.join(uri, "data", "replaced.lance")
    with LanceFileWriter(path) as writer:
        writer.write_batch(pa.table({"text": [f"other {n}" for n in range(20)]}))
    field = dataset.lance_schema.field("text").id()
    file = DataFile("replaced.lance", [field], [0], 2, 0, os.path.getsize(path))
    operation = Operation.DataReplacement([Operation.DataReplacementGroup(2, file)])
    lance.LanceDataset.commit(uri, operation, read_version=dataset.version)


def restore(uri):
    """Rows come back in a fragment whose files stayed, others leave."""
    lance.dataset(uri, version=1).restore()


def overwrite_and_append(uri):
    rows = pa.Table.from_pylist([document(n) for n in range(10, 30)])
    lance.write_dataset(rows, uri, mode="overwrite")
    append(uri)


NOTHING = [compact, settings, add_a_column, drop_a_column, swap_twice]
SOMETHING = [
    append,
    delete_some,
    delete_a_fragment,
    update_some,
    update_all,
    update_carried,
    rename_ids,
    upsert,
    upsert_two_columns,
    upsert_and_delete,
    delete_and_insert_again,
    delete_and_compact,
    index,
    rename_another_column_to_text,
    rename_another_column_to_the_carried,
    drop_text_and_add_it_again,
    merge_columns_of_fragments,
    update_columns,
    update_columns_and_compact,
    update_columns_first,
    replace_a_data_file,
    overwrite_and_append,
]


def truth(before: Source, after: Source) -> dict[str, set[str]]:
    """What a look at every row says."""
    old, new = (
        {r["doc_id"]: r for part in s.scan() for r in part.to_pylist()} for s in (before, after)
    )
    text = {i for i, r in new.items() if old.get(i, {}).get("reembed.text") != r["reembed.text"]}
    carried = {i for i, r in new.items() if i not in text and old[i]["year"] != r["year"]}
    held = {r["reembed.text"] for r in old.values()} - {b"", None}
    copied = {i for i in text if new[i]["reembed.text"] in held}
    gone = old.keys() - new.keys()
    return {"embed": text - copied, "refresh": carried | copied, "removed": gone}


def comparing(vectors: TableVersion) -> Comparing:
    """Every row is compared in this process."""
    return Comparing(Scratch.of(Run(vectors.storage, "a-run")))


def found(
    before: Source,
    after: Source,
    vectors: TableVersion,
    dead: Sequence[DeadLetter] = (),
    *,
    retry: bool = False,
) -> tuple[dict[str, set[str]], str]:
    changes = find_changes(before, after, vectors, dead, retry=retry, comparing=comparing(vectors))
    names = {
        kind: set(after.take(rows.tolist())["doc_id"].to_pylist()) if len(rows) else set()
        for kind, rows in (("embed", changes.embed), ("refresh", changes.refresh))
    }
    gone = [r for rows in changes.dropped.values() for r in rows.tolist()]
    left = set(vectors.take(np.array(gone, np.int64), ["doc_id"])["doc_id"].to_pylist())
    removed = left - names["embed"] - names["refresh"]
    assert changes.removed == len(removed)
    return {**names, "removed": removed}, changes.how


@pytest.mark.parametrize("filtered", [None, "lang = 'en'"])
@pytest.mark.parametrize("change", SOMETHING)
def test_files_alone_show_every_change(source, opened, tmp_path, monkeypatch, change, filtered):
    before = opened(filter=filtered)
    vectors = vectors_of(before, tmp_path)
    change(source)
    after = before.newest()
    expected = truth(before, after)
    assert any(expected.values())
    rows = Source.rows

    def by_files(self, delta=None):
        assert delta is not None, "every row was read"
        return rows(self, delta)

    monkeypatch.setattr(Source, "rows", by_files)
    assert found(before, after, vectors) == (expected, "delta: rows of files that are new")


def test_rows_that_a_restore_brought_back_are_found(source, opened, tmp_path):
    delete_some(source)
    update_some(source)
    before = opened()
    vectors = vectors_of(before, tmp_path)
    restore(source)
    after = before.newest()
    expected = truth(before, after)
    assert expected["embed"]
    assert found(before, after, vectors)[0] == expected


@pytest.mark.parametrize("change", NOTHING)
def test_that_nothing_changed_is_believed_after_every_row_was_compared(
    source, opened, tmp_path, change
):
    before = opened()
    vectors = vectors_of(before, tmp_path)
    change(source)
    nothing = {"embed": set(), "refresh": set(), "removed": set()}
    assert found(before, before.newest(), vectors) == (
        nothing,
        "compare: new files hold no other document",
    )


@pytest.mark.parametrize("change", [update_some, delete_some, append, update_carried])
def test_what_the_files_would_not_show_is_found_all_the_same(
    source, opened, tmp_path, monkeypatch, change
):
    before = opened()
    vectors = vectors_of(before, tmp_path)
    change(source)
    after = before.newest()
    monkeypatch.setattr(versions, "delta", lambda before, after: Delta((), (), {}))
    changes, how = found(before, after, vectors)
    assert changes == truth(before, after)
    assert how.startswith("compare: ")


def test_a_version_that_was_cleaned_away_means_that_every_row_is_compared(source, opened, tmp_path):
    before = opened()
    vectors = vectors_of(before, tmp_path)
    old = {r["doc_id"]: r for part in before.scan() for r in part.to_pylist()}
    update_some(source)
    compact(source)
    lance.dataset(source).cleanup_old_versions(older_than=dt.timedelta(microseconds=1))
    after = before.newest()
    changes, how = found(before, after, vectors)
    texts = {r["doc_id"]: r["reembed.text"] for part in after.scan() for r in part.to_pylist()}
    assert changes["embed"] == {i for i, t in texts.items() if old[i]["reembed.text"] != t}
    assert how.startswith("compare: version 1 of the source is gone")


def test_an_id_twice_in_the_dataset_stays_when_the_row_outside_the_filter_goes(
    source, opened, tmp_path
):
    merge(source, {**document(300), "doc_id": "d001-old", "lang": "de"})
    lance.dataset(source).update({"doc_id": "'d001'"}, where="doc_id = 'd001-old'")
    before = opened(filter="lang = 'en'")
    vectors = vectors_of(before, tmp_path)
    lance.dataset(source).delete("doc_id = 'd001' AND lang = 'de'")
    append(source)
    changes, _ = found(before, before.newest(), vectors)
    assert changes["removed"] == set()
    assert changes["embed"] == {"d100", "d101"}


@pytest.mark.parametrize("change", [append, update_some, delete_some, upsert])
def test_a_source_without_stable_row_ids_has_a_delta_too(tmp_path, opened, source, change):
    shutil.rmtree(source)
    rows = pa.Table.from_pylist([document(n) for n in range(ROWS)])
    lance.write_dataset(rows, source, max_rows_per_file=20)
    before = opened()
    vectors = vectors_of(before, tmp_path)
    change(source)
    after = before.newest()
    changes, how = found(before, after, vectors)
    assert changes == truth(before, after)
    assert how.startswith("delta")


@pytest.mark.parametrize("change", SOMETHING)
def test_every_row_is_compared_in_pieces_and_by_partition(
    source, opened, tmp_path, monkeypatch, change
):
    monkeypatch.setattr(reading, "PIECE_ROWS", 7)
    monkeypatch.setattr(verify, "PARTITION_ROWS", 9)
    before = opened()
    vectors = vectors_of(before, tmp_path)
    gone, there = (DeadLetter(name, "failed", "00" * 16) for name in ("x", "d003"))
    change(source)
    expected = truth(before, before.newest())
    changes = found(before, before.newest(), vectors, [gone, there], retry=True)
    assert changes == (expected, "compare: dead letters are tried again")


@pytest.mark.parametrize("change", [add_a_column, drop_a_column])
def test_a_column_that_is_not_read_changes_no_file_that_is(source, change):
    before = lance.dataset(source)
    read = ["doc_id", "text"]
    change(source)
    found = source_delta.delta(before, lance.dataset(source), read)
    assert (found.written, found.left, found.thinned) == ((), (), {})
    assert source_delta.delta(before, lance.dataset(source), None).written


def test_where_no_dead_letter_is_to_be_tried_again_the_files_are_asked(source, opened, tmp_path):
    before = opened()
    vectors = vectors_of(before, tmp_path)
    append(source)
    changes = find_changes(
        before, before.newest(), vectors, [], retry=True, comparing=comparing(vectors)
    )
    assert changes.how.startswith("delta")

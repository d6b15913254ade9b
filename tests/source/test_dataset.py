"""A source at a pinned version: its units, its tag, and how a dataset that is not there is named."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace

import lance
import numpy as np
import pyarrow as pa
import pytest

from reembed.catalog.plan import EmbedRange
from reembed.catalog.releases import SourceRef
from reembed.config.settings import Config
from reembed.errors import IntegrityError, SourceError
from reembed.source import opening
from reembed.source.dataset import Source
from reembed.source.delta import Delta, _places


@pytest.fixture
def opened(corpus, tmp_path):
    """(source, uri) of 300 documents in three fragments."""
    uri = corpus(300)
    config = Config(
        alias="a",
        source={"uri": uri},
        encoder={"model": "hashing:8"},
        storage={"root": str(tmp_path / "root")},
    )
    return Source.open(config), uri


def test_a_pin_holds_the_version_however_often_it_is_set_and_is_taken_away_alone(opened):
    source, uri = opened
    assert [source.pin("one"), source.pin("one"), source.pin("other")] == [True, True, True]
    assert {t: v["version"] for t, v in lance.dataset(uri).tags.list().items()} == {
        "one": 1,
        "other": 1,
    }
    source.unpin("one")
    source.unpin("one")
    assert [*lance.dataset(uri).tags.list()] == ["other"]


def test_units_of_one_reader_are_whole_and_hold_every_document_once(opened):
    source, _ = opened
    units = source.units(10)
    assert {u.rows for u in units} == {10}
    read = [d for u in units for d in source.read(u)["doc_id"].to_pylist()]
    assert sorted(read) == [f"d{n:05d}" for n in range(300)]
    assert len({u.id for u in units}) == 30


def test_a_dataset_that_is_not_there_is_named_with_its_version_where_one_was_asked_for(opened):
    _, uri = opened
    with pytest.raises(SourceError) as refused:
        Source(SourceRef(uri, 9, "", "doc_id", "text", None, ()), ()).dataset()
    assert refused.value.what == f"cannot open the dataset {uri} version 9"
    gone = uri.replace(".lance", "-gone.lance")
    with pytest.raises(SourceError) as refused:
        Source(SourceRef(gone, 1, "", "doc_id", "text", None, ()), ()).newest()
    assert refused.value.what == f"cannot open the dataset {gone}"


def test_a_column_that_lies_elsewhere_in_its_file_is_another(opened):
    def places(columns):
        return _places(
            SimpleNamespace(base_id=None, path="f", fields=[3, 4, 5], column_indices=columns),
            {3, 5},
        )

    assert places([0, 1, 2]) == places([0, 7, 2])
    assert places([0, 1, 2]) != places([2, 1, 0])
    assert places([0, 1, 2]) != places([0, 1, 3])


def test_ids_that_are_no_whole_numbers_are_refused(tmp_path, make_config):
    uri = str(tmp_path / "s.lance")
    lance.write_dataset(pa.table({"doc_id": [1.5], "number": [1], "text": ["x"]}), uri)
    with pytest.raises(SourceError, match="cannot be ids") as refused:
        Source.open(make_config(uri))
    assert refused.value.fix == "reembed run --set source.id_column=number"


def test_a_text_of_several_columns_has_each_of_them_and_a_null_is_empty(tmp_path, make_config):
    uri = str(tmp_path / "s.lance")
    rows = {"doc_id": ["a", "b"], "title": ["one", None], "body": [None, "two"]}
    lance.write_dataset(pa.table(rows), uri)
    config = make_config(uri, source={"text": "T: {title} / {body}."})
    (part,) = Source.open(config).scan()
    texts = [c for c in part.column_names if c != "doc_id"]
    assert part[texts[0]].to_pylist() == [b"T: one / .", b"T:  / two."]


def test_a_record_of_a_source_holds_no_store_setting(opened):
    source, _ = opened
    secret = Source(source.ref, (("aws_secret_access_key", "s"),))
    assert "aws" not in str(secret.ref)
    assert secret.ref == source.ref


def test_where_no_fragment_was_written_no_row_is_read(opened):
    source, _ = opened
    assert not [*source.rows(Delta((), (), {}))]
    assert sum(len(part) for part in source.rows()) == 300


def test_many_readers_of_few_units_get_them_whole(opened):
    source, _ = opened
    assert {u.rows for u in source.units(10, actors=20)} == {10}
    assert {u.rows for u in source.units(10, actors=2)} == {10, 2}


@pytest.mark.parametrize("said", ["Access Denied", "no privileges", "no CREDENTIALS were found"])
def test_a_dataset_that_may_not_be_read_is_answered_with_where_the_keys_are(monkeypatch, said):
    def refuse(*args):
        raise OSError(said)

    monkeypatch.setattr(opening, "open_dataset", refuse)
    with pytest.raises(SourceError) as refused:
        Source(SourceRef("s3://bucket/s.lance", 1, "", "doc_id", "text", None, ()), ()).dataset()
    assert refused.value.fix.startswith("reembed config ")


@pytest.mark.parametrize(
    ("named", "fix"),
    [
        ("docs.csv", "import {here}/docs.csv --to {here}/docs.lance"),
        ("docs.JSONL", "import {here}/docs.JSONL --to {here}/docs.lance"),
        ("docs.lance", "import documents.jsonl --to {here}/docs.lance"),
        ("docs", "import documents.jsonl --to {here}/docs"),
    ],
)
def test_a_dataset_that_is_not_there_is_answered_with_the_import_that_makes_it(
    tmp_path, named, fix
):
    with pytest.raises(SourceError) as refused:
        Source(SourceRef(str(tmp_path / named), 1, "", "doc_id", "text", None, ()), ()).dataset()
    assert refused.value.fix == "reembed " + fix.format(here=tmp_path)


def test_a_fragment_that_is_gone_is_named(opened):
    source, uri = opened
    with pytest.raises(SourceError) as refused:
        source.read(EmbedRange("000099-000000000", (99,), 0, 10, 10))
    assert refused.value.what == f"{uri} version 1 has lost fragment 99"


def test_a_file_among_the_tags_that_is_not_a_tag_is_named(opened):
    source, uri = opened
    source.pin("one")
    stray = Path(uri) / "_refs/tags/stray.json"
    stray.write_text("junk")
    for act in (source.pin, source.unpin):
        with pytest.raises(IntegrityError, match="its tags cannot be read") as said:
            act("two")
        assert shlex.split(said.value.fix, comments=True)[-1].endswith("_refs/tags")
    stray.unlink()
    source.unpin("one")


def carrying(tmp_path, make_config, **columns):
    uri = str(tmp_path / "s.lance")
    lance.write_dataset(pa.table({"doc_id": ["a", "b"], "text": ["t", "u"], **columns}), uri)
    return make_config(uri, table={"carry": list(columns)})


@pytest.mark.parametrize("shape", [(4,), (2, 2)])
def test_a_tensor_that_no_table_can_have_is_refused_as_a_carried_column(
    tmp_path, make_config, shape
):
    values = np.zeros((2, *shape), np.float32)
    config = carrying(tmp_path, make_config, x=pa.FixedShapeTensorArray.from_numpy_ndarray(values))
    with pytest.raises(SourceError, match="column 'x' cannot be carried"):
        Source.open(config)


def test_ids_beyond_63_bits_are_refused_in_a_dictionary_too(tmp_path, make_config):
    uri = str(tmp_path / "s.lance")
    ids = pa.array([1, 2**63 + 5], pa.uint64()).dictionary_encode()
    lance.write_dataset(pa.table({"doc_id": ids, "text": ["t", "u"]}), uri)
    with pytest.raises(SourceError, match="holds integers above"):
        Source.open(make_config(uri)).check_documents()

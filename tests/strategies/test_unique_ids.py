"""Ids of many documents are checked in pieces and by partition, with the same result as in one process."""

from __future__ import annotations

import lance
import pyarrow as pa
import pytest

from reembed.catalog.runs import Run
from reembed.errors import SourceError
from reembed.lifecycle import reading, verify
from reembed.lifecycle.scratch import Scratch
from reembed.source.dataset import Source
from reembed.store.storage import Storage
from reembed.strategies import unique_ids
from reembed.strategies.differing import Comparing
from reembed.strategies.unique_ids import check_ids

NAMES = [f"d{n}" for n in range(40)]
IDS = {
    "text": NAMES,
    "integers": list(range(40)),
    "twice, far apart": [*NAMES[:39], "d0"],
    "an integer twice": [*range(39), 0],
    "null": [*NAMES[:39], None],
    "two null": [*NAMES[:38], None, None],
    "none": [],
    "beyond 63 bits": pa.array([*range(39), 2**63 + 5], pa.uint64()),
    "dictionary": pa.array(NAMES).dictionary_encode(),
}


def said(check) -> str:
    try:
        return f"{check()} documents"
    except SourceError as error:
        return f"{error}{error.why}{error.fix}"


@pytest.fixture
def comparing(tmp_path, monkeypatch):
    """Few rows count as many, and pieces and partitions are small."""
    monkeypatch.setattr(unique_ids, "HELD_IDS", 3)
    monkeypatch.setattr(reading, "PIECE_ROWS", 7)
    monkeypatch.setattr(verify, "PARTITION_ROWS", 6)
    (tmp_path / "root").mkdir()
    return Comparing(Scratch.of(Run(Storage.open(str(tmp_path / "root")), "a-run")))


@pytest.mark.parametrize("condition", [None, "text != 'x5'", "text = 'of another'"])
@pytest.mark.parametrize("case", IDS)
def test_the_result_is_that_of_one_process(make_config, tmp_path, comparing, case, condition):
    uri, ids = str(tmp_path / "s.lance"), pa.array(IDS[case])
    ids = ids.cast(pa.string()) if case == "none" else ids
    rows = pa.table({"doc_id": ids, "text": pa.array([f"x{n}" for n in range(len(ids))], "string")})
    lance.write_dataset(rows, uri, max_rows_per_file=6)
    source = Source.open(make_config(uri, source={"uri": uri, "filter": condition}))
    assert said(lambda: check_ids(source, comparing).documents) == said(source.check_documents)


@pytest.mark.parametrize(("condition", "expected"), [(None, 4), ("doc_id != 'd10'", 3)])
def test_null_texts_of_many_documents_are_counted_in_the_tasks_that_read_ids(
    make_config, tmp_path, comparing, monkeypatch, condition, expected
):
    uri = str(tmp_path / "s.lance")
    texts = [None if n % 10 == 0 else "x" for n in range(40)]
    lance.write_dataset(pa.table({"doc_id": NAMES, "text": texts}), uri, max_rows_per_file=6)
    source = Source.open(make_config(uri, source={"uri": uri, "filter": condition}))
    assert source.null_texts() == expected
    honest, pieces = Source.null_texts, []

    def counted(source, fragments=None):
        pieces.append(source.dataset().count_rows() if fragments is None else len(fragments))
        return honest(source, fragments)

    monkeypatch.setattr(Source, "null_texts", counted)
    checked = check_ids(source, comparing, texts=True)
    assert (checked.documents, checked.null_texts) == (40 - (condition is not None), expected)
    assert pieces == [1] * 7, "no process reads all"


def test_of_many_ids_that_repeat_a_few_are_named(make_config, tmp_path, comparing):
    uri = str(tmp_path / "s.lance")
    lance.write_dataset(pa.table({"doc_id": NAMES * 3, "text": ["x"] * 120}), uri)
    source = Source.open(make_config(uri))
    with pytest.raises(SourceError, match=r"'d\d+' \(3 rows\)") as refused:
        check_ids(source, comparing)
    assert refused.value.what.count("rows)") == 5

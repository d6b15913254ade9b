from __future__ import annotations

import gzip
import json

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reembed import importer
from reembed.errors import SourceError, UsageError


def imported(tmp_path, name, body, **options):
    path = tmp_path / name
    path.write_bytes(gzip.compress(body) if name.endswith(".gz") else body)
    result = importer.import_documents([str(path)], str(tmp_path / "out.lance"), **options)
    dataset = lance.dataset(str(tmp_path / "out.lance"))
    assert dataset.has_stable_row_ids
    assert result["rows"] == dataset.count_rows()
    return result, dataset.to_table().to_pylist()


def lines(*rows):
    return "".join(json.dumps(r) + "\n" for r in rows).encode()


def test_jsonl_gz_with_an_empty_struct_column(tmp_path):
    result, rows = imported(
        tmp_path, "a.jsonl.gz", lines({"_id": "1", "text": "x", "metadata": {}})
    )
    assert rows == [{"_id": "1", "text": "x"}]
    assert result["skipped"] == ["metadata"]


def test_a_field_that_first_appears_late_and_a_line_longer_than_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr(importer, "_BLOCK_BYTES", 1_000)
    body = [{"id": str(i), "text": "t" * 50, "lang": None} for i in range(100)]
    body += [
        {"id": "long", "text": "l" * 5_000, "lang": "en"},
        {"id": "late", "text": "x", "title": "T"},
    ]
    result, rows = imported(tmp_path, "a.jsonl", lines(*body))
    assert (len(rows), result["skipped"]) == (102, [])
    assert rows[100] == {"id": "long", "text": "l" * 5_000, "lang": "en", "title": None}
    assert rows[101] == {"id": "late", "text": "x", "lang": None, "title": "T"}


def test_a_type_that_changes_is_an_error_and_not_a_loss(tmp_path):
    with pytest.raises(SourceError, match="cannot import"):
        imported(tmp_path, "a.jsonl", lines({"id": 1, "text": "x"}, {"id": "b", "text": "x"}))


def test_csv_ids_stay_text_and_values_may_hold_newlines(tmp_path):
    _, rows = imported(tmp_path, "a.csv", b'doc_id,text\n007,"two\nlines"\n8,b\n')
    assert rows == [{"doc_id": "007", "text": "two\nlines"}, {"doc_id": "8", "text": "b"}]


def test_parquet_and_chosen_columns(tmp_path):
    pq.write_table(
        pa.table({"id": [1, 2], "text": ["a", "b"], "x": [0, 0]}), tmp_path / "p.parquet"
    )
    result, rows = imported(
        tmp_path, "a.parquet", (tmp_path / "p.parquet").read_bytes(), columns=["id", "text"]
    )
    assert rows == [{"id": 1, "text": "a"}, {"id": 2, "text": "b"}]
    assert result["skipped"] == ["x"]


def test_a_folder_is_not_a_file(tmp_path):
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(UsageError, match="no such file"):
        importer.import_documents([str(tmp_path / "d.jsonl")], str(tmp_path / "o.lance"))

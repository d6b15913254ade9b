from __future__ import annotations

import datetime as dt
import gzip
import io
import json
import stat
from decimal import Decimal
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from reembed.errors import IntegrityError, SourceError, UsageError
from reembed.source import import_columns, import_csv, import_parquet, importer
from reembed.source.import_csv import Csv
from reembed.store.storage import Storage


def imported(tmp_path, name, body, **options):
    path = tmp_path / name
    path.write_bytes(gzip.compress(body) if name.endswith(".gz") else body)
    result = importer.import_documents([str(path)], str(tmp_path / "out.lance"), **options)
    dataset = lance.dataset(str(tmp_path / "out.lance"))
    assert dataset.has_stable_row_ids
    assert result.rows == dataset.count_rows()
    return result, dataset.to_table().to_pylist()


def lines(*rows):
    return "".join(json.dumps(r) + "\n" for r in rows).encode()


def test_jsonl_gz_with_an_empty_struct_column(tmp_path):
    result, rows = imported(
        tmp_path, "a.jsonl.gz", lines({"_id": "1", "text": "x", "metadata": {}})
    )
    assert rows == [{"_id": "1", "text": "x"}]
    assert result.skipped == ("metadata",)


def test_a_field_that_first_appears_late_and_a_line_longer_than_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr(import_columns, "BLOCK_BYTES", 1_000)
    body = [{"id": str(i), "text": "t" * 50, "lang": None} for i in range(100)]
    body += [
        {"id": "long", "text": "l" * 5_000, "lang": "en"},
        {"id": "late", "text": "x", "title": "T"},
    ]
    result, rows = imported(tmp_path, "a.jsonl", lines(*body))
    assert (len(rows), result.skipped) == (102, ())
    assert rows[100] == {"id": "long", "text": "l" * 5_000, "lang": "en", "title": None}
    assert rows[101] == {"id": "late", "text": "x", "lang": None, "title": "T"}


def test_a_type_that_changes_becomes_text_and_says_so(tmp_path):
    result, rows = imported(tmp_path, "a.jsonl", lines({"id": 1, "text": "x"}, {"id": "01"}))
    assert [r["id"] for r in rows] == ["1", "01"]
    assert result.types["id"] == "string"
    assert "several kinds" in result.notes["id"]


@pytest.mark.parametrize("ids", [[1, 2.5], [2.5, 1], [1, 2.0], [2**60, 0.5]])
@pytest.mark.parametrize("name", ["id", "_id", "doc_id"])
def test_integer_ids_beside_decimals_stay_as_they_are_written(tmp_path, monkeypatch, ids, name):
    monkeypatch.setattr(import_columns, "BLOCK_BYTES", 10)
    result, rows = imported(tmp_path, "a.jsonl", lines(*({name: i, "v": i % 7} for i in ids)))
    assert [r[name] for r in rows] == [json.dumps(i) for i in ids]
    assert "decimals" in result.notes[name]


@pytest.mark.parametrize("block", [10, 1_000])
def test_integers_that_become_decimals_are_named(tmp_path, monkeypatch, block):
    monkeypatch.setattr(import_columns, "BLOCK_BYTES", block)
    body = lines(
        {"id": "a", "v": 1, "w": 1.5}, {"id": "b", "v": 2.5, "w": 2.5}, {"id": "c", "v": 3}
    )
    result, rows = imported(tmp_path, "a.jsonl", body)
    assert [r["v"] for r in rows] == [1.0, 2.5, 3.0]
    assert result.notes == {"v": "mixed integers and decimals, all stored as decimals"}


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
    assert result.skipped == ("x",)


def test_a_folder_is_not_a_file(tmp_path):
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(UsageError, match="no such file"):
        importer.import_documents([str(tmp_path / "d.jsonl")], str(tmp_path / "o.lance"))


NAN = float("nan")


def parquet(**columns):
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def broken_text(*values):
    """A text column with the bytes as they are, valid UTF-8 or not."""
    return pa.array(values, pa.binary()).view(pa.string())


KEEPS = {
    # CSV: identity
    "csv leading zeros in any column": ({"a.csv": b"pid,t\n007,x\n8,y\n"}, {"pid": ["007", "8"]}),
    "csv signs, exponents, spaces": (
        {"a.csv": b"a,b,c,d\n+1,1e5, 1,1.50\n2,2,2,2\n"},
        {"a": ["+1", "2"], "b": ["1e5", "2"], "c": [" 1", "2"], "d": ["1.50", "2"]},
    ),
    "csv numbers that come back digit for digit": (
        {"a.csv": b"i,f,z\n-1,1.5,-0\n2,2,1\n"},
        {"i": [-1, 2], "f": [1.5, 2.0], "z": [-0.0, 1.0]},
    ),
    "csv integers beyond 64 bits and decimals beyond a double": (
        {"a.csv": b"a,b\n9223372036854775808,0.1234567890123456789\n1,1\n"},
        {"a": ["9223372036854775808", "1"], "b": ["0.1234567890123456789", "1"]},
    ),
    "csv truth, dates and words for null are text": (
        {"a.csv": b"a,b,c\ntrue,2024-01-01,NA\nTrue,x,NULL\n"},
        {"a": ["true", "True"], "b": ["2024-01-01", "x"], "c": ["NA", "NULL"]},
    ),
    "csv empty cells: text stays empty, a number is null": (
        {"a.csv": b'a,b\n"",1\nx,\n'},
        {"a": ["", "x"], "b": [1, None]},
    ),
    "csv a number only if it is one in every file": (
        {"a.csv": b"pid,t\n1,x\n", "b.csv": b"pid,t\n02,y\n"},
        {"pid": ["1", "02"]},
    ),
    "csv columns of later files, in another order": (
        {"a.csv": b"id,t\n1,x\n", "b.csv": b"lang,t,id\nen,y,2\n"},
        {"id": ["1", "2"], "t": ["x", "y"], "lang": [None, "en"]},
    ),
    "csv quoted ids, line ends, quotes, zero bytes": (
        {"a.csv": b'"id",t\r\n"1","a\r\n""b"""\r\n"2 ",x\x00y\r\n'},
        {"id": ["1", "2 "], "t": ['a\r\n"b"', "x\x00y"]},
    ),
    "csv byte order mark": ({"a.csv": b"\xef\xbb\xbfid,t\n1,x\n"}, {"id": ["1"]}),
    "csv gz of several members": (
        {"a.csv.gz": gzip.compress(b"id,t\n1,x\n") + gzip.compress(b"2,y\n")},
        {"id": ["1", "2"]},
    ),
    # JSON: identity
    "json an int shard before a text shard": (
        {"a.jsonl": b'{"id": 1}\n', "b.jsonl": b'{"id": "01"}\n'},
        {"id": ["1", "01"]},
    ),
    "json integers from 2^63 on": (
        {"a.jsonl": b'{"id": 9223372036854775808}\n{"id": 9223372036854775809}\n{"id": 3}\n'},
        {"id": ["9223372036854775808", "9223372036854775809", "3"]},
    ),
    "json integers beyond 2^53 beside decimals": (
        {"a.jsonl": b'{"a": 9007199254740993}\n', "b.jsonl": b'{"a": 0.5}\n'},
        {"a": ["9007199254740993", "0.5"]},
    ),
    "json large ids beside a price in one object": (
        {"a.jsonl": b'{"a": {"id": 9007199254740993, "p": 1}}\n{"a": {"p": 0.5}}\n'},
        {"a": [{"id": 9007199254740993, "p": 1.0}, {"id": None, "p": 0.5}]},
    ),
    "json integers and decimals": ({"a.jsonl": b'{"a": 1}\n{"a": 0.5}\n'}, {"a": [1.0, 0.5]}),
    "json more digits than a double has": (
        {"a.jsonl": b'{"a": 0.1234567890123456789}\n{"a": 0.10000000000000001}\n'},
        {"a": ["0.1234567890123456789", "0.1"]},
    ),
    "json texts like dates and uuids": (
        {"a.jsonl": b'{"a": "2024-01-01", "u": "6BA7B810-9DAD-11D1-80B4-00C04FD430C8"}\n'},
        {"a": ["2024-01-01"], "u": ["6BA7B810-9DAD-11D1-80B4-00C04FD430C8"]},
    ),
    "json true beside a number": (
        {"a.jsonl": b'{"a": 1.5, "b": [1.5]}\n{"a": true, "b": [true]}\n'},
        {"a": ["1.5", "true"], "b": ["[1.5]", "[true]"]},
    ),
    "json NaN, Infinity, -0": (
        {"a.jsonl": b'{"a": NaN, "b": -0}\n{"a": -Infinity, "b": 1}\n'},
        {"a": [NAN, float("-inf")], "b": [-0.0, 1.0]},
    ),
    "json objects of several shapes": (
        {"a.jsonl": b'{"a": {"x": 1}}\n{"a": {"x": "y"}}\n{"a": [1]}\n{"a": "s"}\n{"a": null}\n'},
        {"a": ['{"x": 1}', '{"x": "y"}', "[1]", "s", None]},
    ),
    "json objects with empty parts": (
        {"a.jsonl": b'{"a": {"x": {}, "y": []}}\n{"a": null}\n'},
        {"a": ['{"x": {}, "y": []}', None]},
    ),
    "json zero bytes, emoji by pairs, half empty lists": (
        {"a.jsonl": b'{"a": "x\\u0000\\ud83d\\ude00", "b": []}\n{"a": "", "b": [1]}\n'},
        {"a": ["x\x00\U0001f600", ""], "b": [[], [1]]},
    ),
    "json byte order mark, blank lines, no last line end": (
        {"a.jsonl": b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": 2}'},
        {"a": [1, 2]},
    ),
    # Parquet: identity
    "parquet columns of later files": (
        {"a.parquet": parquet(id=["a"]), "b.parquet": parquet(id=["b"], lang=["en"])},
        {"id": ["a", "b"], "lang": [None, "en"]},
    ),
    "parquet a null column before a text": (
        {"a.parquet": parquet(t=pa.nulls(1)), "b.parquet": parquet(t=["x"])},
        {"t": [None, "x"]},
    ),
    "parquet ids of two widths": (
        {
            "a.parquet": parquet(id=pa.array([1], pa.int8())),
            "b.parquet": parquet(id=pa.array([2**62])),
        },
        {"id": [1, 2**62]},
    ),
    "parquet ids of no common width": (
        {
            "a.parquet": parquet(id=pa.array([-1])),
            "b.parquet": parquet(id=pa.array([2**64 - 1], pa.uint64())),
        },
        {"id": ["-1", "18446744073709551615"]},
    ),
    "parquet ids that are integers in one file and decimals in another": (
        {"a.parquet": parquet(id=[1], n=[1]), "b.parquet": parquet(id=[4.5], n=[4.5])},
        {"id": ["1", "4.5"], "n": [1.0, 4.5]},
    ),
    "parquet numbers and texts": (
        {"a.parquet": parquet(id=[1]), "b.parquet": parquet(id=["01"])},
        {"id": ["1", "01"]},
    ),
    "parquet integers that no double holds": (
        {"a.parquet": parquet(a=[2**53 + 1]), "b.parquet": parquet(a=[0.5])},
        {"a": ["9007199254740993", "0.5"]},
    ),
    "parquet decimals, dictionaries, NaN": (
        {
            "a.parquet": parquet(
                d=[Decimal("1.50")], s=pa.array(["x"]).dictionary_encode(), f=[NAN]
            ),
            "b.parquet": parquet(d=[Decimal("22.125")], s=["y"], f=[1.0]),
        },
        {"d": [Decimal("1.500"), Decimal("22.125")], "s": ["x", "y"], "f": [NAN, 1.0]},
    ),
    "parquet times of two units": (
        {
            "a.parquet": parquet(t=pa.array([1], pa.timestamp("ms"))),
            "b.parquet": parquet(t=pa.array([1], pa.timestamp("us"))),
        },
        {"t": [dt.datetime(1970, 1, 1, 0, 0, 0, 1000), dt.datetime(1970, 1, 1, 0, 0, 0, 1)]},
    ),
    "hive folders": (
        {
            "year=2024/lang=007/a.parquet": parquet(id=["a"]),
            "year=2023/lang=a%20b/b.parquet": parquet(id=["b"]),
            "year=2022/lang=__HIVE_DEFAULT_PARTITION__/c.parquet": parquet(id=["c"]),
        },
        {"id": ["a", "b", "c"], "year": [2024, 2023, 2022], "lang": ["007", "a b", None]},
    ),
    "hive folders of csv": ({"id=01/a.csv": b"t,u\nx,y\n"}, {"t": ["x"], "id": ["01"]}),
}


def write_files(tmp_path, files):
    for name, body in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(body)
    return list(files)


@pytest.mark.parametrize("case", KEEPS)
def test_import_keeps_every_cell(tmp_path, monkeypatch, case):
    files, expected = KEEPS[case]
    monkeypatch.chdir(tmp_path)
    result = importer.import_documents(write_files(tmp_path, files), "out.lance")
    rows = lance.dataset("out.lance").to_table().to_pydict()
    assert {name: repr(rows[name]) for name in expected} == {
        n: repr(v) for n, v in expected.items()
    }
    assert set(result.types) == set(rows)


REFUSES = {
    "csv bytes that are not text": (
        {"a.csv": b'i,t\n1,"x\ny"\n2,\xff\n'},
        "a.csv, line 4: column 't'",
    ),
    "json bytes that are not text": ({"a.jsonl": b'{"a": 1}\n{"a": "\xff"}\n'}, "a.jsonl, line 2"),
    "json half a surrogate pair": ({"a.jsonl": b'{"a": 1}\n{"a": "\\ud800"}\n'}, "a.jsonl, line 2"),
    "parquet bytes that are not text": (
        {"a.parquet": parquet(id=[1, 2, 3], t=broken_text(b"x", b"y", b"\xff"))},
        "a.parquet, row 3: column 't'",
    ),
    "parquet bytes in a list that are not text": (
        {"a.parquet": parquet(t=pa.ListArray.from_arrays([0, 1, 2], broken_text(b"x", b"\xff")))},
        "a.parquet, row 2: column 't'",
    ),
    "a key twice in an object": (
        {"a.jsonl": b'{"a": 1}\n{"a": 1, "a": 2}\n'},
        "line 2: .* 'a' occurs twice",
    ),
    "a column twice in a header": ({"a.csv": b"a,b,a\n1,2,3\n"}, "more than one column 'a'"),
    "a row of another length": (
        {"a.csv": b"a,b\n1,2\n3\n"},
        "a.csv, line 3: 1 cells where the header has 2",
    ),
    "a quote that is not closed": ({"a.csv": b'a,b\n1,2\n"3,4\n'}, "a.csv, line 3: not CSV"),
    "text after a quote": ({"a.csv": b'a,b\n"1"2,2\n'}, "a.csv, line 2: not CSV"),
    "UTF-16": ({"a.csv": "id,t\n1,x\n".encode("utf-16")}, "a.csv is UTF-16"),
    "UTF-16 without a mark": ({"a.csv": "id,t\n1,x\n".encode("utf-16-le")}, "UTF-16"),
    "an array of objects": ({"a.json": b'[{"a": 1}]\n'}, "line 1: list in place of an object"),
    "a file cut short": ({"a.csv.gz": gzip.compress(b"a,b\n" + b"1,2\n" * 999)[:-20]}, "Truncated"),
    "nested 100,000 deep": (
        {"a.jsonl": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"},
        "too deep",
    ),
    "types without anything in common": (
        {"a.parquet": parquet(id=["a"], t=[{"x": 1}]), "b.parquet": parquet(id=["b"], t=["x"])},
        "column 't' is struct<x: int64> in a.parquet, string in b.parquet",
    ),
    "a name that Lance does not take": (
        {"a.csv": b"id,a.b\n1,2\n"},
        "column 'a.b' cannot be in a Lance dataset",
    ),
    "a column that some files have and others take from a folder": (
        {
            "lang=de/a.jsonl": lines({"id": "1"}),
            "lang=en/b.jsonl": lines({"id": "2", "lang": "en"}),
        },
        "column 'lang' is in lang=en/b.jsonl, and a folder's name for lang=de/a.jsonl: lang=de",
    ),
    "the same of csv": (
        {"a=1/b.csv": b"id,a\n1,1\n", "a=2/c.csv": b"id\n2\n"},
        "column 'a' is in a=1/b.csv, and a folder's name for a=2/c.csv: a=2",
    ),
    "the same of parquet": (
        {"a=1/b.parquet": parquet(id=["1"], a=[1]), "a=2/c.parquet": parquet(id=["2"])},
        "column 'a' is in a=1/b.parquet, and a folder's name for a=2/c.parquet: a=2",
    ),
    "a header and no rows": ({"a.csv": b"id,t\n"}, "a.csv: contains no documents"),
    "no rows in parquet": ({"a.parquet": parquet(id=pa.array([], pa.string()))}, "no documents"),
    "a name without a letter": ({"a.csv": b",id\n1,2\n"}, "column '' cannot be in a Lance dataset"),
}


@pytest.mark.parametrize("case", REFUSES)
def test_import_refuses_what_it_cannot_keep_and_leaves_nothing(tmp_path, monkeypatch, case):
    files, said = REFUSES[case]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=said):
        importer.import_documents(write_files(tmp_path, files), "out.lance")
    assert not (tmp_path / "out.lance").exists()


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_a_reader_that_changes_one_cell_is_found_and_nothing_is_kept(tmp_path, monkeypatch, name):
    """The comparison alone: every earlier line of defence passes."""
    rows = {
        "id": [f"d{i}" for i in range(500)],
        "n": [*range(500)],
        "f": [i / 4 for i in range(500)],
    }
    table = pa.table(rows)
    if name == "a.csv":
        pacsv.write_csv(table, tmp_path / name)
    elif name == "a.jsonl":
        (tmp_path / name).write_bytes(lines(*table.to_pylist()))
    else:
        pq.write_table(table, tmp_path / name)
    reader = type(importer._READERS[importer.FORMATS[Path(name).suffix]])
    honest = reader.typed
    for column, other in (("id", "D499"), ("n", 0), ("f", None)):

        def typed(self, file, columns, column=column, other=other):
            for count, cells in honest(self, file, columns):
                values = [*cells[column].to_pylist()[:-1], other]
                yield count, {**cells, column: pa.array(values, cells[column].type)}

        monkeypatch.setattr(reader, "typed", typed)
        with pytest.raises(IntegrityError, match=f"row 500: column '{column}'"):
            importer.import_documents([str(tmp_path / name)], str(tmp_path / "out.lance"))
        assert not (tmp_path / "out.lance").exists()


@pytest.mark.parametrize("rows", [slice(0, -1), slice(1, None)])
def test_a_reader_that_loses_a_row_is_found(tmp_path, monkeypatch, rows):
    (tmp_path / "a.csv").write_bytes(b"id,t\n1,x\n2,y\n")
    honest = Csv.typed
    monkeypatch.setattr(
        Csv,
        "typed",
        lambda *a: ((1, {n: v[rows] for n, v in cells.items()}) for _, cells in honest(*a)),
    )
    with pytest.raises(IntegrityError):
        importer.import_documents([str(tmp_path / "a.csv")], str(tmp_path / "out.lance"))


def test_a_file_that_grows_meanwhile_is_found(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_bytes(lines({"id": "1"}))
    honest = importer._compare

    def compare(*arguments):
        with (tmp_path / "a.jsonl").open("ab") as file:
            file.write(lines({"id": "2"}))
        honest(*arguments)

    monkeypatch.setattr(importer, "_compare", compare)
    with pytest.raises(IntegrityError, match="row 2 is not there"):
        importer.import_documents([str(tmp_path / "a.jsonl")], str(tmp_path / "out.lance"))


def test_only_the_owner_reads_what_was_imported(tmp_path):
    imported(tmp_path, "a.jsonl", lines({"id": "1"}))
    assert (tmp_path / "out.lance").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("before", "after"), [(0o755, 0o750), (0o777, 0o770), (0o2775, 0o2770), (0o700, 0o700)]
)
def test_an_empty_folder_that_import_fills_is_closed_to_everyone_else(tmp_path, before, after):
    (tmp_path / "out.lance").mkdir()
    (tmp_path / "out.lance").chmod(before)
    imported(tmp_path, "a.jsonl", lines({"id": "1"}))
    assert stat.S_IMODE((tmp_path / "out.lance").stat().st_mode) == after


def test_an_empty_folder_of_another_user_that_everyone_reads_is_not_filled(tmp_path, monkeypatch):
    def refuse(*given, **named):
        raise PermissionError(1, "Operation not permitted")

    folder = tmp_path / "out.lance"
    folder.mkdir(mode=0o755)
    (tmp_path / "a.jsonl").write_bytes(lines({"id": "1"}))
    monkeypatch.setattr(Path, "chmod", refuse)
    with pytest.raises(UsageError, match="has mode 0755 and belongs to user"):
        importer.import_documents([str(tmp_path / "a.jsonl")], str(folder))
    assert not any(folder.iterdir())


def test_many_blocks_and_files_are_one_dataset_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(import_columns, "BLOCK_BYTES", 500)
    monkeypatch.setattr(import_csv, "_ROWS", 7)
    monkeypatch.setattr(import_parquet, "_ROWS", 7)
    rows = [{"id": f"{i:03}", "t": "t" * (i % 50)} for i in range(300)]
    for kind in ("jsonl", "csv", "parquet"):
        files = []
        for part in range(3):
            table = pa.Table.from_pylist(rows[part * 100 : part * 100 + 100])
            files.append(str(tmp_path / f"{part}.{kind}"))
            if kind == "csv":
                pacsv.write_csv(table, files[-1])
            elif kind == "parquet":
                pq.write_table(table, files[-1], row_group_size=13)
            else:
                Path(files[-1]).write_bytes(lines(*table.to_pylist()))
        importer.import_documents(files, str(tmp_path / f"{kind}.lance"))
        assert lance.dataset(str(tmp_path / f"{kind}.lance")).to_table().to_pylist() == rows


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_file_without_any_column_that_was_asked_for_keeps_its_rows(tmp_path, kind):
    bodies = {
        "csv": (b"id,t\n1,x\n", b"id,u\n2,y\n3,z\n"),
        "jsonl": (lines({"id": "1", "t": "x"}), lines({"id": "2"}, {"id": "3"})),
        "parquet": (parquet(id=["1"], t=["x"]), parquet(id=["2", "3"])),
    }
    files = [str(tmp_path / f"{n}.{kind}") for n in range(2)]
    for file, body in zip(files, bodies[kind], strict=True):
        Path(file).write_bytes(body)
    importer.import_documents(files, str(tmp_path / "out.lance"), columns=["t"])
    written = lance.dataset(str(tmp_path / "out.lance")).to_table()
    assert written.to_pydict() == {"t": ["x", None, None]}


def failing(monkeypatch):
    def compare(*_):
        raise IntegrityError("it is not what the files hold: nothing of it was kept")

    monkeypatch.setattr(importer, "_compare", compare)


@pytest.mark.parametrize("place", ["out.lance", "a/b/out.lance", ""])
def test_a_failed_comparison_keeps_nothing_on_an_object_store(tmp_path, monkeypatch, bucket, place):
    """Only what the import wrote goes: what lies beside it stays."""
    to = f"{bucket.uri}/{place}".rstrip("/")
    whole = Storage.open(bucket.uri, bucket.options)
    if place:
        whole.write_bytes("out.lance.txt", b"mine")
        whole.write_bytes("a/b/other", b"mine")
    before = list(whole.objects(""))
    (tmp_path / "a.jsonl").write_bytes(lines({"id": "1"}))
    with monkeypatch.context() as broken:
        failing(broken)
        with pytest.raises(IntegrityError, match="nothing of it was kept"):
            importer.import_documents([str(tmp_path / "a.jsonl")], to, options=bucket.options)
    assert list(whole.objects("")) == before
    again = importer.import_documents([str(tmp_path / "a.jsonl")], to, options=bucket.options)
    assert again.rows == 1


def test_an_import_beside_other_objects_is_refused_and_they_stay(tmp_path, bucket):
    """A prefix of an object store is a folder, too."""
    whole = Storage.open(bucket.uri, bucket.options)
    whole.write_bytes("docs/mine.txt", b"mine")
    (tmp_path / "a.jsonl").write_bytes(lines({"id": "1"}))
    with pytest.raises(UsageError, match="something else in it"):
        importer.import_documents(
            [str(tmp_path / "a.jsonl")], f"{bucket.uri}/docs", options=bucket.options
        )
    assert [p for p, _ in whole.objects("")] == ["docs/mine.txt"]


@pytest.mark.parametrize("there", [False, True])
def test_a_failed_comparison_keeps_nothing_in_a_folder(tmp_path, monkeypatch, there):
    """Neither in one that was made for it, which goes too, nor in an empty one that was there."""
    out = tmp_path / "out.lance"
    if there:
        out.mkdir()
    (tmp_path / "a.jsonl").write_bytes(lines({"id": "1"}))
    failing(monkeypatch)
    with pytest.raises(IntegrityError):
        importer.import_documents([str(tmp_path / "a.jsonl")], str(out))
    assert out.exists() == there
    assert not list(tmp_path.rglob("*.lance/*"))

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reembed.errors import UsageError
from reembed.evaluation.queries import EvalSet, load_eval_set

SHARED = Path(__file__).parents[3] / "shared" / "data"

ROWS = [
    {"query_id": "q1", "text": "wing flutter", "doc_ids": ["a", "b"], "grades": [2, 0]},
    {"query_id": "q2", "text": "heat \u2028 transfer", "doc_ids": ["c"], "grades": [1]},
    {"query_id": "q3", "text": "nothing relevant", "doc_ids": ["d"], "grades": [0]},
]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def jsonl(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def beir(folder: Path, suffix: str = "", splits: tuple[str, ...] = ("test",)) -> str:
    queries = [{"_id": row["query_id"], "text": row["text"], "metadata": {}} for row in ROWS]
    queries.append({"_id": "q4", "text": "of another split", "metadata": {}})
    write(folder / f"queries.jsonl{suffix}", jsonl(queries))
    lines = ["query-id\tcorpus-id\tscore"]
    for row in ROWS:
        pairs = zip(row["doc_ids"], row["grades"], strict=True)
        lines += [f"{row['query_id']}\t{doc}\t{grade}" for doc, grade in pairs]
    for split in splits:
        write(folder / "qrels" / f"{split}.tsv{suffix}", "\n".join(lines) + "\n")
    return str(folder)


def stored(kind: str, folder: Path) -> str:
    if kind.startswith("beir"):
        return beir(folder / "set", ".gz" if kind == "beir.gz" else "")
    path = folder / f"queries.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif kind == "lance":
        lance.write_dataset(pa.Table.from_pylist(ROWS), str(path))
    else:
        write(path, jsonl(ROWS))
    return str(path)


def load(uri: str | Path, split: str = "test") -> EvalSet:
    return load_eval_set(str(uri), split, {})


def refused(uri: str | Path, split: str = "test") -> str:
    with pytest.raises(UsageError) as caught:
        load(uri, split)
    assert caught.value.why
    assert caught.value.fix
    return str(caught.value)


KINDS = ["beir", "beir.gz", "jsonl", "jsonl.gz", "parquet", "lance"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_queries(kind, tmp_path):
    loaded = load(stored(kind, tmp_path))
    assert loaded.query_ids == ["q1", "q2"]
    assert loaded.texts == ["wing flutter", "heat \u2028 transfer"]
    assert loaded.qrels == [{"a": 2, "b": 0}, {"c": 1}]
    assert loaded.dropped == 1
    assert loaded.sha256 == load(stored("jsonl", tmp_path / "other")).sha256


@pytest.mark.parametrize("kind", KINDS)
def test_an_address_reads_the_same_as_a_path(kind, tmp_path):
    uri = stored(kind, tmp_path)
    remote = load(f"file://{uri}")
    assert remote.sha256 == load(uri).sha256
    assert remote.source == load(uri).source


def test_a_folder_may_end_in_a_slash_and_hold_odd_characters(tmp_path):
    assert len(load(beir(tmp_path / "a b#%") + "/").query_ids) == 2


def test_a_file_is_found_relative_to_the_working_folder(tmp_path, monkeypatch):
    stored("jsonl", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert load("queries.jsonl").query_ids == ["q1", "q2"]


def test_the_digest_ignores_order_and_sees_every_change(tmp_path):
    def digest(rows: list[dict[str, object]]) -> str:
        write(tmp_path / "x.jsonl", jsonl(rows))
        return load(tmp_path / "x.jsonl").sha256

    first, second, _ = ROWS
    same = digest(ROWS)
    assert digest([second, first]) == same
    assert digest([first]) != same
    assert digest([{**first, "text": "wing"}, second]) != same
    assert digest([{**first, "grades": [2, 1]}, second]) != same
    assert digest([{**first, "query_id": "q9"}, second]) != same


def test_doc_ids_without_grades_are_relevant_and_integers_become_strings(tmp_path):
    write(tmp_path / "x.jsonl", jsonl([{"query_id": 7, "text": "t", "doc_ids": [1, 2]}]))
    loaded = load(tmp_path / "x.jsonl")
    assert loaded.query_ids == ["7"]
    assert loaded.qrels == [{"1": 1, "2": 1}]


def test_integer_columns_of_parquet_become_strings(tmp_path):
    table = pa.table({"query_id": [7], "text": ["t"], "doc_ids": [[1, 2]], "extra": [0.5]})
    pq.write_table(table, tmp_path / "x.parquet")
    assert load(tmp_path / "x.parquet").qrels == [{"1": 1, "2": 1}]


def test_queries_of_other_splits_are_not_counted_as_dropped(tmp_path):
    assert load(beir(tmp_path)).dropped == 1


def test_windows_line_ends_and_a_byte_order_mark_are_read(tmp_path):
    uri = beir(tmp_path)
    for path in (tmp_path / "queries.jsonl", tmp_path / "qrels" / "test.tsv"):
        text = path.read_text(encoding="utf-8").replace("\n", "\r\n")
        path.write_bytes(("\ufeff" + text).encode())
    assert load(uri).qrels == [{"a": 2, "b": 0}, {"c": 1}]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the judged collections lie outside the repository")
@pytest.mark.parametrize(
    ("name", "num_queries", "num_judgements"),
    [("cranfield", 225, 1837), ("cisi", 76, 3114), ("nfcorpus-prep", 323, 12334)],
)
def test_real_collections_have_their_published_counts(name, num_queries, num_judgements):
    loaded = load(SHARED / name)
    assert len(loaded.query_ids) == len(set(loaded.query_ids)) == num_queries
    assert sum(map(len, loaded.qrels)) == num_judgements
    assert loaded.dropped == 0


@pytest.mark.parametrize("name", ["none", "none.jsonl", "none.parquet", "none.lance"])
def test_a_missing_path_is_named(name, tmp_path):
    assert f"{tmp_path / name}: cannot read" in refused(tmp_path / name)
    assert name in refused(f"file://{tmp_path / name}")


def test_an_unknown_scheme_is_refused():
    assert "cannot read" in refused("ftp://host/set")


def test_an_unknown_kind_of_file_is_refused_with_the_known_ones(tmp_path):
    write(tmp_path / "queries.csv", "a,b")
    with pytest.raises(UsageError, match=r"known: a BEIR folder"):
        load(tmp_path / "queries.csv")


def test_a_missing_split_names_the_splits_there_are(tmp_path):
    message = refused(beir(tmp_path, splits=("train", "dev")))
    assert "no split 'test'" in message
    assert "splits there: dev, train" in message
    assert "set gate.split to one of them: dev" in message


def test_a_split_cannot_leave_the_folder(tmp_path):
    beir(tmp_path / "other")
    uri = beir(tmp_path / "set")
    assert "no split" in refused(uri, "../../other/qrels/test")


def test_a_folder_without_qrels_is_refused(tmp_path):
    write(tmp_path / "queries.jsonl", jsonl([{"_id": "1", "text": "t"}]))
    assert "it has no qrels/*.tsv" in refused(tmp_path)


def test_a_folder_without_queries_is_refused(tmp_path):
    uri = beir(tmp_path)
    (tmp_path / "queries.jsonl").unlink()
    assert "queries.jsonl: cannot read" in refused(uri)


@pytest.mark.parametrize("kind", ["parquet", "lance"])
def test_a_missing_column_is_named_with_those_there_are(kind, tmp_path):
    table = pa.table({"query_id": ["1"], "query": ["t"], "doc_ids": [["a"]]})
    path = tmp_path / f"x.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        lance.write_dataset(table, str(path))
    message = refused(path)
    assert "no column text" in message
    assert "columns there: query_id, query, doc_ids" in message


def test_a_qrels_file_without_header_is_refused(tmp_path):
    uri = beir(tmp_path)
    write(tmp_path / "qrels" / "test.tsv", "q1\ta\t1\n")
    assert "no column query-id, corpus-id, score" in refused(uri)


@pytest.mark.parametrize("content", ["", "query-id\tcorpus-id\tscore\n"])
def test_an_empty_qrels_file_is_refused(content, tmp_path):
    uri = beir(tmp_path)
    write(tmp_path / "qrels" / "test.tsv", content)
    refused(uri)


def test_queries_without_any_positive_judgement_are_refused(tmp_path):
    write(tmp_path / "x.jsonl", jsonl([ROWS[2]]))
    assert "no query has a relevant document" in refused(tmp_path / "x.jsonl")


def test_judgements_of_a_query_without_text_are_refused(tmp_path):
    uri = beir(tmp_path)
    with (tmp_path / "qrels" / "test.tsv").open("a") as file:
        file.write("lost\ta\t1\n")
    assert "1 judged queries have no text, among them 'lost'" in refused(uri)


LONG, BIG = "9" * 5_000, str(2**63)


@pytest.mark.parametrize(
    "line",
    ["q2\tc", "q2\tc\tgood", "q2\tc\t1.5", "q2\tc\t1\tmore", f"q2\tc\t{LONG}", f"q2\tc\t-{BIG}"],
)
def test_a_bad_judgement_is_named_by_file_and_line(line, tmp_path):
    uri = beir(tmp_path)
    write(tmp_path / "qrels" / "test.tsv", f"query-id\tcorpus-id\tscore\nq1\ta\t1\n{line}\n")
    assert f"{uri}/qrels/test.tsv:3: not usable" in refused(uri)


def test_quoted_cells_of_judgements_are_read_as_csv(tmp_path):
    ids = ['say "x"', '"whole"', "a\tb", "it's", "007", "two words", 'mid"dle', "line\nbreak"]
    write(tmp_path / "queries.jsonl", jsonl([{"_id": i, "text": "t"} for i in ids]))
    (tmp_path / "qrels").mkdir()
    with (tmp_path / "qrels" / "test.tsv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerows([["query-id", "corpus-id", "score"], *([i, i, 1] for i in ids)])
    loaded = load(tmp_path)
    assert loaded.query_ids == ids
    assert loaded.qrels == [{i: 1} for i in ids]


@pytest.mark.parametrize("line", ['"q1\ta\t1', '"q1"x\ta\t1', 'q1\t"a\t1\nq2\tc\t1'])
def test_a_quote_that_does_not_close_is_named_and_does_not_swallow_the_rest(line, tmp_path):
    uri = beir(tmp_path)
    write(tmp_path / "qrels" / "test.tsv", f"query-id\tcorpus-id\tscore\n{line}\n")
    assert "not tab-separated values" in refused(uri)


def test_two_grades_for_one_document_are_refused_and_a_repeated_one_is_not(tmp_path):
    uri = beir(tmp_path)
    path = tmp_path / "qrels" / "test.tsv"
    write(path, path.read_text() + "q1\ta\t2\n")
    assert load(uri).qrels[0] == {"a": 2, "b": 0}
    write(path, path.read_text() + "q1\ta\t1\n")
    assert "document 'a' has grade 1 and, before, 2" in refused(uri)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"query_id": "2", "doc_ids": []}', "no 'text'; there are query_id, doc_ids"),
        ('{"query_id": "2", "text": " ", "doc_ids": ["a"]}', "is empty"),
        ('{"query_id": "2", "text": null, "doc_ids": ["a"]}', "is empty or not a string"),
        ('{"query_id": 2.0, "text": "t", "doc_ids": ["a"]}', "id 2.0 is neither"),
        ('{"query_id": "2", "text": "t", "doc_ids": "a"}', "doc_ids is not a list"),
        ('{"query_id": "2", "text": "t", "doc_ids": [null]}', "id None is neither"),
        (
            '{"query_id": "2", "text": "t", "doc_ids": ["a"], "grades": []}',
            "of the same length as doc_ids",
        ),
        (
            '{"query_id": "2", "text": "t", "doc_ids": ["a"], "grades": [true]}',
            "not a whole number",
        ),
        ('{"query_id": "1", "text": "t", "doc_ids": ["a"]}', "query '1' is a duplicate"),
        (f'{{"query_id": {LONG}, "text": "t", "doc_ids": ["a"]}}', "not JSON"),
        (
            f'{{"query_id": "2", "text": "t", "doc_ids": ["a"], "grades": [{BIG}]}}',
            "beyond 1,000,000",
        ),
    ],
)
def test_a_bad_line_is_named_by_file_and_line(line, reason, tmp_path):
    path = tmp_path / "x.jsonl"
    write(path, '{"query_id": "1", "text": "t", "doc_ids": ["a"]}\n\n' + line + "\n")
    message = refused(path)
    assert f"{path}:3: not usable" in message
    assert reason in message


def test_a_number_of_thousands_of_digits_among_queries_is_named_by_file_and_line(tmp_path):
    uri = beir(tmp_path)
    write(tmp_path / "queries.jsonl", f'{{"_id": "q1", "text": "t", "x": {LONG}}}\n')
    assert f"{uri}/queries.jsonl:1: not usable" in refused(uri)


def test_a_bad_row_of_a_table_is_named_by_its_number(tmp_path):
    table = pa.table({"query_id": ["1", None], "text": ["t", "t"], "doc_ids": [["a"], ["a"]]})
    pq.write_table(table, tmp_path / "x.parquet")
    assert "x.parquet, row 2: not usable" in refused(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl", b"\xff\xfe"),
        ("x.jsonl.gz", b"no gzip"),
        ("x.jsonl.gz", gzip.compress(b"{}" * 1000, mtime=0)[:20]),
        ("x.parquet", b"no parquet"),
    ],
)
def test_damaged_files_are_refused(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert "not readable as" in refused(tmp_path / name)

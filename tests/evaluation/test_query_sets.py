"""Several sets of judged queries, and the fields that are kept beside a query's text."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reembed.config.gate import GateConfig
from reembed.errors import UsageError
from reembed.evaluation.queries import EvalSet, freeze, load_eval_set

ROWS: list[dict[str, Any]] = [
    {"query_id": "q1", "text": "one", "doc_ids": ["a"], "lang": "en", "user": "u1"},
    {"query_id": "q2", "text": "two", "doc_ids": ["b"], "lang": "de", "user": "u1"},
    {"query_id": "q3", "text": "three", "doc_ids": ["c"], "lang": None, "user": None},
]
OTHERS: list[dict[str, Any]] = [
    {"query_id": "q1", "text": "uno", "doc_ids": ["a"], "user": "u2"},
    {"query_id": "q9", "text": "two", "doc_ids": ["d", "e"], "grades": [0, 0], "user": "u3"},
]


def jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def beir(folder: Path, rows: Sequence[dict[str, Any]]) -> str:
    """The fields beside id and text lie in BEIR's metadata."""
    lines = [
        {
            "_id": r["query_id"],
            "text": r["text"],
            "metadata": {"lang": r["lang"], "user": r["user"]},
        }
        for r in rows
    ]
    jsonl(folder / "queries.jsonl", lines)
    (folder / "qrels").mkdir()
    judged = [f"{r['query_id']}\t{d}\t1\n" for r in rows for d in r["doc_ids"]]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged))
    return str(folder)


def stored(kind: str, folder: Path) -> str:
    if kind == "beir":
        return beir(folder / "set", ROWS)
    path = folder / f"set.{kind}"
    if kind == "jsonl":
        return jsonl(path, ROWS)
    table = pa.Table.from_pylist(ROWS)
    if kind == "lance":
        lance.write_dataset(table, str(path))
    else:
        pq.write_table(table, path)
    return str(path)


def load(*uris: str, slices: Sequence[str] = (), group: str | None = None) -> EvalSet:
    return load_eval_set(uris, "test", {}, slices, group)


def judged_otherwise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"doc_ids": [*row["doc_ids"], "z"]} for row in rows]


def refused(*uris: str, **named: Any) -> str:
    with pytest.raises(UsageError) as caught:
        load(*uris, **named)
    assert caught.value.fix
    return str(caught.value)


@pytest.mark.parametrize("kind", ["beir", "jsonl", "parquet", "lance"])
def test_every_format_gives_the_same_slices_and_groups(kind, tmp_path):
    found = load(stored(kind, tmp_path), slices=["lang"], group="user")
    assert found.slices == {"lang": ("en", "de", None)}
    assert found.groups is not None
    assert found.groups[0] == found.groups[1] == "u1"
    same = load(stored("jsonl", tmp_path / "other"), slices=["lang"], group="user")
    assert found.sha256 == same.sha256


def test_sets_are_joined_and_equal_ids_kept_apart(tmp_path):
    first = jsonl(tmp_path / "support.jsonl", ROWS)
    second = jsonl(tmp_path / "sales.jsonl", OTHERS)
    found = load(first, second, slices=["lang"], group="user")
    assert found.query_ids == ["q1", "q2", "q3", "q1"]
    assert found.texts == ["one", "two", "three", "uno"]
    assert found.slices["set"] == ("support", "support", "support", "sales")
    assert found.set_names == list(found.slices["set"])
    assert found.slices["lang"] == ("en", "de", None, None)
    assert [(s.name, s.count, s.dropped) for s in found.sets] == [
        ("support", 3, 0),
        ("sales", 1, 1),
    ]
    assert found.dropped == 1
    assert found.source == f"{first}, {second}"


def test_one_set_has_no_slice_of_its_own_and_a_slice_with_one_value_is_left_out(tmp_path):
    rows = [{**row, "kind": "faq"} for row in ROWS]
    found = load(jsonl(tmp_path / "x.jsonl", rows), slices=["kind", "lang"])
    assert list(found.slices) == ["lang"]
    assert found.constant_slices == ("kind",)


def test_a_query_without_a_group_is_a_group_by_itself(tmp_path):
    rows = [{**row, "user": None} for row in ROWS[1:]]
    found = load(
        jsonl(tmp_path / "a.jsonl", [ROWS[0], *rows]), jsonl(tmp_path / "b.jsonl", judged_otherwise(ROWS[2:])),
        group="user",
    )  # fmt: skip
    assert found.groups is not None
    assert len(set(found.groups)) == 4


def test_without_a_named_field_there_are_no_groups(tmp_path):
    assert load(jsonl(tmp_path / "x.jsonl", ROWS)).groups is None


def test_sets_in_folders_of_the_same_name_are_told_apart_by_the_folder_above(tmp_path):
    sets = {"a": ROWS, "b": judged_otherwise(ROWS)}
    uris = [jsonl(tmp_path / name / "queries.jsonl", rows) for name, rows in sets.items()]
    assert load(*uris).slices["set"] == ("a/queries",) * 3 + ("b/queries",) * 3
    assert "two sets are named 'a/queries'" in refused(uris[0], uris[0])


def test_the_digest_holds_slices_groups_and_times_but_not_where_a_set_lies(tmp_path):
    first = jsonl(tmp_path / "one.jsonl", ROWS)
    second = jsonl(tmp_path / "two.jsonl", OTHERS)
    moved = jsonl(tmp_path / "elsewhere" / "three.jsonl", ROWS)
    digest = load(first, second).sha256
    assert digest == load(second, moved).sha256
    assert digest != load(first).sha256
    assert load(first).sha256 != load(first, slices=["lang"]).sha256
    other = [{**ROWS[0], "lang": "fr"}, *ROWS[1:]]
    changed = jsonl(tmp_path / "changed.jsonl", other)
    assert load(changed, slices=["lang"]).sha256 != load(first, slices=["lang"]).sha256
    assert load(changed).sha256 == load(first).sha256
    assert load(first, group="user").sha256 != load(first, group="lang").sha256
    timed = jsonl(tmp_path / "t.jsonl", [{**row, "timestamp": "2026-01-01"} for row in ROWS])
    assert load(timed).sha256 != load(first).sha256


def test_a_query_in_two_sets_is_judged_in_each(tmp_path):
    sets = {"a": ROWS, "b": judged_otherwise(ROWS)}
    found = load(*(jsonl(tmp_path / f"{name}.jsonl", rows) for name, rows in sets.items()))
    assert len(found.query_ids) == 6
    assert found.same_text == 6


def test_queries_with_the_text_of_another_are_counted(tmp_path):
    rows = [*ROWS, {**ROWS[0], "query_id": "q4"}]
    assert load(jsonl(tmp_path / "x.jsonl", rows)).same_text == 2


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2026-11-27T12:00:00Z", "2026-11-27T12:00:00+00:00"),
        ("2026-11-27T12:00:00+02:00", "2026-11-27T10:00:00+00:00"),
        ("2026-11-27", "2026-11-27T00:00:00+00:00"),
    ],
)
def test_times_are_read_in_utc(value, expected, tmp_path):
    rows = [{**ROWS[0], "timestamp": value}, ROWS[1]]
    assert load(jsonl(tmp_path / "x.jsonl", rows)).timestamps == (expected, None)


@pytest.mark.parametrize("unit", ["s", "us", "ns"])
def test_times_of_a_column_are_read_in_utc(unit, tmp_path):
    when = datetime.datetime(2026, 11, 27, 12, tzinfo=datetime.UTC)
    table = pa.table(
        {
            "query_id": ["1"], "text": ["t"], "doc_ids": [["a"]],
            "timestamp": pa.array([when], pa.timestamp(unit, "Europe/Berlin")),
        }
    )  # fmt: skip
    pq.write_table(table, tmp_path / "x.parquet")
    assert load(str(tmp_path / "x.parquet")).timestamps == ("2026-11-27T12:00:00+00:00",)


@pytest.mark.parametrize("value", ["yesterday", 1_700_000_000, True])
def test_what_is_no_time_is_refused_with_its_line(value, tmp_path):
    path = jsonl(tmp_path / "x.jsonl", [{**ROWS[0], "timestamp": value}])
    assert f"{path}:1: not usable" in refused(path)


@pytest.mark.parametrize("value", [1.5, ["a"], {"a": 1}])
def test_a_slice_or_group_that_is_no_label_is_refused_with_its_line(value, tmp_path):
    path = jsonl(tmp_path / "x.jsonl", [ROWS[0], {**ROWS[1], "lang": value}])
    assert f"{path}:2: not usable" in refused(path, slices=["lang"])
    assert "lang is" in refused(path, group="lang")


@pytest.mark.parametrize("kind", ["beir", "jsonl", "parquet", "lance"])
def test_a_field_that_no_query_has_is_named_with_those_there_are(kind, tmp_path):
    uri = stored(kind, tmp_path)
    assert "gate.slices: no query has a field langg" in refused(uri, slices=["langg"])
    message = refused(uri, group="usr")
    assert "gate.group: no query has a field usr" in message
    assert "lang, " in message
    assert "set gate.group" in message


def test_copies_of_a_set_under_two_names_are_refused(tmp_path):
    rows = [{"query_id": f"q{n}", "text": f"text {n}", "doc_ids": [f"d{n}"]} for n in range(10)]
    one = jsonl(tmp_path / "one.jsonl", rows)
    renamed = [row | {"query_id": f"x{n}"} for n, row in enumerate(rows)]
    copy = jsonl(tmp_path / "copy.jsonl", [*renamed[:6], rows[0] | {"doc_ids": ["d9"]}])
    message = refused(one, copy)
    assert "sets 'one' and 'copy' have mostly the same queries" in message
    assert "6 of 7 queries have the same text and judgements" in message
    other = jsonl(tmp_path / "other.jsonl", [row | {"doc_ids": ["d0"]} for row in renamed])
    assert len(load(one, other).texts) == 20


def test_a_set_without_relevant_documents_is_named(tmp_path):
    good, empty = (
        jsonl(tmp_path / "a.jsonl", ROWS),
        jsonl(tmp_path / "b.jsonl", OTHERS[1:]),
    )
    assert f"{empty}: no query has a relevant document" in refused(good, empty)


@pytest.mark.parametrize(
    "wrong",
    [
        {"slices": ["lang", "lang"]},
        {"slices": ["lang"], "group": "lang"},
        {"slices": ["set"]},
        {"group": "text"},
    ],
)
def test_settings_that_confuse_fields_are_refused(wrong):
    with pytest.raises(ValueError, match=r"gate\.slices"):
        GateConfig(**wrong)


def test_a_plan_freezes_all_sets_with_the_fields_they_are_read_by(tmp_path, monkeypatch):
    jsonl(tmp_path / "a.jsonl", ROWS)
    jsonl(tmp_path / "b.jsonl", OTHERS)
    monkeypatch.chdir(tmp_path)
    section = GateConfig(queries=("a.jsonl", "b.jsonl"), slices=("lang",), group="user")
    frozen = freeze(section, {})
    assert frozen.queries == (str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"))
    assert (frozen.slices, frozen.group, frozen.count) == (("lang",), "user", 4)
    assert GateConfig(queries="a.jsonl").queries == ("a.jsonl",)
    assert GateConfig(queries=None).queries == ()

"""How often documents turned up in the answers of a query log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reembed.config.gate import GateConfig
from reembed.errors import UsageError
from reembed.evaluation import popularity as module
from reembed.evaluation.popularity import Popularity, popularity


def counted(tmp_path: Path, *rows: dict[str, Any]) -> Popularity:
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"text": "q", **row}) + "\n" for row in rows))
    found = popularity(GateConfig(logged=str(log)), {})
    assert found is not None
    return found


def test_a_query_counts_each_document_once_that_it_showed_or_that_was_clicked(tmp_path):
    found = counted(
        tmp_path,
        {"shown": ["b", "a", "b"], "clicks": ["a", "c"]},
        {"shown": ["c", 7]},
        {"clicks": None},
    )
    assert list(found.times.items()) == [("c", 2), ("7", 1), ("a", 1), ("b", 1)]
    assert (found.queries, found.results, found.only_clicks, found.days) == (3, 5, False, None)
    rest = found.without(["c", "7", "nobody"])
    assert (rest.times, rest.results, rest.ever) == ({"a": 1, "b": 1}, 2, 3)
    assert counted(tmp_path, {"clicks": ["a"]}, {}).only_clicks


def test_without_a_log_nothing_is_known_and_a_wrong_line_is_named(tmp_path):
    assert popularity(GateConfig(), {}) is None
    with pytest.raises(UsageError, match=r"log\.jsonl:1: not usable"):
        counted(tmp_path, {"shown": "a b"})
    with pytest.raises(UsageError, match="cannot read logged queries"):
        popularity(GateConfig(logged=str(tmp_path)), {})


def test_a_table_is_counted_as_lines_are(tmp_path):
    log = tmp_path / "log.parquet"
    times = pa.array([0, 86_400_000, 43_200_000], pa.timestamp("ms", "UTC"))
    pq.write_table(pa.table({"shown": [["a"], ["a", "b"], None], "timestamp": times}), log)
    found = popularity(GateConfig(logged=str(log)), {})
    assert (found.times, found.results, found.days) == ({"a": 2, "b": 1}, 3, 1.0)


def test_of_more_documents_than_fit_those_that_turned_up_least_are_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST", 4)
    found = counted(tmp_path, {"shown": ["a", "b"]}, {"shown": ["a", "c"]}, {"shown": ["d", "e"]})
    assert (found.times, found.results) == ({"a": 2, "b": 1}, 6)


def test_how_many_would_turn_up_in_the_end_follows_from_those_that_did_once_and_twice(tmp_path):
    rows = [{"shown": [f"once {n}" for n in range(6)]}] + 2 * [{"shown": ["x", "y"]}]
    assert counted(tmp_path, *rows).ever == 8 + 6 * 5 / (2 * 3)
    assert counted(tmp_path, *rows[1:]).ever == 2

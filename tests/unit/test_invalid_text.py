"""Text that is not UTF-8, where a file's format does not rule it out: named, before any work where possible."""

from __future__ import annotations

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from inline import Inline

from reembed.errors import SourceError, UsageError
from reembed.evalset import load_eval_set
from reembed.source import Source
from reembed.strategies.full_rebuild import full_rebuild


def invalid(rows: int) -> pa.Array:
    """A text column whose last row is not UTF-8."""
    raw = pa.array([b"fine"] * (rows - 1) + [b"\xff"], pa.binary())
    return pa.Array.from_buffers(pa.string(), rows, raw.buffers())


@pytest.mark.parametrize("column", ["query_id", "text"])
@pytest.mark.parametrize("kind", ["parquet", "lance"])
def test_judged_queries_with_invalid_text_are_named(tmp_path, column, kind):
    columns = {"query_id": pa.array(["q", "r"]), "text": pa.array(["a", "b"])}
    table = pa.table(columns | {column: invalid(2), "doc_ids": pa.array([["d"], ["e"]])})
    place = str(tmp_path / f"judged.{kind}")
    if kind == "parquet":
        pq.write_table(table, place)
    else:
        lance.write_dataset(table, place)
    with pytest.raises(UsageError, match=place):
        load_eval_set(place, "test", {})


@pytest.mark.parametrize("text", ["text", "{title} {text}"])
@pytest.mark.parametrize("column", ["doc_id", "text", "title"])
def test_a_source_with_invalid_text_is_named(tmp_path, make_config, quiet, column, text):
    """In the second fragment of two."""
    good = {c: pa.array([f"{c} {i}" for i in range(20)]) for c in ("doc_id", "text", "title")}
    source = str(tmp_path / "source.lance")
    lance.write_dataset(pa.table(good), source, enable_stable_row_ids=True)
    more = {c: pa.array([f"{c} {i}" for i in range(20, 40)]) for c in good}
    if column == "title" and text == "text":
        more[column] = pa.array(["not read"] * 20)
    else:
        more[column] = invalid(20)
    lance.write_dataset(pa.table(more), source, mode="append")
    config = make_config(source, source={"uri": source, "text": text})
    if column == "title" and text == "text":
        assert full_rebuild(config, quiet, executor=Inline()).rows == 40
        return
    with pytest.raises(SourceError, match=f"{column}.* of {source} version 2 cannot be read"):
        full_rebuild(config, quiet, executor=Inline())


@pytest.mark.parametrize("how", ["read", "scan", "rows", "take"])
def test_every_way_to_read_a_source_names_what_is_not_text(tmp_path, make_config, how):
    """In the second fragment of two."""
    source = str(tmp_path / "source.lance")
    for text in (pa.array(["fine"] * 3), invalid(3)):
        table = pa.table({"doc_id": ["a", "b", "c"], "text": text})
        lance.write_dataset(table, source, mode="append", enable_stable_row_ids=True)
    opened = Source.open(make_config(source))
    ways = {
        "read": lambda: [opened.read(unit) for unit in opened.units(10)],
        "scan": lambda: list(opened.scan()),
        "rows": lambda: list(opened.rows()),
        "take": lambda: opened.take([0, 5]),
    }
    with pytest.raises(SourceError, match=f"doc_id, text of {source} version 2 cannot be read"):
        ways[how]()

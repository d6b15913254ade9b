"""Text that is not UTF-8, where a file's format does not rule it out: named, before any work where possible."""

from __future__ import annotations

import hashlib
import json
import platform

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from inline import Inline
from releases import make_release
from tiny_models import bert_model

from reembed.catalog.alias import who
from reembed.catalog.releases import Catalog
from reembed.cli.verbs import cli as reembed_cli
from reembed.config.settings import EncoderConfig, Prompts, load
from reembed.encoders import describe
from reembed.errors import ConfigError, EncoderError, IntegrityError, SourceError, UsageError
from reembed.evaluation.queries import load_eval_set
from reembed.lifecycle.promote import promote, rollback
from reembed.source.dataset import Source
from reembed.store.storage import Storage
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


BYTE = "caf\udce9"
"""How Python sees the Latin-1 byte of an argument, a variable or a JSON escape."""


def test_a_reason_that_is_not_utf8_is_refused_before_the_log_is_written(tmp_path):
    """Create-only: a step that nobody can read would stay the newest for good."""
    catalog = Catalog(Storage.open(str(tmp_path / "root")), "docs")
    for name in ("a", "b"):
        make_release(catalog, name)
    with pytest.raises(UsageError, match=r"not UTF-8: .*caf\\udce9"):
        promote(catalog, "a", initial_reason=BYTE)
    assert catalog.log() == []
    promote(catalog, "a", initial_reason="first")
    with pytest.raises(UsageError, match="not UTF-8"):
        promote(catalog, "b", force_reason=BYTE)
    promote(catalog, "b", force_reason="better")
    with pytest.raises(UsageError, match="not UTF-8"):
        rollback(catalog, reason=BYTE)
    assert [r.release.id for r in catalog.log()] == ["a", "b"]


def test_no_record_is_stored_with_text_that_is_not_utf8(tmp_path):
    storage = Storage.open(str(tmp_path / "root"))
    for record in ({"a": [{"b": BYTE}]}, {BYTE: 1}, {"a": "\ud800"}):
        for write in (storage.create, storage.write):
            with pytest.raises(UsageError, match="not UTF-8"):
                write("record.json", record)
    assert storage.read_if_there("record.json") is None
    assert storage.create("record.json", {"a": "café \U0001f600"})


def test_a_record_of_others_with_such_text_is_named(tmp_path):
    storage = Storage.open(str(tmp_path / "root"))
    record = {"a": BYTE}
    digest = hashlib.sha256(json.dumps(record).encode()).hexdigest()
    body = json.dumps({"_sha256": digest, **record}).encode()
    storage.write_bytes("record.json", body)
    with pytest.raises(IntegrityError, match=r"record\.json is not a valid reembed record"):
        storage.read("record.json")


def test_who_is_recorded_also_where_a_name_is_not_utf8(monkeypatch):
    monkeypatch.setenv("LOGNAME", BYTE)
    monkeypatch.setattr(platform, "node", lambda: "h\udcff")
    assert who() == "caf?@h?"


@pytest.mark.parametrize(
    "arguments",
    [
        ("promote", "--initial", "--reason", BYTE),
        ("compare", "--margin", "0.5", "--reason", BYTE),
        ("rollback", "--reason", BYTE),
        ("search", "fine", BYTE),
    ],
)
def test_the_command_line_refuses_such_text(corpus, config_file, arguments):
    verb, *rest = arguments
    said = CliRunner().invoke(reembed_cli, [verb, "-c", config_file(corpus(20)), *rest])
    assert said.exit_code == 2
    assert "is not UTF-8" in said.output


@pytest.mark.parametrize(
    "setting", ["encoder.prompts.query", "storage.root", "source.text", "table.carry"]
)
def test_settings_with_such_text_are_refused(corpus, config_file, tmp_path, setting):
    value = json.dumps(["t\ud800"] if setting == "table.carry" else "t\ud800")
    with pytest.raises(ConfigError, match=f"{setting}: holds text that is not UTF-8"):
        load([config_file(corpus(20))], [f"{setting}={value}"])
    section, _, name = setting.rpartition(".")
    lines = "".join(f"{'  ' * i}{s}:\n" for i, s in enumerate(section.split(".")))
    file = tmp_path / "more.yaml"
    file.write_text(f"{lines}{'  ' * (section.count('.') + 1)}{name}: {value}\n")
    with pytest.raises(ConfigError, match=f"{setting}: holds text that is not UTF-8"):
        load([config_file(corpus(20, seed=1)), str(file)], [])
    with pytest.raises(ValueError, match="not UTF-8"):
        Prompts(query=BYTE)


def test_a_prompt_of_a_model_that_is_not_utf8_is_named(tmp_path):
    folder = bert_model(tmp_path / "model")
    file = folder / "config_sentence_transformers.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"prompts": {"query": "\ud83d", "document": ""}}))
    with pytest.raises(EncoderError, match="a prompt of the model is not UTF-8 text"):
        describe(EncoderConfig(model=str(folder)), "float32")
    mine = Prompts(query="q: ", document="")
    assert describe(EncoderConfig(model=str(folder), prompts=mine), "float32").prompt_query == "q: "

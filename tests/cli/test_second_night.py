"""The same commands, night after night: what they choose by themselves."""

from __future__ import annotations

import json
import time
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from click.testing import CliRunner
from conftest import documents
from releases import index_file

from reembed.catalog.lease import repeating
from reembed.catalog.releases import Catalog
from reembed.cli.verbs import cli as reembed_cli
from reembed.engine.ray_executor import RayExecutor
from reembed.store.storage import Storage
from reembed.strategies.full_rebuild import full_rebuild

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]


@pytest.fixture
def nights(corpus, config_file, make_config, eval_folder, quiet):
    """(file, first, second): `first` is live, `second` a candidate of another carried column."""
    source = corpus(120)
    gate = {"gate": {"queries": eval_folder(source), "ann_recall": 0.5, "margin": 0.9}}
    first = full_rebuild(make_config(source, **gate), quiet, executor=RayExecutor())
    catalog = Catalog(Storage.open(make_config(source).storage.root), "passages")
    catalog.append(None, "promote", first)
    second = full_rebuild(
        make_config(source, table={"carry": ["title"]}, **gate), quiet, executor=RayExecutor()
    )
    return config_file(source, table={"carry": ["title"]}, **gate), first, second


def test_the_pipeline_run_twice_does_not_go_back_to_what_served_before(nights, cli):
    file, first, second = nights
    cli("run", "-c", file)
    cli("compare", "-c", file)
    assert cli("promote", "-c", file)["to"] == second.id
    cli("run", "-c", file)
    for verb in ("compare", "promote"):
        said = cli(verb, "-c", file, code=2)
        assert f"release {second.id} is already live" in said["what"]
    cli("rollback", "-c", file)
    assert cli("status", "-c", file)["candidates"][0]["release"] == second.id
    assert cli("promote", "-c", file)["to"] == second.id
    assert first.id == cli("status", "-c", file)["previous"]["release"]


def test_a_changed_byte_in_the_index_is_seen_by_promote_and_remembered_after_verify(nights, cli):
    file, _, second = nights
    cli("compare", "-c", file)
    root = Path(cli("config", "-c", file)["settings"]["storage"]["root"])
    index = root / index_file(Storage.open(root), second)
    body = bytearray(index.read_bytes())
    body[len(body) // 2] ^= 4
    index.write_bytes(body)
    said = cli("promote", "-c", file, code=1)
    assert "index" in said["what"]
    assert "gone, cut short or changed" in said["why"]
    cli("verify", "--release", second.id, "-c", file, code=1)
    body[len(body) // 2] ^= 4
    index.write_bytes(body)
    assert "is not verified" in cli("promote", "-c", file, code=1)["what"]
    assert cli("verify", "--release", second.id, "-c", file)["passed"]
    assert cli("promote", "-c", file)["to"] == second.id


def test_verify_has_levels_resumes_and_says_when_it_could_not_find_out(
    nights, cli, monkeypatch, tmp_path
):
    from reembed.lifecycle import differences, reading

    file, _, second = nights
    said = [cli("verify", "--level", str(level), "-c", file) for level in range(4)]
    assert [s["level"] for s in said] == [0, 1, 2, 3]
    assert [s["documents"] for s in said] == [0, 120, 120, 120]
    assert "wrong_vector" in said[3]["differences"]
    assert "wrong_vector" not in said[2]["differences"]

    def unreadable(*_):
        raise OSError("the disk is away")

    compared = differences.compare
    monkeypatch.setattr(differences, "compare", unreadable)
    failed = cli("verify", "-c", file, code=2)
    assert failed["error"] == "NotVerified"
    assert "the disk is away" in failed["why"]
    monkeypatch.setattr(differences, "compare", compared)

    def once_is_enough(*_):
        raise AssertionError("a finished step was done again")

    monkeypatch.setattr(reading, "damaged_files", once_is_enough)
    assert cli("verify", "--resume", "-c", file)["passed"]
    assert not list(tmp_path.rglob("verifying*")), "nothing of it is left"
    assert second.verify.passed


def test_queries_that_the_plan_did_not_name_may_come_late_and_the_record_says_so(
    corpus, config_file, make_config, eval_folder, quiet, cli
):
    source = corpus(120)
    first = full_rebuild(
        make_config(source, encoder={"model": "hashing:32"}), quiet, executor=RayExecutor()
    )
    file = config_file(source)
    catalog = Catalog(Storage.open(make_config(source).storage.root), "passages")
    catalog.append(None, "promote", first)
    full_rebuild(make_config(source), quiet, executor=RayExecutor())
    assert any("no judged queries" in what for what in quiet.said())
    assert "set gate.queries" in cli("compare", "-c", file, code=2)["fix"]
    late = CliRunner().invoke(
        reembed_cli,
        ["compare", "-c", file, "--set", f"gate.queries={eval_folder(source)}", "--json"],
    )
    assert json.loads(late.stdout)["gate_is_late"] is True


@pytest.mark.deep
def test_index_settings_count_until_the_index_is_built(corpus, config_file, cli):
    file = config_file(corpus(120))
    assert cli.process("run", "-c", file, REEMBED_CRASH_AT="table.after_tag").returncode == -9
    done = cli.process("run", "-c", file, "--set", "index.factory=IDMap,Flat", "--json")
    assert done.returncode == 0, done.stderr
    assert "IDMap,Flat" in done.stderr
    assert "the plan's count" not in done.stderr
    again = cli.process("run", "-c", file, "--set", "index.factory=Flat")
    assert "built already: index.factory Flat (built with: IDMap,Flat)" in again.stderr


def test_a_beat_that_fails_once_does_not_end_the_heart():
    beats = []

    def beat():
        beats.append(1)
        if len(beats) == 2:
            raise OSError("503 Slow Down")

    with repeating(0.01, beat):
        time.sleep(0.3)
    assert len(beats) > 4


def test_an_empty_file_and_an_occupied_folder_are_not_imported(tmp_path, cli):
    (tmp_path / "empty.jsonl").write_text("")
    target = str(tmp_path / "new.lance")
    assert (
        "no documents"
        in cli("import", str(tmp_path / "empty.jsonl"), "--to", target, code=2)["what"]
    )
    (tmp_path / "rows.jsonl").write_text('{"doc_id": "a", "text": "x"}\n')
    occupied = cli("import", str(tmp_path / "rows.jsonl"), "--to", str(tmp_path), code=2)
    assert "something else in it" in occupied["what"]
    assert not (tmp_path / "data").exists()


def test_a_raw_file_as_source_is_answered_with_its_import(tmp_path, config_file, cli):
    raw = tmp_path / "my passages.jsonl"
    raw.write_text('{"doc_id": "a", "text": "x"}\n')
    said = cli("run", "-c", config_file(str(raw)), code=2)
    assert said["fix"] == f"reembed import '{raw}' --to '{raw.with_suffix('.lance')}'"
    uri = str(tmp_path / "x.lance")
    lance.write_dataset(pa.Table.from_pylist(documents(3, 0)), uri)
    said = cli("run", "-c", config_file(uri, source={"uri": uri, "text": "body"}), code=2)
    assert "--set source.text=doc_id" in said["fix"] or "--set source.text=t" in said["fix"]
    assert "source.id_column" not in said["fix"]

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from reembed.catalog.releases import Catalog
from reembed.cli.command import _resumable
from reembed.cli.verbs import cli as reembed_cli
from reembed.engine.ray_executor import RayExecutor
from reembed.errors import Interrupted
from reembed.lifecycle.promote import promote
from reembed.store.storage import Storage
from reembed.strategies.full_rebuild import full_rebuild


@pytest.fixture
def released(corpus, make_config, config_file, quiet, ray_local, eval_folder):
    """Config file of a candidate beside a live release."""
    source = corpus(120)
    judged = eval_folder(source)
    gate = {"queries": judged, "logged": f"{judged}/queries.jsonl"}
    for dim in (16, 256):
        config = make_config(
            source, encoder={"model": f"hashing:{dim}"}, gate=gate, table={"carry": ["title"]}
        )
        release = full_rebuild(config, quiet, executor=RayExecutor())
        catalog = Catalog(Storage.open(config.storage.root), config.alias)
        if catalog.live() is None:
            promote(catalog, release.id, initial_reason="a test")
    return config_file(
        source, encoder={"model": "hashing:256"}, gate=gate, table={"carry": ["title"]}
    )


FLOW = [
    ("config",),
    ("tune", "--seconds", "1"),
    ("run",),
    ("status",),
    ("verify", "--sample", "5"),
    ("compare",),
    ("shadow", "--set", "strategy=dual_index"),
    ("promote",),
    ("catch-up",),
    ("dead-letters",),
    ("search", "a b", "-k", "2", "--show", "title"),
    ("rollback", "--reason", "a test"),
    ("simulate", "--sweep", "3/q"),
    ("lazy", "start", "--set", "strategy=lazy", "--reason", "a test"),
    ("sweep", "--budget", "20"),
    ("lazy", "status"),
    ("history",),
    ("gc",),
]


@pytest.mark.ray
def test_every_verb_prints_text_and_exactly_one_json_object(released, tmp_path, cli):
    (tmp_path / "a.jsonl").write_text('{"doc_id": "a", "text": "x"}\n')
    assert (
        cli("import", str(tmp_path / "a.jsonl"), "--to", str(tmp_path / "new.lance"))["rows"] == 1
    )
    elsewhere = {"import", "serve"}  # serve does not end by itself: tests/serving/http
    assert {v[0] for v in FLOW} | elsewhere == set(reembed_cli.commands)
    for verb, *arguments in FLOW:
        if verb not in ("promote", "rollback") and "start" not in arguments:
            said = CliRunner().invoke(reembed_cli, [verb, *arguments, "-c", released])
            assert said.exit_code == 0, said.output
            assert said.stdout.strip()
        assert isinstance(cli(verb, *arguments, "-c", released), dict)


@pytest.mark.ray
def test_json_of_an_error_is_one_object_too(config_file, tmp_path, cli):
    record = cli("run", "-c", config_file(str(tmp_path / "none.lance")), code=2)
    assert record["error"] == "SourceError"
    assert record["fix"].startswith("reembed import")


@pytest.mark.ray
def test_stdout_of_a_run_is_its_json_alone_while_progress_goes_to_stderr(corpus, config_file, cli):
    done = cli.process("run", "-c", config_file(corpus(60)), "--json")
    assert json.loads(done.stdout)["rows"] == 60
    stages = re.findall(r"^\d\d:\d\d:\d\d (\w+)", done.stderr, re.M)
    assert set(stages) == {
        *("plan", "ray", "begin", "note", "embed", "embedded", "table", "index", "verify"),
        "candidate",
    }
    assert "Warning" not in done.stderr


@pytest.mark.ray
def test_the_report_is_one_page_that_loads_nothing_and_runs_nothing(released, cli):
    page = Path(cli("compare", "-c", released)["report"]).read_text()
    assert "default-src 'none'" in page
    assert not re.search(r"<script|<link|<img|\bon\w+=|https?://", page)


@pytest.mark.ray
def test_hostile_ids_stay_text_on_the_terminal(
    tmp_path, make_config, config_file, quiet, ray_local
):
    import lance
    import pyarrow as pa

    uri, ids = (
        str(tmp_path / "hostile.lance"),
        ["x' OR '1'='1", "\x1b[31mred", "a\u202eb", "<b>bold</b>"],
    )
    lance.write_dataset(
        pa.table({"doc_id": ids, "text": ["one two", "three", "four", "five"]}), uri
    )
    config = make_config(uri)
    release = full_rebuild(config, quiet, executor=RayExecutor())
    catalog = Catalog(Storage.open(config.storage.root), config.alias)
    promote(catalog, release.id, initial_reason="a test")
    said = CliRunner().invoke(reembed_cli, ["search", "one", "-c", config_file(uri)])
    assert said.exit_code == 0, said.output
    assert "\x1b" not in said.stdout
    assert "\u202e" not in said.stdout
    assert "\\x1b[31mred" in said.stdout
    assert "x' OR '1'='1" in said.stdout


def test_importing_the_command_line_loads_no_heavy_library_and_takes_under_300_ms_of_cpu():
    code = (
        "import sys, time; t = time.process_time(); import reembed.cli.verbs;"
        "print(time.process_time() - t); print(*sys.modules)"
    )
    best = 9.0
    for _ in range(3):  # the best of three: other tests' processes may be ending still
        seconds, modules = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split("\n")[:2]
        best = min(best, float(seconds))
        assert not {"ray", "lance", "faiss", "torch", "transformers", "pyarrow"} & set(
            modules.split()
        )
    assert best < 0.3


@pytest.mark.ray
def test_status_takes_under_a_second_of_cpu(released, cli):
    best = 9.0
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert cli.process("status", "-c", released).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert best < 1.0
    imports = cli.process("status", "-c", released, PYTHONPROFILEIMPORTTIME="1").stderr
    assert " lance\n" in imports
    assert " pandas.core" not in imports


def test_what_was_imported_without_pandas_works_with_pandas_afterwards():
    code = (
        "from reembed.cli.command import lean_imports\n"
        "with lean_imports(): import pyarrow.dataset\n"
        "import pandas, pyarrow\n"
        "frame = pyarrow.table({'a': [1, 2]}).to_pandas()\n"
        "print(pyarrow.Table.from_pandas(frame)['a'].to_pylist(), pyarrow.array(frame['a']).sum())"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "[1, 2] 3\n"


def test_sigterm_while_a_class_is_made_is_an_interruption():
    """As in an import: Python 3.11 wraps what is raised there."""

    class Named:
        def __set_name__(self, owner: type, name: str) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted), _resumable("run"):
        type("Made", (), {"field": Named()})
    with pytest.raises(RuntimeError, match="a bug"), _resumable("run"):
        raise RuntimeError("a bug")

"""Nothing hangs, and a signal ends a run as it should: drained, resumable, with its own exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from crash.forks import search_path
from crash.slow_model import SLOW

from reembed.catalog.lease import workers
from reembed.catalog.runs import find_runs
from reembed.store.storage import Storage

pytestmark = [pytest.mark.deep, pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.fixture
def slow(tmp_path):
    """slow(seconds, loops="False") -> environment in which each unit takes that long."""

    def make(seconds: float, loops: str = "False") -> dict[str, str]:
        site = tmp_path / "site"
        site.mkdir(exist_ok=True)
        (site / "sitecustomize.py").write_text(SLOW.format(seconds=seconds, loops=loops))
        return {"PYTHONPATH": f"{site}{os.pathsep}{search_path()}"}

    return make


def start(cli, file: str, env: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        cli.command("run", "-c", file, "--json"),
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(what, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.1)


def run_of(tmp_path: Path):
    storage = Storage.open(str(tmp_path / "root"))
    wait_for(lambda: find_runs(storage))
    return find_runs(storage)[0]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_lets_the_begun_units_finish_and_the_same_command_resumes(
    corpus, config_file, cli, slow, tmp_path, number, code
):
    file = config_file(corpus(300), embed={"unit_documents": 20})
    process = start(cli, file, slow(1.0))
    run = run_of(tmp_path)
    wait_for(lambda: len(run.staged()) >= 2)
    process.send_signal(number)
    out, err = process.communicate(timeout=230)
    assert process.returncode == code, err
    assert json.loads(out)["error"] == "Interrupted"
    assert "the same command resumes" in json.loads(out)["fix"]
    assert "finishing units in progress" in err
    assert "SIGTERM received at" not in err
    begun = {p.split("/")[-2] for p, _ in run.storage.objects(run.path("attempts/"))}
    assert begun == run.staged(), "a unit was begun and thrown away"
    assert 2 < len(run.staged()) < 15
    done = cli.process("run", "-c", file, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 300
    assert all(r.stats.attempt == 1 for r in run.receipts())


def test_sigterm_while_it_starts_ends_with_75_too(corpus, config_file, cli, tmp_path):
    file = config_file(corpus(60))
    for seconds in (0, 0.7, 1.4, 2.1, 2.8):  # planning, then Ray's start, which takes about 3
        process = start(cli, file, {})
        first = process.stderr.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=230)
        if process.returncode == 0:
            break
        assert process.returncode == 75, first + err
        assert json.loads(out)["error"] == "Interrupted"
    assert seconds > 1, "it was over before it could be interrupted"


_SIGTERM_IN_RAYS_START = """
import atexit, os, signal, sys

class Finder:
    def find_spec(self, name, path, target=None):
        if name != "reembed.engine.cluster":
            return None
        sys.meta_path.remove(self)
        import ray
        plain = ray.init
        def init(*arguments, **options):
            started = plain(*arguments, **options)
            # What Ray does now and then where Python ends before it: always.
            atexit.register(lambda: ray.is_initialized() and os.abort())
            os.kill(os.getpid(), signal.SIGTERM)
            return started
        ray.init = init
        return None

sys.meta_path.insert(0, Finder())
"""


def test_sigterm_in_rays_own_start_ends_with_75_and_leaves_no_ray(
    corpus, config_file, cli, tmp_path
):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(_SIGTERM_IN_RAYS_START)
    path = f"{tmp_path / 'site'}{os.pathsep}{search_path()}"
    env = {"PYTHONPATH": path, "REEMBED_TEST_MARK": str(tmp_path)}
    process = start(cli, config_file(corpus(60)), env)
    out, err = process.communicate(timeout=230)
    assert process.returncode == 75, err
    assert json.loads(out)["error"] == "Interrupted"
    mark = f"REEMBED_TEST_MARK={tmp_path}".encode()

    def left() -> list[str]:
        places = Path("/proc").glob("[0-9]*/environ")
        return [p.parent.name for p in places if mark in _bytes(p).split(b"\0")]

    wait_for(lambda: not left(), 100)


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # another's, or gone
        return b""


def test_a_second_signal_and_a_spent_patience_stop_at_once(
    corpus, config_file, cli, slow, tmp_path
):
    file = config_file(corpus(300), embed={"unit_documents": 100, "drain_s": 2})
    process = start(cli, file, slow(60))
    run = run_of(tmp_path)
    wait_for(lambda: workers(run))
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=230)
    assert (process.returncode, json.loads(out)["exit_code"]) == (130, 130), err
    assert not run.staged(), "it did not wait for the unit, which takes a minute"
    process = start(cli, file, slow(60))
    wait_for(lambda: len(workers(run)) > 1)
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    process.communicate(timeout=230)
    assert process.returncode == 75
    assert time.monotonic() - started > 1.5, "drain_s"
    assert not run.staged()


def test_a_stopped_worker_is_ended_at_its_deadline_and_its_unit_done_again(
    corpus, config_file, cli, slow, tmp_path
):
    file = config_file(corpus(120), embed={"unit_documents": 40, "unit_deadline_s": 3})
    process = start(cli, file, slow(1.0))
    run = run_of(tmp_path)
    wait_for(lambda: workers(run))
    (worker,) = workers(run)
    os.kill(worker.pid, signal.SIGSTOP)
    out, err = process.communicate(timeout=230)
    assert process.returncode == 0, err
    assert json.loads(out)["rows"] == 120
    events = [json.loads(e) for e in run.storage.read_bytes(run.path("events.jsonl")).splitlines()]
    assert "more than its deadline of 3 s: its worker was stopped; trying the unit again" in err
    (ended,) = [e for e in events if e["stage"] == "deadline"]
    assert (ended["unit"], ended["ended"]) == (worker.unit, True)
    again = {r.unit: r.stats.attempt for r in run.receipts()}
    assert again[worker.unit] == 2


def test_a_job_on_which_nothing_moves_fails_and_names_what_it_waits_for(
    corpus, config_file, cli, slow, tmp_path
):
    file = config_file(
        corpus(60), embed={"unit_documents": 60, "unit_deadline_s": 600, "stall_s": 12}
    )
    process = start(cli, file, slow(0, loops="True"))
    out, err = process.communicate(timeout=230)
    said = json.loads(out)
    assert process.returncode == 1, err
    assert "no unit was finished for" in said["what"]
    assert "being embedded: 000000-000000000 (attempt 1)" in said["why"]
    run = run_of(tmp_path)
    status = cli("status", "-c", file)
    (stopped,) = status["runs"]
    assert stopped["run"] == run.id
    assert [(w["unit"], w["attempt"]) for w in stopped["workers"]] == [("000000-000000000", 1)]


def test_how_long_nothing_may_move_is_said_by_reembed_alone(
    corpus, config_file, cli, slow, tmp_path
):
    """Ray Data has a limit of its own, after which it drops its work: it must not count."""
    env = slow(6.0) | {"RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "3"}
    file = config_file(corpus(60), embed={"unit_documents": 30})
    done = cli.process("run", "-c", file, "--json", **env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 60

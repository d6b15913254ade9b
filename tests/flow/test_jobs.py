"""`ray job submit` for real: a head with two pretended GPUs on this machine, jobs/rebuild.py in it."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lance
import pytest

from reembed.catalog.releases import Catalog, Release
from reembed.catalog.runs import Run
from reembed.config.settings import load
from reembed.lifecycle import verification
from reembed.store.storage import Storage

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]  # about 60 s where nothing else runs

REPO = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PORTS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
    "ray-client-server-port",
    "node-manager-port",
    "object-manager-port",
)
ROWS = 500


@dataclass(frozen=True)
class Head:
    """A running head node and how to reach it."""

    address: str
    env: dict[str, str]
    folder: Path

    def ask(self, path: str) -> Any:
        """The answer of the jobs API."""
        token = {"Authorization": f"Bearer {self.env['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(f"{self.address}/api/{path}", headers=token)
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.load(answer)

    def submit(self, job: str, *arguments: str) -> subprocess.Popen[str]:
        """A started `ray job submit`, which ends when the job does."""
        script = ["--", "python", "jobs/rebuild.py", *arguments]
        command = [
            str(BIN / "ray"),
            "job",
            "submit",
            "--address",
            self.address,
            "--submission-id",
            job,
        ]
        return subprocess.Popen(
            [*command, "--working-dir", str(REPO), *script],
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, job: str, *arguments: str) -> tuple[int, int | None, str]:
        """Submit and wait: exit codes of `ray job submit` and of the script, and all output."""
        return self.ended(job, self.submit(job, *arguments))

    def ended(self, job: str, submitted: subprocess.Popen[str]) -> tuple[int, int | None, str]:
        """As `run`, of a job that was submitted before."""
        output, _ = submitted.communicate(timeout=200)
        try:
            exit_code = self.ask(f"jobs/{job}")["driver_exit_code"]
        except OSError as error:
            head = (self.folder / "output").read_text()
            pytest.fail(f"the head knows no job {job}: {error}\n{output}\nthe head:\n{head}")
        return submitted.returncode, exit_code, output


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head on free ports, with its own token and its own folder: it meets no other Ray here."""
    folder = Path(tempfile.mkdtemp(prefix="rj-"))  # short: Unix sockets lie below it
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    # A token of its own, not the file in the home folder that other clusters use.
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
    env = os.environ | token | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    options = [f"--{name}={port}" for name, port in ports.items()]
    options += ["--dashboard-host=127.0.0.1", "--num-cpus=4", "--num-gpus=2"]
    options += [f"--temp-dir={folder}", f"--object-store-memory={256 << 20}", "--block"]
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(
            [BIN / "ray", "start", "--head", *options],
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    head = Head(f"http://127.0.0.1:{ports['dashboard-port']}", env, folder)
    try:
        wait_for_answer(head, process)
        yield head
    finally:
        stop(process, env["RAY_AUTH_TOKEN"])
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(n: int) -> list[int]:
    """Ports that nothing listens on, all different.

    Below those that the kernel gives to outgoing connections: one of these could take a port of the
    head between now and its use, and a head without its agent takes no jobs.
    """
    found: list[int] = []
    for port in random.sample(range(20_000, 32_000), 200):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == n:
            return found
    raise OSError(f"fewer than {n} of 200 ports are free")


def wait_for_answer(head: Head, process: subprocess.Popen[bytes], limit_s: float = 200) -> None:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError):
            head.ask("jobs/")
            return
        time.sleep(0.2)
    pytest.fail(f"the head did not start:\n{(head.folder / 'output').read_text()}")


def stop(process: subprocess.Popen[bytes], token: str) -> None:
    """End the head, then whatever it left: processes of its session, or that inherited its token."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(5)
    for pid in left_over(process.pid, token):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(5)


def left_over(session: int, token: str) -> list[int]:
    """Job drivers lead sessions of their own, and Ray's workers overwrite their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended just now, or is another user's
            in_session = os.getsid(int(folder.name)) == session
            if in_session or token.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return [pid for pid in found if pid != os.getpid()]


@pytest.fixture
def settings(corpus: Callable[..., str], config_file: Callable[..., str]) -> str:
    """A config that asks for both pretended GPUs; torch has none, so the encoder takes the CPU."""
    embed = {"actors": 2, "gpus_per_actor": 0.5, "unit_documents": 100}
    return config_file(corpus(ROWS), embed=embed)


def catalog_of(file: str) -> Catalog:
    storage = load([file], [])[0].storage
    return Catalog(Storage.open(storage.root, storage.options), "passages")


def assert_whole(catalog: Catalog, release: Release) -> None:
    """Verified when built and again now, every document once."""
    assert release.verify.passed
    found = verification.verify_release(
        catalog, release.id, level=3, sample=ROWS, resume=False, stall_s=60
    )
    assert found.passed
    table = catalog.storage.uri(release.table)
    dataset = lance.dataset(table, version=release.table_version)
    ids = dataset.to_table(columns=["doc_id"])["doc_id"].to_pylist()
    assert sorted(ids) == [f"d{i:05d}" for i in range(ROWS)]


@pytest.mark.deep
def test_a_job_submitted_twice_at_once_and_once_more_makes_one_release(
    head: Head, settings: str
) -> None:
    started = {job: head.submit(job, "-c", settings) for job in ("first", "second")}
    ended = {job: head.ended(job, submitted) for job, submitted in started.items()}
    codes = sorted(code for _, code, _ in ended.values() if code is not None)
    said = "\n".join(output for _, _, output in ended.values())
    assert codes in ([0, 4], [0, 0]), said
    assert "2 GPUs" in said
    if codes == [0, 4]:
        assert "already being driven" in said or "taken by another process" in said
        assert sorted(cli_code for cli_code, _, _ in ended.values()) == [0, 1]

    catalog = catalog_of(settings)
    [release] = catalog.releases()
    assert_whole(catalog, release)
    run = Run(catalog.storage, release.id)
    assert [r.stats.device for r in run.receipts()] == ["cpu"] * len(run.staged())

    before = {path: size for path, size in catalog.storage.objects("") if "/leases/" not in path}
    assert head.run("third", "-c", settings)[:2] == (0, 0)
    after = {path: size for path, size in catalog.storage.objects("") if "/leases/" not in path}
    assert after == before
    [again] = catalog.releases()
    assert again == release

    refused, _, output = head.run("third", "-c", settings)
    assert refused == 1
    assert "already exists" in output


def test_a_job_with_a_wrong_config_fails_with_the_verbs_exit_code(
    head: Head, settings: str
) -> None:
    cli_code, code, output = head.run("wrong", "-c", settings, "--set", "embed.actor=2")
    job = head.ask("jobs/wrong")
    assert (cli_code, code, job["status"]) == (1, 2, "FAILED")
    assert re.search(r"embed\.actor.*did you mean actors", output)
    assert catalog_of(settings).releases() == []


def test_the_upload_holds_the_package_and_nothing_else_of_the_checkout(head: Head) -> None:
    if not head.ask("jobs/"):  # else any job of the other tests will do
        head.run("help", "--help")
    [job, *_] = head.ask("jobs/")
    package = job["runtime_env"]["working_dir"].removeprefix("gcs://").removesuffix(".zip")
    [unpacked] = head.folder.glob(f"session_2*/runtime_resources/working_dir_files/{package}")
    names = {path.name for path in unpacked.iterdir()}
    assert names >= {"reembed", "jobs", "configs"}
    assert names.isdisjoint({".git", ".venv", ".ci", "bench", "data", "docs", "tests"})

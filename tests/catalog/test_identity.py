"""Who is who: processes, workers and their deaths are never taken for others of the same name or number."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray

from reembed.catalog import lease
from reembed.catalog.lease import Lease, Worker, driving, machine, read_lease
from reembed.catalog.runs import Run
from reembed.config.settings import EmbedConfig
from reembed.engine import attempts, nodes
from reembed.engine.executor import WorkerPlace
from reembed.engine.presence import Presence
from reembed.engine.watchdog import Watchdog
from reembed.events import ignore
from reembed.store.records import SCHEMA_VERSION
from reembed.store.storage import Storage

RUN = "docs-0-v1-1"
_CONTAINER = ["unshare", "--pid", "--fork", "--mount-proc"]
_OTHER_CONTAINER = f"""
import json, sys
from reembed.catalog.lease import is_driven, read_lease
from reembed.catalog.runs import Run
from reembed.store.records import SCHEMA_VERSION
from reembed.store.storage import Storage
run = Run(Storage.open(sys.argv[1]), "{RUN}")
print(json.dumps([read_lease(run).on_this_machine, is_driven(run, watch_s=8)]))
"""


def in_a_container(*command: str) -> str:
    """What a command says in a pid namespace of its own, on a host of the same name and boot."""
    can = subprocess.run([*_CONTAINER, "true"], capture_output=True, check=False)
    if can.returncode:
        pytest.skip("may not make a pid namespace")
    done = subprocess.run([*_CONTAINER, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(Storage.open(str(tmp_path / "root")), RUN)


def test_a_driver_in_another_container_of_the_same_host_is_not_taken_for_dead(
    run: Run, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lease, "BEAT_S", 0.5)
    with driving(run):
        said = in_a_container(sys.executable, "-c", _OTHER_CONTAINER, run.storage.root)
    assert json.loads(said) == [False, True]


def test_two_machines_whose_boot_is_unknown_are_not_one_machine(
    run: Run, monkeypatch: pytest.MonkeyPatch
):
    """Without /proc, or with that of other namespaces, nothing tells two hosts of one name apart."""

    def missing(path: Any, *args: Any, **more: Any) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", missing)
    assert machine() == ""
    monkeypatch.undo()
    monkeypatch.setattr(os, "readlink", lambda path: "1" if path == "/proc/self" else "pid:[1]")
    assert machine() == ""
    with driving(run):
        lease = read_lease(run)
        assert lease is not None
        assert not lease.on_this_machine


def test_a_process_that_may_not_be_looked_at_is_watched_and_not_taken_for_dead(
    run: Run, monkeypatch: pytest.MonkeyPatch
):
    """/proc with hidepid shows no process of another user."""
    lease = Lease(1, "here", machine(), pid=4_000_000, pid_started="77")
    assert lease.on_this_machine
    assert not lease.process_lives

    def another_users(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", another_users)
    assert not lease.on_this_machine


class _Embedder:
    """As the job's own actors are called."""

    def place(self) -> tuple[WorkerPlace, int]:
        return nodes.place(), os.getpid()

    def rest(self) -> None:
        time.sleep(600)


class Bystander(_Embedder):
    """Another actor of the same driver."""


def watch(run: Run) -> Watchdog:
    plan = SimpleNamespace(resume="reembed run")
    job = SimpleNamespace(run=run, embed=EmbedConfig(unit_deadline_s=0.1), plan=plan)
    return Watchdog(cast(Any, job), [], ignore)


def plant(run: Run, name: str, place: WorkerPlace, pid: int, **more: Any) -> None:
    """A worker's record as anyone who can write to the root can write it."""
    known = {f.name for f in dataclasses.fields(Worker)}
    record = {"id": name, "unit": "u", "attempt": 1, "following": [], "tries": 0}
    record |= {**place._asdict(), "pid": pid, "at": ""}
    record |= {"pid_started": lease.process_started(pid), **more}
    file = f"workers/{name.encode().hex():0>32}.json"
    own = {k: v for k, v in record.items() if k in known}
    run.storage.write(run.path(file), {"schema_version": SCHEMA_VERSION, **own})


def end_the_late(run: Run) -> None:
    """Until the watchdog has ended all whose record is there for longer than the deadline."""
    watching = watch(run)
    for _ in range(3):
        time.sleep(0.15)
        watching.look()


def is_alive(pid: int) -> bool:
    return lease.process_started(pid) is not None


@pytest.mark.ray
def test_a_record_in_the_root_cannot_make_the_watchdog_kill_a_process(run: Run, ray_local: None):
    driver = nodes.place()
    bystander = ray.remote(Bystander).options(num_cpus=0).remote()
    place, pid = ray.get(bystander.place.remote())
    with subprocess.Popen(["sleep", "600"]) as victim:
        plant(run, "any-process", driver, victim.pid)
        plant(run, "as-an-actor", place, victim.pid)
        plant(run, "of-no-actor", driver._replace(actor="ab" * 16), victim.pid)
        plant(run, "malformed", driver._replace(actor="../x"), victim.pid)
        plant(run, "the-raylet", place, os.getppid())
        plant(run, "another-actor", place, pid)
        try:
            end_the_late(run)
            assert victim.poll() is None
            assert is_alive(pid)
        finally:
            victim.kill()
    ray.kill(bystander)


@pytest.mark.ray
def test_an_embedder_that_hangs_is_ended_but_not_the_one_that_took_its_place(
    run: Run, ray_local: None
):
    actor = ray.remote(_Embedder).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
    place, pid = ray.get(actor.place.remote())
    plant(run, "late", place, pid)
    end_the_late(run)
    assert not is_alive(pid)
    place, newer = ray.get(actor.place.remote())
    assert newer != pid
    end_the_late(run)  # the first one's record is still there: it was killed
    assert is_alive(newer)
    ray.kill(actor)


# Deaths


def attempt_at(*given: Any) -> Any:
    from crash import (
        killed,  # here, as Ray's workers import this module and have no path to `crash`
    )

    return killed.attempt_at(*given)


class Moving:
    """A host that says where this process is, and who is still there."""

    def __init__(self) -> None:
        self.here, self.nodes, self.job = WorkerPlace("n1", "j1", "a"), {"n1", "n2"}, "j1"

    def place(self) -> WorkerPlace:
        return self.here

    def outlived(self, node: str, job: str) -> bool:
        return node in self.nodes and job == self.job


@pytest.fixture
def world() -> Moving:
    return Moving()


def test_preempted_nodes_are_not_the_documents_fault(run: Run, world: Moving):
    for number in range(8):
        world.here = WorkerPlace(f"spot-{number}", "j1", "a")
        assert attempt_at(run, 1, lambda tried: True, world) is None
    done = attempt_at(run, 1, lambda tried: False, world)
    assert done is not None
    assert (done.poison, list(done.ranges())) == (frozenset(), [(0, 1)])


def test_drivers_that_are_killed_are_not_the_documents_fault(run: Run, world: Moving):
    for number in range(8):
        world.job, world.here = f"j{number}", WorkerPlace("n1", f"j{number}", "a")
        assert attempt_at(run, 1, lambda tried: True, world) is None
    done = attempt_at(run, 1, lambda tried: False, world)
    assert done is not None
    assert (done.poison, list(done.ranges())) == (frozenset(), [(0, 1)])


def test_a_unit_that_was_embedded_and_not_written_is_not_the_documents_fault(
    run: Run, world: Moving
):
    for _ in range(8):
        attempt = attempts.begin(run, "u", 1, world)
        presence = Presence(run, world)
        presence.announce(attempt)
        presence.take(attempt)
        assert list(attempt.ranges()) == [(0, 1)]
        presence.leave(attempt)
        presence.save()  # and then the disk is full


def test_of_deaths_of_both_kinds_those_alone_count(run: Run, world: Moving):
    """The fourth of eight documents kills; every second node is preempted as well."""
    for number in range(1, 20):
        preempted = number % 2 == 0
        world.here = WorkerPlace(f"spot-{number}" if preempted else "n2", "j1", "a")
        done = attempt_at(run, 8, lambda tried, gone=preempted: gone or 3 in range(*tried), world)
        if done is not None:
            break
    assert done is not None
    assert done.poison == {3}


@pytest.mark.ray
def test_who_outlived_a_worker_is_asked_of_ray(ray_local: None):
    here = nodes.place()
    assert nodes.outlived(here.node, here.job)
    assert not nodes.outlived("ab" * 28, here.job)
    assert not nodes.outlived(here.node, "ff" * 4)

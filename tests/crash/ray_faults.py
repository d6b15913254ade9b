"""Ray's own faults, at random, in jobs on three raylets of this machine; each job must end with every row.

Replay one job: PYTHONPATH=tests python -m crash.ray_faults SEED
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import yaml
from conftest import Verbs, documents
from crash.slow_model import SLOW
from flow_tables import rows_of
from inline import Inline, Silent
from ray.cluster_utils import Cluster

from reembed.catalog.lease import workers
from reembed.catalog.releases import Catalog
from reembed.catalog.runs import find_runs
from reembed.config.settings import Config
from reembed.store.storage import Storage
from reembed.strategies.full_rebuild import full_rebuild

KINDS = ("kill_actor", "stop_actor", "kill_worker", "kill_node", "kill_driver", "term_driver")
IN_ONE_JOB = 4
_DOCUMENTS, _UNIT, _EMBED_S = 400, 20, 0.4
_ENDS = {0: "done", -signal.SIGKILL: "killed", 75: "drained", 1: "failed"}
_JOB_S = 240.0


class Job:
    """One migration under faults, its commands run again until they end well."""

    def __init__(self, seed: int, folder: Path, source: str, nodes: Nodes) -> None:
        self.rng, self.nodes = random.Random(seed), nodes
        self.root = str(folder / f"root-{seed}")
        self.file = str(folder / f"{seed}.yaml")
        embed = {"unit_documents": _UNIT, "actors": 2, "unit_deadline_s": 4, "stall_s": 90}
        settings = {**_settings(source, self.root), "embed": embed}
        Path(self.file).write_text(yaml.safe_dump(settings))
        self.storage = Storage.open(self.root)
        self.injected: list[str] = []
        self.ended: list[str] = []
        self.driver = self._start()

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            Verbs.command("run", "-c", self.file, "--json"),
            env=os.environ | {"RAY_ADDRESS": self.nodes.cluster.address},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def suffer(self, faults: int) -> list[str]:
        """Inject so many, one after the other, while units are embedded; what went wrong."""
        deadline = time.monotonic() + _JOB_S
        while time.monotonic() < deadline:
            code = self.driver.poll()
            if code is None:
                if len(self.injected) < faults and self._is_at_work():
                    time.sleep(self.rng.random())
                    self._inject()
                time.sleep(0.1)
                continue
            said = self.driver.stderr.read() if self.driver.stderr else ""
            self.ended.append(_ENDS.get(code, str(code)))
            if code not in _ENDS or "IntegrityError" in said or "Traceback" in said:
                return [f"{self.injected}: ended with {code}: {said[-2000:]}"]
            if code == 0:
                return []
            self.driver = self._start()
        self.driver.kill()
        return [f"{self.injected}: not done after {_JOB_S:.0f} s, ends so far: {self.ended}"]

    def _is_at_work(self) -> bool:
        runs = find_runs(self.storage)
        return bool(runs and workers(runs[0]))

    def _inject(self) -> None:
        kind = self.rng.choice(KINDS)
        if getattr(self, f"_{kind}")():
            self.injected.append(kind)

    def _kill_actor(self, number: int = signal.SIGKILL) -> bool:
        at_work = workers(find_runs(self.storage)[0])
        return bool(at_work) and _send(self.rng.choice(at_work).pid, number)

    def _stop_actor(self) -> bool:
        return self._kill_actor(signal.SIGSTOP)

    def _kill_worker(self) -> bool:
        found = sorted(self.nodes.worker_pids())
        return bool(found) and _send(self.rng.choice(found), signal.SIGKILL)

    def _kill_node(self) -> bool:
        self.nodes.replace(self.rng.randrange(len(self.nodes.nodes)))
        return True

    def _kill_driver(self) -> bool:
        self.driver.kill()
        return True

    def _term_driver(self) -> bool:
        """Not while Python still imports: it then ends as any process does, before it did anything."""
        status = Path(f"/proc/{self.driver.pid}/status").read_text()
        caught = int(status.split("SigCgt:")[1].split()[0], 16)
        if caught >> (signal.SIGTERM - 1) & 1:
            self.driver.terminate()
            return True
        return False


class Nodes:
    """A head without room for work, and two nodes for it."""

    def __init__(self) -> None:
        head = {"num_cpus": 0, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self.cluster.add_node(num_cpus=3) for _ in range(2)]

    def replace(self, number: int) -> None:
        """One dies, as SIGKILL does it, and a new one comes."""
        self.cluster.remove_node(self.nodes[number], allow_graceful=False)
        self.nodes[number] = self.cluster.add_node(num_cpus=3)

    def worker_pids(self) -> Iterator[int]:
        """Processes of Ray that do something on these nodes: actors and tasks."""
        raylets = {p.process.pid for n in self.nodes for p in n.all_processes["raylet"]}
        for place in Path("/proc").glob("[0-9]*"):
            try:
                title = (place / "cmdline").read_bytes()
                parent = int((place / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:  # it ended meanwhile
                continue
            # Without its agents a node is lost for good: that is another fault.
            busy = title.startswith(b"ray::") and not any(w in title for w in (b"IDLE", b"Agent"))
            if parent in raylets and busy:
                yield int(place.name)


def run(faults: int, seed: int) -> dict[str, Any]:
    """At least so many, a few in each job; what was violated, with how to replay it."""
    started, kinds, ends = time.monotonic(), Counter[str](), Counter[str]()
    violations: list[str] = []
    jobs = 0
    with _prepared() as (folder, play):
        while sum(kinds.values()) < faults and not violations:
            job, wrong = play(seed + jobs, folder)
            jobs += 1
            kinds.update(job.injected)
            ends.update(job.ended)
            violations += [f"{w}\n  python -m crash.ray_faults {seed + jobs - 1}" for w in wrong]
    return {
        "ray_faults": sum(kinds.values()),
        "by_kind": dict(sorted(kinds.items())),
        "jobs": jobs,
        "driver_ends": dict(sorted(ends.items())),
        "violations": violations,
        "seeds": [seed, seed + jobs - 1],
        "seconds": round(time.monotonic() - started, 1),
    }


@contextmanager
def _prepared() -> Iterator[tuple[Path, Callable[[int, Path], tuple[Job, list[str]]]]]:
    """A corpus, the table that a calm run makes of it, a cluster; a function that plays one job."""
    with tempfile.TemporaryDirectory(prefix="ray-faults-") as name:
        folder = Path(name)
        (folder / "sitecustomize.py").write_text(SLOW.format(seconds=_EMBED_S, loops="False"))
        source = str(folder / "source.lance")
        rows = pa.Table.from_pylist(documents(_DOCUMENTS, 0))
        lance.write_dataset(rows, source, enable_stable_row_ids=True, max_rows_per_file=120)
        calm = _table(source, str(folder / "calm"))
        before = os.environ.get("PYTHONPATH", "")
        os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{before}"
        nodes = Nodes()

        def play(seed: int, folder: Path) -> tuple[Job, list[str]]:
            job = Job(seed, folder, source, nodes)
            wrong = job.suffer(IN_ONE_JOB)
            if not wrong:
                (release,) = Catalog(job.storage, "docs").releases()
                if not rows_of(job.storage, release).equals(calm):
                    wrong = [f"{job.injected}: the table is not that of a calm run"]
            return job, wrong

        try:
            yield folder, play
        finally:
            nodes.cluster.shutdown()
            os.environ["PYTHONPATH"] = before


def _settings(source: str, root: str) -> dict[str, Any]:
    return {
        "alias": "docs",
        "source": {"uri": source},
        "encoder": {"model": "hashing:16"},
        "storage": {"root": root},
        "ray": {"allow_unauthenticated": True},  # three raylets, by this machine's outer address
    }


def _table(source: str, root: str) -> pa.Table:
    config = Config.model_validate({**_settings(source, root), "embed": {"unit_documents": _UNIT}})
    release = full_rebuild(config, Silent(), executor=Inline())
    return rows_of(Storage.open(root), release)


def _send(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    with _prepared() as (place, play_one):
        told, broken = play_one(int(sys.argv[1]), place)
    sys.stdout.write(f"{told.injected}\n{told.ended}\n{broken or 'nothing is violated'}\n")
    sys.exit(bool(broken))

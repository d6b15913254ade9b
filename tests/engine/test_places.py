"""Single tasks run on the nodes that are meant for them, and only as many as their memory allows."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from reembed.engine import nodes
from reembed.engine.executor import INDEX_NODES, Needs
from reembed.engine.ray_executor import RayExecutor
from reembed.errors import NoCapacity

MIB = 2**20

pytestmark = [pytest.mark.deep, pytest.mark.ray, pytest.mark.timeout(300)]


@contextmanager
def cluster() -> Iterator[Cluster]:
    head = {"num_cpus": 0, "include_dashboard": False}
    started = Cluster(initialize_head=True, head_node_args=head)
    started.add_node(num_cpus=4, memory=4_000 * MIB)
    yield started
    ray.shutdown()
    started.shutdown()


def executor() -> RayExecutor:
    made = RayExecutor()
    made._patience_s = 2
    return made


def where() -> str:
    return ray.get_runtime_context().get_node_id()


def alone(folder: str, number: int) -> bool:
    mine = Path(folder, str(number))
    mine.touch()
    time.sleep(0.5)
    others = len(list(Path(folder).iterdir()))
    mine.unlink()
    return others == 1


def test_tasks_go_to_the_nodes_for_the_index_once_there_are_any(tmp_path: Path) -> None:
    """In a process of its own: the tests share one Ray, and a process has one."""
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def check(cluster: Cluster, folder: Path) -> None:
    ray.init(address=cluster.address, log_to_driver=False)
    run = executor()
    assert nodes.largest_node_bytes() == 4_000 * MIB
    run.call(where)
    index = cluster.add_node(num_cpus=2, memory=1_000 * MIB, resources={INDEX_NODES: 1})
    assert (nodes.largest_node_bytes(), run.largest_node_cpus()) == (1_000 * MIB, 2)
    assert set(run.each(where, [()] * 4)) == {index.node_id}
    # Both CPUs are free, but not the memory of two.
    items = [(str(folder), n) for n in range(3)]
    assert all(run.each(alone, items, Needs(memory=600 * MIB)))
    assert not nodes.has_room(Needs(1, 0, 2_000 * MIB), {INDEX_NODES: 1})
    with pytest.raises(NoCapacity) as refused:
        run.call(where, needs=Needs(memory=2_000 * MIB))
    assert "2.0 GiB of memory" in str(refused.value.why)


if __name__ == "__main__":
    with cluster() as started:
        check(started, Path(sys.argv[1]))

"""Nodes that go away: three raylets on this machine, and the job goes on with what is left."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from crash.test_stopping import SLOW, wait_for
from ray.cluster_utils import Cluster

from reembed.runs import find_runs, workers
from reembed.storage import Storage

pytestmark = [pytest.mark.crash, pytest.mark.ray, pytest.mark.timeout(300)]


OPEN = {"allow_unauthenticated": True}  # three raylets on this machine, by its outer address


@pytest.fixture
def slow_nodes(tmp_path, monkeypatch):
    """A head that works on nothing, and two nodes on which each unit takes a second."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SLOW.format(seconds=1.0, loops="False"))
    monkeypatch.setenv("PYTHONPATH", str(site))
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
    )
    nodes = [cluster.add_node(num_cpus=3) for _ in range(2)]
    yield cluster, nodes
    cluster.shutdown()


def start(cli, file: str, cluster: Cluster) -> subprocess.Popen[str]:
    return subprocess.Popen(
        cli.command("run", "-c", file, "--json"),
        env=os.environ | {"RAY_ADDRESS": cluster.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_node_that_dies_and_one_that_comes_cost_only_the_units_in_flight(
    corpus, config_file, cli, tmp_path, slow_nodes
):
    cluster, (first, _) = slow_nodes
    file = config_file(corpus(300), embed={"unit_documents": 20, "actors": 2}, ray=OPEN)
    process = start(cli, file, cluster)
    storage = Storage.open(str(tmp_path / "root"))
    wait_for(lambda: find_runs(storage))
    (run,) = find_runs(storage)
    wait_for(lambda: len(run.staged()) >= 3 and workers(run), 90)
    cluster.remove_node(first, allow_graceful=False)
    cluster.add_node(num_cpus=3)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert json.loads(out)["rows"] == 300
    again = sum(r["attempt"] > 1 for r in run.receipts())
    assert again <= 2

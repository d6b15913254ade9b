"""Nodes that go away: raylets on this machine. The job goes on with what is left, or ends and can be resumed."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from crash.forks import search_path
from crash.slow_model import SLOW
from crash.test_stopping import wait_for
from ray.cluster_utils import Cluster

from reembed.catalog.lease import workers
from reembed.catalog.runs import find_runs
from reembed.engine.pipeline import AT_ONCE
from reembed.store.storage import Storage

pytestmark = [pytest.mark.deep, pytest.mark.ray, pytest.mark.timeout(900)]


OPEN = {"allow_unauthenticated": True}  # three raylets on this machine, by its outer address


@pytest.fixture
def slow_nodes(tmp_path, monkeypatch):
    """A head without room for an actor, and two nodes on which each unit takes a second."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SLOW.format(seconds=1.0, loops="False"))
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{search_path()}")
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
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
    wait_for(lambda: len(run.staged()) >= 3 and workers(run), 400)
    cluster.remove_node(first, allow_graceful=False)
    cluster.add_node(num_cpus=3)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert json.loads(out)["rows"] == 300
    again = sum(r.stats.attempt > 1 for r in run.receipts())
    assert again <= 2 * AT_ONCE  # both actors may have been there


def test_without_any_node_a_job_waits_says_so_and_ends_with_75_and_a_new_node_resumes_it(
    corpus, config_file, cli, tmp_path, slow_nodes
):
    cluster, nodes = slow_nodes
    embed = {"unit_documents": 20, "stall_s": 60}
    file = config_file(corpus(300), embed=embed, ray=OPEN)
    process = start(cli, file, cluster)
    storage = Storage.open(str(tmp_path / "root"))
    wait_for(lambda: find_runs(storage))
    (run,) = find_runs(storage)
    wait_for(lambda: len(run.staged()) >= 2, 400)
    for node in nodes:
        cluster.remove_node(node, allow_graceful=False)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 75, err
    said = json.loads(out)
    assert (said["error"], said["exit_code"]) == ("NoCapacity", 75)
    assert "no node of the cluster has the 1 CPUs and 0 GPUs of an actor" in said["why"]
    assert "waiting for one, at most 60 s" in err
    before = {r.unit: r for r in run.receipts()}
    assert len(before) >= 2
    cluster.add_node(num_cpus=3)
    process = start(cli, file, cluster)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert json.loads(out)["rows"] == 300
    assert before.items() <= {r.unit: r for r in run.receipts()}.items()


def test_when_the_head_dies_the_job_ends_and_the_same_command_resumes_on_a_new_cluster(
    corpus, config_file, cli, tmp_path, slow_nodes, monkeypatch
):
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "5")  # else a minute
    cluster, _ = slow_nodes
    file = config_file(corpus(300), embed={"unit_documents": 20}, ray=OPEN)
    process = start(cli, file, cluster)
    storage = Storage.open(str(tmp_path / "root"))
    wait_for(lambda: find_runs(storage))
    (run,) = find_runs(storage)
    wait_for(lambda: len(run.staged()) >= 2, 400)
    cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
    out, err = process.communicate(timeout=400)
    assert process.returncode != 0, out + err
    before = {r.unit: r for r in run.receipts()}
    done = cli.process("run", "-c", file, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 300
    assert before.items() <= {r.unit: r for r in run.receipts()}.items()

"""What cluster.yaml and docs/sizing.md name for 1e6 to 1e9 documents is what a run accepts."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from docs_sizes import SIZES
from inline import Inline

from reembed.config.settings import Config, load
from reembed.errors import UsageError
from reembed.events import Event, Notice
from reembed.planning.rebuild import driver_bytes
from reembed.strategies.index_kind import chosen, resolved
from reembed.strategies.index_tasks import IndexTasks, Vectors, factory_for

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "cluster.yaml").read_text()
MACHINES = {"2xlarge": (8, 32), "4xlarge": (16, 64)}
"""Cores and GiB of the types g5 and g6, as AWS names them."""
DIM, GIB = 768, 2**30
WORDS = re.compile(
    r"#   (?P<documents>1e\d) documents: --set (?P<setting>\S+), max_workers (?P<all>\d+);\n"
    r".*GPU types g6\.(?P<size>\w+) and g5\.(?P=size), max_workers (?P<gpus>\d+), resources (?P<resources>\{.*\});\n"
    r".*type index, max_workers (?P<index>\d+): its largest task (?P<task>[\d.]+) GiB;\n"
    r".*index\.kind (?P<kind>\w+): (?P<bytes>[\d.,]+) GiB in (?P<files>\d+) files?,"
)


@dataclass(frozen=True)
class Written:
    """A profile as the comment of cluster.yaml says it."""

    documents: int
    setting: str
    size: str
    kind: str
    task_gib: float
    files: int
    cluster: dict[str, Any]
    """cluster.yaml, changed as the comment says."""


def written() -> list[Written]:
    found = []
    for match in WORDS.finditer(TEXT):
        cluster: dict[str, Any] = yaml.safe_load(TEXT)
        types = cluster["available_node_types"]
        cluster["max_workers"] = int(match["all"])
        types["index"]["max_workers"] = int(match["index"])
        for name in ("worker-l4", "worker-a10g"):
            types[name] |= {
                "max_workers": int(match["gpus"]),
                "resources": yaml.safe_load(match["resources"]),
            }
        found.append(
            Written(
                int(float(match["documents"])),
                match["setting"],
                match["size"],
                match["kind"],
                float(match["task"]),
                int(match["files"]),
                cluster,
            )
        )
    return found


PROFILES = written()


class Nodes(Inline):
    """An executor on the nodes of a cluster: tasks without a GPU run on those of type index."""

    def __init__(self, cluster: dict[str, Any], index_bytes: int | None = None) -> None:
        types = cluster["available_node_types"]
        self.index = index_bytes or types["index"]["resources"]["memory"]
        self.gpu = types["worker-l4"]["resources"]["memory"]

    def largest_node_bytes(self, gpus: float = 0) -> int:
        return int(self.gpu if gpus else self.index)

    def has_gpu(self) -> bool:
        return True


def asked(profile: Written, nodes: Nodes) -> tuple[Config, IndexTasks, list[Event]]:
    """What a run does before it embeds."""
    events: list[Event] = []
    config, _ = load([str(ROOT / "configs/gpu_cluster.yaml")], [profile.setting])
    plan: Any = SimpleNamespace(rows=profile.documents, space=SimpleNamespace(dim=DIM))
    config = resolved(config, plan, events.append)
    factory = factory_for(config.index, profile.documents, DIM)
    tasks = IndexTasks.of(config, factory, Vectors(profile.documents, DIM), nodes)
    tasks.require_nodes(nodes, events.append)
    return config, tasks, events


def test_there_is_a_profile_for_each_size() -> None:
    assert [p.documents for p in PROFILES] == [10**6, 10**7, 10**8, 10**9]
    assert [p.kind for p in PROFILES] == ["faiss", "faiss", "faiss_ondisk", "lance"]


@pytest.mark.parametrize("profile", PROFILES, ids=lambda p: f"{p.documents:.0e}")
def test_a_run_is_accepted_on_the_nodes_of_its_profile(profile: Written) -> None:
    config, tasks, events = asked(profile, Nodes(profile.cluster))
    assert config.index.kind == profile.kind
    size = tasks.size
    assert size is not None
    assert size.shards == profile.files
    assert size.largest_task / GIB == pytest.approx(profile.task_gib, abs=0.06)
    said = [event.what for event in events if isinstance(event, Notice)]
    assert not any("trained on CPUs" in words or "not checked" in words for words in said)
    assert tasks.train.gpus == int(profile.kind != "lance")
    needed = {tasks.fill.memory} | ({tasks.train.memory} - {tasks.train.memory * tasks.train.gpus})
    with pytest.raises(UsageError, match="fits no node"):
        asked(profile, Nodes(profile.cluster, max(needed) - 1))


@pytest.mark.parametrize("profile", PROFILES, ids=lambda p: f"{p.documents:.0e}")
def test_the_cluster_of_a_profile_is_one_that_ray_starts_and_that_has_the_replicas(
    profile: Written,
) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    cluster = profile.cluster
    validate_config(prepare_config(copy.deepcopy(cluster)))
    embed = load([str(ROOT / "configs/gpu_cluster.yaml")], [profile.setting])[0].embed
    types = cluster["available_node_types"]
    worker = types["worker-l4"]
    assert types["worker-a10g"]["resources"] == worker["resources"]
    assert embed.actors * embed.gpus_per_actor == worker["max_workers"]
    assert cluster["max_workers"] == worker["max_workers"] + types["index"]["max_workers"]
    cores, gib = MACHINES[profile.size]
    assert worker["resources"] == {"CPU": cores, "GPU": 1, "memory": int(0.7 * gib * GIB)}
    (work,) = (p.work for p in SIZES.PROFILES if p.documents == profile.documents)
    assert driver_bytes(work) < 0.5 * 32 * GIB, "the head has 32 GiB"


def test_the_file_as_it_is_has_the_profile_that_it_names() -> None:
    (named,) = re.findall(r"What is below is that of (1e\d) documents", TEXT)
    (profile,) = (p for p in PROFILES if p.documents == float(named))
    assert yaml.safe_load(TEXT) == profile.cluster
    default, _ = load([str(ROOT / "configs/gpu_cluster.yaml")], [])
    assert f"embed.actors={default.embed.actors}" == profile.setting
    machine = yaml.safe_load(TEXT)["available_node_types"]["worker-l4"]["node_config"]
    assert machine["InstanceType"] == f"g6.{profile.size}"


def test_one_machine_with_a_gpu_builds_the_index_of_as_many_documents_as_its_config_says() -> None:
    file = ROOT / "configs/gpu_single.yaml"
    words = r"index of (1e\d) documents, with the (\d+) dimensions of\n# this model, takes a machine of (\d+) GiB"
    found = re.search(words, file.read_text())
    assert found
    rows, dim, gib = int(float(found[1])), int(found[2]), int(found[3])
    config, _ = load([str(file)], [])
    kind, _ = chosen(config, rows, dim)
    assert kind == "faiss"
    factory = factory_for(config.index, rows, dim)
    offered = int(0.7 * gib * GIB)
    nodes = Nodes(yaml.safe_load(TEXT), offered)
    nodes.gpu = offered
    tasks = IndexTasks.of(config, factory, Vectors(rows, dim), nodes)
    tasks.require_nodes(nodes, lambda event: None)
    assert tasks.train.gpus == 1

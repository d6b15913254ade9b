"""cluster.yaml is what Ray's launcher accepts, names what exists, and is closed by default."""

from __future__ import annotations

import copy
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from docs_sizes import SIZES

from reembed.config.settings import load
from reembed.engine.executor import INDEX_NODES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return loaded


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line and line[0] != "#")


def workers(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    """The types that embed."""
    types = cluster["available_node_types"].values()
    return [node for node in types if "GPU" in node["resources"]]


def test_ray_accepts_it(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(cluster)))


def test_images_have_the_pinned_ray_and_a_python_we_support(
    cluster: dict[str, Any], pins: dict[str, str]
) -> None:
    head, worker = cluster["docker"]["head_image"], cluster["docker"]["worker_image"]
    assert head == f"rayproject/ray:{pins['ray']}-py311-cpu"
    assert worker == f"rayproject/ray:{pins['ray']}-py311-gpu"


def test_setup_installs_what_the_project_declares(cluster: dict[str, Any]) -> None:
    commands = cluster["setup_commands"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = re.search(r'"\.\[(\w+)\]"', " ".join(commands))
    assert extra
    assert extra[1] in project["optional-dependencies"]
    assert "reembed" in project["scripts"]
    installs = [c for c in [*commands, *cluster["head_setup_commands"]] if "pip install" in c]
    assert all("-c constraints.txt" in c and c.startswith("cd /home/ray/") for c in installs)


def test_workers_are_spot_gpus_that_come_and_go_and_the_head_is_neither(
    cluster: dict[str, Any],
) -> None:
    for worker in workers(cluster):
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert worker["resources"]["GPU"] == 1
        assert worker["min_workers"] == 0
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert cluster["idle_timeout_minutes"] <= 15


def gpus(cluster: dict[str, Any]) -> int:
    index: int = cluster["available_node_types"]["index"]["max_workers"]
    most: int = cluster["max_workers"]
    return most - index


def test_the_index_is_built_on_a_node_that_stays_and_has_room(cluster: dict[str, Any]) -> None:
    index = cluster["available_node_types"]["index"]
    assert index["min_workers"] >= 1, "a run is checked against the nodes that are up"
    assert "InstanceMarketOptions" not in index["node_config"]
    assert index["resources"][INDEX_NODES] >= 1
    assert index["resources"]["memory"] == int(0.7 * 128 * 2**30)
    for profile in SIZES.PROFILES:
        assert profile.index.largest_task <= index["resources"]["memory"]
        assert profile.cluster.index_cores == index["resources"]["CPU"]


def test_the_cluster_config_fits_on_it(cluster: dict[str, Any]) -> None:
    config, _ = load([str(ROOT / "configs/gpu_cluster.yaml")], [])
    assert config.embed.actors * config.embed.gpus_per_actor <= gpus(cluster)
    for worker in workers(cluster):
        assert worker["max_workers"] == gpus(cluster)
        assert config.embed.cpus_per_actor < worker["resources"]["CPU"]
    assert config.storage.options["aws_region"] == cluster["provider"]["region"]


def commands() -> list[tuple[str, list[str]]]:
    """Every `ray job submit` that a shipped file names, and where."""
    found = []
    patterns = ("*.md", "docs/*.md", "cluster.yaml", "configs/*", "jobs/*.py")
    for name in (str(p.relative_to(ROOT)) for pattern in patterns for p in ROOT.glob(pattern)):
        for line in (ROOT / name).read_text().splitlines():
            if "ray job submit --" in line:
                found.append((name, shlex.split(line.lstrip("# "))))
    return found


def test_every_shipped_job_command_fits_on_it(cluster: dict[str, Any]) -> None:
    found = commands()
    named = {name for name, _ in found}
    assert named >= {"docs/cluster.md", "cluster.yaml", "configs/gpu_cluster.yaml"}
    for name, words in found:
        assert (ROOT / words[words.index("python") + 1]).is_file(), name
        files = [words[i + 1] for i, word in enumerate(words) if word == "-c"]
        settings = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        embed = load([str(ROOT / file) for file in files], settings)[0].embed
        assert embed.gpus_per_actor, name
        assert embed.actors * embed.gpus_per_actor <= gpus(cluster), name


def test_the_page_names_each_step_that_the_file_itself_names() -> None:
    """The job is submitted through a tunnel, with the token: without them it reaches nothing."""
    steps = re.findall(
        r"^#   (ray .*?|export .*?)(?:  +#.*)?$", (ROOT / "cluster.yaml").read_text(), re.M
    )
    page = (ROOT / "docs/cluster.md").read_text()
    needed = [s for s in steps if not s.startswith("ray down")]
    assert len(needed) >= 5
    assert [s for s in needed if s not in page] == []


def test_nothing_is_open_but_ssh_and_everything_asks_for_the_token(
    cluster: dict[str, Any],
) -> None:
    for rule in cluster["provider"]["security_group"]["IpPermissions"]:
        assert (rule["FromPort"], rule["ToPort"]) == (22, 22)
        assert all(ip["CidrIp"] != "0.0.0.0/0" for ip in rule["IpRanges"])
    assert "--dashboard-host=127.0.0.1" in " ".join(cluster["head_start_ray_commands"])
    options = cluster["docker"]["run_options"]
    token = "/home/ray/auth_token"
    assert "-e RAY_AUTH_MODE=token" in options
    assert f"-e RAY_AUTH_TOKEN_PATH={token}" in options
    assert token in cluster["file_mounts"]


def test_the_checkout_goes_up_without_environments_and_data(cluster: dict[str, Any]) -> None:
    assert cluster["file_mounts"]["/home/ray/reembed"] == "."
    assert {".git/", ".venv/", "data/"} <= set(cluster["rsync_exclude"])
    assert all((ROOT / name).exists() for name in cluster["rsync_filter"])


def test_the_head_comment_names_files_that_exist() -> None:
    text = (ROOT / "cluster.yaml").read_text()
    assert all((ROOT / name).exists() for name in re.findall(r"configs/\w+\.yaml", text))
    assert "NOT been\n# launched on a real cloud" in text

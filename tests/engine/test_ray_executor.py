"""What single tasks ask of nodes that come and go; Ray itself is a stub."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from reembed.engine import nodes, ray_executor
from reembed.engine.executor import INDEX_NODES
from reembed.engine.ray_executor import RayExecutor
from reembed.errors import NoCapacity

GIB = 2**30


class StubRay:
    """A cluster whose nodes have these resources; its tasks never end."""

    def __init__(self, *up: dict[str, float]) -> None:
        self.up = list(up)
        self.looks = 0
        self.options: dict[str, Any] = {}

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": resources} for resources in self.up]

    def remote(self, function: Any) -> Any:
        def options(**asked: Any) -> Any:
            self.options = asked
            return SimpleNamespace(remote=lambda *args: "task")

        return SimpleNamespace(options=options)

    def wait(self, running: list[str], timeout: float) -> tuple[list[str], list[str]]:
        """The nodes for the index go away as soon as the task is submitted."""
        self.up = [resources for resources in self.up if INDEX_NODES not in resources]
        self.looks += 1
        assert self.looks < 5, "it waits forever"
        return [], running


def stub(monkeypatch: pytest.MonkeyPatch, *up: dict[str, float]) -> StubRay:
    cluster = StubRay(*up)
    monkeypatch.setattr(nodes, "ray", cluster)
    monkeypatch.setattr(ray_executor, "ray", cluster)
    return cluster


def one(run: RayExecutor) -> None:
    run.call(print)


def many(run: RayExecutor) -> None:
    run.each(print, [()])


@pytest.mark.parametrize("start", [one, many])
def test_a_task_whose_nodes_went_away_is_given_up_though_other_nodes_have_room(
    monkeypatch: pytest.MonkeyPatch, start: Callable[[RayExecutor], None]
) -> None:
    cluster = stub(monkeypatch, {"CPU": 8, INDEX_NODES: 1}, {"CPU": 8})
    run = RayExecutor()
    run._patience_s = 0
    with pytest.raises(NoCapacity) as refused:
        start(run)
    assert INDEX_NODES in cluster.options["resources"]
    assert refused.value.why == (
        f"no node with the resource {INDEX_NODES} has the 1 CPUs, 0 GPUs that it needs"
    )


def test_cpus_are_those_of_a_node_with_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, {"CPU": 64, "memory": 32 * GIB}, {"CPU": 8, "memory": 128 * GIB})
    assert nodes.largest_node_cpus() == 64
    assert nodes.largest_node_cpus(0, 100 * GIB) == 8
    assert nodes.largest_node_cpus(0, 200 * GIB) == 1

"""The nodes of the cluster: where this process runs, who died alone, and what has room."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from types import MappingProxyType

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from reembed.catalog.lease import parent_of
from reembed.engine import ray_internals
from reembed.engine.executor import INDEX_NODES, Needs, WorkerPlace

EMBEDDER = "_Embedder"
"""Part of the class name of each actor that embeds."""
_END_S = 30.0
_SHARE = 0.001
"""Of INDEX_NODES, for each task: its memory and CPUs limit how many run at once."""


def place() -> WorkerPlace:
    """Return where this process runs; empty outside Ray."""
    if not ray.is_initialized():
        return WorkerPlace()
    context = ray.get_runtime_context()
    return WorkerPlace(context.get_node_id(), context.get_job_id(), context.get_actor_id() or "")


def outlived(node: str, job: str) -> bool:
    """Return whether a process there died alone: its driver is ours (a job id is unique within its cluster only),
    and its node is up and not draining.
    """
    if not ray.is_initialized() or job != place().job:
        return False
    return node in live_nodes() and node not in ray_internals.draining_nodes()


def end_embedder(actor: str, pid: int) -> bool:
    """SIGKILL an embedding actor of this driver on its node; return whether it was there.

    `actor` and `pid` come from a record that others may have written: they only choose among the
    embedding actors that Ray says are this driver's, and the process must be a child of its raylet.
    """
    found = ray_internals.live_actor(actor)
    if found is None or (found.job, found.pid) != (place().job, pid):
        return False
    if EMBEDDER not in found.class_name:
        return False
    where = NodeAffinitySchedulingStrategy(node_id=found.node, soft=False)
    task = ray.remote(_end).options(num_cpus=0, scheduling_strategy=where, max_retries=0)
    try:
        return bool(ray.get(task.remote(pid), timeout=_END_S))
    except (RayError, TimeoutError):  # the node is gone, and the process with it
        return False


def _end(pid: int) -> bool:
    """Runs on the node itself: Ray's workers are children of one raylet."""
    if parent_of(pid) != os.getppid():
        return False
    os.kill(pid, signal.SIGKILL)
    return True


def live_nodes() -> set[str]:
    """Return ids of the nodes that are up."""
    return {n["NodeID"] for n in ray.nodes() if n["Alive"]}


def has_room(needs: Needs, place: Mapping[str, float] = MappingProxyType({})) -> bool:
    """Return whether a node that is up, and has these custom resources, would have room if it were free."""
    return any(_fits(needs, node) and node.keys() >= place.keys() for node in _up())


def place_of(needs: Needs) -> dict[str, float]:
    """Return the custom resources that a task asks for: those of the nodes for the index, unless it needs a GPU."""
    if needs.gpus or not any(INDEX_NODES in node for node in _up()):
        return {}
    return {INDEX_NODES: _SHARE}


def _fits(needs: Needs, node: dict[str, float]) -> bool:
    """Return whether a node with these resources would have room if it were free."""
    asked = {"CPU": needs.cpus, "GPU": needs.gpus, "memory": needs.memory}
    return all(node.get(name, 0) >= amount for name, amount in asked.items())


def _up() -> list[dict[str, float]]:
    """Return the resources of each node that is up."""
    return [n["Resources"] for n in ray.nodes() if n["Alive"]]


def _for_tasks(gpus: float, memory: int = 0) -> list[dict[str, float]]:
    """Return the resources of the nodes that a task with so many GPUs and bytes may run on; a head may have no CPU."""
    least = Needs(1, gpus, memory)
    place = place_of(least)
    return [r for r in _up() if _fits(least, r) and r.keys() >= place.keys()]


def why_nothing_starts() -> str:
    """Return what the cluster has free, for an error when no actor is at work."""
    free = ray.available_resources()
    return (
        f"no actor is at work; of {resources()} are free: {free.get('CPU', 0):g} CPUs,"
        f" {free.get('GPU', 0):g} GPUs"
    )


def largest_node_cpus(gpus: float = 0, memory: int = 0) -> int:
    """Return the most CPUs that one task can ask for on a node with so many GPUs and bytes; 1 without one."""
    found = _for_tasks(gpus, memory) or _for_tasks(0, memory)
    return max((int(r["CPU"]) for r in found), default=1)


def largest_node_bytes(gpus: float = 0) -> int:
    """Return the most memory, in bytes, that one task can ask for on a node with `gpus` GPUs; 0 if none is up."""
    return max((int(r.get("memory", 0)) for r in _for_tasks(gpus)), default=0)


def has_gpu() -> bool:
    """Return whether any node of the cluster has a GPU now."""
    return bool(total().get("GPU", 0) >= 1)


def total() -> dict[str, float]:
    """Return all resources of the cluster, by Ray's names."""
    return dict(ray.cluster_resources())


def resources() -> str:
    """Return the cluster's CPUs and GPUs, in words."""
    here = total()
    return f"{here.get('CPU', 0):g} logical CPUs, {here.get('GPU', 0):g} GPUs"

"""Everything that depends on Ray's private modules, in one place: check it at each Ray upgrade.

`tests/engine/test_private_ray.py` starts a real Ray and fails if a name or its effect changed.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from ray._private import ray_constants
from ray._private import utils as ray_utils
from ray._private.state import state as ray_state

from reembed.engine.signals import handled


@contextmanager
def on_loopback() -> Iterator[None]:
    """Make a Ray that is started in the block listen on the loopback only.

    On Linux Ray takes the machine's address even for a cluster of one, so that each of its processes
    listens to the whole network. Ray's switch is meant for desktops, and read once, on import.
    """
    name, before = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    in_environment = os.environ.get(name)
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        if in_environment is None:
            del os.environ[name]
        else:
            os.environ[name] = in_environment


@contextmanager
def signals_wait() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back until the block ends, for the handlers that were set before.

    Ray sets its own handler while it starts; it ends what Ray started and leaves us waiting for it.
    """
    came: list[int] = []
    set_handler = ray_utils.set_sigterm_handler
    ray_utils.set_sigterm_handler = lambda handler: None
    try:
        with handled(lambda number, _: came.append(number)):
            yield
    finally:
        ray_utils.set_sigterm_handler = set_handler
        if came:
            signal.raise_signal(came[0])


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Silence file descriptor 2: Ray's C++ side announces its log level there; errors are Python's."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class LiveActor(NamedTuple):
    """An actor that is alive, as Ray's control store describes it."""

    job: str
    pid: int
    class_name: str
    node: str


def live_actor(actor: str) -> LiveActor | None:
    """Return the actor with this id; None if it is not alive."""
    found = ray_state.actor_table(None, actor_state_name="ALIVE").get(actor)
    if found is None:
        return None
    node = found["Address"]["NodeID"]
    return LiveActor(found["JobID"], found["Pid"], found["ActorClassName"], node)


def draining_nodes() -> set[str]:
    """Return ids of the nodes that are about to be taken away."""
    return set(ray_state.get_draining_nodes())

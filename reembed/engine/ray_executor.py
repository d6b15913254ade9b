"""The executor of production: a Ray cluster, or a private Ray on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import ray
from ray.exceptions import RayError, RayTaskError

from reembed.config.settings import Config
from reembed.engine import cluster, nodes, pipeline, ray_metrics
from reembed.engine.executor import ONE_CPU, Needs
from reembed.engine.ray_errors import reason, unwrapped
from reembed.errors import NoCapacity, RunFailed

T = TypeVar("T")

_TASKS_AT_ONCE = 64
_LOOK_S = 2.0
_RESUME = "reembed status     # the same command resumes"


class RayExecutor:
    """Runs work on Ray, as `Executor` describes."""

    where = "Ray"
    embed = staticmethod(pipeline.embed_units)
    largest_node_cpus = staticmethod(nodes.largest_node_cpus)
    largest_node_bytes = staticmethod(nodes.largest_node_bytes)
    has_gpu = staticmethod(nodes.has_gpu)
    metrics = staticmethod(ray_metrics.exported)

    @contextmanager
    def connected(self, config: Config) -> Iterator[RayExecutor]:
        self._patience_s = config.embed.stall_s
        with cluster.connected(config) as self.where:
            yield self

    def call(self, function: Callable[..., T], *args: Any, needs: Needs = ONE_CPU) -> T:
        """Run a function as one Ray task, outside the driver's memory, and wait for its result.

        Raises:
            ReembedError: the one the function raised.
            NoCapacity: no node had room for it for `embed.stall_s`.
            RunFailed: its process died each time.
        """
        place = nodes.place_of(needs)
        running = _task(function, needs, place).remote(*args)
        self._first_done([running], needs, place)
        return cast(T, _result(running))

    def each(
        self,
        function: Callable[..., T],
        items: Iterable[tuple[Any, ...]],
        needs: Needs = ONE_CPU,
    ) -> list[T]:
        """Run a function over items as Ray tasks, a few at a time; return the results in the items' order.

        Raises as `call`, for the first that fails.
        """
        place = nodes.place_of(needs)
        task = _task(function, needs, place)
        found: dict[int, T] = {}
        running: dict[Any, int] = {}

        def collect() -> None:
            done = self._first_done(list(running), needs, place)
            found[running.pop(done)] = _result(done)

        for number, item in enumerate(items):
            if len(running) >= _TASKS_AT_ONCE:
                collect()
            running[task.remote(*item)] = number
        while running:
            collect()
        return [found[number] for number in sorted(found)]

    def _first_done(self, running: list[Any], needs: Needs, place: Mapping[str, float]) -> Any:
        """Wait for one of these tasks, at most `embed.stall_s` while no node has room for it.

        `place` is what they were submitted with: nodes that came or went since do not change it.
        """
        had_room = time.monotonic()
        while True:
            done, _ = ray.wait(running, timeout=_LOOK_S)
            if done:
                return done[0]
            waited = time.monotonic() - had_room
            if nodes.has_room(needs, place):
                had_room = time.monotonic()
            elif waited > self._patience_s:
                kind = "".join(f" with the resource {name}" for name in place)
                raise NoCapacity(
                    f"a task waited {waited:,.0f} s for a node (embed.stall_s)",
                    f"no node{kind} has the {needs} that it needs",
                    _RESUME,
                )


def _task(function: Callable[..., Any], needs: Needs, place: Mapping[str, float]) -> Any:
    """Return the function as a Ray task; its memory is what Ray counts with, not a limit."""
    return ray.remote(function).options(
        num_cpus=needs.cpus,
        num_gpus=needs.gpus,
        memory=needs.memory or None,
        resources=dict(place),
        max_retries=3,
    )


def _result(task: Any) -> Any:
    try:
        return ray.get(task)
    except RayTaskError as error:
        raise unwrapped(error) from error
    except RayError as error:
        what = "a task on the cluster died each time it was tried"
        raise RunFailed(what, reason(error), _RESUME) from error

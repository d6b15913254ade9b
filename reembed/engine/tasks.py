"""Single functions as Ray tasks, and the errors that they end in."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from reembed.engine import nodes
from reembed.errors import NoCapacity, ReembedError, RunFailed

T = TypeVar("T")
_TASKS_AT_ONCE = 64
_LOOK_S = 2.0


def call(
    function: Callable[..., T], *args: Any, cpus: int = 1, gpus: float = 0, patience_s: float
) -> T:
    """Run a function as one Ray task, outside the driver's memory, and wait for its result.

    Raises:
        ReembedError: the one the function raised.
        NoCapacity: no node had room for it for `patience_s`.
        RunFailed: its process died each time.
    """
    task = ray.remote(function).options(num_cpus=cpus, num_gpus=gpus, max_retries=3)
    running = task.remote(*args)
    _first_done([running], cpus, gpus, patience_s)
    return cast(T, _result(running))


def each(
    function: Callable[..., T], items: Iterable[tuple[Any, ...]], *, patience_s: float
) -> list[T]:
    """Run a function over items as Ray tasks, a few at a time; return the results in the items' order.

    Raises:
        ReembedError, NoCapacity, RunFailed: as `call`, of the first that fails.
    """
    task = ray.remote(function).options(num_cpus=1, max_retries=3)
    found: dict[int, T] = {}
    running: dict[Any, int] = {}

    def collect() -> None:
        done = _first_done(list(running), 1, 0, patience_s)
        found[running.pop(done)] = _result(done)

    for number, item in enumerate(items):
        if len(running) >= _TASKS_AT_ONCE:
            collect()
        running[task.remote(*item)] = number
    while running:
        collect()
    return [found[number] for number in sorted(found)]


def _first_done(running: list[Any], cpus: float, gpus: float, patience_s: float) -> Any:
    """Wait for one of these tasks, at most `patience_s` while no node has room for it."""
    had_room = time.monotonic()
    while True:
        done, _ = ray.wait(running, timeout=_LOOK_S)
        if done:
            return done[0]
        if nodes.has_room(cpus, gpus):
            had_room = time.monotonic()
        elif (waited := time.monotonic() - had_room) > patience_s:
            raise NoCapacity(
                f"a task waited {waited:,.0f} s for a node (embed.stall_s)",
                f"no node of the cluster has the {cpus:g} CPUs and {gpus:g} GPUs that it needs",
                "reembed status     # the same command resumes",
            )


def _result(task: Any) -> Any:
    try:
        return ray.get(task)
    except RayTaskError as error:
        raise unwrapped(error) from error
    except RayError as error:
        raise RunFailed(
            "a task on the cluster died each time it was tried",
            reason(error),
            "reembed status     # the same command resumes",
        ) from error


def reason(error: BaseException) -> str:
    """Return what went wrong in the worker, without Ray's words around it."""
    while isinstance(error, RayTaskError) or error.__cause__ is not None:
        inner = getattr(error, "cause", None) or error.__cause__
        if inner is None or inner is error or not str(inner).strip():
            break
        error = inner
    lines = str(error).strip().splitlines() or ["no message"]
    # For an actor that could not start, Ray keeps only the traceback, which ends in the cause.
    said = lines[-1] if isinstance(error, RayActorError) else lines[0]
    return f"{type(error).__name__}: {said.strip()}"


def unwrapped(error: BaseException) -> BaseException:
    """Return the ReembedError that a Ray error carries, or the error itself."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ReembedError):
            return cause if not isinstance(cause, RayTaskError) else _plain(cause)
        cause = getattr(cause, "cause", None) or cause.__cause__
    return error


def _plain(error: Any) -> ReembedError:
    """The cause alone: Ray raises a class that is both RayTaskError and the cause's, which prints badly."""
    cause: ReembedError = error.cause
    return cause

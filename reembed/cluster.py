"""Where Ray runs: the cluster a job was submitted to, or a private one on this machine."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError

from reembed.config import Config
from reembed.errors import ReembedError, UsageError

T = TypeVar("T")
_SPARE_CPUS = 2  # reading, tokenizing and writing go on beside the actors


@contextmanager
def connected(config: Config) -> Iterator[str]:
    """Connect to Ray for the block; yields one line that says where.

    Raises:
        UsageError: GPUs are asked for on this machine, which has none.
    """
    if ray.is_initialized():
        yield "the Ray that is running"
        return
    address = config.ray.address or os.environ.get("RAY_ADDRESS")
    # Ray's C++ side prints a warning about its own Ray Data actors on every start.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    warnings.filterwarnings("ignore", "lance is not fork-safe")  # Ray forks only to exec
    if address:
        with _quiet_stderr():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        where = f"Ray cluster with {_resources()}"
    else:
        needed = config.embed.actors * config.embed.cpus_per_actor + _SPARE_CPUS
        with _quiet_stderr():
            ray.init(
                address="local",
                num_cpus=config.ray.num_cpus or needed,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        where = f"private Ray on this machine with {_resources()}"
    try:
        _require_room(config, private=not address)
        yield where
    finally:
        ray.shutdown()


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Ray's C++ side announces its own log level on file descriptor 2; errors are Python's."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _total() -> dict[str, float]:
    return dict(ray.cluster_resources())


def _resources() -> str:
    total = _total()
    return f"{total.get('CPU', 0):g} logical CPUs, {total.get('GPU', 0):g} GPUs"


def _require_room(config: Config, *, private: bool) -> None:
    """A private Ray cannot grow: what does not fit now would wait for ever."""
    if not private:
        return
    per_actor = 1 if config.embed.gpus_per_actor else config.embed.cpus_per_actor
    cpus, cpus_here = config.embed.actors * per_actor, _total().get("CPU", 0)
    if cpus >= cpus_here:
        raise UsageError(
            f"the actors take {cpus} logical CPUs, ray.num_cpus is {cpus_here:g}",
            "they would wait for ever, or leave nothing to read and write with",
            "reembed run --set ray.num_cpus=null     (what the actors need, and two more)",
        )
    need, have = config.embed.actors * config.embed.gpus_per_actor, _total().get("GPU", 0)
    if need > have:
        raise UsageError(
            f"embed.actors x embed.gpus_per_actor needs {need:g} GPUs, this machine has {have:g}",
            "the actors would wait for ever",
            "reembed run --set embed.gpus_per_actor=0     (or embed.actors to fit)",
        )


def call(function: Callable[..., T], *args: Any, cpus: int = 1, gpus: float = 0) -> T:
    """Run a function as one Ray task and wait: its memory and its GPU are not the driver's.

    Raises:
        ReembedError: the one the function raised.
    """
    task = ray.remote(function).options(num_cpus=cpus, num_gpus=gpus, max_retries=3)
    try:
        return ray.get(task.remote(*args))  # type: ignore[no-any-return]
    except RayTaskError as error:
        raise unwrapped(error) from error


def largest_node_cpus() -> int:
    """CPUs of the largest node that is up: the most that one task can ask for."""
    nodes = ray.nodes()
    return max(int(n["Resources"].get("CPU", 0)) for n in nodes if n["Alive"]) or 1


def reason(error: BaseException) -> str:
    """What really went wrong: the exception raised in the worker, not Ray's words around it."""
    while isinstance(error, RayTaskError) or error.__cause__ is not None:
        inner = getattr(error, "cause", None) or error.__cause__
        if inner is None or inner is error:
            break
        error = inner
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first}"


def has_gpu() -> bool:
    """Whether any node of the cluster has a GPU now."""
    return bool(_total().get("GPU", 0) >= 1)


def unwrapped(error: BaseException) -> BaseException:
    """The ReembedError a Ray error carries, or the error itself."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ReembedError):
            return cause if not isinstance(cause, RayTaskError) else _plain(cause)
        cause = getattr(cause, "cause", None) or cause.__cause__
    return error


def _plain(error: Any) -> ReembedError:
    """Ray raises a class that is both RayTaskError and the cause's; the cause alone prints well."""
    cause: ReembedError = error.cause
    return cause

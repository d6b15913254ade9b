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
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        where = f"Ray cluster with {_resources()}"
    else:
        needed = config.embed.actors * config.embed.cpus_per_actor + _SPARE_CPUS
        ray.init(
            address="local",
            num_cpus=config.ray.num_cpus or needed,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        where = f"private Ray on this machine with {_resources()}"
    try:
        if not address:
            _require_gpus(config)
        yield where
    finally:
        ray.shutdown()


def _total() -> dict[str, float]:
    return dict(ray.cluster_resources())


def _resources() -> str:
    total = _total()
    return f"{total.get('CPU', 0):g} logical CPUs, {total.get('GPU', 0):g} GPUs"


def _require_gpus(config: Config) -> None:
    need, have = (
        config.embed.actors * config.embed.gpus_per_actor,
        _total().get("GPU", 0),
    )
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

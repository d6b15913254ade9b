"""Where Ray runs: the cluster that a job was submitted to, or a private one on this machine."""

from __future__ import annotations

import logging
import os
import shlex
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import ray
from ray.exceptions import AuthenticationError

from reembed.config.settings import Config
from reembed.engine import ray_auth
from reembed.engine.nodes import resources, total
from reembed.engine.ray_errors import reason
from reembed.engine.ray_internals import on_loopback, quiet_stderr, signals_wait
from reembed.errors import ReembedError, RunFailed, UsageError

READER = "reembed-rows"
"""Name of the thread that reads what the job gives."""
_SPARE_CPUS = 2  # reading, tokenizing and writing go on beside the actors


@contextmanager
def connected(config: Config) -> Iterator[str]:
    """Connect to Ray for the block; yield where, in one line.

    Raises:
        UsageError: this machine has too few GPUs or CPUs, or the cluster cannot be reached or is open to anyone.
    """
    if ray.is_initialized():
        yield "a Ray that is already running"
        return
    address = ray_auth.cluster_address(config.ray.address)
    note = ray_auth.require_token(address, config.ray.allow_unauthenticated) if address else ""
    # Ray's C++ side prints a warning about its own Ray Data actors on every start.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    warnings.filterwarnings("ignore", "lance is not fork-safe")  # Ray forks only to exec
    with nullcontext("") if address else ray_auth.session_folder() as folder:
        try:
            where = _connect(address) + note if address else _start(config, folder)
            if not address:
                _require_room(config)
            yield where
        finally:  # also after a signal during Ray's start: exiting without it aborts
            if not is_left_running():
                ray.shutdown()


def is_left_running() -> bool:
    """Return whether a job is still being read: shutting Ray down would abort the process, which must end
    by `os._exit` instead; its private Ray ends with it.
    """
    return any(t.name == READER and t.is_alive() for t in threading.enumerate())


def _start(config: Config, folder: str) -> str:
    """Start a private Ray with its session below a folder, in two tries; return where it is, in words."""
    needed = config.embed.actors * config.embed.cpus_per_actor + _SPARE_CPUS
    failed = again = ""
    for attempt in (1, 2):
        try:
            with quiet_stderr(), on_loopback(), ray_auth.private_token(), signals_wait():
                ray.init(
                    address="local",
                    num_cpus=config.ray.num_cpus or needed,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _temp_dir=f"{folder}/{attempt}",
                )
        except ReembedError:
            raise
        except Exception as error:  # noqa: BLE001 - what Ray raises when it is late is bare
            ray.shutdown()
            failed = reason(error)
            again = f" (at the second try; the first: {failed})"
            continue
        return f"private Ray on this machine with {resources()}{again}{ray_auth.exposed_token()}"
    raise RunFailed(
        "Ray did not start on this machine, twice",
        f"{failed}; this machine may be too busy, or short of memory",
        f"reembed run     # when it is less busy; Ray's logs: {folder}/2/session_latest/logs",
    )


def _connect(address: str) -> str:
    """Connect to a cluster; return what it has, in words."""
    try:
        with quiet_stderr(), signals_wait():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, AuthenticationError) as error:
        raise UsageError(
            f"cannot connect to the Ray cluster at {address}",
            (str(error) or type(error).__name__).splitlines()[0],
            f"ray status --address {shlex.quote(address)}     # its token: ~/.ray/auth_token or RAY_AUTH_TOKEN",
        ) from error
    return f"Ray cluster with {resources()}"


def _require_room(config: Config) -> None:
    """Refuse what does not fit on a private Ray: it cannot grow, so the run would wait indefinitely."""
    cpus, cpus_here = config.embed.actors * config.embed.actor_cpus, total().get("CPU", 0)
    if cpus >= cpus_here:
        raise UsageError(
            f"the actors take {cpus} logical CPUs, ray.num_cpus is {cpus_here:g}",
            "they would wait forever, or leave no CPU for reading and writing",
            "reembed run --set ray.num_cpus=null     # what the actors need, and two more",
        )
    need, have = config.embed.actors * config.embed.gpus_per_actor, total().get("GPU", 0)
    if need > have:
        raise UsageError(
            f"embed.actors x embed.gpus_per_actor needs {need:g} GPUs, this machine has {have:g}",
            "the actors would wait forever",
            "reembed run --set embed.gpus_per_actor=0     # or embed.actors to fit",
        )

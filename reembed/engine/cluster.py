"""Where Ray runs: the cluster a job was submitted to, or a private one on this machine."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, TypeVar, cast

import ray
from ray._private import ray_constants
from ray._private import utils as ray_utils
from ray._private.state import state as ray_state
from ray.exceptions import AuthenticationError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from reembed.catalog.lease import parent_of
from reembed.config.settings import Config
from reembed.engine import access
from reembed.engine import signals as stop
from reembed.errors import NoCapacity, ReembedError, RunFailed, UsageError

T = TypeVar("T")
_TASKS_AT_ONCE = 64
_END_S = 30.0
_LOOK_S = 2.0
READER = "reembed-rows"
"""Name of the thread that reads what the job gives."""
EMBEDDER = "_Embedder"
"""In the name of the class of each actor that embeds."""
_SPARE_CPUS = 2  # reading, tokenizing and writing go on beside the actors


@contextmanager
def connected(config: Config) -> Iterator[str]:
    """Connect to Ray for the block; yields one line that says where.

    Raises:
        UsageError: GPUs are asked for on this machine, which has none, or the cluster cannot be
            reached, or is open to whoever reaches it.
    """
    if ray.is_initialized():
        yield "the Ray that is running"
        return
    address = access.cluster_address(config.ray.address)
    note = access.require_token(address, config.ray.allow_unauthenticated) if address else ""
    # Ray's C++ side prints a warning about its own Ray Data actors on every start.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    warnings.filterwarnings("ignore", "lance is not fork-safe")  # Ray forks only to exec
    with nullcontext("") if address else access.session_folder() as folder:
        try:
            where = _connect(address) + note if address else _start(config, folder)
            _require_room(config, private=not address)
            yield where
        finally:  # also where a signal came while Ray started: what exits without it aborts
            if not is_left_running():
                ray.shutdown()


def is_left_running() -> bool:
    """Whether a job is still being read: shutting Ray down under it aborts the process.

    The process must then end by `os._exit`; its private Ray ends with it.
    """
    return any(t.name == READER and t.is_alive() for t in threading.enumerate())


def _start(config: Config, folder: str) -> str:
    """A Ray of our own, with its session below a folder; where it is, in words.

    Raises:
        RunFailed: it did not start, twice.
    """
    failed = ""
    for attempt in (1, 2):
        try:
            _init(config, f"{folder}/{attempt}")
        except ReembedError:
            raise
        except Exception as error:  # noqa: BLE001 - what Ray raises when it is late is bare
            ray.shutdown()
            failed = reason(error)
            continue
        again = f" (at the second try; the first: {failed})" if failed else ""
        return f"private Ray on this machine with {_resources()}{again}{access.exposed_token()}"
    raise RunFailed(
        "Ray did not start on this machine, twice",
        f"{failed}; this machine may be too busy, or short of memory",
        f"reembed run     # when it is less busy; Ray's own words: {folder}/2/session_latest/logs",
    )


def _init(config: Config, folder: str) -> None:
    needed = config.embed.actors * config.embed.cpus_per_actor + _SPARE_CPUS
    with _quiet_stderr(), _on_loopback(), access.token_for_us_alone(), _signals_wait():
        ray.init(
            address="local",
            num_cpus=config.ray.num_cpus or needed,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=folder,
        )


def _connect(address: str) -> str:
    """The cluster there; what it has, in words."""
    try:
        with _quiet_stderr(), _signals_wait():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, AuthenticationError) as error:
        raise UsageError(
            f"cannot connect to the Ray cluster at {address}",
            (str(error) or type(error).__name__).splitlines()[0],
            f"ray status --address {shlex.quote(address)}     # its token: ~/.ray/auth_token or RAY_AUTH_TOKEN",
        ) from error
    return f"Ray cluster with {_resources()}"


@contextmanager
def _on_loopback() -> Iterator[None]:
    """A Ray started in the block listens on the loopback alone.

    On Linux Ray takes the machine's address even for a cluster of one, and then every process of it
    listens to the whole network. It has a switch, meant for desktops: read once, on import.
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
def _signals_wait() -> Iterator[None]:
    """SIGINT and SIGTERM during the block come right after it, to whoever took them before.

    Ray's start sets a handler of its own, which ends what Ray started and leaves us waiting for it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    set_handler = ray_utils.set_sigterm_handler
    ray_utils.set_sigterm_handler = lambda handler: None
    before = {s: signal.signal(s, lambda n, _: came.append(n)) for s in stop.SIGNALS}
    try:
        yield
    finally:
        ray_utils.set_sigterm_handler = set_handler
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


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
    cpus, cpus_here = config.embed.actors * config.embed.actor_cpus, _total().get("CPU", 0)
    if cpus >= cpus_here:
        raise UsageError(
            f"the actors take {cpus} logical CPUs, ray.num_cpus is {cpus_here:g}",
            "they would wait for ever, or leave nothing to read and write with",
            "reembed run --set ray.num_cpus=null     # what the actors need, and two more",
        )
    need, have = config.embed.actors * config.embed.gpus_per_actor, _total().get("GPU", 0)
    if need > have:
        raise UsageError(
            f"embed.actors x embed.gpus_per_actor needs {need:g} GPUs, this machine has {have:g}",
            "the actors would wait for ever",
            "reembed run --set embed.gpus_per_actor=0     # or embed.actors to fit",
        )


def call(
    function: Callable[..., T], *args: Any, cpus: int = 1, gpus: float = 0, patience_s: float
) -> T:
    """Run a function as one Ray task and wait: its memory and its GPU are not the driver's.

    Raises:
        ReembedError: the one the function raised.
        NoCapacity: no node had room for it, for `patience_s`.
        RunFailed: its process died each time.
    """
    task = ray.remote(function).options(num_cpus=cpus, num_gpus=gpus, max_retries=3)
    running = task.remote(*args)
    _first_done([running], cpus, gpus, patience_s)
    return cast(T, _result(running))


def each(
    function: Callable[..., T], items: Iterable[tuple[Any, ...]], *, patience_s: float
) -> list[T]:
    """Run a function over items as Ray tasks, a few at a time; results in the items' order.

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
    """Wait for one of these tasks, but not for ever where no node has room for it."""
    had_room = time.monotonic()
    while True:
        done, _ = ray.wait(running, timeout=_LOOK_S)
        if done:
            return done[0]
        if has_room(cpus, gpus):
            had_room = time.monotonic()
        elif (waited := time.monotonic() - had_room) > patience_s:
            raise NoCapacity(
                f"a task waited {waited:,.0f} s for a node (embed.stall_s)",
                f"no node of the cluster has the {cpus:g} CPUs and {gpus:g} GPUs of it",
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


class Place(NamedTuple):
    """Where a process of Ray works: ids of its node, of its driver's job, of its actor."""

    node: str = ""
    job: str = ""
    actor: str = ""


def place() -> Place:
    """Where this process works; empty outside of Ray."""
    if not ray.is_initialized():
        return Place()
    context = ray.get_runtime_context()
    return Place(context.get_node_id(), context.get_job_id(), context.get_actor_id() or "")


def outlived(node: str, job: str) -> bool:
    """Whether a process there died alone: its driver is ours, and its node is up and not to be drained.

    A job's id is only one within its cluster; a node's is one everywhere.
    """
    if not ray.is_initialized() or job != place().job:
        return False
    return node in live_nodes() and node not in ray_state.get_draining_nodes()


def end_embedder(actor: str, pid: int) -> bool:
    """SIGKILL an embedding actor of this driver on its node; whether it was there.

    `actor` and `pid` come from a record that others may have written: they only choose among the
    embedding actors that Ray says are this driver's, and the process must be a child of its raylet.
    """
    found = ray_state.actor_table(None, actor_state_name="ALIVE").get(actor)
    if found is None or (found["JobID"], found["Pid"]) != (place().job, pid):
        return False
    if EMBEDDER not in found["ActorClassName"]:
        return False
    where = NodeAffinitySchedulingStrategy(node_id=found["Address"]["NodeID"], soft=False)
    task = ray.remote(_end).options(num_cpus=0, scheduling_strategy=where, max_retries=0)
    try:
        return bool(ray.get(task.remote(pid), timeout=_END_S))
    except (RayError, TimeoutError):  # the node is gone, and the process with it
        return False


def _end(pid: int) -> bool:
    """On the node itself: Ray's workers are children of one raylet."""
    if parent_of(pid) != os.getppid():
        return False
    os.kill(pid, signal.SIGKILL)
    return True


def live_nodes() -> set[str]:
    """Ray's ids of the nodes that are up."""
    return {n["NodeID"] for n in ray.nodes() if n["Alive"]}


def has_room(cpus: float, gpus: float) -> bool:
    """Whether an actor of this size fits on any node that is up, were it free."""
    here = (n["Resources"] for n in ray.nodes() if n["Alive"])
    return any(r.get("CPU", 0) >= cpus and r.get("GPU", 0) >= gpus for r in here)


def why_nothing_starts() -> str:
    """What the cluster has, where no worker says that it is at work."""
    free = ray.available_resources()
    return (
        f"no actor is at work; of {_resources()} are free: {free.get('CPU', 0):g} CPUs,"
        f" {free.get('GPU', 0):g} GPUs"
    )


def largest_node_cpus(gpus: float = 0) -> int:
    """CPUs of the largest node that is up and has so many GPUs: the most that one task can ask for."""
    here = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    fitting = [r for r in here if r.get("GPU", 0) >= gpus] or here
    return max(int(r.get("CPU", 0)) for r in fitting) or 1


def reason(error: BaseException) -> str:
    """What really went wrong: the exception raised in the worker, not Ray's words around it."""
    while isinstance(error, RayTaskError) or error.__cause__ is not None:
        inner = getattr(error, "cause", None) or error.__cause__
        if inner is None or inner is error or not str(inner).strip():
            break
        error = inner
    lines = str(error).strip().splitlines() or ["no message"]
    # Of an actor that could not start Ray keeps the traceback alone, and that ends in the cause.
    said = lines[-1] if isinstance(error, RayActorError) else lines[0]
    return f"{type(error).__name__}: {said.strip()}"


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

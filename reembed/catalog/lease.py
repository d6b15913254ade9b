"""Who is at work on a run: the process that drives it, and the workers that embed.

runs/RUN/leases/00000001.json    who drives it; the newest counts
runs/RUN/workers/WORKER.json     who embeds which unit now
"""

from __future__ import annotations

import itertools
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from obstore.exceptions import BaseError

from reembed.catalog.runs import Run
from reembed.errors import Conflict
from reembed.store.records import decode, encode

BEAT_S = 5.0
_WORKER = re.compile(r"[0-9a-f]{32}\.json")


@dataclass(frozen=True)
class Lease:
    """Who drives a run. Advisory: it saves work; exactness rests on create-only receipts."""

    number: int
    host: str
    machine: str
    """Host, boot and pid namespace in which `pid` is valid, as `machine` returns them."""
    pid: int
    pid_started: str
    beat: int = 0
    released: bool = False

    @property
    def on_this_machine(self) -> bool:
        """Whether its process can be looked up here; where in doubt, not."""
        return self.machine == machine() != "" and not _is_hidden(self.pid)

    @property
    def process_lives(self) -> bool:
        """Whether its process still runs (only meaningful on this machine)."""
        return process_started(self.pid) == self.pid_started


def machine() -> str:
    """Host, boot and pid namespace of this process, within which a pid names one process.

    Containers of one host share its boot id, and may share its name. Empty where any part is unknown,
    or where /proc shows the processes of another namespace.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
        own = os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return ""
    return f"{platform.node()}/{boot}/{namespace}" if boot and own else ""


def _is_hidden(pid: int) -> bool:
    """Whether a process exists that this user may not look at: /proc mounted with hidepid."""
    if process_started(pid) is not None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return False


def process_started(pid: int) -> str | None:
    """Return its start time in clock ticks since boot: a reused pid has another. None if it does not run."""
    fields = _stat(pid)
    if fields is None or fields[0] == "Z":
        return None
    return fields[19]


def parent_of(pid: int) -> int | None:
    """Return the pid of its parent."""
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the state on."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rsplit(")", 1)[-1].split()


def read_lease(run: Run) -> Lease | None:
    """Return the newest lease; None if there is none."""
    if not (names := run.numbered("leases/")):
        return None
    return decode(Lease, run.storage.read(run.path(f"leases/{names[-1]}")))


def is_driven(run: Run, watch_s: float = 3 * BEAT_S) -> bool:
    """Return whether a live process drives the run.

    On this machine its process is looked up. Elsewhere its beat is watched for `watch_s` seconds,
    because clocks of hosts differ.
    """
    lease = read_lease(run)
    if lease is None or lease.released:
        return False
    if lease.on_this_machine:
        return lease.process_lives
    deadline = time.monotonic() + watch_s
    while time.monotonic() < deadline:
        time.sleep(min(BEAT_S / 2, watch_s))
        newest = read_lease(run)
        if newest is not None and (newest.number, newest.beat) != (lease.number, lease.beat):
            return not newest.released
    return False


@contextmanager
def driving(run: Run) -> Iterator[None]:
    """Hold the run's lease while the block runs.

    Raises:
        Conflict: another live process drives this run.
    """
    held, number = read_lease(run), 1
    if held is not None:
        number = held.number + 1
        if is_driven(run):
            raise Conflict(
                f"run {run.id} is already being driven by process {held.pid} on {held.host}",
                "two drivers of one plan would embed every unit twice",
                "reembed status",
            )
    pid = os.getpid()
    mine = Lease(number, platform.node(), machine(), pid, process_started(pid) or "")
    path = run.path(f"leases/{number:08d}.json")
    if not run.storage.create(path, encode(mine)):
        raise Conflict(
            f"run {run.id} was taken by another process just now", None, "reembed status"
        )
    beats = itertools.count(1)

    def beat() -> None:
        run.storage.write(path, encode(replace(mine, beat=next(beats))))

    try:
        with repeating(BEAT_S, beat):
            yield
    finally:
        with suppress(OSError, BaseError):  # a full disk must not hide what ended the block
            run.storage.write(path, encode(replace(mine, released=True)))


@contextmanager
def repeating(seconds: float, work: Callable[[], None]) -> Iterator[None]:
    """Call `work` at a fixed interval, in a thread, while the block runs."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(seconds):
            with suppress(OSError, BaseError):  # the next call may succeed
                work()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@dataclass(frozen=True)
class UnitAttempt:
    """An attempt at a unit."""

    unit: str
    attempt: int


@dataclass(frozen=True)
class Worker:
    """A process that embeds, as it recorded itself."""

    id: str
    unit: str
    """The unit that its model is at."""
    attempt: int
    following: tuple[UnitAttempt, ...]
    """Prepared units: the model may be at one of them by now."""
    tries: int
    """How often it went on after it had waited for the model's provider."""
    node: str
    """Ray's id of its node, of the driver's job and of its actor; empty outside of Ray."""
    job: str
    actor: str
    pid: int
    at: str

    @property
    def at_work(self) -> tuple[UnitAttempt, ...]:
        """Every attempt that may be at work."""
        return (UnitAttempt(self.unit, self.attempt), *self.following)


def workers(run: Run) -> list[Worker]:
    """Return the workers that embed now or were killed while embedding."""
    names = filter(_WORKER.fullmatch, run.storage.names(run.path("workers/")))
    found = (run.storage.read_if_there(run.path(f"workers/{name}")) for name in names)
    return [decode(Worker, w) for w in found if w is not None]

"""Faults in every file operation of a small migration on a local disk; then the same commands again.

Replay one case: PYTHONPATH=tests python -m crash.syscalls KIND AT [lazy]
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from crash.forks import Ended, ForkServer
from crash.migration import Place, lazy_migration, prepared, told, violations

KINDS = (
    "kill_before",  # the operation
    "kill_after",
    "torn",  # killed when half of the bytes are written
    "no_space",  # this operation only
    "io_error",
    "disk_full",  # this operation and all later ones that need space
    "last_write",  # of a data file finds the disk full; the number counts data files
)
_NUMBERS = {"none": 0} | {k: i for i, k in enumerate(KINDS, 1)}
_FATAL = ("kill_before", "kill_after", "torn")
_SHRINKING = ("unlink", "unlinkat", "rmdir")
_WORKERS = 2
_TRIES = 2  # a case may name an operation that this history did not come to


class _State(ctypes.Structure):
    """As in syscall_shim.c."""

    _fields_ = (
        ("kind", ctypes.c_int),
        ("at", ctypes.c_int),
        ("paused", ctypes.c_int),
        ("counted", ctypes.c_int),
        ("injected", ctypes.c_int),
        ("operation", ctypes.c_char * 16),
        ("path", ctypes.c_char * 512),
        ("folder", ctypes.c_char * 256),
        ("log", ctypes.c_int),
    )


@dataclass(frozen=True)
class Case:
    """One fault."""

    kind: str
    at: int
    lazily: bool = False

    @property
    def replay(self) -> str:
        """Runs it alone."""
        lazy = " lazy" if self.lazily else ""
        return f"PYTHONPATH=tests python -m crash.syscalls {self.kind} {self.at}{lazy}"


@dataclass(frozen=True)
class Result:
    """What came of a case."""

    case: Case
    injected: int
    """Faults that the process met."""
    operation: str
    """The first of them."""
    said: str | None
    """The error that the command ended with; None: success, or killed."""
    violations: list[str]


def compiler() -> str | None:
    """A C compiler, if this machine has one."""
    return next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)


def compile_shim(folder: Path) -> Path:
    """The shim as a shared library."""
    source, shim = Path(__file__).with_name("syscall_shim.c"), folder / "syscall_shim.so"
    command = [compiler() or "cc", "-O1", "-shared", "-fPIC", "-o", str(shim), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return shim


_armed: list[_State] = []  # the filter needs it for as long as the process lives


class Faults:
    """Of this process and all threads that it starts later."""

    def __init__(self, shim: str, folder: str, case: Case, log: str | None = None) -> None:
        """Nothing happens yet.

        Raises:
            OSError: this system allows no seccomp filter.
        """
        self._state = _mapped(Path(folder, "state"))
        self._state.paused = 1
        self._state.kind, self._state.at = _NUMBERS[case.kind], case.at
        self._state.folder = str(Path(folder, "watched")).encode()
        self._state.log = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND) if log else -1
        _armed.append(self._state)
        error = ctypes.CDLL(shim).arm(ctypes.byref(self._state))
        if error:
            raise OSError(error, f"no system call filter: {os.strerror(error)}")

    def go(self) -> None:
        """From here on operations count."""
        self._state.paused = 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Operations of this block do not count."""
        self._state.paused = 1
        yield
        self._state.paused = 0


def _mapped(file: Path) -> _State:
    """Shared with whoever else maps the file; outlives a killed process."""
    size = ctypes.sizeof(_State)
    if not file.exists():
        file.write_bytes(bytes(size))
    with file.open("r+b") as opened:
        return _State.from_buffer(mmap.mmap(opened.fileno(), size))


def _place(folder: str, *, lazily: bool) -> Place:
    watched = Path(folder, "watched")
    return Place(str(watched / "source.lance"), str(watched / "root"), lazily=lazily)


def suffer(task: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own: the migration, through one fault."""
    folder = task["folder"]
    tempfile.tempdir = str(Path(folder, "watched", "tmp"))
    Path(tempfile.tempdir).mkdir(parents=True)
    faults = Faults(task["shim"], folder, Case(**task["case"]), task.get("log"))
    place = _place(folder, lazily=task["case"]["lazily"])
    prepared(place)
    acks = os.open(Path(folder, "acks"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def acknowledge(command: str, said: dict[str, Any]) -> None:
        os.write(acks, json.dumps([command, said]).encode() + b"\n")

    faults.go()
    said = told(place, acknowledge, faults.paused)
    return {"said": said}


def recover(task: dict[str, Any]) -> list[str]:
    """In a process of its own, without faults: the same commands to their end, and what does not hold."""
    folder, lazily = task["folder"], task["case"]["lazily"]
    place, acks = _place(folder, lazily=lazily), Path(folder, "acks")
    acknowledged = [json.loads(line) for line in acks.read_text().splitlines()]
    if lazily and (wrong := lazy_migration().between(place, acknowledged)):
        return list(wrong)
    failed = told(place, lambda command, said: acknowledged.append((command, said)))
    if failed:
        return [f"the same commands fail without faults: {failed}"]
    return violations(place, acknowledged)


def stock_write(task: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own: Lance alone, the disk full at the last write of its data file."""
    import pyarrow as pa
    from lance.fragment import write_fragments

    folder = task["folder"]
    Path(folder, "watched").mkdir(parents=True)
    faults = Faults(task["shim"], folder, Case("last_write", 1))
    faults.go()
    table = pa.table({"id": list(range(1000))})
    (fragment,) = write_fragments(table, f"{folder}/watched/t.lance")
    (file,) = fragment.files
    on_disk = Path(folder, "watched", "t.lance", "data", file.path).stat().st_size
    return {"reported": file.file_size_bytes, "on_disk": on_disk}


def operations(
    server: ForkServer, shim: Path, workdir: Path, *, lazily: bool = False
) -> list[tuple[str, str]]:
    """(operation, path) of every one in a migration without faults."""
    folder = _empty(workdir / "dry")
    log = str(folder / "operations")
    task = {
        "shim": str(shim),
        "folder": str(folder),
        "case": vars(Case("none", 0, lazily)),
        "log": log,
    }
    ended = server.call("crash.syscalls:suffer", task)
    if ended.trouble or ended.result["said"]:
        raise RuntimeError(f"the migration fails without faults: {ended}")
    lines = Path(log).read_text().splitlines()
    pairs = [line.split(" ", 1) for line in lines]
    return [(name, path.removeprefix(str(folder))) for name, path in pairs]


def one(server: ForkServer, shim: Path, case: Case, folder: Path) -> Result:
    """A case from an empty folder to the checks; the folder stays if something does not hold."""
    _empty(folder)
    task = {"shim": str(shim), "folder": str(folder), "case": vars(case)}
    first = server.call("crash.syscalls:suffer", task)
    state = _mapped(folder / "state")
    wrong = list(_of_the_process(case, first, state.injected))
    second = server.call("crash.syscalls:recover", task)
    if second.trouble or second.killed:
        wrong.append(f"the same commands fail without faults: {second.trouble}")
    wrong += second.result or []
    operation = f"{state.operation.decode()} {state.path.decode().removeprefix(str(folder))}"
    if not wrong:
        shutil.rmtree(folder)
    said = first.result["said"] if first.result else None
    named = [f"{w}\n  after {case.kind} of {operation}\n  {case.replay}" for w in wrong]
    return Result(case, state.injected, operation, said, named)


def _of_the_process(case: Case, ended: Ended, injected: int) -> Iterator[str]:
    if ended.trouble:
        yield f"no clean end: {ended.trouble}"
    if ended.killed and case.kind not in _FATAL:
        yield "killed by a fault that kills nobody"
    if injected and case.kind in _FATAL and not ended.killed:
        yield "survived its own death"
    if case.kind in ("last_write", "disk_full") and injected and not ended.trouble:
        said = ended.result["said"] if ended.result else None
        if said is None:
            yield "success was reported, with the disk full"


def cases_of(
    found: list[tuple[str, str]], cases: int, seed: int, *, lazily: bool = False
) -> list[Case]:
    """Cases of every kind, each spread evenly over the operations that can meet it."""
    rng = random.Random(seed)
    at: dict[str, list[int]] = {k: list(range(1, len(found) + 1)) for k in KINDS}
    at["torn"] = [i for i, (name, _) in enumerate(found, 1) if name == "write"]
    at["no_space"] = [i for i, (name, _) in enumerate(found, 1) if name not in _SHRINKING]
    at["disk_full"] = at["no_space"]
    files = {p for name, p in found if name == "write" and ".lance/data/.tmp" in p}
    at["last_write"] = list(range(1, len(files) + 1))
    chosen = []
    for k, kind in enumerate(KINDS):
        share = len(range(k, cases, len(KINDS)))
        for i in range(share):
            place = (i + rng.random()) / share
            chosen.append(Case(kind, at[kind][int(place * len(at[kind]))], lazily))
    rng.shuffle(chosen)
    return chosen


def run(cases: int, seed: int, workdir: Path, *, lazily: bool = False) -> dict[str, Any]:
    """So many faults, each in a migration of its own; what was violated, with how to replay it."""
    started = time.monotonic()
    shim = compile_shim(_empty(workdir))
    servers: SimpleQueue[ForkServer] = SimpleQueue()
    results: list[Result] = []

    def work(numbered: tuple[int, Case]) -> Result:
        server = servers.get()
        try:
            return one(server, shim, numbered[1], workdir / f"case-{numbered[0]}")
        finally:
            servers.put(server)

    with ForkServer() as a, ForkServer() as b, ThreadPoolExecutor(_WORKERS) as pool:
        servers.put(a)
        servers.put(b)
        found = operations(a, shim, workdir, lazily=lazily)
        for extra in range(_TRIES):
            missing = cases - sum(r.injected > 0 for r in results)
            numbered = enumerate(
                cases_of(found, missing, seed + extra, lazily=lazily), len(results)
            )
            results += pool.map(work, numbered)
    met = [r for r in results if r.injected]
    return {
        "syscall_faults": len(met),
        "by_kind": dict(Counter(r.case.kind for r in met)),
        "by_operation": dict(Counter(r.operation.split()[0] for r in met)),
        "operations": len(found),
        "failed_cleanly": sum(r.said is not None for r in met),
        "violations": [v for r in results for v in r.violations],
        "seed": seed,
        "seconds": round(time.monotonic() - started, 1),
    }


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _replay(kind: str, at: str, lazily: str = "") -> int:
    workdir = Path(tempfile.mkdtemp(prefix="syscalls-"))
    case = Case(kind, int(at), lazily == "lazy")
    with ForkServer() as server:
        result = one(server, compile_shim(workdir), case, workdir / "case")
    wrong = "\n".join(result.violations) or "nothing is violated"
    sys.stdout.write(f"{result.injected} faults, the first at {result.operation}\n")
    sys.stdout.write(f"{result.said}\n{wrong}\n{workdir}\n")
    return 1 if result.violations else 0


if __name__ == "__main__":
    sys.exit(_replay(*sys.argv[1:]))

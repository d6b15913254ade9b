"""A process each for many short tasks: forked from one that imported everything and used none of it.

Starting Python and importing Lance, FAISS and torch takes 2 s, forking 20 ms. Lance is not safe to
fork once it has started its threads; the server never makes it start them.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_OUTPUT_BYTES = 4_000


def search_path() -> str:
    """PYTHONPATH by which another Python finds these modules."""
    return os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])


@dataclass(frozen=True)
class Ended:
    """How a task's process ended."""

    killed: bool
    """By SIGKILL, as a fault does."""
    result: Any
    """What the function returned; None if it did not."""
    trouble: str | None
    """Anything else: it raised, hung, or died of another signal; with what it printed last."""


class ForkServer:
    """with ForkServer() as server: server.call("crash.syscalls:suffer", {...}) -> Ended.

    Functions take and return JSON. Calls of one server go one after the other.
    """

    def __enter__(self) -> ForkServer:
        env = os.environ | {"PYTHONPATH": search_path(), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "crash.forks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        return self

    def __exit__(self, *_: object) -> None:
        stdin, stdout = self._pipes()
        with suppress(BrokenPipeError):
            stdin.close()
        self._process.wait(30)
        stdout.close()

    def call(self, function: str, argument: Any, timeout_s: float = 60) -> Ended:
        """Run a function, named module:function, in a process of its own."""
        stdin, stdout = self._pipes()
        stdin.write(json.dumps([function, argument, timeout_s]) + "\n")
        with suppress(BrokenPipeError):
            stdin.flush()
        if not (line := stdout.readline()):
            raise RuntimeError("the server that forks is gone; why, is on its stderr")
        return Ended(**json.loads(line))

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout


def _serve() -> None:
    warnings.filterwarnings("ignore", message="lance is not fork-safe")
    for name in ("crash.migration", "reembed.encoders.hashing", "reembed.index.build"):
        importlib.import_module(name)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(vars(_ended(*json.loads(line)))) + "\n")
        sys.stdout.flush()


def _ended(function: str, argument: Any, timeout_s: float) -> Ended:
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as result:
        pid = os.fork()
        if pid == 0:
            _carry_out(function, argument, output.fileno(), result.fileno())
        exited = os.pidfd_open(pid)
        in_time = select.select([exited], [], [], timeout_s)[0]
        if not in_time:
            os.kill(pid, signal.SIGKILL)
        os.close(exited)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        result.seek(0)
        output.seek(max(0, os.fstat(output.fileno()).st_size - _OUTPUT_BYTES))
        printed = output.read().decode("utf-8", "replace")
        if not in_time:
            return Ended(False, None, f"it did not end within {timeout_s:.0f} s\n{printed}")
        if code not in (0, -signal.SIGKILL):
            return Ended(False, None, f"it ended with {code}\n{printed}")
        return Ended(code != 0, None if code else json.loads(result.read()), None)


def _carry_out(function: str, argument: Any, output: int, result: int) -> None:
    """In the child; never returns."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        module, _, name = function.partition(":")
        said = getattr(importlib.import_module(module), name)(argument)
        os.write(result, json.dumps(said).encode())
        code = 0
    finally:  # whatever was raised: a panic of Rust is no Exception
        if code:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()

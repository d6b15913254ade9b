"""A deterministic simulator: the real orchestration on real Lance, several processes in one thread at a time.

Each simulated process is a thread that runs only while it holds the baton. At every crash point of
the code and at every operation on the store the seed decides: go on, die (all that the process would
still do, `finally` included, is cut off), fail with a storage error, lose the answer of a write that
landed, or let another process go first, for as long as the seed likes. So a process may be paused in
front of its commit while the world moves on. Nothing else is random, and no clock is asked: a seed
replays step for step.

    python tests/sim/run.py --seed 17        # prints every step, and what was violated
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import os
import random
import re
import shutil
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError

from reembed import faults
from reembed.catalog import lease
from reembed.errors import ReembedError
from reembed.events import Embedded, Throughput
from reembed.store.storage import Storage, storage_errors
from reembed.strategies import steps

LONG_PAUSES, LONGEST_PAUSE = 0.3, 30
"""Share of the pauses in which the world moves on for several turns, and for how many at most."""


class Crash(BaseException):
    """The simulated process is gone."""


class Lost(OSError):
    """An injected failure of the store."""


class Process(threading.Thread):
    """A simulated process: one verb after the other, until it dies or is done."""

    def __init__(self, world: World, name: str, work: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self.world, self.work = world, work
        self.turn = threading.Event()
        self.alive, self.finished = True, False
        self.sleeps = 0
        """Turns of others that it is paused for."""
        self.broken: BaseException | None = None

    def run(self) -> None:
        self.turn.wait()
        try:
            self.work()
        except Crash:
            pass
        except BaseException as error:  # noqa: BLE001 - a bug in what is tested: told, not swallowed
            self.broken = error
        self.alive, self.finished = False, True
        self.world.pass_on(self)


class World:
    """Processes, their store, and the seed that decides everything."""

    def __init__(self, seed: int, rates: dict[str, float], place: str) -> None:
        """`rates`: probability of die, fail, lose and switch at each step."""
        self.seed, self.rng, self.rates = seed, random.Random(seed), rates
        shm = Path("/dev/shm")
        # A fixed name: run ids follow from the source's address, and their order from run ids.
        base = shm if shm.is_dir() else Path(tempfile.gettempdir())
        self.folder = base / f"reembed-sim-{os.getuid()}" / f"{place}-{seed}"
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self._lock = self.folder.with_suffix(".lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # another run of the tests plays this seed: wait
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.ticks = 0
        self.processes: list[Process] = []
        self.counts: Counter[str] = Counter()
        self.trace: list[str] = []
        self.quiet = False
        self.held: dict[str, str] = {}
        """By process: the step in front of which it waits until all others are done or wait, too."""
        self.doomed: dict[str, str] = {}
        """By process: the step at which it dies."""
        self._back = threading.Event()

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()

    # --- scheduling ---

    def spawn(self, name: str, work: Callable[[], None], *, later: bool = False) -> Process:
        """A process; with `later` it begins when those before it wait, are held or are done."""
        process = Process(self, name, work)
        process.sleeps = sys.maxsize - 1 if later else 0
        self.processes.append(process)
        process.start()
        return process

    def run_all(self) -> None:
        """Until every process is done or dead.

        Raises:
            BaseException: what none of them may raise.
        """
        ready = [p for p in self.processes if not p.finished]
        while ready:
            self._back.clear()
            least = min(p.sleeps for p in ready)
            self._current = self.rng.choice([p for p in ready if p.sleeps == least])
            self._current.sleeps = 0
            for process in ready:
                process.sleeps = max(0, process.sleeps - 1)
            self._current.turn.set()
            self._back.wait()
            ready = [p for p in self.processes if not p.finished]
        for process in self.processes:
            if process.broken is not None:
                raise process.broken
        self.processes.clear()

    def pass_on(self, process: Process) -> None:
        """The process is done for now: back to `run_all`."""
        process.turn.clear()
        self._back.set()

    def step(self, name: str) -> str:
        """What happens at a step of the process that runs: go, fail or lose; it may die or wait here."""
        process = threading.current_thread()
        if not isinstance(process, Process):
            return "go"
        if not process.alive:
            raise Crash
        if self.quiet:
            return "go"
        self.counts["steps"] += 1
        self.trace.append(f"{process.name} {name}")
        if self.held.get(process.name) == name:
            del self.held[process.name]
            process.sleeps = sys.maxsize
            return self._switch(process)
        what = "die" if self.doomed.get(process.name) == name else self._drawn()
        if what == "go" or (what in ("fail", "lose") and not name.startswith("store.")):
            return "go"
        self.counts[what] += 1
        self.trace.append(f"{process.name} {name}: {what}")
        if what == "die":
            process.alive = False
            raise Crash
        if what == "switch":
            if self.rng.random() < LONG_PAUSES:
                process.sleeps = self.rng.randrange(2, LONGEST_PAUSE)
            return self._switch(process)
        return what

    def pause(self, turns: int) -> None:
        """The process that runs waits for so many turns of others; not where nothing happens at once."""
        process = threading.current_thread()
        if isinstance(process, Process) and self.rates["switch"] and not self.quiet:
            process.sleeps = turns
            self._switch(process)

    def _drawn(self) -> str:
        draw = self.rng.random()
        for what in ("die", "fail", "lose", "switch"):
            if draw < self.rates[what]:
                return what
            draw -= self.rates[what]
        return "go"

    def _switch(self, process: Process) -> str:
        self.pass_on(process)
        process.turn.wait()
        return "go"

    def is_alive(self, started: str) -> bool:
        """Whether the process with this start stamp runs; a paused one does, unless it is presumed dead."""
        lives = any(p.alive and not p.finished and p.name == started for p in self.processes)
        if lives and not self.quiet and self.rng.random() < self.rates["presume"]:
            self.counts["presumed"] += 1  # on another host, and its beats do not arrive
            return False
        return lives

    def clock(self) -> str:
        """Time by steps, in seconds since a day of no meaning."""
        self.ticks += 1
        return (
            dt.datetime(2030, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=self.ticks)
        ).isoformat()

    # --- the seams ---

    @contextlib.contextmanager
    def installed(self) -> Iterator[World]:
        """Put the simulator under the code: points, store, processes and beats."""
        with contextlib.ExitStack() as stack:

            def patch(owner: Any, name: str, value: Any) -> None:
                stack.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, value)

            patch(faults, "hook", self.step)
            for module in list(sys.modules.values()):
                if module.__name__.startswith("reembed") and hasattr(module, "now"):
                    patch(module, "now", self.clock)
            put = obstore.put

            def faulty_put(store: Any, path: str, *args: Any, **more: Any) -> Any:
                kind = "store.create" if more.get("mode") == "create" else "store.put"
                what = self.step(f"{kind} {_plain(path)}")
                if what == "fail":
                    raise Lost("503 Slow Down")
                done = put(store, path, *args, **more)
                if what == "lose":  # it landed; the client tried again, and met itself
                    if kind == "store.create":
                        raise AlreadyExistsError("412 Precondition Failed")
                    raise Lost("connection reset")
                self.step(f"{kind} {_plain(path)} done")
                return done

            patch(obstore, "put", faulty_put)
            # Python 3.11 holds a lock while a cached property is made: a paused process would keep it.
            patch(vars(Storage)["root_id"], "lock", contextlib.nullcontext())
            for name in ("read_bytes", "remove", "delete_tree"):
                patch(Storage, name, self._faulty(name, getattr(Storage, name)))
            patch(lease, "repeating", _nothing)
            patch(lease, "process_started", lambda pid: threading.current_thread().name)
            patch(
                lease.Lease,
                "process_lives",
                property(lambda lease: self.is_alive(lease.pid_started)),
            )
            patch(steps, "EmbedProgress", _NoProgress)
            yield self

    def _faulty(self, name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def method(store: Storage, path: str) -> Any:
            what = self.step(f"store.{name} {_plain(path)}")
            if what == "fail":
                raise Lost("500 Internal Server Error")
            found = plain(store, path)
            if what == "lose" and name != "read_bytes":
                raise Lost("connection reset")
            return found

        return method


def attempt(work: Callable[[], Any]) -> Any:
    """What a verb gives, or the error it tells its user; anything else is a bug."""
    try:
        with storage_errors():
            return work()
    except ReembedError as error:
        return error


def _plain(path: str) -> str:
    """A path without what differs between two replays of one seed."""
    return re.sub(r"[0-9a-f]{32}", "*", path.partition(".lance/")[0])


@contextlib.contextmanager
def _nothing(seconds: float, work: Callable[[], None]) -> Iterator[None]:
    yield


_NO_FIGURES = Throughput(
    done=0, total=0, docs_per_s=0.0, tokens_per_s=0, actors=1, busy=0.0, waits_for_input=0.0,
    waits_for_records=0.0, path="", padding=0.0, mfu=None, units_done=0, units=0, dead_letters=0,
    copied=0, startup_s=0.0,
)  # fmt: skip


class _NoProgress:
    """Progress is told by a thread, by the clock."""

    def __init__(self, *args: Any, **more: Any) -> None: ...

    def receipt(self, row: dict[str, Any]) -> None: ...

    def totals(self) -> Embedded:
        return Embedded(_NO_FIGURES)

    def reporting(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

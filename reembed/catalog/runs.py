"""A run's folder: its plan, its lease, its receipts, its progress.

runs/RUN/plan.json               create-only: source version, units, base version of the table, gate
runs/RUN/config.yaml             the resolved settings, for people
runs/RUN/leases/00000001.json    who drives it; the newest counts
runs/RUN/units/UNIT.json         create-only receipt: this unit is staged, by these files
runs/RUN/attempts/UNIT/0001.json create-only: somebody began this unit
runs/RUN/workers/WORKER.json     who embeds which unit now
runs/RUN/events.jsonl            what happened, stage by stage; progress.json the latest figures
runs/RUN/caught-up/N-VERSION.json create-only: a catch-up of number N found it equal to this version
runs/RUN/sealed.json             create-only: every file of the sealed table version, proven
results/RUN.json                 create-only: the release it ended in, or that it was given up; one
                                 listing says which runs are open
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
import re
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from obstore.exceptions import BaseError

from reembed.catalog.releases import RUN_ID, SourceRecord, StoredSpace, line_of, now, place_in_line
from reembed.config.settings import EncoderConfig, FrozenGate, IndexConfig
from reembed.errors import Conflict
from reembed.store.records import checked, decode, holds, where
from reembed.store.storage import SCHEMA_VERSION, Storage, is_remote

BEAT_S = 5.0
_LISTING_THREADS = 16
_RESULTS = "results/"
_WORKER = re.compile(r"[0-9a-f]{32}\.json")
_NUMBERED = re.compile(r"[0-9]+\.json")


Kind = Literal["embed", "keep", "refresh"]


@dataclass(frozen=True)
class Unit:
    """Rows that are staged and resumed as one.

    A rebuild embeds live rows [offset, offset + rows) of one source fragment. A catch-up names rows:
    it embeds source rows `row_ids`; it keeps the rows of table fragment `fragment` that are not in
    `row_ids`; it refreshes what is carried from source rows `row_ids` beside the vectors of table
    rows `table_rows`.
    """

    id: str
    fragment: int
    offset: int
    rows: int
    kind: Kind = "embed"
    row_ids: tuple[int, ...] = ()
    table_rows: tuple[int, ...] = ()

    def to_json(self) -> list[Any]:
        """A list, to stay small at 100,000 of them."""
        short = [self.id, self.fragment, self.offset, self.rows]
        return short if not self.named else [*short, self.kind, self.row_ids, self.table_rows]

    @property
    def named(self) -> bool:
        """Whether it is of single rows: those of a catch-up."""
        return self.kind != "embed" or bool(self.row_ids)


@dataclass(frozen=True)
class _Units:
    """Units as a plan's record holds them: `Unit.to_json` of each."""

    units: list[
        tuple[str, int, int, int]
        | tuple[str, int, int, int, Kind, tuple[int, ...], tuple[int, ...]]
    ]


@dataclass(frozen=True)
class DeadLetter:
    """A document that has no vector, and why. Its text is not kept."""

    doc_id: str | int
    reason: str
    text_hash: str
    """Digest of the text that failed, in hex: another text is another try."""


@dataclass(frozen=True)
class ProofRecord:
    """What a data file must be, byte for byte."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class DataFileRecord:
    """A data file as Lance describes it, in the table's own folder."""

    path: str
    fields: list[int]
    column_indices: list[int]
    file_major_version: int
    file_minor_version: int
    file_size_bytes: int
    base_id: None


@dataclass(frozen=True)
class FragmentRecord:
    """A fragment as it was staged: new rows alone."""

    id: int
    files: list[DataFileRecord]
    physical_rows: int
    deletion_file: None
    row_id_meta: None
    created_at_version_meta: None
    last_updated_at_version_meta: None


@dataclass(frozen=True)
class UnitStats:
    """How a unit was embedded."""

    device: str
    path: str
    """How the model computes: packed or padded, and in which type."""
    notes: str
    batch_tokens: int
    attempt: int
    copied: int
    """Documents whose vector was copied from another release."""
    tokens: int
    model_tokens: int
    """That went through the model: those of equal texts do once."""
    computed_tokens: int
    """The same with padding."""
    flop: float
    peak_flops: float
    """A second, of the part of the device that is its own; 0 where it is not known."""
    started_at: float
    """Seconds since the epoch, by its host's clock."""
    waited_s: float
    """For the unit, since the one before."""
    embed_s: float
    model_s: float
    """Of them, the model's."""


@dataclass(frozen=True)
class Receipt:
    """A unit is staged: by these files, of these bytes."""

    unit: str
    space: str
    columns: str
    """Digest of the table's columns."""
    rows: int
    dead_letters: tuple[DeadLetter, ...]
    fragments: list[Annotated[dict[str, Any], holds(FragmentRecord)]]
    files: dict[str, Annotated[dict[str, Any], holds(ProofRecord)]]
    stats: UnitStats | None
    """None for rows that were kept."""

    @property
    def documents(self) -> int:
        """Those that were tried."""
        return self.rows + len(self.dead_letters)

    def to_json(self) -> dict[str, Any]:
        """The record as stored."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}


@dataclass(frozen=True)
class ResultRecord:
    """The release that a run ended in; None where it was given up."""

    release: str | None
    at: str


@dataclass(frozen=True)
class Base:
    """What a catch-up builds on: a table version whose other fragments stay as they are."""

    release: str
    run_id: str
    origin: str
    """The rebuild that the release descends from."""
    table_version: int
    fragments: tuple[int, ...]
    """Those that stay."""
    rows: int
    """In them."""
    dead_letters: tuple[Annotated[dict[str, Any], holds(DeadLetter)], ...]
    """Documents that still have no vector and are not tried again."""
    how: str
    """How the changes were found, in words."""


@dataclass(frozen=True)
class Donor:
    """A verified release of the same space, whose vectors a run copies where the text is equal."""

    release: str
    alias: str
    origin: str
    table: str
    table_version: int
    rows: int


@dataclass(frozen=True)
class Plan:
    """What a run will do, fixed before it starts. Any number of attempts agree on it."""

    run_id: str
    alias: str
    space: StoredSpace
    encoder: Annotated[dict[str, Any], holds(EncoderConfig)]
    source: Annotated[dict[str, Any], holds(SourceRecord)]
    """uri, version, and the settings that read it."""
    table: str
    """Path under the root."""
    base_version: int
    """Version of the table the seal must find unchanged."""
    gate: Annotated[dict[str, Any], holds(FrozenGate)]
    index: Annotated[dict[str, Any], holds(IndexConfig)]
    rows: int
    units: list[Unit]
    created_at: str
    base: Base | None = None
    """What a catch-up builds on; None for a rebuild."""
    reuse: bool = True
    """Whether it was to copy vectors, where there are any to copy."""
    donors: tuple[Donor, ...] = ()
    """Whose vectors it copies."""

    @property
    def origin(self) -> str:
        """The rebuild at the beginning of the line: its own, unless it is a catch-up's."""
        return self.base.origin if self.base else self.run_id

    @property
    def resume(self) -> str:
        """The command that goes on with it."""
        return f"reembed catch-up {self.base.release}" if self.base else "reembed run"

    @property
    def restart(self) -> str:
        """The command that starts it again."""
        dropped = f"reembed gc --drop-run {self.run_id} --yes     # then: {self.resume}"
        return dropped if self.base else "reembed run --fresh"

    def to_json(self) -> dict[str, Any]:
        """The record as stored."""
        fields = {
            k: v for k, v in self.__dict__.items() if k not in ("units", "space", "base", "donors")
        }
        return {
            "schema_version": SCHEMA_VERSION,
            **fields,
            "space": self.space.to_json(),
            "units": [u.to_json() for u in self.units],
            "base": asdict(self.base) if self.base else None,
            "donors": [asdict(d) for d in self.donors],
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Plan:
        """The plan a record describes."""
        plan = decode(cls, {**record, "units": []}, where(record))
        units = decode(_Units, {"units": record["units"]}, where(record)).units
        return replace(plan, units=[Unit(*u) for u in units])


@dataclass(frozen=True)
class Run:
    """One run's folder. Picklable; holds no state but where it is."""

    storage: Storage
    id: str

    @property
    def number(self) -> tuple[int, int, int, int]:
        """What orders runs."""
        return order_of(self.id)

    @property
    def is_catch_up(self) -> bool:
        """Whether it brings a release up to date, as its id says."""
        return line_of(self.id) != self.id

    @property
    def pin_tag(self) -> str:
        """The tag that holds the source version; the same run in another root has another."""
        place = f"{self.storage.root}\n{self.storage.root_id}"
        return f"reembed-{self.id}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"

    @property
    def rebuild(self) -> str:
        """The command that replaces wrong or damaged vectors of its line, by the line's settings.

        It copies no vectors: other releases share files with the line, or copied from it.
        """
        line = Run(self.storage, line_of(self.id))
        return started_with(line, "--fresh", "--set embed.reuse=false")

    def path(self, name: str) -> str:
        """Path under the root of a file of this run."""
        return f"runs/{self.id}/{name}"

    def numbered(self, folder: str) -> list[str]:
        """Names of the numbered records in a folder of this run, in order; other files are not ours."""
        return list(filter(_NUMBERED.fullmatch, self.storage.names(self.path(folder))))

    def plan(self) -> Plan | None:
        """The plan, once written."""
        record = self.storage.read_if_there(self.path("plan.json"))
        return Plan.from_json(record) if record is not None else None

    def write_plan(self, plan: Plan) -> Plan:
        """Fix the plan; where another process was first, its plan is the plan."""
        if self.storage.create(self.path("plan.json"), plan.to_json()):
            return plan
        theirs = self.plan()
        assert theirs is not None  # create-only records are never deleted while a run is open
        return theirs

    def result(self) -> dict[str, Any] | None:
        """The release it ended in, once it has."""
        record = self.storage.read_if_there(f"{_RESULTS}{self.id}.json")
        return checked(ResultRecord, record) if record is not None else None

    def finish(self, release_id: str) -> None:
        """It ended in a release."""
        self.storage.create(f"{_RESULTS}{self.id}.json", {"release": release_id, "at": now()})

    def abandon(self) -> None:
        """Give it up: it will never be resumed, and gc may remove what it staged."""
        given_up = {"release": None, "abandoned": True, "at": now()}
        self.storage.create(f"{_RESULTS}{self.id}.json", given_up)

    def staged(self) -> set[str]:
        """Ids of the units that have a receipt."""
        paths = (path for path, _ in self.storage.objects(self.path("units/")))
        return {p.rsplit("/", 1)[-1].removesuffix(".json") for p in paths}

    def receipts(self) -> list[Receipt]:
        """Every receipt, by unit id."""
        ids = sorted(self.staged())
        with ThreadPoolExecutor(_LISTING_THREADS) as pool:
            return list(pool.map(self.receipt, ids))

    def receipt(self, unit: str) -> Receipt:
        """The receipt of a staged unit."""
        return decode(Receipt, self.storage.read(self.path(f"units/{unit}.json")))

    def event(self, stage: str, **fields: Any) -> None:
        """Append to events.jsonl. The driver is its one writer; stores cannot append, so it is rewritten."""
        path = self.path("events.jsonl")
        try:
            body = self.storage.read_bytes(path)
        except FileNotFoundError:
            body = b""
        line = json.dumps({"at": now(), "stage": stage, **fields}, sort_keys=True)
        self.storage.write_bytes(path, body + line.encode() + b"\n")

    def progress(self, figures: dict[str, Any]) -> None:
        """Keep the latest figures, for `status` in another process."""
        self.storage.write(self.path("progress.json"), {"at": now(), **figures})


def find_runs(storage: Storage, alias: str | None = None) -> list[Run]:
    """Every run under the root, or those of one alias, in the order in which they were planned."""
    found = (RUN_ID.fullmatch(name) for name in storage.folders("runs/"))
    runs = [Run(storage, m[0]) for m in found if m and alias in (None, m[1])]
    return sorted(runs, key=lambda r: r.number)


def open_runs(storage: Storage, alias: str) -> list[Run]:
    """The runs of an alias that have no result yet: two listings, no record is read."""
    runs = find_runs(storage, alias)  # first: one that ends in between is not called open
    ended = set(storage.names(_RESULTS))
    return [r for r in runs if f"{r.id}.json" not in ended]


def order_of(run_id: str) -> tuple[int, int, int, int]:
    """What orders runs and releases: counter and source version of the rebuild, then of the catch-up.

    Counters go up whatever versions do: those of a source that was made again start at 1.
    """
    found = RUN_ID.fullmatch(run_id)
    rebuilt = (int(found[4]), int(found[3])) if found else (0, 0)
    return *rebuilt, *place_in_line(run_id)


@dataclass(frozen=True)
class Lease:
    """Who drives a run. Advisory: it saves work; exactness rests on create-only receipts."""

    number: int
    host: str
    machine: str
    """Where its pid means a process: as `machine` says."""
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
    """Start time in clock ticks since boot, so that a reused pid is not mistaken for its owner."""
    fields = _stat(pid)
    return None if fields is None or fields[0] == "Z" else fields[19]


def parent_of(pid: int) -> int | None:
    """Pid of the process that started it, or that it was left to."""
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def _stat(pid: int) -> list[str] | None:
    """What /proc says of a process, from its state on."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rsplit(")", 1)[-1].split()


def read_lease(run: Run) -> Lease | None:
    """The newest lease, if any was ever taken."""
    names = run.numbered("leases/")
    return decode(Lease, run.storage.read(run.path(f"leases/{names[-1]}"))) if names else None


def is_driven(run: Run, watch_s: float = 3 * BEAT_S) -> bool:
    """Whether a live process drives the run.

    On this machine its process is looked up. Elsewhere its beat is watched for `watch_s` seconds:
    hosts' clocks are never compared.
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


@dataclass(frozen=True)
class Worker:
    """A process that embeds a unit now, as it says itself."""

    id: str
    unit: str
    attempt: int
    node: str
    """Ray's id of its node, of the driver's job and of its actor; empty outside of Ray."""
    job: str
    actor: str
    pid: int
    at: str


def started_with(run: Run, *options: str) -> str:
    """The command that builds by the settings which a run was started with."""
    command = " ".join(("reembed run", *options))
    settings = run.path("config.yaml")
    if is_remote(run.storage.root):
        return f"{command}     # with the settings of {run.storage.uri(settings)}"
    return f"{command} -c {shlex.quote(run.storage.uri(settings))}"


def workers(run: Run) -> list[Worker]:
    """Who embeds now, and who died at it."""
    names = filter(_WORKER.fullmatch, run.storage.names(run.path("workers/")))
    found = (run.storage.read_if_there(run.path(f"workers/{name}")) for name in names)
    return [decode(Worker, w) for w in found if w is not None]


@contextmanager
def driving(run: Run) -> Iterator[None]:
    """Hold the run's lease while the block runs.

    Raises:
        Conflict: another live process drives this run.
    """
    held = read_lease(run)
    if held is not None and is_driven(run):
        raise Conflict(
            f"run {run.id} is already being driven by process {held.pid} on {held.host}",
            "two drivers of one plan would embed every unit twice",
            "reembed status",
        )
    mine = Lease(
        number=(held.number if held else 0) + 1,
        host=platform.node(),
        machine=machine(),
        pid=os.getpid(),
        pid_started=process_started(os.getpid()) or "",
    )
    if not run.storage.create(_lease_path(run, mine), asdict(mine)):
        raise Conflict(
            f"run {run.id} was taken by another process just now", None, "reembed status"
        )
    beats = itertools.count(1)

    def beat() -> None:
        run.storage.write(_lease_path(run, mine), asdict(replace(mine, beat=next(beats))))

    try:
        with repeating(BEAT_S, beat):
            yield
    finally:
        with suppress(OSError, BaseError):  # a full disk must not hide what ended the block
            run.storage.write(_lease_path(run, mine), asdict(replace(mine, released=True)))


@contextmanager
def repeating(seconds: float, work: Callable[[], None]) -> Iterator[None]:
    """Do `work` every so many seconds, in a thread, while the block runs."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(seconds):
            with suppress(OSError, BaseError):  # the store hiccups: the next one will do
                work()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _lease_path(run: Run, lease: Lease) -> str:
    return run.path(f"leases/{lease.number:08d}.json")

"""A run's folder: its plan, its lease, its receipts.

runs/RUN/plan.json               create-only: source version, units, base version of the table, gate
runs/RUN/config.yaml             the resolved settings, for people
runs/RUN/leases/00000001.json    who drives it; the newest counts
runs/RUN/units/UNIT.json         create-only receipt: this unit is staged, by these files
runs/RUN/receipts/00000001.json  create-only: copies of many receipts, which seal reads in one request
runs/RUN/attempts/UNIT/0001.json create-only: a worker started this unit
runs/RUN/workers/WORKER.json     which units a process embeds now
runs/RUN/caught-up/N-VERSION.json create-only: a catch-up of number N found it equal to this version
runs/RUN/sealed.json             create-only: every file of the sealed table version, proven
results/RUN.json                 create-only: the release it ended in, or that it was given up; one
                                 listing says which runs are open
"""

from __future__ import annotations

import hashlib
import re
import shlex
from dataclasses import dataclass

from reembed.catalog.lines import RunEntry, entries
from reembed.catalog.plan import Plan
from reembed.catalog.receipts import Receipt
from reembed.clock import now
from reembed.store.at_once import at_once
from reembed.store.paths import is_remote
from reembed.store.records import decode, encode
from reembed.store.storage import Storage

_RESULTS, _COPIES = "results/", "receipts/"
_COPIED_TOGETHER = 100
_NUMBERED = re.compile(r"[0-9]+\.json")


@dataclass(frozen=True)
class ResultRecord:
    """The release that a run ended in; None where it was given up."""

    release: str | None
    at: str


@dataclass(frozen=True)
class _Copies:
    """Receipts that one driver heard of."""

    receipts: tuple[Receipt, ...]


@dataclass(frozen=True)
class Run:
    """One run's folder. Picklable; holds no state but where it is."""

    storage: Storage
    id: str

    @property
    def pin_tag(self) -> str:
        """The tag that holds the source version; the same run in another root has another."""
        place = f"{self.storage.root}\n{self.storage.root_id}"
        return f"reembed-{self.id}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"

    @property
    def rebuild(self) -> str:
        """The command that replaces wrong or damaged vectors of its line."""
        plan = self.plan()
        return rebuild_of(self.storage, plan.origin if plan else self.id)

    def path(self, name: str) -> str:
        """Return the path under the root of a file of this run."""
        return f"runs/{self.id}/{name}"

    def numbered(self, folder: str) -> list[str]:
        """Return the names of the numbered records in a folder of this run, in order."""
        return list(filter(_NUMBERED.fullmatch, self.storage.names(self.path(folder))))

    def plan(self) -> Plan | None:
        """Return the plan; None before it is written."""
        if (record := self.storage.read_if_there(self.path("plan.json"))) is None:
            return None
        return Plan.from_json(record)

    def is_planned(self) -> bool:
        """Return whether the plan is written; does not read it."""
        return self.storage.size(self.path("plan.json")) is not None

    def write_plan(self, plan: Plan) -> Plan:
        """Write the plan and return it; if another process was first, return its plan."""
        if self.storage.create(self.path("plan.json"), plan.to_json()):
            return plan
        theirs = self.plan()
        assert theirs is not None  # create-only records are never deleted while a run is open
        return theirs

    def result(self) -> ResultRecord | None:
        """Return what it ended in; None while it is open."""
        return self.storage.decode_if_there(ResultRecord, f"{_RESULTS}{self.id}.json")

    def finish(self, release_id: str) -> None:
        """Record that it ended in a release."""
        self._end(release_id)

    def abandon(self) -> None:
        """Give it up: it is never resumed, and gc may remove what it staged."""
        self._end(None)

    def _end(self, release_id: str | None) -> None:
        self.storage.create(f"{_RESULTS}{self.id}.json", encode(ResultRecord(release_id, now())))

    def staged(self) -> set[str]:
        """Return the ids of the units that have a receipt."""
        paths = (path for path, _ in self.storage.objects(self.path("units/")))
        return {p.rsplit("/", 1)[-1].removesuffix(".json") for p in paths}

    def receipts(self) -> list[Receipt]:
        """Return every receipt, in the order of unit ids; copies spare a request for each."""
        ids = self.staged()
        copies = at_once(self._copies, self.numbered(_COPIES))
        found = {r.unit: r for held in copies for r in held if r.unit in ids}
        found |= {r.unit: r for r in at_once(self.receipt, ids - found.keys())}
        return [found[unit] for unit in sorted(ids)]

    def _copies(self, name: str) -> tuple[Receipt, ...]:
        return decode(_Copies, self.storage.read(self.path(_COPIES + name))).receipts

    def receipt(self, unit: str) -> Receipt:
        """Return the receipt of a staged unit."""
        return decode(Receipt, self.storage.read(self.path(f"units/{unit}.json")))


class ReceiptCopies:
    """Keeps the receipts that a driver hears of by the hundred; the last ones are read one by one."""

    def __init__(self, run: Run, together: int = _COPIED_TOGETHER) -> None:
        self._run, self._together = run, together
        self._held: list[Receipt] = []
        self._number = 1

    def add(self, receipt: Receipt) -> None:
        """Take one more receipt; store them once there are enough."""
        self._held.append(receipt)
        if len(self._held) < self._together:
            return
        record = encode(_Copies(tuple(self._held)))
        while not self._run.storage.create(self._path(), record):  # of this run's other drivers
            self._number += 1
        self._held.clear()

    def _path(self) -> str:
        return self._run.path(f"{_COPIES}{self._number:08d}.json")


def find_runs(storage: Storage, alias: str | None = None) -> list[Run]:
    """Return the runs of an alias, or of all aliases, in the order of their start."""
    return [Run(storage, entry.id) for entry in entries(storage, alias)]


def open_among(storage: Storage, known: list[RunEntry]) -> list[RunEntry]:
    """Return those that have no result and no release yet: one listing, no record is read."""
    ended = set(storage.names(_RESULTS))
    return [e for e in known if not e.released and f"{e.id}.json" not in ended]


def open_runs(storage: Storage, alias: str) -> list[Run]:
    """Return the runs of an alias that have no result yet."""
    # Listed before the results: a run that ends in between is not called open.
    return [Run(storage, entry.id) for entry in open_among(storage, entries(storage, alias))]


def rebuild_of(storage: Storage, origin: str) -> str:
    """Return the command that replaces wrong or damaged vectors of a line, by the line's settings.

    It copies no vectors: other releases share files with the line, or copied from it.
    """
    return started_with(Run(storage, origin), "--fresh", "--set embed.reuse=false")


def started_with(run: Run, *options: str) -> str:
    """Return the command that builds with the settings that a run was started with."""
    command = " ".join(("reembed run", *options))
    settings = run.path("config.yaml")
    if is_remote(run.storage.root):
        return f"{command}     # with the settings of {run.storage.uri(settings)}"
    return f"{command} -c {shlex.quote(run.storage.uri(settings))}"

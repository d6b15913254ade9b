"""A run's folder: its plan, its lease, its receipts.

runs/RUN/plan.json               create-only: source version, units, base version of the table, gate
runs/RUN/config.yaml             the resolved settings, for people
runs/RUN/leases/00000001.json    who drives it; the newest counts
runs/RUN/units/UNIT.json         create-only receipt: this unit is staged, by these files
runs/RUN/attempts/UNIT/0001.json create-only: somebody began this unit
runs/RUN/workers/WORKER.json     who embeds which unit now
runs/RUN/caught-up/N-VERSION.json create-only: a catch-up of number N found it equal to this version
runs/RUN/sealed.json             create-only: every file of the sealed table version, proven
results/RUN.json                 create-only: the release it ended in, or that it was given up; one
                                 listing says which runs are open
"""

from __future__ import annotations

import hashlib
import re
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from reembed.catalog.plan import Plan
from reembed.catalog.receipts import Receipt
from reembed.catalog.releases import RUN_ID, line_of, place_in_line
from reembed.clock import now
from reembed.store.records import checked, decode
from reembed.store.storage import Storage, is_remote

_LISTING_THREADS = 16
_RESULTS = "results/"
_NUMBERED = re.compile(r"[0-9]+\.json")


@dataclass(frozen=True)
class ResultRecord:
    """The release that a run ended in; None where it was given up."""

    release: str | None
    at: str


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


def started_with(run: Run, *options: str) -> str:
    """The command that builds by the settings which a run was started with."""
    command = " ".join(("reembed run", *options))
    settings = run.path("config.yaml")
    if is_remote(run.storage.root):
        return f"{command}     # with the settings of {run.storage.uri(settings)}"
    return f"{command} -c {shlex.quote(run.storage.uri(settings))}"

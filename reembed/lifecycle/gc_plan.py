"""What gc would do, and what it did."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from reembed.store.storage import Storage


@dataclass(frozen=True)
class Kept:
    """A release that stays."""

    release: str
    why: str


@dataclass(frozen=True)
class Removable:
    """A release whose data can go."""

    release: str
    why: str
    index: str
    index_bytes: int
    """What goes for certain: files that other releases of its line share stay."""
    table: str
    table_version: int
    whole_table: bool
    """No other release or unfinished run uses the table."""
    table_bytes: int
    """What goes for certain: the whole table, or 0 where versions share files.

    Of several releases of one table the first has its bytes, the others 0: their sum is what is freed.
    """


@dataclass(frozen=True)
class Orphan:
    """A file that nothing names: of a table, no version and no receipt; of an index, not its release; of values of
    queries, no comparison.

    A process that died or came second left it.
    """

    path: str
    size: int


@dataclass(frozen=True)
class GcPlan:
    """What gc would do."""

    keep: list[Kept]
    remove: list[Removable]
    orphans: list[Orphan]
    dropped_runs: list[str]
    """Runs that were given up and still have staged receipts, an index or a tag on the table."""
    tables: list[str]
    """Tables of given-up runs alone."""
    tables_bytes: int
    trim: list[str]
    """Tables with versions that no release names any more."""
    held_runs: list[str]
    """Unfinished runs, whose tables are not touched."""

    @property
    def bytes(self) -> int:
        """What deleting it frees for certain."""
        releases = sum(r.index_bytes + r.table_bytes for r in self.remove)
        return releases + self.tables_bytes + sum(o.size for o in self.orphans)

    def to_json(self) -> dict[str, Any]:
        """Return all fields, and `bytes`."""
        return {**asdict(self), "bytes": self.bytes}


@dataclass(frozen=True)
class LazyLeft:
    """What a lazy migration left, or older releases of its new side."""

    number: int
    side: str
    """The alias of the new side."""
    why: str
    whole: bool
    """Whether all of it goes; else the new side serves, and only its older releases go."""
    releases: tuple[str, ...]
    """Releases of the new side that go."""
    bytes: int


@dataclass(frozen=True)
class Collected:
    """What gc would delete, or did."""

    plan: GcPlan
    removed: tuple[str, ...]
    """Releases that were removed."""
    deleted: bool
    """Whether deletion was requested; if not, this is only the plan."""
    drop_run: str | None
    """The unfinished run that was given up."""
    lazies: tuple[LazyLeft, ...] = ()
    """What lazy migrations left."""

    @property
    def bytes(self) -> int:
        """What deleting it frees for certain."""
        return self.plan.bytes + sum(left.bytes for left in self.lazies)

    def to_json(self) -> dict[str, Any]:
        """Return what `reembed gc --json` prints."""
        return {
            **self.plan.to_json(),
            "bytes": self.bytes,
            "lazies": [asdict(left) for left in self.lazies],
            "removed": self.removed,
            "deleted": self.deleted,
            "drop_run": self.drop_run,
        }


def files_below(storage: Storage, prefix: str) -> list[Orphan]:
    """Return the files below a prefix, half-written ones too."""
    return [Orphan(*found) for found in (*storage.objects(prefix), *storage.torn(prefix))]

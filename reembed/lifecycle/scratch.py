"""What the tasks of a verification hand to each other: entries by partition, and what a piece showed.

runs/RUN/verifying.json               the verification under way: what it reads, and its folder
runs/RUN/verifying/FOLDER/PIECE.json  a piece is read: what it showed, and where its entries are
runs/RUN/verifying/FOLDER/PIECE-N     entries of a piece, sorted by partition
runs/RUN/comparing/FOLDER/...         the same, where every row is compared before a plan is made

A partition holds every entry of some ids, so that a task compares it alone, in memory that does not
depend on the number of rows. Entries are written once, a small part of what was read to make them.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from reembed import faults
from reembed.catalog.runs import Run
from reembed.digests import Digests
from reembed.store.at_once import at_once
from reembed.store.records import encode
from reembed.store.storage import Storage

T = TypeVar("T")
Entries = npt.NDArray[Any]
"""A structured array [N]."""

ENTRY_ROWS = 1_048_576
"""Entries that a task holds before it writes them."""
_JOURNAL = "verifying.json"
_FOLDERS = "verifying/"
_COMPARING = "comparing/"


@dataclass(frozen=True)
class JournalKey:
    """What a verification reads; one is resumed only by one that reads the same."""

    table_version: int
    source_version: int
    newest_version: int | None
    """Newest version of the source; None if the table is compared with none that is newer."""
    level: int
    sample: int


@dataclass(frozen=True)
class JournalRecord:
    """A verification under way, as it is stored."""

    key: JournalKey
    folder: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    """Name of its folder."""


@dataclass(frozen=True)
class Spill:
    """Entries of one object, by partition."""

    path: str
    starts: tuple[int, ...]
    """Where the entries of each partition begin, and where the last ones end."""

    def part(self, number: int) -> Spill:
        return Spill(self.path, self.starts[number : number + 2])


@dataclass(frozen=True)
class Scratch:
    """The folder of one verification. Picklable."""

    storage: Storage
    path: str

    @classmethod
    def of(cls, run: Run) -> Scratch:
        """Return a new folder for a verification of a run's release."""
        return cls(run.storage, f"{run.path(_FOLDERS)}{uuid.uuid4().hex}")

    @classmethod
    @contextmanager
    def comparing(cls, run: Run) -> Iterator[Scratch]:
        """Yield a folder for a comparison that no verification knows, and remove it."""
        scratch = cls(run.storage, f"{run.path(_COMPARING)}{uuid.uuid4().hex}")
        try:
            yield scratch
        finally:
            run.storage.delete_tree(f"{scratch.path}/")

    @classmethod
    def resumed(cls, run: Run, key: JournalKey, *, resume: bool) -> Scratch:
        """Return the folder of a verification, and note it; with `resume`, that of an interrupted one.

        Raises:
            IntegrityError: the record of the interrupted one is damaged.
        """
        found = run.storage.decode_if_there(JournalRecord, run.path(_JOURNAL)) if resume else None
        if found is not None and found.key == key:
            return cls(run.storage, f"{run.path(_FOLDERS)}{found.folder}")
        scratch = cls.of(run)
        record = JournalRecord(key, scratch.path.rpartition("/")[2])
        run.storage.write(run.path(_JOURNAL), encode(record))
        return scratch

    def once(
        self,
        kind: type[T],
        piece: str,
        read: Callable[[], T],
        final: Callable[[T], bool] = lambda found: True,
    ) -> T:
        """Return what a piece showed: when it was read before, or now. Only what is `final` is kept."""
        path = f"{self.path}/{piece}.json"
        found = self.storage.decode_if_there(kind, path)
        if found is None:
            found = read()
            if final(found):
                self.storage.write(path, encode(found))
                faults.point("verify.after_piece")
        return found

    def entries(self, spills: Sequence[Spill], kind: np.dtype[Any]) -> Entries:
        """Return the entries of spills, in their order."""

        def read(spill: Spill) -> bytes:
            start, size = spill.starts[0], spill.starts[-1] - spill.starts[0]
            return self.storage.read_range(spill.path, start * kind.itemsize, size * kind.itemsize)

        held = [spill for spill in spills if spill.starts[-1] > spill.starts[0]]
        return np.frombuffer(b"".join(at_once(read, held)), kind)


def folders(run: Run) -> list[str]:
    """Return the folders of verifications of a run's release: under way, or left when they were killed."""
    return [run.path(f"{_FOLDERS}{name}") for name in run.storage.folders(run.path(_FOLDERS))]


def remove(run: Run, folders: Iterable[str]) -> None:
    """Remove folders of verifications, and the record of the one that was under way."""
    faults.point("verify.before_remove")
    run.storage.remove(run.path(_JOURNAL))
    for folder in folders:
        run.storage.delete_tree(f"{folder}/")


class Spiller:
    """Writes entries of a piece by partition, at most ENTRY_ROWS of them held in memory."""

    def __init__(self, scratch: Scratch, name: str, parts: int, of: Callable[..., Any]) -> None:
        """`of(entries, parts)` returns the partition of each entry, int64 [N]."""
        self._scratch, self._name, self._parts, self._of = scratch, name, parts, of
        self._held: list[Entries] = []
        self._rows = 0
        self._spills: list[Spill] = []

    def add(self, entries: Entries) -> None:
        """Take entries, in the order that they are to keep within a partition."""
        self._held.append(entries)
        self._rows += len(entries)
        if self._rows >= ENTRY_ROWS:
            self._write()

    def close(self) -> tuple[Spill, ...]:
        """Return where the entries are."""
        if self._rows:
            self._write()
        return tuple(self._spills)

    def _write(self) -> None:
        entries = np.concatenate(self._held)
        self._held, self._rows = [], 0
        part = self._of(entries, self._parts)
        order = np.argsort(part, kind="stable")
        path = f"{self._scratch.path}/{self._name}-{len(self._spills)}"
        self._scratch.storage.write_bytes(path, entries[order].tobytes())
        starts = np.searchsorted(part[order], np.arange(self._parts + 1))
        self._spills.append(Spill(path, tuple(starts.tolist())))


def part_of_ids(ids: Digests, parts: int) -> npt.NDArray[np.int64]:
    """Return the partition of each id, int64 [N], by its first 32 bits: partitions are in the order of the digests."""
    first = np.ascontiguousarray(ids).view(">u4")[::4].astype(np.int64)
    return first * parts >> 32

"""Documents that turned up in answers and are not migrated yet: a queue of small files, written by whoever serves.

lazy/ALIAS/1/queue/MILLISECONDS-UUID.json    written once, as no two have the same name: ids of documents

At least once: a file is removed after the side serves its documents, so one whose removal was not reached is
taken again, and nothing comes of it. What a process had not written when it died is lost, and nothing
comes of that either: a document that turns up again is written again, and the sweep takes all.
"""

from __future__ import annotations

import datetime as dt
import itertools
import re
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from reembed.catalog.lazies import LazyPlan
from reembed.store.at_once import at_once
from reembed.store.records import decode, encode
from reembed.store.storage import Storage

_READ_TOGETHER = 16
MOST_IDS = 4_096
"""Ids in one file."""
_FILE = re.compile(r"([0-9]{15})-[0-9a-f]{32}\.json")


@dataclass(frozen=True)
class Wanted:
    """Documents that turned up."""

    doc_ids: tuple[str | int, ...]


@dataclass(frozen=True)
class Queue:
    """The queue of one lazy migration."""

    storage: Storage
    plan: LazyPlan

    @property
    def _folder(self) -> str:
        return f"{self.plan.folder}/queue/"

    def put(self, doc_ids: Iterable[str | int], since: str | None = None) -> None:
        """Write documents down. When it returns, they are kept whatever happens to this process.

        Args:
            doc_ids: the documents.
            since: name of the file that they were in until now, whose age they keep.
        """
        ids = iter(doc_ids)
        while some := tuple(itertools.islice(ids, MOST_IDS)):
            written = since.partition("-")[0] if since else f"{time.time_ns() // 1_000_000:015d}"
            name = f"{written}-{uuid.uuid4().hex}.json"
            # Not create-only: whether the store has that is proven by files elsewhere, where serving may not write.
            self.storage.write(f"{self._folder}{name}", encode(Wanted(some)))

    def files(self) -> list[str]:
        """Return the names of what is in it, oldest first."""
        return [name for name in self.storage.names(self._folder) if _FILE.fullmatch(name)]

    def read(self, files: Sequence[str]) -> list[str | int]:
        """Return the distinct documents of some files, in their order; a file that is gone has none.

        Raises:
            IntegrityError: a file is not one that `put` wrote.
        """
        found = (ids for _, ids in self.each(files))
        return list(dict.fromkeys(itertools.chain.from_iterable(found)))

    def each(self, files: Sequence[str]) -> list[tuple[str, tuple[str | int, ...]]]:
        """Return each of some files with its documents, and raise errors, as `read`."""
        return list(zip(files, at_once(self._read, files), strict=True))

    def _read(self, name: str) -> tuple[str | int, ...]:
        record = self.storage.read_if_there(self._folder + name)
        return () if record is None else decode(Wanted, record).doc_ids

    def remove(self, files: Sequence[str]) -> None:
        """Remove files whose documents are served."""
        at_once(lambda name: self.storage.remove(self._folder + name), files)

    def served(self, taken: Taken) -> None:
        """Remove files whose documents are served, after those that were left over are written down again."""
        if taken.left:
            self.put(taken.left, since=taken.files[-1])
        self.remove(taken.files)


def age_s(file: str) -> float:
    """Return seconds since a file was written, by the clock of the process that wrote it."""
    found = _FILE.fullmatch(file)
    assert found is not None  # a name that `files` returned
    written = dt.datetime.fromtimestamp(int(found[1]) / 1000, dt.UTC)
    return (dt.datetime.now(dt.UTC) - written).total_seconds()


@dataclass(frozen=True)
class Taken:
    """The oldest files of the queue."""

    files: tuple[str, ...]
    doc_ids: tuple[str | int, ...]
    """Documents that are to be migrated."""
    left: tuple[str | int, ...]
    """Documents of the last file that are too many."""


def oldest(queue: Queue, most: int, new: Callable[[Sequence[str | int]], list[str | int]]) -> Taken:
    """Return the oldest files of the queue with at most so many documents; `new` says which are not migrated yet."""
    files: list[str] = []
    found: dict[str | int, None] = {}
    names = queue.files()
    for start in range(0, len(names), _READ_TOGETHER):
        for name, ids in queue.each(names[start : start + _READ_TOGETHER]):
            if len(found) >= most:
                return Taken(tuple(files), tuple(found), ())
            files.append(name)
            found |= dict.fromkeys(new(ids))
            if len(found) > most:
                every = tuple(found)
                return Taken(tuple(files), every[:most], every[most:])
    return Taken(tuple(files), tuple(found), ())

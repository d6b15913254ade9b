"""Bring the documents of a lazy migration to the source's newest version, and add those that turned up.

lazy/ALIAS/1/looks/00000001.json    create-only: a source version that members are brought to, or equal

What is done is a comparison with a state, and not a list of steps: a process that was killed anywhere is followed by
another that compares every row. Otherwise only rows of new files are read, and nothing if the source is the same.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from reembed import digests, faults
from reembed.catalog.numbered import numbers
from reembed.catalog.releases import SourceRef
from reembed.digests import Digests
from reembed.errors import Conflict, IntegrityError
from reembed.source import members as rows
from reembed.source import versions
from reembed.source.dataset import Source
from reembed.source.members import Held, Members
from reembed.source.opening import planned_dataset
from reembed.store.records import decode, encode

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Iterator, Sequence

    import lance

Flags = npt.NDArray[np.bool_]
_COMMIT_ROWS = 2_048


@dataclass(frozen=True)
class Brought:
    """What changed among the migrated documents."""

    source: SourceRef
    """The version that they equal."""
    documents: int
    """How many there are now."""
    added: int
    replaced: int
    removed: int

    @property
    def changed(self) -> bool:
        """Whether anything did."""
        return bool(self.added or self.replaced or self.removed)


@dataclass(frozen=True)
class _Look:
    """A source version that members are brought to: `done` once they equal it."""

    source: SourceRef
    done: bool


def bring(
    members: Members, source: Source, wanted: Sequence[str | int], held: Held | None = None
) -> Brought:
    """Make members equal to a source's version, as far as they hold its documents, and add the wanted ones.

    The caller holds a lease, and may have read what is `held`. Wanted documents that the source does not have are
    left out.

    Raises:
        Conflict: another process brings them somewhere at this moment.
        SourceError: ids repeat, or the source cannot be read.
    """
    looks = _Looks(members)
    held = held or opened(members, source)
    last = looks.newest()
    asked = rows.as_ids(wanted)
    is_same = last is not None and last.done and last.source == source.ref
    if is_same and not (held.find(asked) < 0).any():
        return Brought(source.ref, len(held.ids), 0, 0, 0)
    looks.begin(source.ref)
    faults.point("lazy.after_look")
    if last is not None and not last.done:  # its process died, or is only slow and may still write
        members.fence()
        held = members.held()
    missing = asked[held.find(asked) < 0]
    work = _Work(members, source, held, wanted, missing, looks)
    if not is_same:
        work.follow(last)
    work.add()
    work.flush()
    looks.end(source.ref)
    faults.point("lazy.after_members")
    after = len(held.ids) + work.added - work.removed
    return Brought(source.ref, after, work.added, work.replaced, work.removed)


def opened(members: Members, source: Source) -> Held:
    """Return which documents members have; none, the first time."""
    members.ensure(source)
    members.repair()  # the process that would have seen it died
    return members.held()


@dataclass(frozen=True)
class Sweeping:
    """What a batch of a sweep migrates beside the queue."""

    first: deque[str]
    """Documents before those of the source in its order. What is taken is removed."""
    share: float = 1.0
    """Of all documents that are migrated then, at most."""


def cold(
    held: Held,
    source: Source,
    most: int,
    asked: Sequence[str | int],
    first: deque[str],
) -> list[str | int]:
    """Return documents that members do not have and nobody asked for: those of `first`, which is consumed, then those
    of the source in its order.
    """
    if most <= 0:
        return []
    taken = rows.as_ids(asked)
    found: list[str | int] = []
    while first and len(found) < most:
        hashes = rows.as_ids([first[0]])
        if held.find(hashes)[0] < 0 and digests.find(taken, hashes)[0] < 0:
            found.append(first[0])
        first.popleft()
    taken = rows.as_ids([*asked, *found])
    for ids, hashes, _ in rows.ids_of(source):
        new = (held.find(hashes) < 0) & (digests.find(taken, hashes) < 0)
        found += ids.filter(pa.array(new)).drop_null().to_pylist()
        if len(found) >= most:
            break
    return found[:most]


@dataclass
class _Looks:
    """The records of what members are brought to."""

    members: Members
    number: int = 0

    @property
    def _folder(self) -> str:
        return f"{self.members.path.rpartition('/')[0]}/looks"

    def newest(self) -> _Look | None:
        """Return the newest record, and remember its number."""
        found = numbers(self.members.storage, self._folder)
        self.number = len(found)
        if not found:
            return None
        return decode(_Look, self.members.storage.read(self._path(self.number)))

    def begin(self, source: SourceRef) -> None:
        """Record that members are changed from now on: until the end is recorded, nothing is known of them."""
        self._create(_Look(source, done=False))

    def end(self, source: SourceRef) -> None:
        """Record that they equal a version."""
        self._create(_Look(source, done=True))

    def require_mine(self) -> None:
        """Raise Conflict if another process started since, which took this one for dead."""
        if self.members.storage.size(self._path(self.number + 1)) is not None:
            raise self._conflict()

    def _create(self, look: _Look) -> None:
        self.number += 1
        if not self.members.storage.create(self._path(self.number), encode(look)):
            raise self._conflict()

    def _path(self, number: int) -> str:
        return f"{self._folder}/{number:08d}.json"

    def _conflict(self) -> Conflict:
        return Conflict(
            f"another process changes {self.members.uri} at this moment",
            "one process at a time migrates documents",
            "reembed lazy status",
        )


@dataclass
class _Work:
    """One pass over members."""

    members: Members
    source: Source
    held: Held
    wanted: Sequence[str | int]
    missing: Digests
    """Wanted documents that members do not have, sorted."""
    looks: _Looks
    added: int = 0
    replaced: int = 0
    removed: int = 0
    _waiting: list[pa.Table] = field(default_factory=list)

    def follow(self, last: _Look | None) -> None:
        """Replace what changed, remove what left, and add wanted documents that are met on the way."""
        older = None
        if last is not None and last.done:
            older = planned_dataset(last.source, self.source.options)
        delta, left = None, None
        if older is not None:
            delta = versions.delta(older, self.source)
            left = np.unique(rows.ids_left(self.source, older, delta))
        seen = np.zeros(len(self.held.ids), bool)
        for ids, batch in rows.rows_of(self.source, delta):
            self._compare(ids, batch, seen, left)
        gone = ~seen
        if left is not None:
            gone &= digests.find(left, self.held.ids) >= 0
        self.flush()
        with self._mine() as opened:
            self.members.remove(opened, self.held.row_ids[gone])
        self.removed = int(gone.sum())

    def _compare(self, ids: Digests, batch: pa.Table, seen: Flags, left: Digests | None) -> None:
        place = self.held.find(ids)
        there = place >= 0
        if len(np.unique(place[there])) < there.sum() or seen[place[there]].any():
            self._refuse_repeated()
        if left is not None and (digests.find(left, ids[there]) < 0).any():
            self._refuse_repeated()  # the row that was there before is still there
        seen[place[there]] = True
        wanted = digests.find(self.missing, ids) >= 0
        chosen = wanted.copy()
        if there.any():
            chosen[there] = _of_rows(self.held.at(place[there])) != _of_rows(
                batch.filter(pa.array(there))
            )
        self.replaced += int((chosen & there).sum())
        self._put(ids[wanted], batch.filter(pa.array(chosen)))

    def add(self) -> None:
        """Add the wanted documents that are still missing."""
        if not len(self.missing):
            return
        ids, at = rows.row_ids_of(self.source, self.wanted)
        there = digests.find(self.missing, ids) >= 0
        ids, at = ids[there], at[there]
        start = 0
        for batch in rows.rows_by_id(self.source, at):
            self._put(ids[start : start + batch.num_rows], batch)
            start += batch.num_rows

    def _put(self, new: Digests, batch: pa.Table) -> None:
        """Take rows that differ; `new` are those of them that members do not have."""
        if len(new):
            at = digests.find(self.missing, new)
            if (at < 0).any() or len(np.unique(at)) < len(at):
                self._refuse_repeated()
            self.missing = np.delete(self.missing, at)
            self.added += len(new)
        if batch.num_rows:
            self._waiting.append(batch)
        if sum(b.num_rows for b in self._waiting) >= _COMMIT_ROWS:
            self.flush()

    def flush(self) -> None:
        """Commit the rows that wait."""
        if not self._waiting:
            return
        with self._mine() as opened:
            self.members.replace(opened, pa.concat_tables(self._waiting))
        self._waiting.clear()
        faults.point("lazy.after_commit")

    @contextmanager
    def _mine(self) -> Iterator[lance.LanceDataset]:
        """Open the members for a commit, which fails once another process took this one for dead."""
        opened = (
            self.members.dataset()
        )  # before the look: what comes after it is stopped by the other's fence
        self.looks.require_mine()
        try:
            yield opened
        except OSError:
            self.looks.require_mine()
            raise
        if self.members.repair():
            raise IntegrityError(
                f"a file of {self.members.uri} was cut short; its version before was restored",
                "the disk is full, or the last write failed without an error",
                "df -h     # then the same command again",
            )

    def _refuse_repeated(self) -> None:
        """Raise the SourceError that names ids which several rows have."""
        self.source.check_documents()
        raise AssertionError("an id was met twice that the source has once")


def _of_rows(found: pa.Table) -> Digests:
    return digests.stack(digests.of_rows(found.columns, found.num_rows))

"""The new side of a lazy migration as a search uses it: its release, what it owns, and vectors read lately."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from reembed.index.types import Float32, Int64
from reembed.serving.live import OpenRelease
from reembed.serving.migrated import Migrated
from reembed.table.read import TableVersion

KEPT_BYTES = 32 * 2**20
"""Memory of the vectors that are kept."""
_OVERHEAD = 200
"""Bytes of a kept vector beside its numbers."""


class KeptVectors:
    """Vectors of a table version by row id; those used last stay in memory. Threads may share it."""

    def __init__(self, table: TableVersion, most_bytes: int = KEPT_BYTES) -> None:
        """Take the table that they are in."""
        self._table = table
        self._most = most_bytes // (4 * table.dim + _OVERHEAD)
        self._kept: OrderedDict[int, Float32] = OrderedDict()
        self._lock = threading.Lock()

    def following(self, table: TableVersion, there: Int64) -> KeptVectors:
        """Return those of a newer version of the table, whose rows `there` are, sorted: a row keeps its vector."""
        newer = KeptVectors(table)
        if table.path == self._table.path and len(there):
            with self._lock:
                held = dict(self._kept)
            ids = np.fromiter(held, np.int64, len(held))
            at = np.minimum(np.searchsorted(there, ids), len(there) - 1)
            newer._keep({row: held[row] for row in ids[there[at] == ids].tolist()})
        return newer

    def kept(self, row_ids: Int64) -> Float32 | None:
        """Return vectors float32 [R, D] if all of them are in memory."""
        if not len(row_ids):
            return np.empty((0, self._table.dim), np.float32)
        found = self._found(row_ids.tolist())
        return np.stack(list(found.values())) if len(found) == len(row_ids) else None

    def of(self, row_ids: Int64) -> Float32:
        """Return vectors float32 [R, D] of rows, each named once; the table is read for those that are not kept."""
        wanted = row_ids.tolist()
        found = self._found(wanted)
        if missing := [row for row in wanted if row not in found]:
            read = self._table.vectors_of(np.array(missing, np.int64))
            new = {row: vector.copy() for row, vector in zip(missing, read, strict=True)}
            found |= new
            self._keep(new)
        return np.stack([found[row] for row in wanted])

    def _found(self, wanted: list[int]) -> dict[int, Float32]:
        with self._lock:
            found = {row: self._kept[row] for row in wanted if row in self._kept}
            for row in found:
                self._kept.move_to_end(row)
        return found

    def _keep(self, new: dict[int, Float32]) -> None:
        with self._lock:
            self._kept.update(new)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)


@dataclass(frozen=True)
class Opened:
    """A release of the new side, beside a release of the old one."""

    release: OpenRelease
    migrated: Migrated
    vectors: KeptVectors
    background: tuple[Float32, Float32] | None = None
    """The same documents' vectors in the old and in the new space [B, D], where the fusion compares scores."""


class NewSide:
    """What is open of the new side, until it is closed. Searches under way finish with what they took."""

    def __init__(self, opened: Opened | None, token: str | None, *, broken: bool = False) -> None:
        """Take what is open.

        Args:
            opened: None where nothing is migrated yet, or where it is broken.
            token: of the step of the side's alias; None if it has none.
            broken: whether it could not be opened.
        """
        self.opened, self.token, self.broken = opened, token, broken

    def close(self) -> None:
        """Free it."""
        self.opened = None

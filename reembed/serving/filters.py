"""Search among the documents that meet a filter: Lance SQL over carried columns, applied before k.

A filter is resolved once for a release: one scan of its columns finds the rows that meet it. Few rows are kept
with their vectors and searched exactly. Of more, FAISS is told by a bit for each position which it may find
(index/selection.py), and Lance's own index takes the filter itself. Kinds of FAISS's that take no selection
are passed over: each search reads the vectors of the matching rows from the table.

Shapes: Q queries, D dimensions, R rows that meet the filter, K results.
"""

from __future__ import annotations

import shlex
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from reembed.catalog.releases import Release
from reembed.errors import IntegrityError, UsageError
from reembed.index.exact import ExactSearch
from reembed.index.queries import checked_queries
from reembed.index.types import Answer, Float32, Int64
from reembed.serving.answers import ChosenRows, OpenIndex, Rows
from reembed.store.conditions import of_the_moment, quoted_column, tokens_of, unquoted, unsafe
from reembed.store.storage import first_line, is_of_storage
from reembed.table.read import TableVersion, as_vectors

FEW_BYTES = 4 * 2**20
"""Vectors of matching rows that are kept and searched exactly, which is faster than the index."""
KEPT_BYTES = 64 * 2**20
"""Memory of the filters that are kept for a release."""
KEPT = 256
AT_ONCE = 4
"""Filters of a release that are resolved at a time."""
_OF_THE_FILTER = "Error applying filter expression"
"""Lance's words for a value that a condition cannot be evaluated for, as a text that is cast to a number."""
_ROW_COLUMNS = {"_rowid", "_rowaddr", "_row_created_at_version", "_row_last_updated_at_version"}


class Filters:
    """The filters that were asked of one release, each resolved once. Threads may share it."""

    def __init__(self, release: Release, table: TableVersion, index: OpenIndex) -> None:
        """Take the release and its parts, open."""
        self._release, self._table, self._index = release, table, index
        self._kept: OrderedDict[str, ChosenRows] = OrderedDict()
        self._looking, self._turns = threading.Lock(), threading.Semaphore(AT_ONCE)
        self._resolving: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()

    def among(self, condition: object) -> Rows | None:
        """Return the documents that meet a condition, ready to search; None if there are none.

        The filters used last are kept, up to KEPT of them and KEPT_BYTES. A filter that is not kept waits
        for others only while AT_ONCE of them are resolved.

        Raises:
            UsageError: it is not a condition over carried columns.
            IntegrityError: the table cannot be read, as after gc removed it.
        """
        if not isinstance(condition, str):
            raise self._refused(condition, f"it is of type {type(condition).__name__}")
        if (found := self._known(condition)) is None:
            with self._lock_of(condition):  # of threads that ask the same, one reads the table
                found = self._known(condition) or self._keep(condition, self._resolved(condition))
        return found if found.rows else None

    def _known(self, condition: str) -> ChosenRows | None:
        with self._looking:
            if condition in self._kept:
                self._kept.move_to_end(condition)
            return self._kept.get(condition)

    def _lock_of(self, condition: str) -> threading.Lock:
        """Return a lock that is there as long as a thread holds or awaits it."""
        with self._looking:
            return self._resolving.setdefault(condition, threading.Lock())

    def _keep(self, condition: str, found: ChosenRows) -> ChosenRows:
        with self._looking:
            self._kept[condition] = found
            while len(self._kept) > 1 and (len(self._kept) > KEPT or self.size_bytes > KEPT_BYTES):
                self._kept.popitem(last=False)
        return found

    @property
    def size_bytes(self) -> int:
        """Bytes of memory of all that is kept."""
        return sum(len(text) + rows.size_bytes for text, rows in self._kept.items())

    def _resolved(self, condition: str) -> ChosenRows:
        with self._turns:
            self._require(condition)
            return self._read(condition)

    def _read(self, condition: str) -> ChosenRows:
        with self._reading(condition):
            batches = [b.column("_rowid") for b in self._table.where(condition, [])]
            row_ids = pa.chunked_array(batches, pa.uint64()).to_numpy().astype(np.int64)
            if 4 * self._table.dim * len(row_ids) <= FEW_BYTES:
                return FewRows.read(self._table, np.sort(row_ids))
        found = self._index.among(row_ids, condition)
        return found or ScannedRows(self._table, condition, len(row_ids))

    @contextmanager
    def _reading(self, condition: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            if is_of_storage(error) and _OF_THE_FILTER not in str(error):
                raise IntegrityError(
                    f"the table of release {self._release.id} cannot be read any more",
                    first_line(error),
                    "reembed status     # if gc removed it, open the live release",
                ) from error
            raise self._refused(condition, first_line(error)) from error

    def _require(self, condition: str) -> None:
        """Refuse a condition that is not over carried columns, or that means something else than it seems to."""
        carried = self._release.source.carry
        if why := unsafe(condition):
            raise self._refused(condition, why)
        if quoted := quoted_column(condition, carried):
            token, column = quoted
            why = f"{token} is a text in Lance; write the column as `{column}`, texts in single quotes"
            raise self._refused(condition, why)
        if found := of_the_moment(condition):
            raise self._refused(condition, f"{found} is not the same at every evaluation")
        if ";" in unquoted(condition):
            raise self._refused(condition, "Lance would read it up to the semicolon only")
        if named := _ROW_COLUMNS.intersection(tokens_of(condition.lower().replace("`", " "))):
            raise self._refused(condition, f"{min(named)} is not a carried column")
        if error := self._table.error_of(condition, carried):
            raise self._refused(condition, error)

    def _refused(self, condition: object, why: str) -> UsageError:
        carried = self._release.source.carry
        fix = """reembed run --set 'table.carry=["title"]'     # or what to filter by"""
        if carried:
            fix = (
                f"reembed search 'some words' --filter {shlex.quote(f'`{carried[0]}` IS NOT NULL')}"
            )
        return UsageError(
            f"filter {condition!r:.200} is not a condition over the carried columns of release"
            f" {self._release.id}",
            f"{why}; carried: {', '.join(carried) or 'nothing'}",
            fix,
        )


@dataclass(frozen=True)
class FewRows:
    """Rows with their vectors. Positions are row ids."""

    row_ids: Int64
    doc_ids: list[str | int]
    vectors: Float32
    """[R, D]."""

    @classmethod
    def read(cls, table: TableVersion, row_ids: Int64) -> FewRows:
        """Read rows [R] of a table."""
        rows = table.take(row_ids, ["doc_id", "vector"])
        return cls(row_ids, rows["doc_id"].to_pylist(), as_vectors(rows["vector"]))

    @property
    def rows(self) -> int:
        """R."""
        return len(self.row_ids)

    @property
    def size_bytes(self) -> int:
        """Bytes of memory, about."""
        return self.vectors.nbytes + self.row_ids.nbytes + 64 * len(self.doc_ids)

    def answer(self, queries: npt.ArrayLike, k: int) -> Answer:
        """Return the k best rows of each query [Q, D], exactly, and raise errors, as `SearchIndex.nearest`."""
        exact = ExactSearch(checked_queries(queries, self.vectors.shape[1], k), min(k, self.rows))
        exact.add(self.row_ids, self.vectors)
        return Answer(exact.ids, exact.scores, self._doc_ids, _same)

    def _doc_ids(self, positions: Int64) -> list[str | int]:
        return [self.doc_ids[place] for place in np.searchsorted(self.row_ids, positions).tolist()]


@dataclass(frozen=True)
class ScannedRows:
    """Rows that each search reads from the table. Positions are row ids."""

    table: TableVersion
    condition: str
    rows: int
    size_bytes = 0

    def answer(self, queries: npt.ArrayLike, k: int) -> Answer:
        """Return the k best rows of each query [Q, D], exactly, and raise errors, as `SearchIndex.nearest`."""
        exact = ExactSearch(checked_queries(queries, self.table.dim, k), min(k, self.rows))
        for batch in self.table.where(self.condition, ["vector"]):
            row_ids = batch.column("_rowid").to_numpy().astype(np.int64)
            exact.add(row_ids, as_vectors(batch.column("vector")))
        return Answer(exact.ids, exact.scores, self._doc_ids, _same)

    def _doc_ids(self, positions: Int64) -> list[str | int]:
        known, place = np.unique(positions, return_inverse=True)
        names = self.table.take(known, ["doc_id"])["doc_id"].to_pylist()
        return [names[at] for at in place.tolist()]


def _same(positions: Int64) -> Int64:
    return positions

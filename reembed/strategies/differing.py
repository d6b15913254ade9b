"""Which documents differ between a table and its source, every row compared: in tasks, by partition of the ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import numpy as np

from reembed.catalog.reports import ROWS
from reembed.config.settings import Config
from reembed.digests import Digests
from reembed.engine.executor import HERE, Executor, Tasks
from reembed.lifecycle import reading
from reembed.lifecycle.differences import Part, Sides, cut
from reembed.lifecycle.reading import Reading
from reembed.lifecycle.scratch import Entries, Scratch
from reembed.lifecycle.verify import parts_of
from reembed.source.dataset import Source
from reembed.table.documents import row_of
from reembed.table.read import TableVersion


@contextmanager
def _here() -> Iterator[Tasks]:
    yield HERE


HERE_ROWS = 4_000_000
"""Rows up to which this process looks at all of them, in less time than it takes to connect to a cluster."""


@contextmanager
def at_work(config: Config, executor: Executor, rows: int) -> Iterator[Tasks]:
    """Yield where tasks over this many rows run."""
    if rows <= HERE_ROWS:
        yield HERE
        return
    with executor.connected(config) as connected:
        yield connected


@dataclass(frozen=True)
class Comparing:
    """How every row is compared, where that is needed."""

    scratch: Scratch
    """What tasks hand to each other."""
    tasks: Callable[[], AbstractContextManager[Tasks]] = _here
    """Where they run."""


@dataclass(frozen=True)
class Differing:
    """What a table does not hold as its source has it. Entries are `reading.ROW_ENTRY`."""

    documents: Entries
    """Documents of the source that no row has, or that have another text or other carried values, by row id."""
    rows: Entries
    """Rows of the table that are of these documents, or of documents that the source does not have."""
    left: Digests
    """Ids, of rows and of dead letters, that the source does not have."""


def differing(
    source: Source, table: TableVersion, dead_letters: Sequence[str | int], how: Comparing
) -> Differing:
    """Compare every row of a table with the documents of a source; ids of the source are unique.

    No process holds more than a piece, a partition, or what differs. The caller removes `how.scratch`.
    """
    with how.tasks() as tasks:
        return _differing(source, table, dead_letters, how.scratch, tasks)


def _differing(
    source: Source,
    table: TableVersion,
    dead_letters: Sequence[str | int],
    scratch: Scratch,
    tasks: Tasks,
) -> Differing:
    parts = parts_of(max(table.rows, source.count_rows()))
    carry = tuple(source.ref.carry)
    read = Reading(scratch, ROWS, parts, space="", carry=carry, looks_at_vectors=False)
    pieces = reading.table_pieces(table, {}, only_files=False)
    rows = tasks.each(reading.read_table, ((read, table, piece) for piece in pieces))
    found = reading.source_pieces(source, None, "source")
    documents = tasks.each(reading.read_source, ((read, source, piece) for piece in found))
    sides = Sides(reading.entries_of(rows), reading.entries_of(documents))
    cuts = cut(sides, parts, dead_letters, np.empty(0, "V16"))
    return _together(tasks.each(_compare, ((read, part) for part in cuts)))


def _compare(read: Reading, part: Part) -> Differing:
    """Compare the entries of one partition."""
    rows = read.scratch.entries(part.sides.table, read.entry)
    documents = read.scratch.entries(part.sides.source, read.entry)
    ids, held = (np.ascontiguousarray(side["id"]) for side in (documents, rows))
    at = row_of(held, ids)
    same = at >= 0
    for column in ("text", "carried"):
        same[same] = rows[column][at[same]] == documents[column][same]
    dead = np.frombuffer(b"".join(part.dead), held.dtype)
    left = np.setdiff1d(np.union1d(held, dead), ids)
    mine = np.isin(held, np.union1d(left, ids[~same]))
    return Differing(documents[~same], rows[mine], left)


def _together(parts: Sequence[Differing]) -> Differing:
    documents = np.concatenate([p.documents for p in parts])
    rows = np.concatenate([p.rows for p in parts])
    left = np.concatenate([p.left for p in parts])
    return Differing(documents[np.argsort(documents["row"], kind="stable")], rows, left)

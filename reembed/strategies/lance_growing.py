"""Which segments of Lance's index stay beside a new one after a catch-up, and when it is built again instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from reembed.catalog.index_manifest import LanceManifest, LanceSegment
from reembed.index.grow import deltas_beside, is_outgrown
from reembed.table import vector_index
from reembed.table.read import TableVersion


@dataclass(frozen=True)
class Again:
    """The index does not grow: it is built again."""

    why: str = ""
    """Empty if more than a tenth of its rows changed, as any index is built again then."""


def beside(
    held: LanceManifest, came: Sequence[int], rows: Mapping[int, int], most: int
) -> tuple[list[LanceSegment], list[int]]:
    """Return the segments that stay, and the fragments of the new one; `rows` are those of each fragment now.

    If there are many deltas, it takes in the newest, up to `most` rows. A segment whose fragments are all gone does
    not stay: Lance leaves it out of the table's version.
    """
    live = [s for s in held.segments if any(f in rows for f in s.fragments)]
    base = [s for s in live if s.kind == "base"]
    deltas = live[len(base) :]
    stay = deltas_beside([d.fragments for d in deltas], came, rows, most)
    merged = [f for d in deltas[stay:] for f in d.fragments if f in rows]
    return [*base, *deltas[:stay]], [*merged, *came]


def again(
    table: TableVersion, held: LanceManifest, kept: Sequence[LanceSegment], new: int, most: int
) -> Again | None:
    """Return why the index is built again; None if it grows by `new` rows, beside the segments `kept`.

    Rows of a base segment that does not stay count as rows that left. `most`: rows that a segment may have.
    """
    base, deltas = _rows_of(held.segments, "base"), _rows_of(kept, "delta")
    left = base + deltas - (table.rows - new)
    if is_outgrown(base, new + deltas + left):
        return Again()
    if new > most:
        return Again(f"{new:,} rows are to be added, and index.shard_rows is {most:,}")
    lost = {s.uuid for s in kept} - vector_index.segments_of(table.dataset()).keys()
    if lost:
        number = f"{len(lost)} of its {len(kept)} segments"
        return Again(f"version {table.version} of the table does not name {number}")
    return None


def _rows_of(segments: Sequence[LanceSegment], kind: Literal["base", "delta"]) -> int:
    return sum(s.rows for s in segments if s.kind == kind)

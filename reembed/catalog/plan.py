"""What a run will do: its units, what it builds on, what it copies from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from reembed.catalog.lines import Place
from reembed.catalog.query_model import QueryModel, StoredSpace
from reembed.catalog.receipts import DeadLetter
from reembed.catalog.releases import SourceRef
from reembed.catalog.row_ids import RowIds
from reembed.config.gate import FrozenGate
from reembed.config.settings import EncoderConfig, IndexConfig
from reembed.store.records import decode, encode, where

Kind = Literal["rebuild", "catch_up"]


@dataclass(frozen=True)
class EmbedRange:
    """Embed the documents of live rows [offset, offset + rows) of source fragments, read one after the other."""

    id: str
    fragments: tuple[int, ...]
    offset: int
    rows: int
    """Rows of the source."""
    documents: int


@dataclass(frozen=True)
class EmbedRows:
    """Embed the documents of these source rows."""

    id: str
    row_ids: RowIds
    documents: int

    @property
    def rows(self) -> int:
        """Rows of the source."""
        return self.row_ids.rows


@dataclass(frozen=True)
class KeepFragments:
    """Take over the rows of table fragments as one, except those that leave."""

    id: str
    fragments: tuple[int, ...]
    rows: int
    """Rows of the table that stay."""
    documents: int
    leaving: RowIds
    """Row ids of the table."""


@dataclass(frozen=True)
class ThinFragment:
    """Keep a table fragment as it is, and add a deletion file that names the rows that leave."""

    id: str
    fragment: int
    rows: int
    """Rows of the table that stay."""
    documents: int
    leaving: RowIds
    """Row ids of the table."""


@dataclass(frozen=True)
class RefreshRows:
    """Read what is carried from source rows again, and store it beside the vectors of table rows."""

    id: str
    row_ids: RowIds
    """Row ids of the source."""
    table_rows: RowIds
    documents: int
    fragments: tuple[int, ...]
    """Fragments of the table that these rows lie in."""

    @property
    def rows(self) -> int:
        """Rows of the table."""
        return self.table_rows.rows


EmbedUnit = EmbedRange | EmbedRows
KeptUnit = KeepFragments | ThinFragment | RefreshRows
Unit = EmbedRange | EmbedRows | KeptUnit
"""Rows that are staged and resumed as one. A rebuild has ranges alone, a catch-up the others."""

_TAGS: dict[str, type[Any]] = {
    "range": EmbedRange, "rows": EmbedRows, "keep": KeepFragments, "thin": ThinFragment,
    "refresh": RefreshRows,
}  # fmt: skip
_Ids = tuple[int, ...]


@dataclass(frozen=True)
class _Units:
    """Units as a plan's record holds them: lists, to stay small at 100,000 of them."""

    units: list[
        tuple[Literal["range"], str, _Ids, int, int, int]
        | tuple[Literal["rows"], str, RowIds, int]
        | tuple[Literal["keep"], str, _Ids, int, int, RowIds]
        | tuple[Literal["thin"], str, int, int, int, RowIds]
        | tuple[Literal["refresh"], str, RowIds, RowIds, int, _Ids]
    ]


def _as_list(unit: Unit) -> list[Any]:
    tag = next(t for t, kind in _TAGS.items() if isinstance(unit, kind))
    return [tag, *vars(unit).values()]


@dataclass(frozen=True)
class Base:
    """What a catch-up builds on: a table version whose other fragments stay as they are."""

    release: str
    table_version: int
    fragments: tuple[int, ...]
    """Fragments of the table that stay."""
    rows: int
    """Rows of the table in these fragments."""
    documents: int
    """Documents in these fragments."""
    dead_letters: tuple[DeadLetter, ...]
    """Documents that still have no vector and are not tried again."""
    how: str
    """How the changes were found, in words."""


@dataclass(frozen=True)
class Donor:
    """A verified release of the same space, whose vectors a run copies where the text is equal."""

    release: str
    alias: str
    origin: str
    table: str
    table_version: int
    rows: int


@dataclass(frozen=True)
class Plan:
    """What a run will do. It is fixed before the run starts, and every attempt follows it."""

    kind: Kind
    run_id: str
    alias: str
    place: Place
    space: StoredSpace
    encoder: EncoderConfig
    source: SourceRef
    table: str
    """Path under the root."""
    base_version: int
    """Newest version of the table when the run was planned; the run's own commit is a later one."""
    gate: FrozenGate
    index: IndexConfig
    rows: int
    """Source rows that are embedded."""
    documents: int
    """Documents that are embedded."""
    units: Sequence[Unit]
    unit_documents: int
    """Documents in a unit at most, except in a kept fragment."""
    created_at: str
    base: Base | None = None
    """What a catch-up builds on; None for a rebuild."""
    reuse: bool = True
    """Whether it may copy vectors of other releases."""
    donors: tuple[Donor, ...] = ()
    """Releases whose vectors it copies."""
    queries: QueryModel | None = None
    """As of `Release`."""

    @property
    def origin(self) -> str:
        """The rebuild that began the line."""
        return self.place.origin

    @property
    def resume(self) -> str:
        """The command that resumes it."""
        return self.catch_up or " ".join(("reembed run", *self.options))

    @property
    def options(self) -> tuple[str, ...]:
        """Options of `reembed run` that it was started with; none of a catch-up."""
        if self.base is None or self.place.step:
            return ()
        bridge = self.queries and self.queries.bridge
        return ("--query-only", *((f"--bridge {bridge.pairs}",) if bridge else ()))

    @property
    def catch_up(self) -> str:
        """The command of the catch-up that it is; "" where it begins a line."""
        return f"reembed catch-up {self.base.release}" if self.base and self.place.step else ""

    @property
    def restart(self) -> str:
        """The command that starts it again."""
        if self.base is None:
            return "reembed run --fresh"
        return f"reembed gc --drop-run {self.run_id} --yes     # then: {self.resume}"

    def without_units(self) -> Plan:
        """Return the plan without its units, small enough to travel with each task."""
        return replace(self, units=())

    def to_json(self) -> dict[str, Any]:
        """Return the record as stored."""
        return encode(self.without_units()) | {"units": [_as_list(u) for u in self.units]}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Plan:
        """Return the plan that a record describes."""
        plan = decode(cls, {**record, "units": []}, where(record))
        units = decode(_Units, {"units": record["units"]}, where(record)).units
        return replace(plan, units=[_TAGS[tag](*values) for tag, *values in units])

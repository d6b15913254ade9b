"""Parquet files: the types of the files, widened if they differ and every cell survives it.

Arrow's datasets read them to write, its Parquet reader to check.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from reembed.source.import_columns import (
    ID_COLUMNS,
    Cells,
    Column,
    first_other,
    not_utf8,
    require_names,
)

_ROWS = 8_192
_SIMPLE = (
    pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean,
    pa.types.is_decimal, pa.types.is_string, pa.types.is_large_string,
)  # fmt: skip


class Parquet:
    """As `Format` asks."""

    def survey(self, files: list[str]) -> list[Column]:
        schemas = {file: pq.read_schema(file) for file in files}
        for file, schema in schemas.items():
            require_names(file, schema.names)
        names = dict.fromkeys(name for schema in schemas.values() for name in schema.names)
        columns = {name: _column(name, schemas) for name in names}
        for file in files:
            at = 0
            for batch in pq.ParquetFile(file).iter_batches(_ROWS):
                for name, values in zip(batch.schema.names, batch.columns, strict=True):
                    _require_text(file, at, name, values)
                    if not columns[name].clash and not _survives(values, columns[name].type):
                        columns[name] = _as_text(columns[name], schemas)
                at += batch.num_rows
        return list(columns.values())

    def typed(self, file: str, columns: list[Column]) -> Iterator[Cells]:
        for batch in pads.dataset(file, format="parquet").to_batches(batch_size=_ROWS):
            yield batch.num_rows, {c.name: batch.column(c.name).cast(c.type) for c in columns}

    def cells(self, file: str) -> Iterator[Cells]:
        for batch in pq.ParquetFile(file).iter_batches(_ROWS):
            yield batch.num_rows, dict(zip(batch.schema.names, batch.columns, strict=True))

    def differs(self, cells: Any, written: pa.ChunkedArray) -> int | None:
        values = cells.cast(_plain(cells.type))
        back = _narrowed(written, values.type)
        if back.equals(pa.chunked_array([values])):
            return None
        return first_other(values.to_pylist(), back.to_pylist())


def _column(name: str, schemas: dict[str, pa.Schema]) -> Column:
    kinds = _kinds(name, schemas)
    files = frozenset(f for f, schema in schemas.items() if name in schema.names)
    column = Column(name, pa.null(), files=files)
    try:
        merged = pa.unify_schemas(
            [pa.schema([(name, kind)]) for kind in (pa.null(), *kinds)],
            promote_options="permissive",
        )
    except pa.ArrowException:
        return _as_text(column, schemas)
    kind = merged.field(0).type
    if name in ID_COLUMNS and pa.types.is_floating(kind) and any(map(pa.types.is_integer, kinds)):
        return _as_text(column, schemas)  # 1 is not 1.0
    why = _types(kinds) if len(kinds) > 1 else None
    return replace(column, type=kind, why=why)


def _as_text(column: Column, schemas: dict[str, pa.Schema]) -> Column:
    """Return the column as text if that can hold all its values unchanged; else with its clash."""
    kinds = _kinds(column.name, schemas)
    if all(any(is_kind(k) for is_kind in _SIMPLE) for k in kinds):
        return replace(column, type=pa.string(), why=_types(kinds))
    by_type = {str(schemas[f].field(column.name).type): f for f in schemas if f in column.files}
    where = ", ".join(f"{kind} in {file}" for kind, file in by_type.items())
    return replace(column, clash=f"is {where}: no type holds all of them unchanged")


def _kinds(name: str, schemas: dict[str, pa.Schema]) -> list[pa.DataType]:
    """Return the types that a column has in the files, without null."""
    kinds = (_plain(s.field(name).type) for s in schemas.values() if name in s.names)
    return [k for k in dict.fromkeys(kinds) if not pa.types.is_null(k)]


def _types(kinds: list[pa.DataType]) -> str:
    return f"the files have {', '.join(map(str, kinds))}"


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return, of the several forms of one type, the one that every reader knows."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.string()
    return kind


def _survives(values: pa.Array, kind: pa.DataType) -> bool:
    values = values.cast(_plain(values.type))
    if values.type == kind:
        return True
    try:
        wide = values.cast(kind)
    except pa.ArrowException:
        return False
    back = _narrowed(wide, values.type)
    return bool(back.equals(values)) or first_other(values.to_pylist(), back.to_pylist()) is None


def _narrowed(written: Any, kind: pa.DataType) -> Any:
    """Return the values in the file's type, if they can be cast; values are compared in any case."""
    try:
        return written.cast(kind)
    except pa.ArrowException:
        return written


def _require_text(file: str, first: int, name: str, values: pa.Array) -> None:
    try:
        values.validate(full=True)
    except pa.ArrowInvalid as error:
        for at in range(len(values)):
            try:
                values.take(pa.array([at])).validate(full=True)
            except pa.ArrowInvalid:
                raise not_utf8(file, f"row {first + at + 1}", name) from error
        raise

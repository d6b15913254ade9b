"""JSON lines: numbers, texts, lists and objects as they are; values that share no type become text.

Python's json module reads them: Arrow's reader makes dates of texts and doubles of big integers, and
DuckDB's cuts decimals (docs/decisions/013).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from reembed.errors import SourceError
from reembed.source import import_columns
from reembed.source.import_columns import (
    ID_COLUMNS,
    Cells,
    Column,
    first_other,
    not_utf8,
    opened,
    surveyed,
)

_EXACT = 2**53
"""Every integer up to it is a double."""
_SHORT = 16
"""A decimal of 15 digits and a point survives a double."""
_MOST_FIELDS = 1_000
_SEVERAL = "values of several kinds; those that are not text are written as JSON"
_ONE_OBJECT = "each line is one JSON object"

Row = dict[str, Any]


class Json:
    """As `Format` asks."""

    def survey(self, files: list[str]) -> list[Column]:
        return surveyed(files, self.cells, _Seen)

    def typed(self, file: str, columns: list[Column]) -> Iterator[Cells]:
        for rows in _blocks(file):
            made = {}
            for column in columns:
                values = [row.get(column.name) for row in rows]
                if pa.types.is_string(column.type):
                    values = list(map(_as_text, values))
                made[column.name] = pa.array(values, column.type)
            yield len(rows), made

    def cells(self, file: str) -> Iterator[Cells]:
        for rows in _blocks(file):
            names = dict.fromkeys(name for row in rows for name in row)
            yield len(rows), {n: [row.get(n) for row in rows] for n in names}

    def differs(self, cells: Any, written: pa.ChunkedArray) -> int | None:
        back = written.to_pylist()
        if pa.types.is_string(written.type) and cells != back:
            back = [
                c if c is None or isinstance(v, str) else _DECODER.decode(c)
                for v, c in zip(cells, back, strict=True)
            ]
        return first_other(cells, back)


@dataclass
class _Seen:
    """What was seen of a column: a type for all its values, or the reason why there is none."""

    type: pa.DataType = field(default_factory=pa.null)
    text: str | None = None
    """Why the column is text, if it is."""
    whole: bool = False
    """There are integers, perhaps beside decimals."""
    wide: bool = False
    """There are integers that no double holds."""

    def add(self, values: list[Any]) -> None:
        if self.text is not None:
            return
        try:
            array = pa.array(values)
            self.whole = self.whole or any(type(v) is int for v in values)
            self.wide = self.wide or _is_wide(array)
            self._merge(array.type)
        except OverflowError:
            self.text = "integers beyond 64 bits"
        except pa.ArrowException:
            self.text = _SEVERAL
        else:
            doubles = any(map(pa.types.is_floating, _within(array.type)))
            if doubles and first_other(values, array.to_pylist()) is not None:
                self.text = _SEVERAL  # Arrow makes 1.0 of true

    def _merge(self, kind: pa.DataType) -> None:
        schemas = [pa.schema([("x", self.type)]), pa.schema([("x", kind)])]
        merged = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
        if self.wide and _mixes(self.type, kind):
            self.text = "integers beyond 2^53 mixed with decimals, stored as text"
        elif sum(1 for _ in _within(merged)) > _MOST_FIELDS:
            self.text = f"objects of more than {_MOST_FIELDS:,} different keys, written as JSON"
        self.type = merged

    def column(self, name: str) -> Column:
        if self.text is not None:
            return Column(name, pa.string(), self.text)
        if _is_empty(self.type):
            return Column(name, pa.null())
        if any(map(_is_empty, _within(self.type))):
            return Column(name, pa.string(), "objects with empty parts, written as JSON")
        if not (self.whole and pa.types.is_floating(self.type)):
            return Column(name, self.type)
        if name in ID_COLUMNS:
            why = "ids that mix integers and decimals, stored as text"
            return Column(name, pa.string(), why)
        return Column(name, self.type, "mixed integers and decimals, all stored as decimals")


def _blocks(file: str) -> Iterator[list[Row]]:
    """Yield the objects of a file, some MiB of whole lines at a time, however long one is."""
    first = 1
    with opened(file) as stream:
        while lines := stream.readlines(import_columns.BLOCK_BYTES):
            numbered = enumerate(lines, first)
            if rows := [_object(file, n, line) for n, line in numbered if line.strip()]:
                yield rows
            first += len(lines)


def _object(file: str, number: int, line: bytes) -> Row:
    where = f"{file}, line {number}"
    try:
        text = line.removesuffix(b"\n").decode("utf-8-sig" if number == 1 else "utf-8")
        row = _DECODER.decode(text)
        if "\\ud" in text.lower():  # half a surrogate pair is not a character
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise not_utf8(file, f"line {number}") from error
    except UnicodeEncodeError as error:
        raise SourceError(
            f"{where}: an escape such as \\ud83d is half a surrogate pair",
            "the other half is missing, and half a pair is not a character",
            f"complete the pair in line {number} of {file}, or remove it",
        ) from error
    except RecursionError as error:
        raise SourceError(f"{where}: nested too deep") from error
    except ValueError as error:
        raise SourceError(
            f"{where}: not JSON: {error}", _ONE_OBJECT, _instead_of(file, number, line)
        ) from error
    if not isinstance(row, dict):
        found = f"{where}: {type(row).__name__} in place of an object"
        raise SourceError(found, _ONE_OBJECT, _lines_of(file))
    return row


def _instead_of(file: str, number: int, line: bytes) -> str | None:
    """Return what makes lines of a file that begins as one list or object over several; else what shows the line."""
    if number == 1 and (line.strip() == b"{" or line.lstrip().startswith(b"[")):
        return _lines_of(file)
    return import_columns.shown_line(file, number)


def _lines_of(file: str) -> str | None:
    if file.endswith(import_columns.COMPRESSIONS):
        return None
    path = Path(file)
    made = shlex.quote(str(path.with_name(f"{path.stem}-lines.jsonl")))
    command = f"jq -c 'if type == \"array\" then .[] else . end' {shlex.quote(file)}"
    return f"{command} > {made}     # one object a line"


def _pairs(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) != len(pairs):
        twice = next(key for at, (key, _) in enumerate(pairs) if key in dict(pairs[:at]))
        raise ValueError(f"the key {twice!r} occurs twice in one object")
    return row


def _integer(digits: str) -> int | float:
    if digits == "-0":
        return -0.0
    return int(digits)


def _decimal(digits: str) -> float | str:
    """Return a double if it is the same number, else the digits as text."""
    value = float(digits)
    if len(digits) <= _SHORT and "e" not in digits and "E" not in digits:
        return value
    exact = Decimal(digits)
    if exact in (Decimal(repr(value)), Decimal(f"{value:.17g}")):
        return value
    return digits


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_int=_integer, parse_float=_decimal)


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _is_wide(array: pa.Array) -> bool:
    kind = array.type
    if pa.types.is_integer(kind):
        ends = pc.min_max(array).as_py()
        return any(abs(v or 0) > _EXACT for v in ends.values())
    if pa.types.is_list(kind):
        return _is_wide(array.flatten())
    return pa.types.is_struct(kind) and any(map(_is_wide, array.flatten()))


def _children(kind: pa.DataType) -> dict[str, pa.DataType]:
    return {f.name: f.type for f in map(kind.field, range(kind.num_fields))}


def _within(kind: pa.DataType) -> Iterator[pa.DataType]:
    """Yield a type and all types in it."""
    yield kind
    for child in _children(kind).values():
        yield from _within(child)


def _mixes(one: pa.DataType, other: pa.DataType) -> bool:
    """Return whether an integer of one is a double of the other."""
    if {one, other} == {pa.int64(), pa.float64()}:
        return True
    mine, its = _children(one), _children(other)
    return any(_mixes(mine[name], its[name]) for name in mine.keys() & its.keys())


def _is_empty(kind: pa.DataType) -> bool:
    """Return whether it is null, an object without keys or a list without values."""
    nothing = pa.types.is_struct(kind) and not kind.num_fields
    return pa.types.is_null(kind) or nothing or kind == pa.list_(pa.null())

"""CSV files: every cell is text; a column has a number type only if every cell survives it.

Python's csv module reads them to find the types and to check, Arrow to write.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv

from reembed.errors import SourceError
from reembed.source import import_columns
from reembed.source.import_columns import (
    Cells,
    Column,
    Numbers,
    not_utf8,
    numbers,
    opened,
    require_names,
    surveyed,
    text_differs,
)

_LONGEST_ROW = 64 << 20
_ROWS = 8_192


class Csv:
    """As `Format` asks."""

    def survey(self, files: list[str]) -> list[Column]:
        return surveyed(files, self.cells, lambda: Numbers("every cell"))

    def typed(self, file: str, columns: list[Column]) -> Iterator[Cells]:
        names = [c.name for c in columns] or next(_rows(file))[1][:1]  # one column to count rows
        with opened(file) as stream:
            reader = pacsv.open_csv(
                stream,
                pacsv.ReadOptions(block_size=_LONGEST_ROW),
                pacsv.ParseOptions(newlines_in_values=True),
                pacsv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.string()), include_columns=names
                ),
            )
            for batch in reader:
                made = {c.name: numbers(batch.column(c.name), c.type) for c in columns}
                yield batch.num_rows, made

    def cells(self, file: str) -> Iterator[Cells]:
        rows: list[list[str]] = []
        names, size, first = None, 0, 2
        for line, row in _rows(file):
            if names is None:
                names = row
                require_names(file, names)
                continue
            if len(row) != len(names):
                raise SourceError(
                    f"{file}, line {line}: {len(row)} cells where the header has {len(names)}",
                    "cells cannot be assigned to columns",
                    import_columns.shown_line(file, line),
                )
            rows.append(row)
            size += sum(map(len, row))
            if size > import_columns.BLOCK_BYTES or len(rows) == _ROWS:
                yield _as_text(file, names, rows, first)
                rows, size, first = [], 0, line + 1
        if names is None:
            raise SourceError(f"{file}: contains no documents", "the file has no header")
        yield _as_text(file, names, rows, first)

    def differs(self, cells: Any, written: pa.ChunkedArray) -> int | None:
        return text_differs(cells, written)


def _rows(file: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line on which it ends, cells) of every row that is not blank."""
    csv.field_size_limit(sys.maxsize)
    with opened(file) as stream:
        text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(text, strict=True)
        try:
            for row in reader:
                if row:
                    yield reader.line_num, row
        except csv.Error as error:
            raise SourceError(
                f"{file}, line {reader.line_num}: not CSV: {error}",
                'a cell with a comma, a quote or a line end is "quoted", quotes in it are doubled',
                import_columns.shown_line(file, reader.line_num),
            ) from error


def _as_text(file: str, names: list[str], rows: list[list[str]], first: int) -> Cells:
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    try:
        cells = {n: pa.array(c, pa.string()) for n, c in zip(names, columns, strict=True)}
    except UnicodeEncodeError as error:
        for row in rows:
            for name, cell in zip(names, row, strict=True):
                if any("\udc80" <= c <= "\udcff" for c in cell):
                    raise not_utf8(file, f"line {first}", name) from error
            first += 1 + sum(cell.count("\n") for cell in row)
        raise
    return len(rows), cells

"""How rows of a source become documents: today one row is one document with one text."""

from __future__ import annotations

import string
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.compute as pc

from reembed.catalog.releases import SourceRef
from reembed.errors import SourceError
from reembed.source.columns import plain, template_columns, text_columns
from reembed.store.storage import first_line

TEXT = "reembed.text"
"""Name of the text among a document's columns. Lance allows no dot in a column's name, so that no
carried column can be called so."""


def columns_read(ref: SourceRef) -> list[str]:
    """Return the source columns that documents are made of."""
    return list(dict.fromkeys([ref.id_column, *text_columns(ref), *ref.carry]))


def documents(ref: SourceRef, rows: pa.Table) -> pa.Table:
    """Return doc_id, TEXT (large_binary: UTF-8 as stored) and carried columns, in the rows' order."""
    made = {"doc_id": doc_ids(ref, rows), TEXT: _text(ref, rows)}
    return pa.table(made | {c: rows[c] for c in ref.carry})


def doc_ids(ref: SourceRef, rows: pa.Table) -> pa.ChunkedArray:
    """Return the ids of the rows' documents: string or int64."""
    return rows[ref.id_column].cast(plain(rows[ref.id_column].type))


@contextmanager
def readable(ref: SourceRef) -> Iterator[None]:
    """Name the columns that cannot be read: Lance reads no text that is not UTF-8.

    Raises:
        SourceError: in place of Lance's error.
    """
    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:  # the first of its `take`
        if "UTF" not in str(error).upper():
            raise
        raise SourceError(
            f"{', '.join(columns_read(ref))} of {ref.uri} version {ref.version} cannot be read",
            first_line(error),
            "reembed import --help     # write the dataset again; import names the rows that are not UTF-8",
        ) from error


def _text(ref: SourceRef, rows: pa.Table) -> pa.ChunkedArray:
    if not template_columns(ref.text):
        return _bytes(rows[ref.text])
    parts: list[pa.ChunkedArray | pa.Scalar] = []
    for literal, name, _, _ in string.Formatter().parse(ref.text):
        parts.append(pa.scalar(literal.encode(), pa.large_binary()))
        if name:
            parts.append(_bytes(rows[name]))
    nothing = pa.scalar(b"", pa.large_binary())
    return pc.binary_join_element_wise(
        *parts, nothing, null_handling="replace", null_replacement=""
    )


def _bytes(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.large_string()).cast(pa.large_binary())

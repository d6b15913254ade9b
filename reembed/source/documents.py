"""How rows of a source become documents: today one row is one document with one text and an id of its own."""

from __future__ import annotations

import shlex
import string
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from reembed.catalog.releases import SourceRef
from reembed.errors import SourceError
from reembed.source.columns import plain, template_columns, text_columns
from reembed.store.storage import first_line

TEXT = "reembed.text"
"""Name of the text among a document's columns. Lance allows no dot in a column's name, so that no
carried column can be called so."""
_MAX_ID = 2**63 - 1
Fragments = list[lance.LanceFragment]
_EXAMPLES = 5


def documents_in(rows: int) -> int:
    """Return the number of documents in this many rows of a source: each row is one document."""
    return rows


def columns_of(ref: SourceRef) -> list[str]:
    """Return the source columns that documents are made of."""
    return list(dict.fromkeys([ref.id_column, *text_columns(ref), *ref.carry]))


def documents(ref: SourceRef, rows: pa.Table) -> pa.Table:
    """Return doc_id, TEXT (large_binary: UTF-8 as stored) and carried columns, in the rows' order."""
    made = {"doc_id": doc_ids(ref, rows), TEXT: text_of(ref, rows)}
    return pa.table(made | {c: rows[c] for c in ref.carry})


def text_of(ref: SourceRef, rows: pa.Table) -> pa.ChunkedArray:
    """Return the texts of rows that have their columns: large_binary, UTF-8 as stored."""
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


def doc_ids(ref: SourceRef, rows: pa.Table) -> pa.ChunkedArray:
    """Return the ids of the rows' documents: string or int64."""
    return rows[ref.id_column].cast(plain(rows[ref.id_column].type))


@contextmanager
def readable(ref: SourceRef) -> Iterator[None]:
    """Raise a SourceError with the columns' names if Lance meets text that is not UTF-8."""
    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:  # the first of its `take`
        if "UTF" not in str(error).upper():
            raise
        raise _unreadable(ref, columns_of(ref), error) from error


def check_ids(
    dataset: lance.LanceDataset, ref: SourceRef, fragments: Fragments | None = None
) -> int:
    """Return the number of documents that pass the filter, each with an id of its own.

    With `fragments`, only rows of these are read, and there may be none.

    Raises:
        SourceError: there is no document, or ids are null, repeated (with examples) or too large.
    """
    keys, nulls = _id_keys(dataset, ref, fragments)
    values, counts = np.unique(keys, return_counts=True)
    examples: list[str] = []
    if (suspects := values[counts > 1]).size and not nulls:
        found = (i.filter(np.isin(_keys(i), suspects)) for i, _ in ids(dataset, ref, fragments))
        examples = _repeated(found)
    rows = len(keys) + nulls
    require_ids(ref, rows if fragments is None else max(rows, 1), nulls, examples)
    return rows


def require_ids(ref: SourceRef, documents: int, nulls: int, examples: Sequence[str]) -> None:
    """Check that there are documents and that each has an id of its own; `examples` are ids that several have.

    Raises:
        SourceError: there is no document, or an id is null or repeated.
    """
    column, where = ref.id_column, f"{ref.uri} version {ref.version}"
    if nulls:
        raise SourceError(
            f"{nulls:,} documents of {where} have no {column}",
            "a vector without an id cannot be found again, updated or deleted",
            f"reembed run --set {shlex.quote(f'source.filter=`{column}` IS NOT NULL')}",
        )
    if not documents:
        why, fix = "the dataset has no rows", "reembed import --help"
        if ref.filter:
            why = f"the filter {ref.filter!r} matches no row"
            fix = "reembed run --set source.filter=null"
        raise SourceError(f"{where} has no documents", why, fix)
    if examples:
        raise SourceError(
            f"{column} of {where} is not unique: {', '.join(examples)} ...",
            "each document has one vector: each id must name exactly one row",
            "remove the duplicates, or set source.filter to one row per id",
        )


def _unreadable(ref: SourceRef, columns: Sequence[str], error: Exception) -> SourceError:
    return SourceError(
        f"{', '.join(columns)} of {ref.uri} version {ref.version} cannot be read",
        first_line(error),
        "reembed import --help     # write the dataset again; import names the rows that are not UTF-8",
    )


def _bytes(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.large_string()).cast(pa.large_binary())


def ids(
    dataset: lance.LanceDataset, ref: SourceRef, fragments: Fragments | None
) -> Iterator[tuple[pa.Array, npt.NDArray[np.int64]]]:
    """Yield ids, also null, and row ids int64 [B] of the rows that pass the filter.

    Raises:
        SourceError: an id is too large or not UTF-8, or the filter cannot be evaluated.
    """
    column, where = ref.id_column, f"{ref.uri} version {ref.version}"
    scanner = dataset.scanner(
        columns=[column], filter=ref.filter, fragments=fragments, with_row_id=True
    )
    try:
        for batch in scanner.to_batches():
            found = batch.column(column)
            if pa.types.is_dictionary(found.type):
                found = found.dictionary_decode()
            if pa.types.is_uint64(found.type) and (pc.max(found).as_py() or 0) > _MAX_ID:
                raise SourceError(
                    f"{column} of {where} holds integers above {_MAX_ID:,}",
                    "ids are stored as signed 64-bit integers or as text",
                    "write the ids as strings, and set source.id_column to that column",
                )
            yield found, batch.column("_rowid").to_numpy().astype(np.int64)
    except pa.ArrowInvalid as error:  # Lance reads no text that is not UTF-8
        if not ref.filter or "UTF" in str(error).upper():
            raise _unreadable(ref, [column], error) from error
        raise SourceError(
            f"source.filter = {ref.filter!r} cannot be evaluated for every row of {where}",
            first_line(error),
            "reembed config     # shows source.filter; change it so that it fits every row",
        ) from error


def _repeated(found: Iterable[pa.Array]) -> list[str]:
    """Return the first few ids that occur more than once, and how often, in words."""
    counts = pa.chunked_array(list(found)).value_counts().to_pylist()
    return [f"{c['values']!r} ({c['counts']} rows)" for c in counts if c["counts"] > 1][:_EXAMPLES]


def _id_keys(
    dataset: lance.LanceDataset, ref: SourceRef, fragments: Fragments | None
) -> tuple[npt.NDArray[np.int64], int]:
    """Return the key of each id that is not null, and how many are null."""
    keys, nulls = [np.empty(0, np.int64)], 0
    for found, _ in ids(dataset, ref, fragments):
        nulls += found.null_count
        keys.append(_keys(found.drop_null()))
    return np.concatenate(keys), nulls


def _keys(ids: pa.Array) -> npt.NDArray[np.int64]:
    """Return a number for each id; two ids may share one, which `_repeated` then tells apart."""
    if pa.types.is_integer(ids.type):
        return np.asarray(ids.cast(pa.int64()), np.int64)
    return np.fromiter(map(hash, ids.to_pylist()), np.int64, len(ids))

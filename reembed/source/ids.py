"""Ids of a dataset's documents: present, unique, and of a kind that a table can hold."""

from __future__ import annotations

import shlex

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from reembed.errors import SourceError
from reembed.store.storage import first_line

_MAX_ID = 2**63 - 1
_EXAMPLES = 5


def documents_in(rows: int) -> int:
    """Return the number of documents in this many rows of a source: each row is one document."""
    return rows


def check_ids(dataset: lance.LanceDataset, where: str, column: str, condition: str | None) -> int:
    """Return the number of documents that pass the filter, each with an id of its own.

    Raises:
        SourceError: there is no document, or ids are null, repeated (with examples) or too large.
    """
    try:
        keys, nulls = _id_keys(dataset, where, column, condition)
    except pa.ArrowInvalid as error:  # Lance reads no text that is not UTF-8
        why = first_line(error)
        if condition and "UTF" not in why.upper():
            raise SourceError(
                f"source.filter = {condition!r} cannot be evaluated for every row of {where}",
                why,
                "reembed config     # shows source.filter; change it so that it fits every row",
            ) from error
        raise SourceError(
            f"{column} of {where} cannot be read",
            why,
            "reembed import --help     # write the dataset again; import names the rows that are not UTF-8",
        ) from error
    if nulls:
        raise SourceError(
            f"{nulls:,} documents of {where} have no {column}",
            "a vector without an id cannot be found again, updated or deleted",
            f"reembed run --set {shlex.quote(f'source.filter=`{column}` IS NOT NULL')}",
        )
    if not len(keys):
        raise _no_documents(where, condition)
    values, counts = np.unique(keys, return_counts=True)
    if (suspects := values[counts > 1]).size and (
        examples := _duplicates(dataset, column, condition, suspects)
    ):
        raise SourceError(
            f"{column} of {where} is not unique: {', '.join(examples)} ...",
            "each document has one vector: each id must name exactly one row",
            "remove the duplicates, or set source.filter to one row per id",
        )
    return len(keys)


def _no_documents(where: str, condition: str | None) -> SourceError:
    what = f"{where} has no documents"
    if not condition:
        return SourceError(what, "the dataset has no rows", "reembed import --help")
    why = f"the filter {condition!r} matches no row"
    return SourceError(what, why, "reembed run --set source.filter=null")


def _id_keys(
    dataset: lance.LanceDataset, where: str, column: str, condition: str | None
) -> tuple[npt.NDArray[np.int64], int]:
    scanner = dataset.scanner(columns=[column], filter=condition)
    keys, nulls = [np.empty(0, np.int64)], 0
    for batch in scanner.to_batches():
        nulls += batch.column(0).null_count
        ids = _plain(batch.column(0).drop_null())
        if pa.types.is_uint64(ids.type) and len(ids) and pc.max(ids).as_py() > _MAX_ID:
            raise SourceError(
                f"{column} of {where} holds integers above {_MAX_ID:,}",
                "ids are stored as signed 64-bit integers or as text",
                "write the ids as strings, and set source.id_column to that column",
            )
        keys.append(_keys(ids))
    return np.concatenate(keys), nulls


def _duplicates(
    dataset: lance.LanceDataset,
    column: str,
    condition: str | None,
    suspects: npt.NDArray[np.int64],
) -> list[str]:
    """Return ids that repeat, among those whose keys do."""
    found = []
    for batch in dataset.scanner(columns=[column], filter=condition).to_batches():
        ids = _plain(batch.column(0))
        found.append(ids.filter(pa.array(np.isin(_keys(ids), suspects))))
    counts = pa.chunked_array(found).value_counts().to_pylist()
    return [f"{c['values']!r} ({c['counts']} rows)" for c in counts if c["counts"] > 1][:_EXAMPLES]


def _plain(ids: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(ids.type):
        return ids.dictionary_decode()
    return ids


def _keys(ids: pa.Array) -> npt.NDArray[np.int64]:
    """Return a number for each id; two ids may share one, which `_duplicates` then tells apart."""
    if pa.types.is_integer(ids.type):
        return np.asarray(ids.cast(pa.int64()), np.int64)
    return np.fromiter(map(hash, ids.to_pylist()), np.int64, len(ids))

"""Rows that may differ between two versions of a dataset, found by the files that hold them.

What a scan of some columns returns follows from their fields (id, type), the data files of each
fragment and its deletion file, and Lance changes none of these in place. Where all are the same in
two versions, so are the rows. That is everything trusted here: no list of operations, row ids or
row versions, which do not cover `LanceFragment.update_columns`, a renamed column or a restore.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import lance
    from lance.lance.schema import LanceField


Addresses = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Delta:
    """Where the rows are that only the older or only the newer of two versions of a dataset has."""

    written: tuple[int, ...]
    """Fragments of the newer version whose files the older does not have."""
    left: tuple[int, ...]
    """Fragments of the older version whose files the newer does not have."""
    thinned: dict[int, Addresses]
    """Addresses of rows deleted from fragments that both versions have, by fragment."""


def delta(
    older: lance.LanceDataset, newer: lance.LanceDataset, columns: Sequence[str] | None
) -> Delta:
    """Compare the files that hold `columns`, or all columns, in two versions of one dataset."""
    before, after = _layout(older, columns), _layout(newer, columns)
    same = [i for i in after if before.get(i) == after[i]]
    pairs = zip(fragments_of(older, same), fragments_of(newer, same), strict=True)
    kept, thinned = set(), {}
    for was, now in pairs:
        if _deletions(was) == _deletions(now):
            kept.add(now.fragment_id)
            continue
        live, still = _addresses(older, was), _addresses(newer, now)
        if np.isin(still, live).all():  # else a restore brought rows back
            kept.add(now.fragment_id)
            thinned[now.fragment_id] = np.setdiff1d(live, still, assume_unique=True)
    return Delta(
        written=tuple(i for i in after if i not in kept),
        left=tuple(i for i in before if i not in kept),
        thinned=thinned,
    )


def fingerprint(dataset: lance.LanceDataset) -> str:
    """Return a digest of all that decides which rows a version has.

    It differs for another dataset made in its place, and for other changes after an older version was
    put back.
    """
    fields = _fields(dataset)
    schema = [(f.name, _ids(fields[f.name]), str(f.type)) for f in dataset.schema]
    dead = [_deletions(fragment) for fragment in dataset.get_fragments()]
    told = repr((schema, sorted(_layout(dataset, None).items()), dead))
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def fragments_of(dataset: lance.LanceDataset, ids: Iterable[int]) -> list[lance.LanceFragment]:
    """Return fragments of this version, by id."""
    return [fragment for i in ids if (fragment := dataset.get_fragment(i)) is not None]


def _fields(dataset: lance.LanceDataset) -> dict[str, LanceField]:
    """Return Lance's fields by name; looked up by Lance itself, a name with backticks is not found."""
    return {field.name(): field for field in dataset.lance_schema.fields()}


def _layout(dataset: lance.LanceDataset, columns: Sequence[str] | None) -> dict[int, Any]:
    """Return, by fragment, everything but its deletion file that decides what a scan of `columns` returns."""
    names = sorted(dataset.schema.names if columns is None else columns)
    fields = _fields(dataset)
    ids = {name: _ids(fields[name]) for name in names}
    wanted = {i for group in ids.values() for i in group}
    types = [(n, i, str(dataset.schema.field(n).type)) for n, i in ids.items()]
    return {
        fragment.fragment_id: (
            types,
            fragment.physical_rows,
            [place for file in fragment.metadata.files for place in _places(file, wanted)],
            [str(overlay) for overlay in fragment.metadata.overlays],
        )
        for fragment in dataset.get_fragments()
    }


def _ids(field: LanceField) -> list[int]:
    return [field.id(), *(i for child in field.children() for i in _ids(child))]


def _places(file: Any, wanted: set[int]) -> list[tuple[Any, ...]]:
    """Return where in the file the wanted fields are."""
    return [
        (file.base_id, file.path, field, file.column_indices[place : place + 1])
        for place, field in enumerate(file.fields)
        if field in wanted
    ]


def _deletions(fragment: lance.LanceFragment) -> Any:
    found = fragment.metadata.deletion_file
    return found and found.asdict()


def _addresses(dataset: lance.LanceDataset, fragment: lance.LanceFragment) -> Addresses:
    """Return addresses of the fragment's live rows; no column is read."""
    scanner = dataset.scanner(columns=[], with_row_address=True, fragments=[fragment])
    return np.asarray(scanner.to_table()["_rowaddr"], np.uint64)

"""Rows that only one of two versions of a Lance dataset has, for a verification of what is new.

A fragment stays if both versions describe it alike: the same data files with the same fields, the same
overlays, row ids and number of rows, under a schema with the same field ids and types. Lance writes a new
file wherever a value changes, so such a fragment has the same rows, less those that a deletion file names;
which rows these are is asked of Lance, by their addresses. Anything else counts as left and come, and is
read on both sides. That is all that is trusted. `source/delta.py`, by which a catch-up finds changes,
answers a similar question by other code and by column: a check must not share the fault that it looks for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lance
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from lance.lance.schema import LanceField

_OF_A_FILE = (
    "path", "fields", "column_indices", "file_major_version", "file_minor_version",
    "file_size_bytes", "base_id",
)  # fmt: skip
_OFFSET = 2**32 - 1
"""Bits of a row's address that say where in its fragment it is."""


@dataclass(frozen=True)
class Moved:
    """Rows that only the older or only the newer of two versions has."""

    left: tuple[int, ...]
    """Fragments of the older version."""
    thinned: npt.NDArray[np.int64]
    """Row ids of the older version's rows that were deleted from fragments that stay, int64 [N]."""
    come: tuple[int, ...]
    """Fragments of the newer version."""
    rows: int
    """Rows of all of these."""


def moved(
    older: lance.LanceDataset, newer: lance.LanceDataset, *, whole: bool = False
) -> Moved | None:
    """Compare two versions of a dataset; None if their columns differ.

    `whole`: a fragment that lost rows counts as left and come.
    """
    if _columns(older) != _columns(newer):
        return None
    before, after = _by_content(older), _by_content(newer)
    left = {k: f for k, f in before.items() if k not in after}
    come = {k: f for k, f in after.items() if k not in before}
    thinned = [np.empty(0, np.int64)]
    for key in before.keys() & after.keys():
        was, now = before[key], after[key]
        if _deletions(was) == _deletions(now):
            continue
        (rows, places), (_, still) = _live(older, was), _live(newer, now)
        if not whole and np.isin(still, places).all():
            thinned.append(rows[~np.isin(places, still)])
        else:  # or a restore brought rows back
            left[key], come[key] = was, now
    gone = np.sort(np.concatenate(thinned))
    read = sum(f.metadata.num_rows for f in (*left.values(), *come.values()))
    return Moved(_ids(left.values()), gone, _ids(come.values()), read + len(gone))


def _by_content(dataset: lance.LanceDataset) -> dict[bytes, lance.LanceFragment]:
    """Return fragments by a digest of all that decides their rows but the deletion file."""
    found = {}
    for fragment in dataset.get_fragments():
        described = fragment.metadata
        files = [[getattr(file, name) for name in _OF_A_FILE] for file in described.files]
        row_ids = described.row_id_meta and described.row_id_meta.json()
        overlays = [str(overlay) for overlay in described.overlays]
        key = repr((files, overlays, described.physical_rows, row_ids))
        found[hashlib.sha256(key.encode()).digest()] = fragment
    return found


def _columns(dataset: lance.LanceDataset) -> list[Any]:
    def of(field: LanceField) -> list[Any]:
        return [field.name(), field.id(), *(of(child) for child in field.children())]

    types = [(field.name, str(field.type)) for field in dataset.schema]
    return [types, [of(field) for field in dataset.lance_schema.fields()]]


def _deletions(fragment: lance.LanceFragment) -> Any:
    found = fragment.metadata.deletion_file
    return found and found.asdict()


def _live(
    dataset: lance.LanceDataset, fragment: lance.LanceFragment
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return row ids and places in the fragment of its live rows; no column is read."""
    scanner = dataset.scanner(
        columns=[], with_row_id=True, with_row_address=True, fragments=[fragment]
    )
    rows = scanner.to_table()
    places = rows["_rowaddr"].to_numpy().astype(np.int64) & _OFFSET
    return rows["_rowid"].to_numpy().astype(np.int64), places


def _ids(fragments: Iterable[lance.LanceFragment]) -> tuple[int, ...]:
    return tuple(sorted(f.fragment_id for f in fragments))

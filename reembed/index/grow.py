"""Grow an index by what changed in its table: new rows become a delta segment, rows that left get tombstones.

A delta is filled from the trained index of the base, so the two answer as one index that was filled at once, and
the operating point and the recall that were measured on the base are kept. More new rows than a shard may have
become several deltas. Above a tenth of the base's rows the index is built again instead.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import faiss
import numpy as np

from reembed import faults
from reembed.catalog.index_manifest import IndexManifest, Segment, Tombstones
from reembed.errors import IntegrityError
from reembed.index import files
from reembed.index.build import Build, cut_into_shards
from reembed.index.fill import fill
from reembed.index.train import Device
from reembed.index.types import Int64

FOLD_ABOVE = 0.1
"""Rows of deltas and tombstones as a share of the base's rows, above which the index is built again."""
DELTAS = 8
"""Deltas that are kept beside each other; the next one takes in the newest, as many as make a shard."""
_AT_ONCE = 1_000_000
"""Row ids that are looked up together: np.isin sorts a copy of them."""


@dataclass(frozen=True)
class Older:
    """An index of an older version of the table."""

    path: str
    manifest: IndexManifest


@dataclass(frozen=True)
class Change:
    """What a table version has that the older one does not have, and the other way round."""

    added: tuple[int, ...]
    """Fragments with rows that the older version does not have, in the order of the table."""
    left: Int64
    """Row ids [L] that only the older version has, sorted."""
    losing: frozenset[int]
    """Fragments of the older version that had these rows."""
    embedded: int
    """Rows whose vectors are new."""


def most_in_delta(base: int, shard_rows: int) -> int:
    """Return the most rows of a delta that an index of `base` rows grows by, unless a single fragment has more."""
    return max(1, min(shard_rows, int(FOLD_ABOVE * base)))


def is_outgrown(base: int, changed: int) -> bool:
    """Return whether an index of `base` rows is built again.

    `changed`: rows in deltas, those to come included, and rows that left.
    """
    return changed > FOLD_ABOVE * base


def grow(build: Build, older: Older, change: Change, *, table_version: int) -> IndexManifest | None:
    """Write the index of the newer table version; None if it is to be built again instead.

    Raises:
        IntegrityError: files of the older index are missing or changed, or it does not hold the rows that left.
    """
    held = older.manifest
    rows = dict(build.source.fragments())
    if held.base.factory != build.factory or held.settings.shard_rows != build.settings.shard_rows:
        return None
    base, before = _by_kind(held)
    stay = deltas_beside(
        [d.fragments for d in before], change.added, rows, build.settings.shard_rows
    )
    deltas = before[:stay]
    held = replace(held, segments=(*base, *deltas))
    dead = _dead(build, older, held, change, missing=len(deltas) < len(before))
    merged = (f for d in before[len(deltas) :] for f in d.fragments if f in rows)
    fragments = (*merged, *change.added)
    new, total = sum(rows[f] for f in fragments), sum(s.rows for s in base)
    changed = new + sum(d.rows for d in deltas) + len(dead)
    if is_outgrown(total, changed):
        return None
    for file in held.files:
        if held.tombstones is None or file != held.tombstones.file:
            files.share(build.storage, older.path, file, build.path)
    since = held.base.rows_since_training + change.embedded
    most = build.settings.shard_rows
    groups = cut_into_shards([(f, rows[f]) for f in fragments], most) if new else ()
    delta = [_delta(build, held.base, group, since) for group in groups]
    tombstones = None
    if len(dead):
        tombstones = Tombstones(files.put_tombstones(build.storage, build.path, dead), len(dead))
    faults.point("index.before_grown")
    manifest = replace(
        held,
        segments=(*base, *deltas, *delta),
        tombstones=tombstones,
        table_version=table_version,
    )
    if manifest.rows != build.source.rows:
        raise IntegrityError(
            f"the index would hold {manifest.rows:,} rows, and the table has {build.source.rows:,}",
            "the index that it grows from is of another table version",
            "reembed run --fresh",
        )
    return files.put_manifest(build.storage, build.path, manifest)


def _by_kind(manifest: IndexManifest) -> tuple[tuple[Segment, ...], tuple[Segment, ...]]:
    base = tuple(s for s in manifest.segments if s.kind == "base")
    return base, manifest.segments[len(base) :]


def deltas_beside(
    deltas: Sequence[Sequence[int]], added: Sequence[int], rows: Mapping[int, int], most: int
) -> int:
    """Return how many deltas stay beside the new one; it takes in the newest, up to `most` rows, if there are many.

    `deltas` are the fragments of each, and `rows` those of each fragment of the table.
    """
    stay, taken = len(deltas), sum(rows[f] for f in added)
    while stay and len(deltas) >= DELTAS:
        taken += sum(rows.get(f, 0) for f in deltas[stay - 1])
        if taken > most:
            break
        stay -= 1
    return stay


def _delta(build: Build, base: Segment, fragments: Sequence[int], since: int) -> Segment:
    """Fill the base's trained index with the rows of these fragments."""
    started = time.monotonic()
    storage, path, dim = build.storage, build.path, build.source.dim
    trained = files.get_index(storage, path, base.trained)
    nothing = np.empty((0, dim), np.float32)
    filled = fill(trained, build.source, fragments, nothing, Device.choose(base.factory, "cpu"))
    faults.point("index.before_delta")
    return replace(
        base,
        kind="delta",
        vectors=files.put_index(storage, path, filled.index.faiss_index),
        ids=files.put_ids(storage, path, filled.row_ids, filled.doc_ids),
        rows=filled.index.rows,
        fragments=tuple(fragments),
        device="cpu",
        faiss_version=faiss.__version__,
        build_seconds=round(time.monotonic() - started, 3),
        rows_since_training=since,
    )


def _dead(
    build: Build, older: Older, held: IndexManifest, change: Change, *, missing: bool
) -> Int64:
    """Return the positions in the segments of `held` that no search returns: those before, and of rows that left.

    Only segments whose fragments lost rows are read. `missing`: some of these rows are in segments that `held` does
    not name any more.
    """
    left, start, gone = change.left, 0, [np.empty(0, np.int64)]
    with tempfile.TemporaryDirectory(prefix="reembed-index-") as name:
        at = (build.storage, older.path, Path(name))
        before = files.tombstones_of(at, held)
        for segment in held.segments:
            if not change.losing.isdisjoint(segment.fragments):
                row_ids = files.row_ids_of(at, segment)
                for first in range(0, len(row_ids), _AT_ONCE):
                    found = np.isin(row_ids[first : first + _AT_ONCE], left)
                    gone.append(start + first + np.flatnonzero(found))
            start += segment.rows
    before = before[before < start]
    new = np.setdiff1d(np.concatenate(gone), before, assume_unique=True)
    if len(new) != len(left) and not missing:
        raise IntegrityError(
            f"{len(left):,} rows left the table, and the index in {older.path} has {len(new):,} of them",
            "it is not of the table version that it names",
            "reembed run --fresh",
        )
    return np.sort(np.concatenate([before, new]))

"""Which fragments of a table a catch-up writes together, so that many small catch-ups leave few.

Rows that are written again get new ids, which the index must take in. So this is done where the index fills these rows
again anyway: those of deltas that become one, and all where it is built again.
"""

from __future__ import annotations

from collections.abc import Mapping

from reembed.catalog.index_manifest import AnyManifest, IndexManifest
from reembed.index.grow import deltas_beside, is_outgrown
from reembed.store.by_size import packed, to_merge
from reembed.table.read import FragmentRows

_NEW = -1
"""Stands for the fragments that are to come."""


def written_together(
    held: AnyManifest, fragments: Mapping[int, FragmentRows], new: int, most: int, *, again: bool
) -> list[tuple[int, ...]]:
    """Return groups of fragments that become one each.

    Args:
        held: the index of the table version.
        fragments: those that stay, in the order of the table.
        new: rows that are to come.
        most: rows of a group.
        again: whether the index is built again in any case.
    """
    if not isinstance(held, IndexManifest):
        return []  # Lance's own index names rows by their ids, too, and is not told of this yet
    rows = {i: f.rows for i, f in fragments.items()}
    deltas = [s for s in held.segments if s.kind == "delta"]
    base = sum(s.rows for s in held.segments) - sum(d.rows for d in deltas)
    dead = held.tombstones.rows if held.tombstones else 0
    if again or is_outgrown(base, new + sum(d.rows for d in deltas) + dead):
        chosen = to_merge(rows, most // 2)
    else:
        named = [d.fragments for d in deltas]
        stay = deltas_beside(named, [_NEW], {**rows, _NEW: new}, held.settings.shard_rows)
        chosen = [f for d in named[stay:] for f in d if f in rows]
    return packed(chosen, rows, most)

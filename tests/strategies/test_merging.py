"""Which fragments a catch-up writes together, and that many small commits leave few."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from reembed.catalog.index_manifest import IndexManifest
from reembed.store.by_size import packed, to_merge
from reembed.strategies import merging
from reembed.table.read import FragmentRows


@pytest.mark.parametrize("each", [1, 7, 100])
def test_many_small_commits_leave_few_files_and_write_a_row_again_a_few_times(each):
    rows: dict[int, int] = {}
    numbers, written = itertools.count(), 0
    for _ in range(4_096):
        rows[next(numbers)] = each
        if chosen := to_merge(rows, 10**9):
            merged = sum(rows.pop(f) for f in chosen)
            rows[next(numbers)] = merged
            written += merged
        assert len(rows) < 40
    assert sum(rows.values()) == 4_096 * each
    assert written <= 4 * 4_096 * each


def test_a_large_file_is_left_and_so_is_what_is_older_than_it():
    assert to_merge(dict(enumerate([5] * 20)), 4) == []
    assert to_merge(dict(enumerate([1] * 9 + [50] + [1] * 8)), 40) == [*range(10, 18)]
    assert to_merge(dict(enumerate([9, *[4] * 8])), 40) == [*range(1, 9)]


def test_groups_are_of_neighbours_and_no_larger_than_a_unit():
    rows = dict(enumerate([4, 5, 1, 9, 3, 3, 3]))
    assert packed([*rows], rows, 10) == [(0, 1, 2), (4, 5, 6)]
    assert packed([], rows, 10) == []


def manifest(base, *deltas, tombstones=0):
    """An index whose base has so many rows in fragment 0, and deltas of these fragments."""
    one = [SimpleNamespace(kind="base", rows=base, fragments=(0,))]
    more = [SimpleNamespace(kind="delta", rows=10 * len(f), fragments=f) for f in deltas]
    made = object.__new__(IndexManifest)
    found = {"segments": (*one, *more), "settings": SimpleNamespace(shard_rows=10_000)}
    found["tombstones"] = SimpleNamespace(rows=tombstones) if tombstones else None
    for name, value in found.items():
        object.__setattr__(made, name, value)
    return made


def together(held, count, new=10, **more):
    fragments = {n: FragmentRows(10, 10) for n in range(1, count + 1)}
    fragments = {0: FragmentRows(5_000, 5_000), **fragments}
    return merging.written_together(held, fragments, new, 1_000, **{"again": False, **more})


def test_fragments_of_deltas_that_become_one_are_written_together_and_no_others():
    eight = [(n,) for n in range(1, 9)]
    assert together(manifest(5_000, *eight), 8) == [(*range(1, 9),)]
    assert together(manifest(5_000, *eight[:7]), 7) == []


@pytest.mark.parametrize("how", [{"new": 491}, {"again": True}])
def test_where_the_index_is_built_again_the_newest_of_one_size_are(how):
    assert together(manifest(5_000, (1,)), 9, **how) == [(*range(1, 10),)]
    assert together(manifest(5_000, (1,), tombstones=481), 9) == [(*range(1, 10),)]

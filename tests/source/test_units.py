"""Units over fragments: each row once, in the source's order, whatever the fragments' sizes."""

from __future__ import annotations

import lance
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reembed.source.dataset import Source
from reembed.source.units import cut, sizes


@given(
    fragments=st.lists(st.integers(0, 40), max_size=30),
    size=st.integers(1, 60),
    actors=st.integers(1, 4),
)
def test_units_hold_each_row_once_in_order_and_are_full(fragments, size, actors):
    rows = sum(fragments)
    cuts = sizes(rows, size, actors)
    assert sum(cuts) == rows
    assert cuts == sorted(cuts, reverse=True)
    assert set(cuts[: -8 * actors]) <= {size}  # the last ones are quarters, or what is left
    live = list(enumerate(fragments))
    found = []
    units = list(cut(live, cuts))
    for unit in units:
        spanned = [(f, r) for f in unit.fragments for r in range(fragments[f])]
        found += spanned[unit.offset : unit.offset + unit.rows]
        assert unit.offset < fragments[unit.fragments[0]]
    assert found == [(f, r) for f, n in live for r in range(n)]
    assert len({u.id for u in units}) == len(units)


@pytest.fixture
def many_fragments(tmp_path, make_config):
    """Source of 1,000 rows in fragments of 7, some deleted, with a filter or without."""

    def make(condition=None):
        uri = str(tmp_path / "s.lance")
        rows = {"doc_id": list(range(1_000)), "text": ["x" * (n % 9) for n in range(1_000)]}
        dataset = lance.write_dataset(pa.table(rows), uri, max_rows_per_file=7, mode="overwrite")
        dataset.delete("doc_id % 13 = 2")
        return Source.open(make_config(uri, source={"filter": condition}))

    return make


@pytest.mark.parametrize("condition", [None, "doc_id % 5 != 1"])
@pytest.mark.parametrize("size", [3, 100, 5_000])
def test_small_fragments_share_a_unit_and_are_read_in_the_order_of_a_scan(
    many_fragments, condition, size
):
    source = many_fragments(condition)
    scanned = [d for part in source.scan() for d in part["doc_id"].to_pylist()]
    units = source.units(size)
    assert len(units) == -(-len(scanned) // size)
    read = [source.read(u) for u in units]
    assert [d for part in read for d in part["doc_id"].to_pylist()] == scanned
    assert [part.num_rows for part in read] == [u.rows for u in units]


def test_the_mean_length_of_the_texts_is_of_texts_from_all_over(many_fragments):
    source = many_fragments()
    assert 3 < source.text_bytes() < 5
    assert many_fragments("doc_id < 0").text_bytes() == 0

"""Lists of codes in blocks answer from a file as they do from memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import faiss
import numpy as np
import pytest
from vectors import build, random_source

from reembed.config.settings import IndexConfig
from reembed.index.spilled import spill
from reembed.store.storage import Storage

DIM = 48
FACTORIES = ("IVF8,PQ24x4fs", "IVF8,PQ23x4fs", "IVF8,PQ24x4fs,RFlat", "OPQ24,IVF8,PQ24x4fs,Refine(SQ8)", "IVF8,SQ8",
             "IVF8_HNSW8,PQ12x4fs", "IVF8,RaBitQfs", "Flat")  # fmt: skip


@pytest.mark.parametrize("factory", FACTORIES)
def test_lists_in_a_file_answer_as_in_memory(factory: str, tmp_path: Path) -> None:
    dim = 46 if "PQ23" in factory else DIM
    random = np.random.default_rng(0)
    index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(random.standard_normal((2_000, dim), dtype=np.float32))
    for rows in (1, 700, 64):
        index.add(random.standard_normal((rows, dim), dtype=np.float32))
    queries = random.standard_normal((30, dim), dtype=np.float32)
    expected = index.search(queries, 20)
    spill(index, tmp_path)
    assert bool(list(tmp_path.iterdir())) == ("x4fs" in factory)
    for file in tmp_path.iterdir():
        file.unlink()
    for found, as_before in zip(index.search(queries, 20), expected, strict=True):
        np.testing.assert_array_equal(found, as_before)


@pytest.mark.parametrize("factory", ["IVF8,PQ4x4fs,Refine(SQ8)", "OPQ8,IVF8,PQ4x4fs", "IVF8,SQ8"])
def test_shards_of_an_index_on_disk_answer_as_those_in_memory(factory: str, tmp_path: Path) -> None:
    source = dataclasses.replace(random_source(3_000, 16), fragment_rows=1_000)
    found = {}
    for kind in ("faiss", "faiss_ondisk"):
        storage = Storage.open(str(tmp_path / kind))
        config = IndexConfig(
            kind=kind, factory=factory, ann_recall=0.3, shard_rows=1_000, device="cpu"
        )
        index = build(source, config, storage=storage).index
        assert len(index.opened) == 3
        found[kind] = index.nearest(source.vectors[:40], 10)
        lists = [faiss.try_extract_index_ivf(o.index.faiss_index).invlists for o in index.opened]
        on_disk = {
            type(faiss.downcast_InvertedLists(x)) is faiss.OnDiskInvertedLists for x in lists
        }
        assert on_disk == {kind == "faiss_ondisk" and "x4fs" in factory}
    for one, other in zip(*found.values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_each_index_has_a_file_of_its_own(tmp_path: Path) -> None:
    """Also where objects of Python have the same place in memory, one after the other."""
    empty = faiss.index_factory(8, "IVF2,PQ2x4fs", faiss.METRIC_INNER_PRODUCT)
    random = np.random.default_rng(0)
    empty.train(random.standard_normal((500, 8), dtype=np.float32))
    blank, opened = faiss.serialize_index(empty), []
    for _ in range(60):
        index = faiss.deserialize_index(blank)
        index.add(random.standard_normal((40, 8), dtype=np.float32))
        before = index.search(np.ones((1, 8), np.float32), 5)
        spill(index, tmp_path)
        opened.append((index, before))
    assert len(list(tmp_path.iterdir())) == 60
    for index, before in opened:
        for found, expected in zip(
            index.search(np.ones((1, 8), np.float32), 5), before, strict=True
        ):
            np.testing.assert_array_equal(found, expected)

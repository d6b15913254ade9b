"""Lists of codes in blocks answer from a file as they do from memory."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest

from reembed.index.spilled import spill

DIM = 48
FACTORIES = ("IVF8,PQ24x4fs", "IVF8,PQ23x4fs", "IVF8,PQ24x4fs,RFlat", "OPQ24,IVF8,PQ24x4fs,Refine(SQ8)", "IVF8,SQ8",
             "IVF8_HNSW8,PQ12x4fs", "Flat")  # fmt: skip


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
    for file in tmp_path.iterdir():
        file.unlink()
    for found, as_before in zip(index.search(queries, 20), expected, strict=True):
        np.testing.assert_array_equal(found, as_before)

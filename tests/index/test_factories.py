"""What `auto` builds if an index misses its recall."""

from __future__ import annotations

import faiss
import pytest

from reembed.index.factories import choose_factory, finer, kind_of


@pytest.mark.parametrize("rows", [10**3, 10**5, 10**7, 10**9])
@pytest.mark.parametrize(("dim", "gpu"), [(64, False), (63, False), (64, True)])
def test_each_step_is_larger_and_the_last_one_is_exact(rows: int, dim: int, gpu: bool) -> None:
    factory: str | None = choose_factory(rows, dim, gpu=gpu)
    sizes = []
    while factory is not None:
        last = factory
        made = faiss.index_factory(dim, factory.replace("_HNSW32", ""), faiss.METRIC_INNER_PRODUCT)
        sizes.append(made.sa_code_size())
        factory = finer(factory)
    assert sizes == sorted(set(sizes))
    kind = kind_of(last)
    assert kind is not None
    assert "Flat" in (kind.codes, kind.refine)
    assert len(sizes) == (1 if rows <= 10**6 else 3)


@pytest.mark.parametrize("factory", ["HNSW32", "Flat", "PCA32,IVF64,SQ8", "IVF64,PQ16"])
def test_other_kinds_have_no_finer_codes(factory: str) -> None:
    assert finer(factory) is None

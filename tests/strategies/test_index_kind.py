"""What `index.kind: auto` means, by size and by where it is served from."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from reembed.config.settings import Config, IndexConfig
from reembed.strategies.index_kind import as_built, chosen, resolved


def config(root="/data/root", **index):
    return Config(
        alias="a",
        source={"uri": "s.lance"},
        encoder={"model": "hashing:8"},
        index=index,
        storage={"root": root},
    )


@pytest.mark.parametrize(
    ("rows", "root", "factory", "kind"),
    [
        (1_000, "/data/root", "auto", "faiss"),
        (20_000_000, "s3://b/root", "auto", "faiss"),
        (100_000_000, "s3://b/root", "auto", "faiss_ondisk"),
        (1_000_000_000, "/data/root", "auto", "faiss_ondisk"),
        (1_000_000_000, "s3://b/root", "auto", "lance"),
        (1_000_000_000, "s3://b/root", "IVF65536,SQ8", "faiss"),
        (1_000_000_000, "s3://b/root", "HNSW32", "faiss"),
        (100_000_000, "s3://b/root", "IVF65536,PQ384x4fs,RFlat", "faiss_ondisk"),
    ],
)
def test_the_kind_follows_from_the_size_and_the_store(rows, root, factory, kind):
    found, why = chosen(config(root, factory=factory), rows, 768)
    assert found == kind
    assert why.startswith({"lance": "a copy on each machine"}.get(kind, why[:3]))


def test_the_kind_that_is_not_the_usual_one_is_said_and_kept():
    heard = []
    plan = SimpleNamespace(rows=100_000_000, space=SimpleNamespace(dim=768))
    assert resolved(config(), plan, heard.append).index.kind == "faiss_ondisk"
    (said,) = heard
    assert said.what.startswith("index.kind is auto: faiss_ondisk, as 18.6 GiB of codes")
    plan.rows = 1_000
    assert resolved(config(), plan, heard.append).index.kind == "faiss"
    assert resolved(config(kind="lance"), plan, heard.append).index.kind == "lance"
    assert len(heard) == 1


def test_what_auto_chose_is_not_a_changed_setting():
    built = IndexConfig(kind="lance")
    assert as_built(IndexConfig(), built) == built
    assert as_built(IndexConfig(kind="faiss"), built).kind == "faiss"

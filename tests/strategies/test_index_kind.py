"""What `index.kind: auto` means, by size and by where it is served from."""

from __future__ import annotations

import pytest

from reembed.config.settings import Config, IndexConfig
from reembed.strategies.index_kind import as_built, chosen


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
        (1_000_000_000, "s3://b/root", "IVF65536,SQ8", "faiss_ondisk"),
    ],
)
def test_the_kind_follows_from_the_size_and_the_store(rows, root, factory, kind):
    found, why = chosen(config(root, factory=factory), rows, 768)
    assert (found, bool(why)) == (kind, True)


def test_what_auto_chose_is_not_a_changed_setting():
    built = IndexConfig(kind="lance")
    assert as_built(IndexConfig(), built) == built
    assert as_built(IndexConfig(kind="faiss"), built).kind == "faiss"

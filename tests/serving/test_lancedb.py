"""`index.lancedb()`: LanceDB's table at the version that answers."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from releases import promoted

from reembed.errors import IntegrityError, UsageError
from reembed.serving.index import Index


@pytest.fixture
def config(corpus, make_config):
    return make_config(corpus(130), table={"carry": ["title"]})


def test_it_is_the_table_at_the_version_that_answers_also_after_a_refresh(config):
    first, catalog = promoted(config)
    with Index(catalog) as index:
        before = index.lancedb()
        vectors = index.encode_queries(["bada", "bide"]).vectors
        for vector, hits in zip(vectors, index.search(vectors, 5), strict=True):
            found = before.search(vector).metric("dot").limit(5).to_list()
            np.testing.assert_allclose(
                [1 - f["_distance"] for f in found], [h.score for h in hits], atol=1e-5
            )
        assert before.count_rows("title IS NOT NULL") == 130
        second, _ = promoted(config, force_reason="a test")
        assert index.lancedb().version == first.table_version == before.version
        assert index.refresh()
        assert index.lancedb().version == second.table_version != before.version
        assert before.count_rows() == 130


def test_what_is_handed_out_is_not_written_to(config):
    release, catalog = promoted(config)
    table = Index(catalog).lancedb()
    rows = table.to_arrow()
    with pytest.raises((ValueError, RuntimeError), match=r"checked out|cannot be modified"):
        table.add(rows)
    with pytest.raises((ValueError, RuntimeError), match=r"checked out|cannot be modified"):
        table.delete("doc_id IS NOT NULL")
    assert Index(catalog).lancedb().version == release.table_version


def test_a_shallow_clone_takes_an_index_for_full_text_and_the_release_stays_as_it_is(
    config, tmp_path
):
    import lancedb

    release, catalog = promoted(config)
    with Index(catalog) as index:
        table = index.lancedb()
        clone = table.to_lance().shallow_clone(str(tmp_path / "db/mine.lance"), table.version)
        clone.create_scalar_index("title", "INVERTED")
        mine = lancedb.connect(str(tmp_path / "db")).open_table("mine")
        title = mine.to_arrow()["title"][7].as_py()
        vector = index.encode_queries([title]).vectors[0]
        words = mine.search(title, query_type="fts").limit(3).to_list()
        both = mine.search(query_type="hybrid").vector(vector).text(title).limit(3).to_list()
        assert title in {row["title"] for row in words} & {row["title"] for row in both}
    assert Index(catalog).lancedb().version == release.table_version


@pytest.mark.s3
def test_it_opens_from_an_object_store(corpus, make_config, bucket):
    storage = {"root": f"{bucket.uri}/root", "options": bucket.options}
    _, catalog = promoted(make_config(corpus(60), storage=storage))
    assert Index(catalog).lancedb().count_rows() == 60


def test_without_the_package_it_says_how_to_install_it(config, monkeypatch):
    _, catalog = promoted(config)
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(UsageError, match="LanceDB is not installed") as said:
        Index(catalog).lancedb()
    assert said.value.fix == "pip install 'reembed-ray[lancedb]'"


def test_a_table_that_gc_removed_is_not_handed_out(config):
    release, catalog = promoted(config)
    index = Index(catalog)
    catalog.storage.delete_tree(f"{release.table}/")
    with pytest.raises(IntegrityError, match="cannot be opened with LanceDB"):
        index.lancedb()

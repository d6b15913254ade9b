"""Nothing that a release names is ever replaced: two processes that build one run's index both end well."""

from __future__ import annotations

import contextlib
import dataclasses

import faiss
import numpy as np
import pyarrow as pa
import pytest
from inline import Inline, Silent
from vectors import save

from reembed import faults
from reembed.catalog.index_manifest import IndexManifest, read_manifest
from reembed.catalog.releases import Catalog, Release
from reembed.config.settings import Config
from reembed.errors import IntegrityError
from reembed.index import files as index_store
from reembed.lifecycle import gc
from reembed.lifecycle.promote import promote
from reembed.serving.live import OpenRelease
from reembed.store.records import encode
from reembed.store.storage import Storage
from reembed.strategies import full_rebuild as strategy

QUERIES = ["bada bide", "fofu"]


def rebuild(config: Config) -> Release:
    return strategy.full_rebuild(config, Silent(), executor=Inline())


@pytest.fixture
def raced(corpus, make_config, monkeypatch):
    """(catalog, what the paused process ended with): it was paused at `point` while another finished."""
    monkeypatch.setattr(strategy, "driving", lambda run: contextlib.nullcontext())

    def race(point: str) -> tuple[Catalog, Release, Release]:
        uri = corpus(300)
        slow = make_config(uri, index={"factory": "Flat"})
        quick = make_config(uri, index={"factory": "HNSW8"}, name="quick.yaml")
        catalog, done = Catalog(Storage.open(slow.storage.root), slow.alias), []

        def hook(name: str) -> None:
            if name == point and not done:
                done.append(None)
                done[0] = rebuild(quick)
                promote(catalog, done[0].id, initial_reason="test")

        monkeypatch.setattr(faults, "hook", hook)
        return catalog, rebuild(slow), done[0]

    return race


@pytest.mark.parametrize(
    ("point", "factory", "files"),
    [
        ("index.before_save", "HNSW8", 7),
        ("index.before_manifest", "HNSW8", 7),
        ("run.before_register", "Flat", 4),
    ],
)
def test_a_paused_process_with_other_index_settings_replaces_nothing_that_serves(
    raced, point, factory, files
):
    catalog, ended, live = raced(point)
    assert ended == live == catalog.release(live.id)
    opened = OpenRelease.open(catalog.storage, live)
    assert all(len(hits) == 10 for hits in opened.search(QUERIES))
    manifest = read_manifest(catalog.storage, live.index, live.index_sha256)
    assert manifest.base.factory == factory
    assert len(list(catalog.storage.objects(f"{live.index}/"))) == files


def test_gc_takes_the_index_that_the_release_does_not_name_and_no_other(raced):
    catalog, _, live = raced("index.before_save")
    planned = gc.plan(catalog, 3)
    assert len([o for o in planned.orphans if o.path.startswith(live.index)]) == 3
    gc.apply(catalog, planned, 3)
    left = [path for path, _ in catalog.storage.objects(f"{live.index}/")]
    manifest = read_manifest(catalog.storage, live.index, live.index_sha256)
    named = [f.path(live.index) for f in manifest.files]
    assert left == sorted([*named, f"{live.index}/{live.index_sha256}.json"])
    assert OpenRelease.open(catalog.storage, live).search(QUERIES)
    assert not gc.plan(catalog, 3).orphans


def saved(storage: Storage, point: dict[str, int], recall: float) -> IndexManifest:
    graph = faiss.IndexHNSWFlat(8, 8, faiss.METRIC_INNER_PRODUCT)
    faiss.omp_set_num_threads(1)
    graph.add(np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32))
    doc_ids = pa.array([f"d{n}" for n in range(200)])
    return save(storage, graph, doc_ids, point, recall, "indexes/r")


def test_two_operating_points_of_one_index_are_two_manifests_and_neither_replaces_the_other(
    tmp_path,
):
    storage = Storage.open(str(tmp_path))
    first = saved(storage, {"ef_search": 64}, 1.0)
    second = saved(storage, {"ef_search": 16}, 0.5)
    assert first.files == second.files
    assert first.base.operating_point == {"ef_search": 64}
    for manifest in (first, second):
        assert read_manifest(storage, "indexes/r", manifest.sha256) == manifest
        assert index_store.load(storage, "indexes/r", manifest).rows == 200
    assert saved(storage, {"ef_search": 64}, 1.0) == first
    assert index_store.finished(storage, "indexes/r", 4) in (first, second)
    assert index_store.finished(storage, "indexes/r", 2) is None


def test_a_manifest_under_the_name_of_another_index_is_refused(tmp_path):
    storage = Storage.open(str(tmp_path))
    manifest = saved(storage, {"ef_search": 64}, 1.0)
    other = dataclasses.replace(manifest, space="another")
    storage.write(f"indexes/r/{manifest.sha256}.json", encode(other))
    with pytest.raises(IntegrityError, match=f"is the manifest of index {other.sha256[:12]}"):
        read_manifest(storage, "indexes/r", manifest.sha256)


@pytest.mark.parametrize("name", ["../../x", "", "A" * 64, "0" * 63])
def test_a_digest_that_is_none_does_not_become_a_path(tmp_path, name):
    with pytest.raises(IntegrityError, match="is not a sha256"):
        read_manifest(Storage.open(str(tmp_path)), "indexes/r", name)


def test_an_index_without_its_manifest_is_not_finished_whatever_lies_beside_it(tmp_path):
    storage = Storage.open(str(tmp_path))
    storage.write_bytes(f"indexes/r/{'0' * 64}.faiss", b"a process died before its manifest")
    assert index_store.finished(storage, "indexes/r", 1) is None
    manifest = saved(storage, {"ef_search": 64}, 1.0)
    storage.write_bytes(f"indexes/r/{'f' * 64}.faiss", b"another one")
    assert index_store.finished(storage, "indexes/r", 4) == manifest

"""A refresh after a catch-up opens only what changed, and files that go do not disturb what is open."""

from __future__ import annotations

import threading
import time
import weakref
from dataclasses import replace
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from inline import Inline, Silent

import reembed
from reembed import encoders
from reembed.catalog.releases import Catalog
from reembed.encoders import golden
from reembed.errors import SpaceMismatch, UsageError
from reembed.index import files
from reembed.lifecycle.promote import promote
from reembed.serving.index import Index
from reembed.serving.live import EncodedQueries, OpenRelease
from reembed.store.storage import Storage
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild


class Served:
    """A corpus whose index has lists of codes and a re-ranking stage, and what serves it."""

    def __init__(self, uri: str, config: Any) -> None:
        self.uri, self.config = uri, config
        self.catalog = Catalog(Storage.open(config.storage.root), config.alias)
        self.release = full_rebuild(config, Silent(), executor=Inline())
        promote(self.catalog, self.release.id, initial_reason="a test")
        self.live = Index(self.catalog)

    def grow(self, step: int) -> str:
        """A new document, caught up with and promoted; return its text."""
        text = f"nothing like it before {step}"
        names = lance.dataset(self.uri).schema.names
        row = dict.fromkeys(names, "new") | {"doc_id": f"n{step:05d}", "text": text}
        lance.write_dataset(pa.Table.from_pylist([row]), self.uri, mode="append")
        self.release = catch_up(self.config, self.release, Silent(), executor=Inline())
        promote(self.catalog, self.release.id, force_reason="a test")
        return text


@pytest.fixture
def served(corpus, make_config) -> Served:
    uri = corpus(1_300)
    index = {"factory": "IVF8,PQ4x4fs,RFlat", "ann_recall": 0.3}
    return Served(uri, make_config(uri, index=index))


def test_a_refresh_after_a_catch_up_shares_what_is_open_and_opens_the_delta(served, monkeypatch):
    base, read, fetched = served.live.current.index.opened[0], [], files.fetched
    monkeypatch.setattr(files, "fetched", lambda *of: read.append(of[-1]) or fetched(*of))
    for step in (1, 2):
        text = served.grow(step)
        read.clear()
        assert served.live.refresh()
        assert not {base.segment.vectors, base.segment.ids} & set(read)
        opened = served.live.current.index.opened
        assert [o.segment.kind for o in opened] == ["base", *["delta"] * step]
        assert opened[0] is base
        assert served.live.search([text], 1)[0][0].doc_id == f"n{step:05d}"
    assert len(served.live.current.index.segments) == 1


def test_a_rebuilt_index_shares_nothing(served):
    base = served.live.current.index.opened[0]
    again = full_rebuild(served.config, Silent(), fresh=True, executor=Inline())
    promote(served.catalog, again.id, force_reason="a test")
    assert served.live.refresh()
    assert served.live.current.index.opened[0] is not base


def test_a_release_whose_files_are_gone_answers_and_so_does_one_that_shares_with_it(served):
    before = served.live.search(["bada"], 5)
    first = served.release
    text = served.grow(1)
    served.catalog.storage.delete_tree(f"{first.index}/")
    assert served.live.search(["bada"], 5) == before
    assert served.live.refresh()
    served.catalog.storage.delete_tree(f"{served.release.index}/")
    assert served.live.search([text], 1)[0][0].doc_id == "n00001"


def test_a_refresh_keeps_the_model_of_the_same_space_and_proves_it_again(served, monkeypatch):
    before = served.live.current.encoder
    again = full_rebuild(served.config, Silent(), fresh=True, executor=Inline())
    promote(served.catalog, again.id, force_reason="a test")
    loads, proven = [], []
    load, require = encoders.load_encoder, golden.require
    monkeypatch.setattr(encoders, "load_encoder", lambda *of: loads.append(of) or load(*of))
    monkeypatch.setattr(
        golden, "require", lambda *of, **more: proven.append(of[1]) or require(*of, **more)
    )
    assert served.live.refresh()
    assert served.live.current.encoder is before
    assert (loads, proven) == ([], [again.origin])


def test_a_model_kept_that_does_not_give_the_golden_vectors_is_refused(served, monkeypatch):
    before = served.live.current
    again = full_rebuild(served.config, Silent(), fresh=True, executor=Inline())
    promote(served.catalog, again.id, force_reason="a test")
    plain = type(before.encoder).embed_documents

    def other(self: Any, texts: Any) -> Any:
        made = plain(self, texts)
        return replace(made, vectors=np.roll(made.vectors, 1, axis=1))

    monkeypatch.setattr(type(before.encoder), "embed_documents", other)
    with pytest.raises(SpaceMismatch, match="produces different vectors"):
        served.live.refresh()
    assert served.live.current is before


def other_model(served: Served) -> Any:
    """A release of another space, promoted."""
    encoder = served.config.encoder.model_copy(update={"model": "hashing:32"})
    other = served.config.model_copy(update={"encoder": encoder})
    release = full_rebuild(other, Silent(), executor=Inline())
    promote(served.catalog, release.id, force_reason="a test")
    return release


def test_another_space_loads_its_model_and_vectors_of_the_space_before_are_refused(served):
    live = served.live
    queries, before = live.encode_queries(["bada", "bide"]), live.current.encoder
    assert queries.vectors.shape == (2, 64)
    assert live.search(queries, 3) == live.search(["bada", "bide"], 3)
    bare = queries.vectors
    release = other_model(served)
    assert live.refresh()
    assert live.current.encoder is not before
    with pytest.raises(SpaceMismatch, match=f"release {release.id} is of space") as said:
        live.search(queries, 3)
    assert "encode_queries" in said.value.fix
    with pytest.raises(SpaceMismatch, match="index of 32 dimensions"):
        live.search(bare, 3)
    again = live.encode_queries(["bada", "bide"])
    assert again.space == release.space.id
    assert {h.release for hits in live.search(again, 3) for h in hits} == {release.id}


def test_vectors_of_another_space_with_the_same_dimension_are_refused(served):
    encoded = EncodedQueries(served.live.encode_queries(["bada"]).vectors, "0123abcd")
    with pytest.raises(SpaceMismatch, match="of space 0123abcd"):
        served.live.search(encoded)


# In the background


def until(holds: Any) -> None:
    """Wait until it holds."""
    limit = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.005)


def test_an_index_follows_its_alias_by_itself_until_it_is_closed(served):
    root, alias = served.config.storage.root, served.config.alias
    with reembed.open(root, alias, refresh_every=0.01) as index:
        release = full_rebuild(served.config, Silent(), fresh=True, executor=Inline())
        promote(served.catalog, release.id, force_reason="a test")
        until(lambda: index.release == release)
        assert index.refresh_error is None
    until(lambda: not followers())


def test_an_index_follows_nothing_unless_it_is_asked_to(served):
    with reembed.open(served.config.storage.root, served.config.alias):
        assert not followers()


def followers() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("reembed-refresh")]


def test_a_refresh_that_fails_is_told_and_the_release_before_serves(served, monkeypatch, caplog):
    with Index(served.catalog, refresh_every=0.01) as index:
        before = index.release
        released = full_rebuild(served.config, Silent(), fresh=True, executor=Inline())
        plain = OpenRelease.open
        failing = [
            OSError("no route"),
            KeyError("unexpected"),
            ValueError("bad"),
            RuntimeError("faiss"),
            MemoryError(),
        ]
        left = list(failing)

        def fails(*of: Any) -> Any:
            if left:
                raise left.pop()
            return go.wait(60) and plain(*of)

        go = threading.Event()
        monkeypatch.setattr(OpenRelease, "open", fails)
        promote(served.catalog, released.id, force_reason="a test")
        until(lambda: not left and index.refresh_error is failing[0])
        assert index.search(["bada"], 1)[0][0].release == before.id
        assert "could not be refreshed, the release before serves: OSError: no route" in caplog.text
        go.set()
        until(lambda: index.release == released)
        until(lambda: index.refresh_error is None)


def test_an_index_that_nobody_holds_is_not_kept_by_its_thread(served):
    index = Index(served.catalog, refresh_every=0.01)
    held = weakref.ref(index)
    del index
    until(lambda: held() is None and not followers())


@pytest.mark.parametrize("every", [0, -1, float("nan"), float("inf"), True, "30"])
def test_an_interval_that_is_none_is_refused(served, every):
    with pytest.raises(UsageError, match="refresh_every must be a number above 0") as said:
        Index(served.catalog, refresh_every=every)
    assert said.value.fix == "refresh_every=30"


def test_threads_that_search_during_refreshes_get_answers_of_one_release(served):
    end, wrong = threading.Event(), []
    texts = [f"nothing like it before {step}" for step in range(1, 4)]

    def search() -> None:
        while not end.is_set():
            opened = served.live.current
            found = [hits[0].doc_id for hits in opened.search(texts, 1)]
            there = [o.segment.kind for o in opened.index.opened].count("delta")
            known = [f"n{step:05d}" for step in range(1, there + 1)]
            if found[:there] != known or any(f.startswith("n") and f not in known for f in found):
                wrong.append((found, there))

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for step in (1, 2, 3):
        served.grow(step)
        assert served.live.refresh()
    end.set()
    for thread in threads:
        thread.join(60)
    assert not wrong

"""A refresh after a catch-up opens only what changed, and files that go do not disturb what is open."""

from __future__ import annotations

import threading
from typing import Any

import lance
import pyarrow as pa
import pytest
from inline import Inline, Silent

from reembed.catalog.releases import Catalog
from reembed.index import files
from reembed.lifecycle.promote import promote
from reembed.serving.index import Index
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

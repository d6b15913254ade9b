"""A whole lazy migration with a process that serves beside it: what turns up is migrated, and it ends."""

from __future__ import annotations

import time
from typing import Any

import lance
import pyarrow as pa
import pytest
from inline import Inline, Silent
from releases import promoted

import reembed
from reembed.catalog.lazy_queue import Queue
from reembed.lifecycle.promote import Reasons
from reembed.serving import lazy_watch, turned_up
from reembed.serving.live import OpenRelease
from reembed.strategies import lazy, lazy_side
from reembed.strategies.full_rebuild import full_rebuild
from reembed.strategies.sweep import Limits, sweep
from reembed.strategies.up_to_date import promote_up_to_date

QUERIES = ["bada bide", "koke mizu bada"]


@pytest.fixture
def place(corpus, make_config, monkeypatch) -> Any:
    """A live release, a config that asks for another model, and threads that are quick."""
    monkeypatch.setattr(lazy_side, "DOCUMENTS", 30)
    monkeypatch.setattr(lazy_watch, "EVERY_S", 0.02)
    monkeypatch.setattr(turned_up, "EVERY_S", 0.02)
    uri = corpus(300)
    _, catalog = promoted(make_config(uri, encoder={"model": "hashing:16"}))
    return catalog, make_config(uri, strategy="lazy", encoder={"model": "hashing:64"})


def until(holds: Any) -> None:
    limit = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.005)


def ids(answers: Any) -> list[list[str]]:
    return [[hit.doc_id for hit in hits] for hits in answers]


def test_documents_that_turn_up_are_migrated_until_the_new_model_serves_alone(place):
    catalog, config = place
    with reembed.open(config.storage.root, config.alias, lazy_budget=30) as index:
        old = ids(index.search(QUERIES, 10))
        assert index.lazy is None
        plan = lazy.start(catalog, config, "a test", Silent(), executor=Inline()).plan
        queue = Queue(catalog.storage, plan)
        assert index.refresh()
        shown = {d for found in ids(index.search(QUERIES, 10)) for d in found}
        first = index.lazy
        until(lambda: set(queue.read(queue.files())) == shown - migrated(index))
        lazy.batch(catalog, config, 100, Silent(), executor=Inline())
        assert queue.files() == []
        assert index.refresh()
        fused = ids(index.search(QUERIES, 10))
        assert index.lazy.hits_new - first.hits_new == 20
        assert fused != old
        assert {d for found in fused for d in found} <= migrated(index)

        _change(config.source.uri)
        sweep(catalog, config, Limits(), Silent(), executor=Inline())
        assert index.refresh()
        assert (
            len(migrated(index)) == 300 - 2
        )  # what changed, and what left, is the old side's until it catches up
        release = full_rebuild(config, Silent(), executor=Inline())
        why = Reasons(force="a test")
        promote_up_to_date(catalog, config, release.id, why, Silent(), executor=Inline())
        assert index.refresh()
        assert type(index.current) is OpenRelease
        alone = OpenRelease.open(catalog.storage, release)
        assert index.search(QUERIES, 10) == alone.search(QUERIES, 10)
        assert (index.lazy.failed, index.lazy.late, index.lazy.last_error) == (0, 0, None)


def _change(uri: str) -> None:
    """Change the text of one document, remove one, and add one."""
    rows = lance.dataset(uri).to_table().slice(0, 1).to_pylist()
    changed = pa.Table.from_pylist([{**rows[0], "text": "bada bide"}])
    lance.dataset(uri).merge_insert("doc_id").when_matched_update_all().execute(changed)
    lance.dataset(uri).delete("doc_id = 'd00007'")
    lance.write_dataset(pa.Table.from_pylist([{**rows[0], "doc_id": "new"}]), uri, mode="append")


def migrated(index: Any) -> set[str]:
    """Ids of the documents that both sides have, as the process that serves sees them."""
    opened = index.current.side.opened
    rows = index.current.old.table.take(opened.migrated.old_rows, ["doc_id"])
    return set(rows["doc_id"].to_pylist())


@pytest.mark.parametrize("keep", [True, False])
def test_the_kill_switch_reaches_a_process_that_follows_nothing(place, keep):
    catalog, config = place
    with reembed.open(config.storage.root, config.alias, lazy_budget=30) as index:
        old = index.search(QUERIES, 10)
        lazy.start(catalog, config, "a test", Silent(), executor=Inline())
        sweep(catalog, config, Limits(), Silent(), executor=Inline())
        assert index.refresh()
        both = index.search(QUERIES, 10)
        assert both != old
        lazy.stop(catalog, "users complain", keep=keep)
        until(lambda: index.search(QUERIES, 10) == old)
        if keep:
            lazy.resume(catalog, None)
            assert index.refresh()
            assert index.search(QUERIES, 10) == both

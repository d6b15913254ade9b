"""Documents that turn up in answers and are not migrated are written to the queue, beside the answers."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import obstore
import pytest
from lazy_states import LazyState

import reembed
from reembed.catalog.lazy_queue import Queue
from reembed.serving import turned_up
from reembed.serving.lazy_counts import Counts
from reembed.serving.turned_up import TurnedUp
from reembed.store.storage import Storage


@pytest.fixture
def lazy(corpus, make_config) -> LazyState:
    state = LazyState(corpus(130), make_config)
    state.start()
    return state


@pytest.fixture
def counts() -> Counts:
    return Counts()


def until(holds: Any) -> None:
    """Wait until it holds."""
    limit = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.005)


def queued(lazy: LazyState) -> list[Any]:
    return lazy.queue.read(lazy.queue.files())


def test_what_an_answer_shows_and_is_not_migrated_is_queued_once(lazy):
    lazy.migrate(sorted(lazy.rows())[::2])
    with reembed.open(lazy.config.storage.root, lazy.config.alias, lazy_budget=30) as index:
        found = [hit.doc_id for hits in index.search(["bada", "koke"], 20) for hit in hits]
        index.search(["bada", "koke"], 20)
        encoded = index.encode_queries(["bada", "koke"])
        index.search(encoded.vectors, 20)
        wanted = set(found) - set(sorted(lazy.rows())[::2])
        assert lazy.queue.files() == []  # not on the way of the answer
    assert len(lazy.queue.files()) == 1
    got = queued(lazy)
    assert len(got) == len(set(got))
    assert wanted <= set(got)
    assert not set(got) & set(sorted(lazy.rows())[::2])
    assert index.lazy.queued == len(got)
    assert 0 < index.lazy.hits_new < index.lazy.hits


def test_a_thread_writes_every_few_seconds_what_came_in(lazy, counts):
    turned = TurnedUp(lazy.queue, counts, every_s=0.02)
    turned.offer(["a", "b", "a"])
    until(lambda: queued(lazy) == ["a", "b"])
    turned.offer(["b", "c"])
    until(lambda: counts.now().queued == 3)
    assert queued(lazy) == ["a", "b", "c"]
    turned.close(write=False)
    turned.offer(["d"])
    assert (queued(lazy), len(lazy.queue.files())) == (["a", "b", "c"], 2)


def test_a_document_is_offered_again_after_the_new_side_moved(lazy, counts):
    turned = TurnedUp(lazy.queue, counts, every_s=60)
    turned.offer(["a"])
    turned.forget()
    turned.offer(["a"])  # it still waits
    turned.close(write=True)
    assert queued(lazy) == ["a"]
    turned = TurnedUp(lazy.queue, counts, every_s=0.02)
    turned.offer(["a"])
    until(lambda: counts.now().queued == 2)
    turned.offer(["a"])
    turned.forget()
    turned.offer(["a"])
    turned.close(write=True)
    assert counts.now().queued == 3


def test_what_does_not_fit_into_memory_is_dropped_and_counted(lazy, counts, monkeypatch):
    monkeypatch.setattr(turned_up, "MOST_WAITING", 3)
    monkeypatch.setattr(turned_up, "MOST_SEEN", 4)
    turned = TurnedUp(lazy.queue, counts, every_s=60)
    turned.offer(range(10))
    assert counts.now().dropped == 7
    turned.close(write=True)
    assert queued(lazy) == [0, 1, 2]


def test_the_documents_that_a_process_remembers_are_bounded(lazy, counts, monkeypatch):
    monkeypatch.setattr(turned_up, "MOST_SEEN", 4)
    turned = TurnedUp(lazy.queue, counts, every_s=60)
    turned.offer(range(100))
    assert len(turned._seen) == 4
    turned.close(write=False)
    assert not turned._seen
    assert not turned._waiting


def test_a_queue_that_is_full_takes_nothing_until_it_is_worked_off(lazy, counts, monkeypatch):
    monkeypatch.setattr(turned_up, "MOST_FILES", 2)
    monkeypatch.setattr(turned_up, "LISTED_S", 0.1)
    turned = TurnedUp(lazy.queue, counts, every_s=0.02)
    for number in range(3):
        turned.offer([number])
        until(lambda n=number: sum((counts.now().queued, counts.now().dropped)) == n + 1)
    assert (counts.now().queued, counts.now().dropped) == (2, 1)
    lazy.queue.remove(lazy.queue.files())
    time.sleep(0.15)
    turned.offer([2])  # it turns up again
    until(lambda: counts.now().queued == 3)
    assert queued(lazy) == [2]
    turned.close(write=True)


def test_a_root_that_cannot_be_written_is_told_once_and_answers_do_not_change(
    lazy, monkeypatch, caplog
):
    monkeypatch.setattr(turned_up, "EVERY_S", 0.02)
    with reembed.open(lazy.config.storage.root, lazy.config.alias, lazy_budget=30) as index:
        expected = index.search(["bada"], 5)
        until(lambda: index.lazy.queued == 5)

        def refused(*_: Any) -> None:
            raise PermissionError(13, "no write access", "lazy/x")

        monkeypatch.setattr(Storage, "write", refused)
        for number in range(3):
            assert index.search([f"koke mizu {number}"], 40)
            until(lambda n=number: index.lazy.dropped > n)
        assert index.search(["bada"], 5) == expected
        assert "PermissionError" in index.lazy.last_error
    assert caplog.text.count("cannot be queued") == 1


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_access_is_such_a_root(lazy):
    folder = lazy.storage.uri(lazy.plan.folder)
    os.chmod(folder, 0o500)
    try:
        with reembed.open(lazy.config.storage.root, lazy.config.alias) as index:
            index.search(["bada"], 5)
        assert (index.lazy.dropped, index.lazy.queued) == (5, 0)
    finally:
        os.chmod(folder, 0o700)


def test_threads_offer_at_once_and_nothing_is_lost(lazy, counts):
    turned = TurnedUp(lazy.queue, counts, every_s=0.01)
    workers = [
        threading.Thread(
            target=lambda n=n: [turned.offer([m, m + 1]) for m in range(100 * n, 100 * n + 100)]
        )
        for n in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    turned.close(write=True)
    assert sorted(queued(lazy)) == list(range(401))
    assert counts.now().queued == 401


def test_a_queue_of_another_process_counts_towards_the_bound(lazy, counts, monkeypatch):
    monkeypatch.setattr(turned_up, "MOST_FILES", 1)
    Queue(lazy.storage, lazy.plan).put(["theirs"])
    turned = TurnedUp(lazy.queue, counts, every_s=60)
    turned.offer(["ours"])
    turned.close(write=True)
    assert (counts.now().dropped, queued(lazy)) == (1, ["theirs"])


def test_a_process_that_serves_writes_files_of_the_queue_alone(lazy, monkeypatch):
    monkeypatch.setenv(
        "AWS_ENDPOINT_URL", "http://elsewhere"
    )  # create-only writes are not proven from here
    lazy.migrate(sorted(lazy.rows())[::2])
    put, written = obstore.put, []
    monkeypatch.setattr(obstore, "put", lambda *a, **b: written.append(a[1]) or put(*a, **b))
    with reembed.open(lazy.config.storage.root, lazy.config.alias, lazy_budget=30) as index:
        index.search(["bada"], 20)
    (name,) = lazy.queue.files()
    assert written == [f"lazy/passages/1/queue/{name}"]

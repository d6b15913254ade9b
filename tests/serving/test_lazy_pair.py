"""While a lazy migration serves, `Index.search` answers from both sides, and from the old one alone where it must."""

from __future__ import annotations

import gc as memory
import shutil
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest
from fastapi.testclient import TestClient
from lazy_states import LazyState
from releases import promoted

import reembed
from reembed import encoders
from reembed.catalog import lazies, lazy_background
from reembed.cli.text import text
from reembed.errors import SpaceMismatch, UsageError
from reembed.serving import in_time, lazy_watch, migrated, turned_up
from reembed.serving.http.app import create_app
from reembed.serving.http.options import ServeOptions
from reembed.serving.index import Index
from reembed.serving.lazy_counts import LazyCounts
from reembed.serving.lazy_pair import LazyPair
from reembed.serving.live import OpenRelease
from reembed.table.read import file_path, files_of

QUERIES = ["bada bide", "nothing like it", "koke mizu bada"]


@pytest.fixture
def lazy(corpus, make_config) -> LazyState:
    return LazyState(corpus(300), make_config)


@pytest.fixture
def half(lazy) -> LazyState:
    """Every second document is migrated."""
    lazy.start()
    lazy.migrate(every_second(lazy))
    return lazy


def every_second(lazy: LazyState) -> list[str]:
    return sorted(lazy.rows())[::2]


def opened(lazy: LazyState, **more: Any) -> Index:
    return reembed.open(lazy.config.storage.root, lazy.config.alias, **{"lazy_budget": 30, **more})


def counts(index: Index) -> LazyCounts:
    found = index.lazy
    assert found is not None
    return found


def until(holds: Any) -> None:
    """Wait until it holds."""
    limit = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.005)


def ids(answers: Any) -> list[list[str]]:
    return [[hit.doc_id for hit in hits] for hits in answers]


def alone(lazy: LazyState) -> OpenRelease:
    """The old release, open without the new side."""
    return OpenRelease.open(lazy.storage, lazy.catalog.require_live().release)


def by_hand(lazy: LazyState, query: str, k: int, depth: int = 100, only: Any = None) -> Any:
    """(document, score) as the definition says: documents of the newest text on both sides change places."""
    old, new = (scores_of(lazy, query, r) for r in (lazy.catalog.require_live().release, lazy.new))
    ranked = sorted((d for d in old if only is None or only(d)), key=lambda d: -old[d][0])[:depth]
    moving = [d for d in ranked if d in new and new[d][1] == old[d][1]]
    better = iter(sorted(moving, key=lambda d: -new[d][0]))
    fused = [next(better) if d in moving else d for d in ranked]
    return [(d, old[at][0]) for d, at in zip(fused, ranked, strict=True)][:k]


def scores_of(lazy: LazyState, query: str, release: Any) -> dict[str, tuple[float, bytes]]:
    """Score and text hash of every document of a release."""
    (vector,) = encoders.load_encoder(release.encoder).embed_queries([query])
    table = lance.dataset(lazy.storage.uri(release.table), release.table_version).to_table()
    return {r["doc_id"]: (np.dot(vector, r["vector"]), r["text_hash"]) for r in table.to_pylist()}


# What is answered


@pytest.mark.parametrize("k", [1, 10, 150])
def test_answers_are_those_of_both_sides_as_the_definition_says(half, k):
    before = ids(alone(half).search(QUERIES, k))
    with opened(half) as index:
        found = index.search(QUERIES, k, ["title"])
        assert counts(index).fused == len(QUERIES)
    for query, hits in zip(QUERIES, found, strict=True):
        expected = by_hand(half, query, k, max(k, 100))
        assert [h.doc_id for h in hits] == [d for d, _ in expected]
        assert np.allclose([h.score for h in hits], [s for _, s in expected], atol=1e-5)
        assert {h.release for h in hits} == {half.old.id}
        titles = {d: r["title"] for d, r in half.rows().items()}
        assert [h.columns["title"] for h in hits] == [titles[h.doc_id] for h in hits]
    assert k == 1 or ids(found) != before


def test_a_filter_is_applied_before_the_sides_are_fused(half):
    with opened(half) as index:
        rows = half.rows()
        (found,) = index.search(["bada bide"], 200, filter="title < 'm'")
        expected = by_hand(half, "bada bide", 200, 200, lambda d: rows[d]["title"] < "m")
        assert 50 < len(found) < 250
        assert [h.doc_id for h in found] == [d for d, _ in expected]
        assert index.search(["bada"], 3, filter="title = 'none'") == [[]]
        assert index.search([], 3) == []


def test_without_a_migrated_document_answers_are_those_of_the_old_release(lazy):
    before = alone(lazy).search(QUERIES, 7, ["title"])
    lazy.start()
    with opened(lazy) as index:
        assert index.search(QUERIES, 7, ["title"]) == before
        assert index.search(iter(QUERIES), 7, ["title"]) == before
        assert (counts(index).fused, counts(index).hits_new, counts(index).hits) == (6, 0, 42)


def test_without_a_lazy_migration_nothing_is_counted_and_no_thread_is_started(lazy):
    until(lambda: not threads())  # of tests before
    with opened(lazy) as index:
        assert type(index.current) is OpenRelease
        assert index.lazy is None
        assert not threads()


def threads() -> list[str]:
    names = ("reembed-lazy", "reembed-turned-up")
    return [t.name for t in threading.enumerate() if t.name.startswith(names)]


def test_errors_of_a_query_are_those_of_the_old_release(half):
    with opened(half) as index:
        for wrong, message in (
            (lambda: index.search("bada"), "must be a list of texts"),
            (lambda: index.search(["bada"], 0), "k must be"),
            (lambda: index.search(["bada"], columns=["no"]), "not carried"),
            (lambda: index.search(["bada"], filter="no = 1"), "not a condition"),
        ):
            with pytest.raises(UsageError, match=message):
                wrong()


# The other rules of fusion


def both_by_hand(lazy: LazyState, query: str, k: int, only: Any = None) -> list[str]:
    """Documents of both lists by standard deviations above the background, or by ranks."""
    old, new = (scores_of(lazy, query, r) for r in (lazy.catalog.require_live().release, lazy.new))
    ours, theirs = (
        sorted((d for d in side if only is None or only(d)), key=lambda d: -side[d][0])[:100]
        for side in (old, new)
    )
    is_new = {d for d in new if d in old and new[d][1] == old[d][1]}
    theirs = [d for d in theirs if d in is_new]
    known = dict.fromkeys([*theirs, *ours])
    if lazy.plan.fusion == "rrf":
        late = sorted((d for d in ours if d in is_new), key=lambda d: -new[d][0])
        ranked = list(dict.fromkeys([*theirs, *late]))
        ranked.sort(key=lambda d: -new[d][0])
        value = {d: 1 / (61 + (ranked if d in is_new else ours).index(d)) for d in known}
    else:
        z = [scaled(lazy, query, name) for name in ("old", "new")]
        value = {d: z[1](new[d][0]) if d in is_new else z[0](old[d][0]) for d in known}
    return sorted(known, key=lambda d: -value[d])[:k]


def scaled(lazy: LazyState, query: str, side: str) -> Any:
    encoder = lazy.old.encoder if side == "old" else lazy.new.encoder
    (vector,) = encoders.load_encoder(encoder).embed_queries([query])
    vectors = np.array(lazy_background.read(lazy.storage, lazy.plan)[side].to_pylist())
    mean, sd = (vectors @ vector).mean(), (vectors @ vector).std()
    return lambda score: (score - mean) / sd


@pytest.mark.parametrize("rule", ["zscore", "rrf"])
def test_other_rules_search_both_sides(lazy, rule):
    lazy.plan = replace(lazy.plan, fusion=rule)
    lazy.start()
    lazy.migrate(every_second(lazy))
    lazy.rewrite(every_second(lazy)[3], "koke mizu bada", lazy.members)
    lazy.follow_members()
    rows = lazy.rows()
    with opened(lazy) as index:
        answers = index.search(QUERIES, 30, ["title"])
        for query, hits in zip(QUERIES, answers, strict=True):
            assert [h.doc_id for h in hits] == both_by_hand(lazy, query, 30)
            assert [h.columns["title"] for h in hits] == [rows[h.doc_id]["title"] for h in hits]
            assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
        (found,) = index.search(["bada bide"], 60, filter="title < 'm'")
        expected = both_by_hand(lazy, "bada bide", 60, lambda d: rows[d]["title"] < "m")
        assert [h.doc_id for h in found] == expected
        assert index.search(index.encode_queries(QUERIES), 30, ["title"]) == answers
        assert index.search([], 3) == []
        assert index.search(["bada"], 3, filter="title = 'none'") == [[]]
        assert counts(index).failed == 0


def test_with_all_documents_migrated_standard_scores_give_the_list_of_the_new_model(lazy):
    lazy.plan = replace(lazy.plan, fusion="zscore")
    lazy.start()
    lazy.migrate(sorted(lazy.rows()))
    with opened(lazy) as index:
        new = OpenRelease.open(lazy.storage, lazy.new)
        assert ids(index.search(QUERIES, 20)) == ids(new.search(QUERIES, 20))


def test_a_damaged_background_leaves_the_old_side(lazy):
    lazy.plan = replace(lazy.plan, fusion="zscore")
    lazy.start()
    lazy.migrate(every_second(lazy))
    lazy.storage.write_bytes(lazy.plan.background, b"x")
    with opened(lazy) as index:
        assert index.search(QUERIES, 10) == alone(lazy).search(QUERIES, 10)
        assert "background" in counts(index).last_error


# Over HTTP


def test_a_server_answers_from_both_sides_and_counts_it(half):
    with opened(half) as index:
        app = create_app(index, ServeOptions(), None)
        client = TestClient(app, "http://localhost")
        said = client.post("/search", json={"queries": QUERIES, "k": 10}).json()
        found = [[hit["doc_id"] for hit in one["hits"]] for one in said["results"]]
        assert found == ids(index.search(QUERIES, 10))
        assert said["release"] == half.old.id
        metrics = client.get("/metrics").text
        new = counts(index).hits_new
        for line in (
            'reembed_lazy_answers_total{how="fused"} 6.0',
            'reembed_lazy_answers_total{how="late"} 0.0',
            f'reembed_lazy_hits_total{{side="new"}} {new}.0',
            f'reembed_lazy_hits_total{{side="old"}} {60 - new}.0',
            'reembed_lazy_turned_up_total{to="dropped"} 0.0',
        ):
            assert line in metrics


# Vectors


def test_vectors_are_searched_in_the_old_release_alone(half):
    expected = alone(half).search(QUERIES, 5)
    with opened(half) as index:
        vectors = alone(half).encode_queries(QUERIES)
        assert index.search(vectors, 5) == expected
        kept = reembed.EncodedQueries(vectors, half.old.space.id)
        assert index.search(kept, 5) == expected
        assert (counts(index).vectors, counts(index).fused) == (6, 0)


def test_encoded_queries_are_of_both_spaces_and_outlive_the_migration(half):
    with opened(half) as index:
        expected = index.search(QUERIES, 5)
        kept = index.encode_queries(QUERIES)
        assert (kept.vectors.shape, kept.newer.vectors.shape) == ((3, 64), (3, 32))
        assert index.search(kept, 5) == expected
        final = half.config.model_copy(update={"encoder": half.side_config.encoder})
        release, _ = promoted(final, force_reason="the end")
        assert index.refresh()
        assert type(index.current) is OpenRelease
        assert index.release == release
        assert index.search(kept, 5) == index.search(QUERIES, 5)
    with pytest.raises(SpaceMismatch):
        alone(half).search(reembed.EncodedQueries(kept.vectors, half.old.space.id), 5)


# Which documents are migrated


def test_a_document_that_changed_or_left_since_is_the_old_sides(half):
    first, second, third = every_second(half)[:3]
    half.rewrite(first, "bada bide koke")  # the old release takes it over, the new side does not
    half.delete(second)
    half.catch_up()
    half.rewrite(third, "mizu mizu", half.members)  # the new side alone has this text
    half.follow_members()
    with opened(half) as index:
        pair = index.current
        assert isinstance(pair, LazyPair)
        assert len(pair.side.opened.migrated) == 150 - 3
        for query in [*QUERIES, "bada bide koke"]:
            (hits,) = index.search([query], 300)
            expected = by_hand(half, query, 300, 300)
            assert [h.doc_id for h in hits] == [d for d, _ in expected]
            assert second not in {h.doc_id for h in hits}


def test_after_batches_and_catch_ups_the_same_documents_are_migrated_as_in_a_fresh_process(half):
    with opened(half) as index:
        for step in range(3):
            rest = sorted(half.rows())[1::2]
            half.migrate(rest[5 * step : 5 * step + 5])
            half.delete(every_second(half)[step], half.members)
            half.follow_members()
            if step == 1:
                half.rewrite(every_second(half)[9], "koke koke")
                half.catch_up()
            assert index.refresh()
            assert not index.refresh()
            with opened(half) as fresh:
                ours, theirs = (of.current.side.opened.migrated for of in (index, fresh))
                assert np.array_equal(ours.old_rows, theirs.old_rows)
                assert np.array_equal(ours.new_rows, theirs.new_rows)
                assert index.search(QUERIES, 20) == fresh.search(QUERIES, 20)


def test_one_search_answers_as_an_open_index_does_says_so_and_queues_nothing(half):
    with opened(half) as index:
        expected = index.search(QUERIES, 20)
    for file in half.queue.files():
        half.storage.remove(f"{half.plan.folder}/queue/{file}")
    found = reembed.api.search(half.config, QUERIES, 20)
    assert (found.hits, found.side, found.alone) == (
        tuple(map(tuple, expected)),
        half.plan.side,
        None,
    )
    assert half.queue.files() == []
    old = half.catalog.require_live().release
    alone = reembed.api.search(half.config, QUERIES, 20, old.id)
    assert (alone.side, alone.alone) == (None, None)
    assert alone.hits != found.hits
    shutil.rmtree(half.storage.uri(half.new.index))
    broken = reembed.api.search(half.config, QUERIES, 20)
    assert broken.hits == alone.hits
    assert f"alone, though a lazy migration serves: {half.plan.side} did not" in text(
        "search", broken
    )


def test_what_a_batch_could_not_migrate_is_queued_again_only_after_live_has_caught_up(half):
    with opened(half) as index:

        def queued():
            index.search(QUERIES, 20)
            index.current.shared.turned_up._write()
            return counts(index).queued

        first = queued()
        assert first > 0
        half.migrate(sorted(half.rows())[1:2])
        assert index.refresh()
        assert queued() == first
        half.rewrite(sorted(half.rows())[-1], "koke koke")
        half.catch_up()
        assert index.refresh()
        assert queued() > first


def test_a_refresh_keeps_vectors_that_are_in_memory_except_those_that_left(half):
    with opened(half) as index:
        index.search(QUERIES, k=20)
        before = index.current.side.opened
        held = before.vectors._kept
        left = sorted(half.rows())[0]
        row = next(r for r, d in row_ids(before).items() if d == left)
        before.vectors.of(np.array([row]))
        assert len(held) > 10
        half.delete(left, half.members)
        half.migrate(sorted(half.rows())[1:2])
        index.refresh()
        after = index.current.side.opened
        assert after.release.release != before.release.release
        kept = after.vectors._kept
        assert kept.keys() == held.keys() - {row}
        rows = np.fromiter(kept, np.int64)
        assert np.array_equal(after.vectors.kept(rows), after.release.table.vectors_of(rows))


def row_ids(side):
    found = side.release.table.dataset().to_table(columns=["doc_id"], with_row_id=True)
    return dict(zip(found["_rowid"].to_pylist(), found["doc_id"].to_pylist(), strict=True))


@pytest.mark.parametrize("more", [4, 60])
def test_a_process_whose_new_side_gc_removed_meanwhile_follows_to_the_newest(half, more):
    table = half.storage.uri(half.new.table)
    leave(half, every_second(half)[:3])
    with opened(half) as index:
        before = files_of(lance.dataset(table, half.new.table_version))
        leave(half, every_second(half)[3 : 3 + more])
        gone = before - files_of(lance.dataset(table, half.new.table_version))
        assert gone  # of fragments that were written again, and of rows that left
        for name in gone:
            half.storage.remove(file_path(half.new.table, name))
        assert index.refresh()
        assert len(index.current.side.opened.migrated) == 150 - 3 - more
        with opened(half) as fresh:
            assert index.search(QUERIES, 20) == fresh.search(QUERIES, 20)
        assert counts(index).last_error is None


@pytest.mark.parametrize("error", [OSError("not found"), ValueError("not found")])
def test_files_of_the_version_before_that_are_gone_cost_a_whole_comparison(
    half, monkeypatch, error
):
    with opened(half) as index:
        leave(half, every_second(half)[:3])
        monkeypatch.setattr(migrated, "grown", lambda *_: raises(error))
        assert index.refresh()
        assert len(index.current.side.opened.migrated) == 147
        assert counts(index).last_error is None


def leave(lazy: LazyState, doc_ids: list[str]) -> None:
    """Take documents from the new side."""
    for doc_id in doc_ids:
        lazy.delete(doc_id, lazy.members)
    lazy.follow_members()


# Its life


@pytest.fixture
def quick(monkeypatch):
    """Threads look and write every few milliseconds."""
    monkeypatch.setattr(lazy_watch, "EVERY_S", 0.02)
    monkeypatch.setattr(turned_up, "EVERY_S", 0.02)


@pytest.mark.parametrize("state", ["stopped", "finished"])
def test_after_a_stop_every_process_answers_from_the_old_side_within_a_look(half, quick, state):
    expected = alone(half).search(QUERIES, 10)
    with opened(half) as index:
        held = index.current
        assert isinstance(held, LazyPair)
        side = [weakref.ref(part) for part in (held.side.opened.release, held.side.opened.migrated)]
        assert index.search(QUERIES, 10) != expected
        half.move(state)
        until(lambda: index.search(QUERIES, 10) == expected)
        assert held.search(QUERIES, 10) == expected
        memory.collect()
        assert [part() for part in side] == [None, None]
        before = counts(index)
        index.search(QUERIES)
        assert counts(index) == before
        assert index.refresh()
        assert type(index.current) is OpenRelease
        until(lambda: not threads())
        half.move("running")
        assert index.refresh()
        assert index.search(QUERIES, 10) != expected


def test_a_paused_migration_serves_what_is_migrated_and_queues_nothing(half, quick):
    with opened(half) as index:
        half.move("paused")
        until(lambda: not index.current.shared.watch.queues)
        (hits,) = index.search(["bada bide"], 10)
        assert [h.doc_id for h in hits] == [d for d, _ in by_hand(half, "bada bide", 10)]
    assert half.queue.files() == []


def test_while_the_state_cannot_be_read_the_old_side_answers(half, quick, monkeypatch):
    monkeypatch.setattr(lazy_watch, "UNREAD_S", 0.2)
    expected = alone(half).search(QUERIES, 10)
    plain = lazies.is_newest
    with opened(half) as index:
        both = index.search(QUERIES, 10)
        monkeypatch.setattr(lazies, "is_newest", lambda *_: raises(OSError("no route")))
        until(lambda: index.search(QUERIES, 10) == expected)
        assert counts(index).unread >= 3
        monkeypatch.setattr(lazies, "is_newest", plain)
        until(lambda: index.search(QUERIES, 10) == both)


def raises(error: Exception) -> Any:
    raise error


def test_a_migration_that_starts_later_is_followed_by_the_next_refresh(lazy):
    with opened(lazy) as index:
        lazy.start()
        assert index.refresh()
        lazy.migrate(every_second(lazy))
        assert index.refresh()
        index.search(QUERIES)
        assert counts(index).hits_new > 0
        assert not index.refresh()


# The new side is late or broken


def test_a_new_side_that_cannot_be_opened_leaves_the_old_one_and_is_tried_again(half, caplog):
    expected = alone(half).search(QUERIES, 10)
    table = Path(half.storage.uri(half.new.table))
    away = table.rename(table.with_name("away"))
    with opened(half) as index:
        assert index.search(QUERIES, 10) == expected
        assert "could not be opened" in caplog.text
        assert counts(index).failed == 3
        assert counts(index).last_error
        away.rename(table)
        assert index.refresh()
        assert index.search(QUERIES, 10) != expected


def test_a_batch_that_cannot_be_opened_leaves_the_new_side_as_it_was(half):
    with opened(half) as index:
        both = index.search(QUERIES, 10)
        half.migrate(sorted(half.rows())[1:9:2])
        shutil.rmtree(half.storage.uri(half.new.index))
        assert not index.refresh()
        assert index.search(QUERIES, 10) == both
        assert counts(index).last_error


def test_a_table_of_the_new_side_that_goes_while_it_serves_leaves_the_old_one(half):
    expected = alone(half).search(QUERIES, 10)
    with opened(half) as index:
        shutil.rmtree(half.storage.uri(half.new.table))
        assert ids(index.search(QUERIES, 10)) == ids(expected)
        assert counts(index).failed == 3
        assert counts(index).hits == 30


@pytest.mark.parametrize(
    "error", [OSError("no route"), ValueError("x"), MemoryError(), TimeoutError()]
)
def test_a_new_model_that_raises_leaves_the_old_one_and_is_left_alone_for_a_while(
    half, monkeypatch, error
):
    expected = ids(alone(half).search(["bada"], 10))
    monkeypatch.setattr(in_time, "REST_S", 60.0)
    with opened(half) as index:
        asked = []
        new = type(index.current.side.opened.release.encoder)
        plain = new.embed_queries

        def broken(self: Any, texts: Any) -> Any:
            if self is index.current.side.opened.release.encoder:
                asked.append(texts)
                raise error
            return plain(self, texts)

        monkeypatch.setattr(new, "embed_queries", broken)
        for _ in range(8):
            assert ids(index.search(["bada"], 10)) == expected
        assert (counts(index).failed, counts(index).skipped, len(asked)) == (5, 3, 5)
        assert type(error).__name__ in counts(index).last_error
        assert index.encode_queries(["bada"]).newer is None


def test_a_new_model_that_is_late_costs_its_budget_and_no_more(half, monkeypatch):
    expected = ids(alone(half).search(["bada"], 10))
    monkeypatch.setattr(in_time, "REST_S", 60.0)
    go = threading.Event()
    with opened(half, lazy_budget=0.05) as index:
        slow_encoder = index.current.side.opened.release.encoder
        plain = type(slow_encoder).embed_queries

        def slow(self: Any, texts: Any) -> Any:
            if self is slow_encoder:
                go.wait(60)
            return plain(self, texts)

        monkeypatch.setattr(type(slow_encoder), "embed_queries", slow)
        try:
            started = time.perf_counter()
            assert ids(index.search(["bada"], 10)) == expected
            assert 0.05 <= time.perf_counter() - started < 5
            for _ in range(9):
                assert ids(index.search(["bada"], 10)) == expected
            assert (counts(index).late, counts(index).skipped) == (5, 5)
            told = counts(index).last_error
            assert told.startswith("TimeoutError: not ready ")
            assert told.endswith(" s after the old side")
        finally:
            go.set()


@pytest.mark.parametrize("budget", [0, -1.0, float("nan"), "1", True])
def test_a_budget_that_is_none_is_refused(lazy, budget):
    with pytest.raises(UsageError, match="lazy_budget must be a number above 0"):
        opened(lazy, lazy_budget=budget)


# Both sides change together


def test_threads_that_search_during_refreshes_get_answers_of_one_pair(half):
    end, wrong, seen = threading.Event(), [], set()
    with opened(half) as index:
        known: dict[int, Any] = {}

        def search() -> None:
            while not end.is_set():
                pair = index.current
                answer = ids(pair.search(QUERIES, 50))
                first = known.setdefault(id(pair), (pair, answer))[1]
                seen.add(id(pair))
                if answer != first:
                    wrong.append((answer, first))

        workers = [threading.Thread(target=search) for _ in range(3)]
        for worker in workers:
            worker.start()
        for step in range(4):
            half.migrate(sorted(half.rows())[1 + 20 * step : 11 + 20 * step : 2])
            if step % 2:
                half.rewrite(every_second(half)[step], f"bada koke {step}")
                half.catch_up()
            assert index.refresh()
        end.set()
        for worker in workers:
            worker.join(60)
        assert counts(index).failed == 0
    assert not wrong
    assert len(seen) > 1


def test_a_closed_index_frees_both_sides(half):
    index = opened(half)
    pair: Any = index.current
    parts = (pair.index, pair.side.opened.release.index, pair.side.opened.migrated)
    held = [weakref.ref(part) for part in parts]
    index.search(QUERIES)
    del pair, parts
    index.close()
    memory.collect()
    assert [part() for part in held] == [None, None, None]
    until(lambda: not threads())


def test_an_index_that_nobody_holds_ends_its_threads_and_keeps_what_turned_up(half):
    index = opened(half)
    (hits,) = index.search(["bada bide"], 10)
    held = weakref.ref(index)
    del index
    memory.collect()
    assert held() is None
    until(lambda: not threads())
    wanted = {h.doc_id for h in hits} - set(every_second(half))
    assert set(half.queue.read(half.queue.files())) == wanted


def test_the_default_budget_is_a_tenth_of_a_second():
    assert in_time.BUDGET_S == 0.1

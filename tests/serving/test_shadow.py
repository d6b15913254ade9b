"""Shadow reads and interleaved answers: what users get, and what is known of the candidate afterwards."""

from __future__ import annotations

import dataclasses
import gc as memory
import threading
import time
import weakref
from itertools import pairwise

import numpy as np
import pytest
from inline import Inline, Silent

import reembed
from reembed.catalog.releases import Catalog
from reembed.errors import UsageError
from reembed.evaluation.sequential import always_valid
from reembed.lifecycle.promote import promote
from reembed.serving.live import OpenRelease
from reembed.serving.shadow import ShadowCounts
from reembed.store.storage import Storage
from reembed.strategies.full_rebuild import full_rebuild

QUERIES = [f"words of {n}" for n in range(40)]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return release_three(tmp_path_factory.mktemp("shadow"))


def release_three(folder):
    """A live release, a candidate of another space, and one of the same space."""
    import lance
    import pyarrow as pa

    from reembed.config.settings import Config

    names = [f"d{n:03}" for n in range(200)]
    rows = {"doc_id": names, "text": [f"words of {n} {n % 7}" for n in range(200)]}
    rows["year"] = list(range(200))
    lance.write_dataset(pa.table(rows), str(folder / "s.lance"), enable_stable_row_ids=True)

    def release(model):
        config = Config(
            alias="docs",
            source={"uri": str(folder / "s.lance")},
            encoder={"model": model},
            table={"carry": ["year"]},
            storage={"root": str(folder / "root")},
        )
        return full_rebuild(config, Silent(), fresh=True, executor=Inline())

    live, other, same = release("hashing:32"), release("hashing:48"), release("hashing:32")
    promote(Catalog(Storage.open(str(folder / "root")), "docs"), live.id, initial_reason="a test")
    return str(folder / "root"), live, other, same


@pytest.fixture
def index(built):
    with reembed.open(built[0], "docs") as opened:
        yield opened


def nothing(read):
    pass


def settled(shadow):
    """Wait until no call waits."""
    while (c := shadow.counts).sampled > c.read + c.dropped + c.failed + c.other_space:
        time.sleep(0.005)
    return c


def test_a_shadow_gets_what_the_candidate_would_have_answered(built, index):
    _, live, other, _ = built
    reads = []
    with index.shadow(other.id, reads.append, share=1.0) as shadow:
        answers = [index.search([q], 5, ["year"], "year < 150") for q in QUERIES[:5]]
        assert settled(shadow) == ShadowCounts(calls=5, sampled=5, read=5)
    candidate = OpenRelease.open(Storage.open(built[0]), other)
    assert [r.queries for r in reads] == [(q,) for q in QUERIES[:5]]
    assert [r.live for r in reads] == answers
    assert [r.candidate for r in reads] == [
        candidate.search([q], 5, (), "year < 150") for q in QUERIES[:5]
    ]
    assert {h.release for r in reads for h in r.live[0]} == {live.id}
    assert all(r.live_s > 0 and r.candidate_s > 0 for r in reads)
    index.search(QUERIES[:1])
    assert len(reads) == 5, "it is closed"


def test_a_share_of_the_calls_is_sampled_the_same_ones_with_the_same_seed(built, index):
    sampled = []
    for _ in range(2):
        reads = []
        with index.shadow(built[2].id, reads.append, share=0.25, seed=7) as shadow:
            for query in QUERIES:
                index.search([query], 3)
            counts = settled(shadow)
        assert (counts.calls, counts.read) == (40, counts.sampled)
        sampled.append([r.queries for r in reads])
    assert sampled[0] == sampled[1]
    assert 3 <= len(sampled[0]) <= 20


def test_a_candidate_that_fails_is_counted_and_no_answer_fails(built, index, monkeypatch):
    expected = index.search(QUERIES[:3])

    def fails(read):
        raise ZeroDivisionError("by the caller's function")

    with index.shadow(built[2].id, fails, share=1.0) as shadow:
        assert index.search(QUERIES[:3]) == expected
        counts = settled(shadow)
    assert (counts.failed, counts.last_error) == (1, "ZeroDivisionError: by the caller's function")
    with index.shadow(built[2].id, nothing, share=1.0) as shadow:
        candidate = dataclasses.replace(shadow._candidate)
        object.__setattr__(candidate, "search", lambda *_: 1 / 0)
        shadow._candidate = candidate
        assert index.search(QUERIES[:3]) == expected
        assert settled(shadow).failed == 1


def test_a_candidate_that_fails_in_each_call_does_not_fill_the_log(built, index, caplog):
    with index.shadow(built[2].id, lambda read: 1 / 0, share=1.0) as shadow:
        for _ in range(40):
            index.search(QUERIES[:1], 1)
        assert settled(shadow).failed == 40
    told = [record.message for record in caplog.records if "shadow reads" in record.message]
    assert len(told) == 6, "of the 1st, 2nd, 4th, 8th, 16th and 32nd"
    assert "failed 32 times: ZeroDivisionError" in told[-1]


def test_reads_are_apart_so_that_few_answers_fall_together_with_one(built, index):
    at = []
    with index.shadow(built[2].id, lambda read: at.append(time.monotonic()), share=1.0) as shadow:
        for _ in range(5):
            index.search(QUERIES[:1], 1)
        settled(shadow)
    assert min(later - before for before, later in pairwise(at)) >= 0.02


def test_a_slow_candidate_drops_calls_and_no_answer_waits(built, index):
    held = threading.Event()
    with index.shadow(built[2].id, lambda read: held.wait(60), share=1.0) as shadow:
        for _ in range(100):
            index.search(QUERIES[:1], 1)
        counts = shadow.counts
        assert counts.calls == counts.sampled == 100
        assert 30 <= counts.dropped <= 40
        held.set()
    done = shadow.counts
    assert done.sampled == done.read + done.dropped + done.failed


def test_vectors_are_read_by_a_candidate_of_their_space_only(built, index):
    _, _, other, same = built
    vectors = index.encode_queries(QUERIES[:2])
    for candidate, queries, expected in (
        (other, vectors, "other_space"),
        (other, vectors.vectors, "other_space"),
        (same, vectors, "read"),
        (same, vectors.vectors, "read"),
    ):
        reads = []
        with index.shadow(candidate.id, reads.append, share=1.0) as shadow:
            index.search(queries, 3)
            assert getattr(settled(shadow), expected) == 1
        for read in reads:
            assert np.array_equal(read.queries.vectors, vectors.vectors)
            assert [[h.doc_id for h in hits] for hits in read.candidate] == [
                [h.doc_id for h in hits] for hits in read.live
            ]


def test_what_a_caller_changes_afterwards_does_not_change_what_is_read(built, index):
    go, reads = threading.Event(), []
    with index.shadow(built[3].id, lambda r: (go.wait(60), reads.append(r)), share=1.0) as shadow:
        index.search(QUERIES[:1], 1)
        texts, vectors = [QUERIES[5]], index.encode_queries([QUERIES[6]]).vectors
        kept = vectors.copy()
        index.search(texts, 1)
        index.search(vectors, 1)
        texts[0], vectors[:] = "another", 0
        go.set()
        settled(shadow)
    assert reads[1].queries == (QUERIES[5],)
    assert np.array_equal(reads[2].queries.vectors, kept)


def test_what_a_search_takes_is_taken_with_a_shadow_too(built, index):
    texts, lists = np.array(QUERIES[:2]), index.encode_queries(QUERIES[:1])
    lists = reembed.EncodedQueries(lists.vectors.tolist(), lists.space)
    expected = [index.search(texts, 2), index.search(lists, 2)]
    reads = []
    with index.shadow(built[3].id, reads.append, share=1.0) as shadow:
        assert [index.search(texts, 2), index.search(lists, 2)] == expected
        assert settled(shadow).read == 2
    assert reads[0].queries == tuple(QUERIES[:2])


def test_a_candidate_that_is_live_is_not_read(built):
    root, _, other, _ = built
    with reembed.open(root, "docs") as index, index.shadow(other.id, nothing, share=1.0) as shadow:
        with index.interleave(other.id) as test:
            assert test.search(QUERIES[0], "before").interleaved is not None
            index._serving = (index._serving[0], OpenRelease.open(Storage.open(root), other))
            index.search(QUERIES[:1])
            assert shadow.counts.sampled == 0
            shown = test.search(QUERIES[0], "after")
        assert (shown.interleaved, {h.release for h in shown.hits}) == (None, {other.id})


def test_a_candidate_that_goes_live_is_opened_once_whoever_asks_it(tmp_path, quiet):
    root, _, other, same = release_three(tmp_path)
    catalog = Catalog(Storage.open(root), "docs")
    with (
        reembed.open(root, "docs") as index,
        index.shadow(other.id, nothing, share=1.0) as shadow,
        index.interleave(same.id) as test,
    ):
        promote(catalog, other.id, force_reason="a test")
        assert index.refresh()
        assert index.current is shadow._candidate
        index.search(QUERIES[:1])
        assert shadow.counts.sampled == 0
        promote(catalog, same.id, force_reason="a test")
        assert index.refresh()
        assert index.current is test._candidate
        held = weakref.ref(shadow._candidate)
        shadow.close()
        memory.collect()
        assert held() is None, "what no one asks is freed"


def test_queries_that_can_be_read_once_are_read_by_both(built, index):
    reads = []
    with index.shadow(built[2].id, reads.append, share=1.0) as shadow:
        assert len(index.search(iter(QUERIES[:3]))) == 3
        settled(shadow)
    assert reads[0].queries == tuple(QUERIES[:3])


@pytest.mark.parametrize("share", [0, -0.1, 1.5, True, "all"])
def test_a_share_that_is_none_is_refused(built, index, share):
    with pytest.raises(UsageError, match="share must be"):
        index.shadow(built[2].id, nothing, share=share)
    assert len(index.search(QUERIES[:1])) == 1


def test_one_shadow_at_a_time_of_a_release_that_exists(built, index):
    with pytest.raises(UsageError, match="has no release"):
        index.shadow("docs-none", nothing)
    with (
        index.shadow(built[2].id, nothing),
        pytest.raises(UsageError, match="is a shadow of docs already"),
    ):
        index.shadow(built[3].id, nothing)
    index.shadow(built[3].id, nothing).close()


def test_a_closed_shadow_or_index_frees_the_candidate(built):
    with reembed.open(built[0], "docs") as index:
        shadow = index.shadow(built[2].id, nothing, share=1.0)
        index.search(QUERIES[:1])
        settled(shadow)
        held = weakref.ref(shadow._candidate)
    memory.collect()
    assert held() is None
    assert not shadow.is_open
    shadow.close()


def test_threads_share_a_shadow(built, index):
    with index.shadow(built[2].id, nothing, share=0.5) as shadow:
        expected = index.search(QUERIES[:4])

        def ask():
            for _ in range(20):
                assert index.search(QUERIES[:4]) == expected

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert settled(shadow).calls == 81


# --- interleaving ---


def test_users_get_one_list_of_both_and_clicks_say_which_is_preferred(built, index):
    _, live, other, _ = built
    with index.interleave(other.id) as test:
        for number in range(200):
            shown = test.search(QUERIES[number % 40], f"request {number}", 6, ["year"])
            assert len({h.doc_id for h in shown.hits}) == 6
            of = {"live": live.id, "candidate": other.id}
            assert [h.release for h in shown.hits] == [of[t] for t in shown.interleaved.teams]
            assert all("year" in h.columns for h in shown.hits)
            theirs = [h.doc_id for h in shown.hits if h.release == other.id]
            assert test.clicked(shown, theirs[:1]) == 1
        counts = test.counts
    assert (counts.answers, counts.alone, counts.candidate, counts.live) == (200, 0, 200, 0)
    assert always_valid(np.array(test.credits, float), 0).verdict == "pass"


def test_the_same_request_is_shown_the_same_list(built, index):
    with index.interleave(built[2].id) as test:
        once, again = (test.search(QUERIES[0], "request 1").interleaved for _ in range(2))
        others = {test.search(QUERIES[0], f"request {n}").interleaved.teams for n in range(20)}
    assert once == again
    assert len(others) > 1


def test_an_answer_does_not_wait_for_a_candidate_that_is_late_or_fails(built, index):
    expected = index.search(QUERIES[:1], 5)[0]
    go = threading.Event()
    with index.interleave(built[2].id, timeout_s=0.05) as test:
        for search in (lambda *_: go.wait(60), lambda *_: (_ for _ in ()).throw(OSError("gone"))):
            candidate = dataclasses.replace(test._candidate)
            object.__setattr__(candidate, "search", search)
            test._candidate = candidate
            shown = test.search(QUERIES[0], "request", 5)
            assert (list(shown.hits), shown.interleaved) == (expected, None)
            assert test.clicked(shown, [expected[0].doc_id]) == 0
        assert test.counts.last_error == "OSError: gone"
        assert (test.counts.answers, test.counts.alone, test.credits) == (2, 2, ())
        go.set()


def test_clicks_of_a_request_that_come_again_count_once(built, index):
    with index.interleave(built[2].id) as test:
        shown = test.search(QUERIES[0], "request", 4)
        for _ in range(3):
            test.clicked(shown, [h.doc_id for h in shown.hits if h.release == built[2].id][:1])
        assert test.credits == (1,)
        with pytest.raises(UsageError, match="doc_ids must be a list"):
            test.clicked(shown, "d001")
        with pytest.raises(UsageError, match="key must be a text"):
            test.search(QUERIES[0], (1, 2))


def test_closing_breaks_no_answer_under_way(built, index):
    go, shown = threading.Event(), []
    test = index.interleave(built[2].id, timeout_s=30)
    candidate = dataclasses.replace(test._candidate)
    object.__setattr__(candidate, "search", lambda *_: go.wait(60) and [[]])
    test._candidate = candidate
    asking = [
        threading.Thread(target=lambda n=n: shown.append(test.search(QUERIES[0], f"{n}", 2)))
        for n in range(12)
    ]
    for thread in asking:
        thread.start()
    while test._pool._work_queue.qsize() < 12 - test._pool._max_workers:
        time.sleep(0.005)
    test.close()
    go.set()
    for thread in asking:
        thread.join()
    assert len(shown) == 12
    assert all(len(s.hits) == 2 for s in shown)


def test_a_click_on_what_was_not_shown_is_refused(built, index):
    with index.interleave(built[2].id) as test:
        shown = test.search(QUERIES[0], "request", 3)
        with pytest.raises(UsageError, match="is not among the 3 shown"):
            test.clicked(shown, ["d999"])
    with pytest.raises(UsageError, match="closed"):
        test.search(QUERIES[0], "request")

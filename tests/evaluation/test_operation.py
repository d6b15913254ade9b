from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import documents
from pairs import DOCUMENTS, Pair, built, lent

from reembed.config.gate import GateConfig
from reembed.errors import ConfigError
from reembed.evaluation.figures import KnownItems, Sides
from reembed.evaluation.held import Held
from reembed.evaluation.known_items import Searched, first_sentence, known_items
from reembed.evaluation.operation import (
    empty_rule,
    judged_rule,
    known_item_rule,
    latency_rule,
)
from reembed.evaluation.report import notes
from reembed.evaluation.terms import Asked
from reembed.serving.live import OpenRelease
from reembed.source.dataset import Source


@pytest.fixture(scope="module")
def built_pair(tmp_path_factory) -> Pair:
    return built(tmp_path_factory.mktemp("operation"), judged=True)


@pytest.fixture
def pair(built_pair: Pair, tmp_path: Path) -> Iterator[Pair]:
    yield from lent(built_pair, tmp_path)


def always(live_ms: float, candidate_ms: float) -> Sides[np.ndarray]:
    return Sides(np.full(195, live_ms / 1e3), np.full(195, candidate_ms / 1e3))


@pytest.mark.parametrize(
    ("live", "candidate", "verdict"),
    [
        (10, 20, "pass"),
        (10, 20.1, "fail"),
        (0.1, 9.9, "pass"),
        (0.1, 10.1, "fail"),
        (30, 1, "pass"),
    ],
)
def test_a_search_may_take_twice_as_long_or_ten_milliseconds(live, candidate, verdict):
    rule = latency_rule(always(live, candidate), 2)
    assert (rule.verdict, rule.observed) == (verdict, pytest.approx(candidate))


def busy(rng: np.random.Generator, ms: float) -> np.ndarray:
    """Seconds of 195 searches of a machine that is busy now and then: for 4 to 10 searches it takes 8 times as long."""
    times = rng.lognormal(np.log(ms / 1e3), 0.2, 195)
    for start in rng.integers(0, 185, rng.poisson(1.5)):
        times[start : start + rng.integers(4, 11)] *= 8
    return times


def test_a_busy_machine_does_not_fail_a_release_that_is_as_fast():
    rng = np.random.default_rng(0)
    same = [Sides(busy(rng, 20), busy(rng, 20)) for _ in range(100)]
    p95 = [np.percentile(s.candidate, 95) / np.percentile(s.live, 95) for s in same]
    assert np.mean(np.array(p95) > 2) > 0.1, "the p95 alone would fail it"
    verdicts = [latency_rule(times, 2) for times in same]
    assert np.mean([rule.verdict == "fail" for rule in verdicts]) <= 0.05
    undecided = [rule for rule in verdicts if rule.verdict == "inconclusive"]
    assert undecided
    assert all("compare again on a quiet machine" in rule.detail for rule in undecided)
    quiet = [rng.lognormal(-4, 0.2, 195) for _ in range(4)]
    assert latency_rule(Sides(quiet[0], quiet[1]), 2).verdict == "pass"
    assert latency_rule(Sides(quiet[2], 3 * quiet[3]), 2).verdict == "fail"


def empty(live: int, candidate: int, queries: int) -> Sides[np.ndarray]:
    """So many queries that find nothing, first those of live."""
    first, n = np.zeros(queries), np.arange(queries)
    return Sides(first + (n < live), first + (n >= queries - candidate))


@pytest.mark.parametrize(
    ("live", "candidate", "queries", "verdict"),
    [
        (0, 0, 50, "pass"),
        (0, 1, 50, "pass"),
        (0, 2, 50, "inconclusive"),
        (0, 10, 50, "fail"),
        (10, 0, 50, "pass"),
        (5, 6, 50, "pass"),
        (0, 1, 20, "pass"),
        (0, 10, 1000, "pass"),
        (0, 15, 1000, "inconclusive"),
        (0, 30, 1000, "fail"),
        (300, 330, 1000, "inconclusive"),
        (0, 1, 1, "pass"),
    ],
)
def test_more_queries_that_find_nothing_fail_when_it_is_not_chance(
    live, candidate, queries, verdict
):
    assert empty_rule(empty(live, candidate, queries)).verdict == verdict


def test_queries_of_one_group_that_find_nothing_are_one_accident():
    found = empty(0, 11, 550)
    groups = np.repeat(np.arange(50), 11)
    assert empty_rule(found, groups).verdict == "inconclusive"
    assert empty_rule(empty(0, 110, 550), groups).verdict == "fail"


@pytest.mark.parametrize(
    ("live", "candidate", "verdict"),
    [(0.5, 0.46, "pass"), (0.5, 0.4, "inconclusive"), (0.1, 0.9, "pass")],
)
def test_results_that_nobody_judged_are_not_results_that_are_bad(live, candidate, verdict):
    assert judged_rule(Sides(live, candidate)).verdict == verdict


def searched(live: list[float], candidate: list[float], repeated: int = 0) -> Searched:
    """Reciprocal ranks."""
    ranks = Sides(np.array(live, float), np.array(candidate, float))
    return Searched(KnownItems(len(live), ranks.each(np.mean)), ranks, repeated)


def first_of(count: int, found: int) -> list[float]:
    return [1.0] * found + [0.0] * (count - found)


@pytest.mark.parametrize(
    ("items", "live", "candidate", "verdict", "why"),
    [
        (200, 180, 80, "fail", "a fall of more than 30% is shown"),
        (200, 180, 170, "pass", "is not shown"),
        (200, 180, 122, "pass", "is not shown"),  # 32 %, within chance
        (200, 59, 0, "pass", "no veto, live must find them with 0.3 at least"),
        (29, 29, 0, "pass", "no veto, at least 30 documents needed"),
        (30, 30, 10, "fail", "is shown"),
        (200, 0, 0, "pass", "no veto"),
    ],
)
def test_known_items_veto_a_catastrophe_that_is_shown(items, live, candidate, verdict, why):
    found = searched(first_of(items, live), first_of(items, candidate), repeated=7)
    rule = known_item_rule(found)
    assert rule.verdict == verdict
    assert why in rule.detail
    assert f"{items} documents" in rule.detail
    assert "(7 left out, others begin with the same sentence)" in rule.detail


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("A first sentence. And another.", "A first sentence."),
        ("Costs 3.50 dollars today! Then more.", "Costs 3.50 dollars today!"),
        ("\u4eca\u5929\u5929\u6c14\u5f88\u597d\u6211\u4eec\u53bb\u516c\u56ed\u3002\u518d\u89c1",
         "\u4eca\u5929\u5929\u6c14\u5f88\u597d\u6211\u4eec\u53bb\u516c\u56ed\u3002"),
        ("Too short.", ""),
        ("", ""),
        ("w" * 300, "w" * 200),
    ],
)  # fmt: skip
def test_the_first_sentence_of_a_text(text, sentence):
    assert first_sentence(text) == sentence


def opened(pair: Pair) -> Sides[OpenRelease]:
    releases = Sides(pair.live, pair.candidate)
    return releases.each(lambda r: OpenRelease.open(pair.catalog.storage, r))


def held(side: OpenRelease) -> Held:
    ids = [str(d) for b in side.table.scan(["doc_id"]) for d in b.column("doc_id").to_pylist()]
    hashes = np.unique(np.array([hash(d) for d in ids]))
    return Held(hashes, frozenset(), frozenset(), None)


def test_documents_are_searched_by_their_own_first_sentences(pair):
    both = opened(pair)
    source = Source(pair.candidate.source, pair.catalog.source_options)
    found = known_items(both, source, both.each(held))
    assert found.figures.why is None
    texts = {str(r["doc_id"]): r["text"] for r in documents(DOCUMENTS, 0)}
    once = [t for t in texts.values() if first_sentence(t)]
    assert len(set(map(first_sentence, once))) == len(once)
    assert (found.figures.asked, found.repeated) == (min(200, len(once)), 0)
    assert found.figures.mrr_at_10 == Sides(1.0, 1.0), "a text without a full stop is one sentence"
    again = known_items(both, source, both.each(held))
    assert found.figures == again.figures, "the same documents each time"


def test_documents_that_one_release_lacks_are_not_asked_for(pair):
    both = opened(pair)
    some = both.each(held)
    few = dataclasses.replace(some.live, hashes=some.live.hashes[:30])
    source = Source(pair.candidate.source, pair.catalog.source_options)
    assert known_items(both, source, Sides(few, some.candidate)).figures.asked <= 30


class Drawn:
    """A source of which these documents are drawn."""

    def __init__(self, drawn: list[tuple[str, str]]) -> None:
        self.drawn = drawn

    def sample(self, count: int, seed: int) -> list[tuple[str, str]]:
        return self.drawn[:count]


def test_documents_that_begin_alike_are_not_asked_for(pair):
    both = opened(pair)
    sides = both.each(held)
    rows = documents(DOCUMENTS, 0)
    own = [(str(r["doc_id"]), r["text"]) for r in rows]
    alike = [(d, f"The same page header{n % 3}. {t}") for n, (d, t) in enumerate(own)]
    found = known_items(both, Drawn([*own[:40], *alike[40:]]), sides)
    assert (found.figures.asked, found.repeated) == (40, DOCUMENTS - 40)
    none = known_items(both, Drawn(alike), sides)
    assert (none.figures.asked, none.figures.mrr_at_10, none.repeated) == (0, None, DOCUMENTS)
    assert "that no other begins with" in none.figures.why
    # One of two that begin alike is in one release only: still it does not stand alone.
    few = dataclasses.replace(sides.live, hashes=np.array(sorted(hash(d) for d, _ in alike[::2])))
    assert known_items(both, Drawn(alike[:6]), Sides(few, sides.candidate)).figures.asked == 0


def test_a_source_that_cannot_be_read_vetoes_nothing_and_is_told(pair):
    Path(pair.source).rename(f"{pair.source}-moved")
    try:
        record = pair.compare()
    finally:
        Path(f"{pair.source}-moved").rename(pair.source)
    assert (record.known_items.asked, record.known_items.mrr_at_10) == (0, None)
    assert "known items" not in [rule.name for rule in record.rules]
    assert any("known items were not searched" in note for note in notes(record))


# --- the gate as planned ---


def planned(pair: Pair, **gate: object) -> str:
    """A candidate like the pair's, of 24 dimensions, planned with other settings of the gate."""
    return pair.build(24, **gate).id


def test_a_candidate_that_no_longer_finds_documents_by_their_own_words_fails(pair, monkeypatch):
    """One whose queries are encoded in another way than its documents."""
    honest = OpenRelease.encode_queries

    def other(self: OpenRelease, texts: list[str]) -> np.ndarray:
        vectors = honest(self, texts)
        return vectors[:, ::-1].copy() if vectors.shape[1] == 16 else vectors

    monkeypatch.setattr(OpenRelease, "encode_queries", other)
    record = pair.compare(Asked(margin=0.99, reason="a test"))
    rules = {rule.name: rule.verdict for rule in record.rules}
    assert rules["known items"] == "fail"
    assert rules["nDCG@10 change"] != "fail"
    assert (record.verdict, record.margin_needed) == ("fail", None)


def test_the_metrics_of_the_gate_are_those_of_the_plan(pair):
    which = planned(pair, metrics=["recall@1", "mrr@5"])
    record = pair.compare(which=which, metrics=["ndcg@10"])
    judged = [rule.metric for rule in record.rules if rule.metric]
    assert judged == ["recall@1", "mrr@5"]
    assert [k for k, m in record.metrics.items() if m.margin is not None] == judged
    assert record.metrics["ndcg@10"].margin is None
    assert "Loss of recall@1 and MRR@5 that the plan allows" in Path(record.report).read_text()


@pytest.mark.parametrize(
    "metrics", [[], ["ndcg"], ["ndcg@0"], ["map@10"], ["ndcg@101"], ["mrr@1", "mrr@1"]]
)
def test_metrics_that_there_are_not_are_refused(metrics):
    with pytest.raises((ConfigError, ValueError), match="metric"):
        GateConfig(metrics=metrics)


def sliced(pair: Pair) -> str:
    """The judged queries as JSONL: those of one shelf ask for a document that both releases find badly."""
    rows = documents(DOCUMENTS, 0)
    lines = [
        {
            "query_id": f"q-{r['doc_id']}", "text": r["title"], "doc_ids": [r["doc_id"]],
            "shelf": "abc"[n // 2 % 3] if n < 210 else "rare", "user": f"u{n // 2}",
        }
        for n, r in enumerate(rows)
    ]  # fmt: skip
    (pair.folder / "more").mkdir(exist_ok=True)  # a folder of its own, which the pair puts back
    path = pair.folder / "more" / "sliced.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_slices_and_groups_of_the_plan_are_judged_and_told(pair):
    which = planned(pair, queries=sliced(pair), slices=["shelf"], group="user", margin=0.9)
    record = pair.compare(which=which, queries=sliced(pair), slices=["shelf"], group="user")
    assert {rule.independent for rule in record.rules if rule.metric} == {120}
    found = {(s.value, s.metric): s for s in record.slices}
    assert {value for value, _ in found} == {"a", "b", "c", "rare"}
    assert found["rare", "ndcg@10"].p is None
    assert found["a", "recall@10"].p is not None
    assert found["a", "ndcg@10"].change.n == 70
    assert any("1 of 4 slices: shelf = rare (n " in note for note in notes(record))
    (rule,) = (rule for rule in record.rules if rule.name == "slices")
    assert rule.verdict == ("fail" if any(s.harmed for s in record.slices) else "pass")
    assert record.likely_groups is None


def test_queries_that_seem_to_be_grouped_are_told(pair):
    rows = documents(DOCUMENTS, 0)[:60]
    (pair.folder / "more").mkdir(exist_ok=True)
    path = pair.folder / "more" / "phrasings.jsonl"
    lines = [
        {"query_id": f"q{n // 3}_{n % 3}", "text": r["title"], "doc_ids": [r["doc_id"]]}
        for n, r in enumerate(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    which = planned(pair, queries=str(path))
    record = pair.compare(which=which, queries=str(path))
    assert record.likely_groups.queries == 60
    assert any("set gate.group" in note for note in notes(record))

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
from reembed.evaluation.figures import Latency, Sides
from reembed.evaluation.held import Held
from reembed.evaluation.known_items import first_sentence, known_items
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


def p95(live: float, candidate: float) -> Sides[Latency]:
    return Sides(Latency(0, live, 0), Latency(0, candidate, 0))


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
    rule = latency_rule(p95(live, candidate), 2)
    assert (rule.verdict, rule.observed) == (verdict, candidate)


@pytest.mark.parametrize(
    ("live", "candidate", "verdict"), [(0, 0.01, "pass"), (0, 0.02, "fail"), (0.3, 0.31, "pass")]
)
def test_hardly_more_queries_may_find_nothing(live, candidate, verdict):
    assert empty_rule(Sides(live, candidate)).verdict == verdict


@pytest.mark.parametrize(
    ("live", "candidate", "verdict"),
    [(0.5, 0.46, "pass"), (0.5, 0.4, "inconclusive"), (0.1, 0.9, "pass")],
)
def test_results_that_nobody_judged_are_not_results_that_are_bad(live, candidate, verdict):
    assert judged_rule(Sides(live, candidate)).verdict == verdict


@pytest.mark.parametrize(
    ("live", "candidate", "verdict"), [(0.9, 0.64, "pass"), (0.9, 0.62, "fail"), (0, 0, "pass")]
)
def test_known_items_veto_a_catastrophe(live, candidate, verdict):
    assert known_item_rule(Sides(live, candidate)).verdict == verdict


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
    assert found.why is None
    texts = {str(r["doc_id"]): r["text"] for r in documents(DOCUMENTS, 0)}
    assert found.asked == min(200, sum(bool(first_sentence(t)) for t in texts.values()))
    assert found.mrr_at_10 == Sides(1.0, 1.0), "a text without a full stop is one sentence"
    assert found == known_items(both, source, both.each(held)), "the same documents each time"


def test_documents_that_one_release_lacks_are_not_asked_for(pair):
    both = opened(pair)
    some = both.each(held)
    few = dataclasses.replace(some.live, hashes=some.live.hashes[:30])
    source = Source(pair.candidate.source, pair.catalog.source_options)
    assert known_items(both, source, Sides(few, some.candidate)).asked <= 30


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

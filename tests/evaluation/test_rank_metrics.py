"""Rank-biased overlap, metrics by name at any depth, and ties, against independent definitions."""

from __future__ import annotations

import ir_measures
import numpy as np
import pytest
from ir_measures import RR, Judged, R, nDCG
from judged_lists import eval_set, random_case

from reembed.errors import IntegrityError, UsageError
from reembed.evaluation.metrics import Ranked, named, ranking, rbo_at

MEASURES = {"ndcg": nDCG, "recall": R, "mrr": RR, "judged": Judged}


def rbo_by_definition(a: list[str], b: list[str], p: float) -> float:
    """Webber's sum of agreements over all depths; beyond the lists each continues to agree as far as it was seen to."""
    short, long = sorted((a, b), key=len)
    s, most = len(short), len(long)
    total = 0.0
    for depth in range(1, 2_000):
        seen = len(set(short[:depth]) & set(long[:depth]))
        if depth > s:
            seen += len(set(short) & set(long[:s])) / s * (depth - s)
        if depth > most:
            upto = len(set(short) & set(long)) + len(set(short) & set(long[:s])) / s * (most - s)
            seen = upto / most * depth
        total += (1 - p) * p ** (depth - 1) * seen / depth
    return total


@pytest.mark.parametrize("seed", range(6))
def test_rbo_equals_the_sum_over_all_depths(seed):
    rng = np.random.default_rng(seed)
    docs = [f"d{n}" for n in range(40)]
    for _ in range(20):
        a, b = (
            [str(d) for d in rng.choice(docs, size=int(rng.integers(1, 30)), replace=False)]
            for _ in range(2)
        )
        for p in (0.5, 0.9):
            expected = rbo_by_definition(a, b, p)
            assert rbo_at([a], [b], 100, p)[0] == pytest.approx(expected, abs=1e-9)
            assert rbo_at([b], [a], 100, p)[0] == pytest.approx(expected, abs=1e-9)


def test_rbo_of_equal_disjoint_and_empty_lists():
    a, b = ["a", "b", "c"], ["x", "y"]
    assert rbo_at([a, a, [], []], [a, b, [], b], 100) == pytest.approx([1, 0, 1, 0])


def test_a_swap_at_the_top_weighs_more_than_one_below():
    docs = [f"d{n}" for n in range(20)]
    top, below = [docs[1], docs[0], *docs[2:]], [*docs[:-2], docs[19], docs[18]]
    high, low = rbo_at([docs, docs], [below, top], 100)
    assert low < high < 1


@pytest.mark.parametrize("kind", list(MEASURES))
@pytest.mark.parametrize("k", [1, 3, 5, 100])
def test_metrics_by_name_equal_ir_measures_also_with_ties(kind, k):
    """trec_eval ranks by score and, of equal ones, by the larger id; ir-measures ranks for MRR and judged as given."""
    rng = np.random.default_rng(k)
    judged, results = random_case(k)
    scores = [[float(s) for s in rng.integers(0, 5, len(found))] for found in results]
    pairs = zip(judged.query_ids, results, scores, strict=True)
    lists = Ranked.of(ranking(found, given, "q", 100) for _, found, given in pairs)
    ours = named(f"{kind}@{k}").of(judged, lists.ids)
    if kind in ("mrr", "judged"):
        results, scores = lists.ids, [list(range(len(found), 0, -1)) for found in lists.ids]
    qrels = [
        ir_measures.Qrel(query_id, doc, grade)
        for query_id, grades in zip(judged.query_ids, judged.qrels, strict=True)
        for doc, grade in grades.items()
    ]
    run = [
        ir_measures.ScoredDoc(query_id, doc, score)
        for query_id, found, given in zip(judged.query_ids, results, scores, strict=True)
        for doc, score in zip(found, given, strict=True)
    ]
    value = {m.query_id: m.value for m in ir_measures.iter_calc([MEASURES[kind] @ k], qrels, run)}
    theirs = [value.get(query_id, 0.0) for query_id in judged.query_ids]
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize(
    "key", ["ndcg", "ndcg@0", "ndcg@101", "ndcg@x", "map@10", "@10", "ndcg@-1", "ndcg@1.5"]
)
def test_what_names_no_metric_is_refused_with_those_there_are(key):
    with pytest.raises(UsageError, match="is not a metric") as refused:
        named(key)
    assert "recall@K" in (refused.value.why or "")


def test_a_score_that_is_nan_is_refused():
    with pytest.raises(IntegrityError, match="score NaN"):
        ranking(["a", "b"], [1.0, float("nan")], "q", 10)


def test_rows_of_lists_and_of_queries_can_be_taken():
    judged = eval_set([{"a": 1}, {"b": 1}, {"c": 1}])
    assert judged.take([0, 2]).qrels == [{"a": 1}, {"c": 1}]
    assert Ranked([["a"], ["b"]], [[1.0], [2.0]]).take([1]) == Ranked([["b"]], [[2.0]])

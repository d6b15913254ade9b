from __future__ import annotations

import math
from pathlib import Path

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import RR, Judged, R, nDCG
from judged_lists import eval_set, random_case

from reembed.errors import IntegrityError
from reembed.evaluation.metrics import (
    judged_at,
    latency,
    mrr_at,
    ndcg_at,
    overlap_at,
    ranking,
    recall_at,
)
from reembed.evaluation.queries import EvalSet, load_eval_set

SHARED = Path(__file__).parents[3] / "shared" / "data"


def oracle(judged: EvalSet, results: list[list[str]], measure: ir_measures.Measure) -> np.ndarray:
    qrels = [
        ir_measures.Qrel(query_id, doc, grade)
        for query_id, grades in zip(judged.query_ids, judged.qrels, strict=True)
        for doc, grade in grades.items()
    ]
    run = [
        ir_measures.ScoredDoc(query_id, doc, 1000.0 - rank)
        for query_id, docs in zip(judged.query_ids, results, strict=True)
        for rank, doc in enumerate(docs)
    ]
    value = {m.query_id: m.value for m in ir_measures.iter_calc([measure], qrels, run)}
    return np.array([value.get(query_id, 0.0) for query_id in judged.query_ids])


METRICS = [
    (ndcg_at, nDCG @ 10, 10),
    (ndcg_at, nDCG @ 100, 100),
    (recall_at, R @ 10, 10),
    (recall_at, R @ 100, 100),
    (mrr_at, RR @ 10, 10),
    (judged_at, Judged @ 10, 10),
]
METRIC_IDS = [str(measure) for _, measure, _ in METRICS]


@pytest.mark.parametrize(("metric", "measure", "k"), METRICS, ids=METRIC_IDS)
def test_metrics_equal_ir_measures_on_random_lists(metric, measure, k):
    for seed in range(8):
        judged, results = random_case(seed)
        values_Q = metric(judged, results, k)
        assert values_Q.dtype == np.float64
        np.testing.assert_allclose(values_Q, oracle(judged, results, measure), atol=1e-9)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the judged collections lie outside the repository")
@pytest.mark.parametrize("name", ["cranfield", "cisi", "scifact", "nfcorpus-prep"])
def test_metrics_equal_ir_measures_on_real_judgements(name):
    judged = load_eval_set(str(SHARED / name), "test", {})
    rng = np.random.default_rng(5)
    docs = np.array(sorted({doc for qrels in judged.qrels for doc in qrels}))
    results = []
    for qrels in judged.qrels:
        mixed = [*rng.choice(list(qrels), size=min(8, len(qrels)), replace=False)]
        mixed += [*rng.choice(docs, size=100, replace=False)]
        results.append(list(dict.fromkeys(str(doc) for doc in rng.permutation(mixed))))
    for metric, measure, k in METRICS:
        values_Q = metric(judged, results, k)
        np.testing.assert_allclose(values_Q, oracle(judged, results, measure), atol=1e-9)


def test_a_perfect_list_scores_one_and_an_empty_one_zero():
    judged = eval_set([{"a": 3, "b": 1, "c": 0}, {"a": 1}])
    for metric in (ndcg_at, recall_at, mrr_at, judged_at):
        assert metric(judged, [["a", "b"], []], 10).tolist() == [1.0, 0.0]


def test_no_results_at_all_score_zero():
    for metric in (ndcg_at, recall_at, mrr_at, judged_at):
        assert metric(eval_set([{"a": 1}, {"b": 1}]), [[], []], 10).tolist() == [0.0, 0.0]
    assert overlap_at([[], []], [[], []], 10).tolist() == [1.0, 1.0]


def test_a_judged_irrelevant_document_counts_as_judged_but_not_as_relevant():
    judged = eval_set([{"a": 0, "b": -2, "c": 1}])
    results = [["a", "b", "new", "newer"]]
    assert judged_at(judged, results, 10).tolist() == [0.5]
    assert judged_at(judged, results, 1).tolist() == [1.0]
    assert ndcg_at(judged, results, 10).tolist() == [0.0]
    assert recall_at(judged, results, 10).tolist() == [0.0]


def test_a_relevant_document_below_k_does_not_count():
    judged, results = eval_set([{"a": 1}]), [["x", "y", "a"]]
    assert mrr_at(judged, results, 2).tolist() == [0.0]
    assert mrr_at(judged, results, 3).tolist() == pytest.approx([1 / 3])
    assert ndcg_at(judged, results, 3).tolist() == pytest.approx([1 / math.log2(4)])


def test_judgements_of_one_query_do_not_leak_into_the_next():
    judged = eval_set([{"a": 1}, {"b": 1}])
    assert recall_at(judged, [["b", "z"], ["a", "z"]], 10).tolist() == [0.0, 0.0]


def test_overlap_is_a_share_of_the_longer_list():
    assert overlap_at([["a", "b", "c"]], [["c", "d"]], 10).tolist() == pytest.approx([1 / 3])


def test_a_list_with_a_document_twice_is_refused():
    with pytest.raises(IntegrityError, match="'q0' found document 'a' twice"):
        ranking(["b", "a", "a"], [3.0, 2.0, 1.0], "q0", 10)


def test_results_of_other_queries_are_refused():
    for metric in (ndcg_at, recall_at, mrr_at, judged_at):
        with pytest.raises(ValueError, match="longer than"):
            metric(eval_set([{"a": 1}]), [["a"], ["b"]], 10)
    with pytest.raises(ValueError, match="longer than"):
        overlap_at([["a"]], [["a"], ["b"]], 10)


cases = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from("abcdefgh"), st.integers(-1, 3), min_size=1),
        st.lists(st.sampled_from("abcdefghxyz"), unique=True),
        st.lists(st.sampled_from("abcdefghxyz"), unique=True),
    ),
    min_size=1,
    max_size=6,
)


@given(cases, st.integers(1, 12))
@settings(deadline=None)
def test_every_metric_lies_between_zero_and_one(case, k):
    judged = eval_set([qrels for qrels, _, _ in case])
    a, b = [a for _, a, _ in case], [b for _, _, b in case]
    for metric in (ndcg_at, recall_at, mrr_at, judged_at):
        values_Q = metric(judged, a, k)
        assert values_Q.shape == (len(case),)
        assert (values_Q >= 0).all()
        assert (values_Q <= 1 + 1e-12).all()
    overlap_Q = overlap_at(a, b, k)
    assert ((overlap_Q >= 0) & (overlap_Q <= 1)).all()
    np.testing.assert_array_equal(overlap_Q, overlap_at(b, a, k))
    np.testing.assert_array_equal(overlap_at(a, a, k), 1.0)


@given(cases, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_order_of_queries_and_names_of_documents_do_not_matter(case, random):
    order = list(range(len(case)))
    random.shuffle(order)
    name = dict(zip("abcdefghxyz", random.sample("ABCDEFGHXYZ", 11), strict=True))
    shuffled = [case[i] for i in order]
    renamed = eval_set([{name[doc]: grade for doc, grade in q.items()} for q, _, _ in shuffled])
    plain = eval_set([qrels for qrels, _, _ in case]), [results for _, results, _ in case]
    other = renamed, [[name[doc] for doc in results] for _, results, _ in shuffled]
    for metric in (ndcg_at, recall_at, mrr_at, judged_at):
        expected_Q = metric(*plain, 5)[order]
        np.testing.assert_allclose(metric(*other, 5), expected_Q, atol=1e-12)


def test_no_judgements_score_zero_instead_of_nan():
    for metric in (ndcg_at, recall_at, mrr_at, judged_at):
        assert metric(eval_set([{}]), [["a", "b"]], 10).tolist() == [0.0]


def test_latency_percentiles_are_measured_values_in_milliseconds():
    latencies_s = np.array([0.001] * 98 + [0.050, 0.2])
    assert vars(latency(latencies_s)) == pytest.approx(
        {"p50_ms": 1.0, "p95_ms": 1.0, "p99_ms": 50.0, "queries": 100}
    )

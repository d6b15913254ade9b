from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from reembed.evaluation.gate import slice_rules
from reembed.evaluation.slices import MIN_SLICE, slice_changes

SIZE = 300


def divided(sizes: dict[str, int]) -> dict[str, list[str]]:
    return {"topic": [name for name, size in sizes.items() for _ in range(size)]}


def metric(
    slices: dict[str, list[str]], harm: dict[str, float], seed: int = 0
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """nDCG@10 of two releases that are equal but for this change in some slices."""
    rng = np.random.default_rng(seed)
    values = slices["topic"]
    live = rng.uniform(0.2, 0.8, len(values))
    change = np.array([harm.get(v, 0.0) for v in values])
    return {"ndcg@10": (live, live + change + rng.normal(0, 0.18, len(values)))}


FIVE = divided(dict.fromkeys("abcde", SIZE))


def test_a_slice_that_loses_is_blocked_and_named():
    found = slice_changes(FIVE, metric(FIVE, {"c": -0.06}))
    assert [c.value for c in found if c.harmed] == ["c"]
    (rule,) = slice_rules(found)
    assert rule.verdict == "fail"
    assert "topic = c: nDCG@10 -0.0" in rule.detail
    assert rule.observed == pytest.approx(next(c for c in found if c.harmed).change.mean)


def test_p_values_are_those_of_t_tests_times_their_number():
    measured = metric(FIVE, {"c": -0.06})
    live, candidate = measured["ndcg@10"]
    found = {c.value: c for c in slice_changes(FIVE, measured)}
    inside = np.array(FIVE["topic"]) == "c"
    test = stats.ttest_rel(candidate[inside], live[inside], alternative="less")
    assert found["c"].p == pytest.approx(5 * test.pvalue)
    assert all(found["c"].p <= c.p for c in found.values())


def test_a_harmed_slice_is_blocked_and_equal_models_rarely_are():
    harmed = [slice_rules(slice_changes(FIVE, metric(FIVE, {"c": -0.06}, s))) for s in range(200)]
    equal = [slice_rules(slice_changes(FIVE, metric(FIVE, {}, s))) for s in range(200)]
    assert np.mean([rule.verdict == "fail" for (rule,) in harmed]) > 0.9
    assert np.mean([rule.verdict == "fail" for (rule,) in equal]) < 0.1


def test_a_small_loss_is_not_blocked_however_significant():
    many = divided({"a": 20_000, "b": 50})
    found = slice_changes(many, metric(many, {"a": -0.02}))
    loss = next(c for c in found if c.value == "a")
    assert (loss.p < 0.001, loss.harmed) == (True, False)


def test_small_slices_are_listed_without_a_test_and_never_pass():
    small = divided({"a": MIN_SLICE - 1, "b": MIN_SLICE})
    found = slice_changes(small, metric(small, {"a": -0.5}))
    assert {c.value: c.p is None for c in found} == {"a": True, "b": False}
    assert not any(c.harmed for c in found)
    (rule,) = slice_rules(found)
    assert "is shown in 1 slice" in rule.detail
    tiny = divided({"a": 5, "b": 5})
    assert slice_rules(slice_changes(tiny, metric(tiny, {}))) == []


def test_groups_are_what_counts_in_a_slice():
    measured = metric(FIVE, {"c": -0.06})
    pairs = np.arange(5 * SIZE) // 2
    assert all(c.change.independent == SIZE // 2 for c in slice_changes(FIVE, measured, pairs))
    blocks = np.arange(5 * SIZE) // 20
    assert [c.p for c in slice_changes(FIVE, measured, blocks)] == [None] * 5


def test_a_query_without_a_value_is_in_no_slice():
    values = {"topic": [*["a"] * 40, *[None] * 60], "lang": ["en", "de"] * 50}
    measured = {"ndcg@10": (np.ones(100), np.ones(100)), "recall@10": (np.ones(100), np.ones(100))}
    found = slice_changes(values, measured)
    assert [(c.field, c.value, c.metric, c.change.n) for c in found] == [
        ("topic", "a", "ndcg@10", 40), ("topic", "a", "recall@10", 40),
        ("lang", "de", "ndcg@10", 50), ("lang", "de", "recall@10", 50),
        ("lang", "en", "ndcg@10", 50), ("lang", "en", "recall@10", 50),
    ]  # fmt: skip

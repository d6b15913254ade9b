from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reembed.evaluation.sequential import (
    always_valid,
    critical_values,
    group_sequential,
)
from reembed.evaluation.statistics import paired_interval

LIMIT = -0.01


def stake(values: np.ndarray, limit: float, bet: float) -> float:
    """What one bet makes of a stake of 1, by hand."""
    return math.prod(1 + bet * (x - limit) / (1 + limit) for x in values)


def test_the_stake_is_the_mean_of_those_of_all_bets():
    values = np.array([0.5, 0.0, -0.25, *[1.0, 0.75] * 6])
    bets = np.geomspace(0.02, 0.95, 24)
    stakes = [np.mean([stake(values[:n], 0.1, b) for b in bets]) for n in range(1, 16)]
    reached = next(n for n, s in enumerate(stakes, 1) if s >= 20)
    assert always_valid(values, 0.1).decided_at == reached
    assert always_valid(values[: reached - 1], 0.1).verdict == "inconclusive"


def test_the_lower_bound_is_the_limit_at_which_the_stake_is_twenty():
    values = np.random.default_rng(0).uniform(-0.4, 0.6, 200)
    lower = always_valid(values, 0.0).lower
    bets = np.geomspace(0.02, 0.95, 24)
    assert np.mean([stake(values, lower, b) for b in bets]) == pytest.approx(20, rel=1e-6)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30), st.floats(-0.9, 0.9))
@settings(deadline=None, max_examples=50)
def test_a_sequence_mirrors_when_releases_swap_places(values, limit):
    there, back = always_valid(np.array(values), limit), always_valid(-np.array(values), -limit)
    swapped = {"pass": "fail", "fail": "pass", "inconclusive": "inconclusive"}
    assert back.verdict == swapped[there.verdict]
    assert back.decided_at == there.decided_at
    assert there.lower == pytest.approx(-back.upper)
    assert -1 <= there.lower <= there.mean <= there.upper <= 1


def differences(rng: np.random.Generator, n: int, mean: float) -> np.ndarray:
    """Differences of a metric: most are 0, a few large."""
    found = rng.choice(
        [-1.0, -0.4, -0.1, 0.0, 0.1, 0.4, 1.0], n, p=[0.02, 0.08, 0.1, 0.6, 0.1, 0.08, 0.02]
    )
    return (1 - abs(mean)) * found + mean


def test_looking_always_promotes_a_model_at_the_limit_in_at_most_five_percent_and_a_t_bound_does_in_more():
    rng = np.random.default_rng(0)
    ever, naive = [], []
    for _ in range(200):
        values = differences(rng, 1500, LIMIT)
        ever.append(always_valid(values, LIMIT).verdict == "pass")
        looks = range(50, 1501, 50)
        naive.append(any(paired_interval(values[:n]).lower > LIMIT for n in looks))
    assert np.mean(ever) <= 0.05
    assert np.mean(naive) > 0.15


def test_a_rare_large_loss_is_not_taken_for_none():
    """A t bound over 50 equal values has no width; in 1 of 50 queries this model loses everything."""
    rng = np.random.default_rng(0)
    passed, naive = 0, 0
    for _ in range(200):
        values = np.where(rng.random(500) < 0.02, -1.0, 0.0)
        passed += always_valid(values, LIMIT).verdict == "pass"
        naive += paired_interval(values[:50], unseen=0).lower > LIMIT
    assert passed / 200 <= 0.05
    assert naive / 200 > 0.3


def test_a_better_model_is_promoted_and_a_worse_one_fails_early():
    rng = np.random.default_rng(0)
    good, bad = (always_valid(differences(rng, 2000, m), LIMIT) for m in (0.05, -0.08))
    assert (good.verdict, bad.verdict) == ("pass", "fail")
    assert good.decided_at < 700
    assert bad.decided_at < 700
    assert good.lower > LIMIT > bad.upper


def test_a_decision_does_not_depend_on_when_one_looks():
    values = differences(np.random.default_rng(0), 1500, 0.03)
    last = always_valid(values, LIMIT)
    for n in range(1, len(values), 97):
        look = always_valid(values[:n], LIMIT)
        assert look.decided_at == (last.decided_at if n >= last.decided_at else None)


def test_a_group_counts_once_at_the_place_of_its_first_query():
    values, groups = np.array([0.5, 0.1, 0.3, -0.2]), np.array([7, 2, 7, 5])
    found = always_valid(values, 0.0, groups)
    alone = always_valid(np.array([0.4, 0.1, -0.2]), 0.0)
    assert (found.mean, found.lower, found.independent, found.n) == (
        pytest.approx(alone.mean), pytest.approx(alone.lower), 3, 4,
    )  # fmt: skip


def test_looking_at_queries_of_users_promotes_a_model_at_the_limit_in_at_most_five_percent():
    rng = np.random.default_rng(0)
    ever, alone = [], []
    for _ in range(100):
        users = rng.integers(0, 40, 1200)
        values = (rng.normal(0, 0.2, 40)[users] + rng.normal(LIMIT, 0.05, 1200)).clip(-1, 1)
        looks = [always_valid(values[:n], LIMIT, users[:n]).verdict for n in range(200, 1201, 200)]
        ever.append("pass" in looks)
        alone.append(always_valid(values, LIMIT).verdict == "pass")
    assert np.mean(ever) <= 0.05
    assert np.mean(alone) > 0.1


@pytest.mark.parametrize(
    ("values", "limit"), [([], 1.0), ([1.5], 0.0), ([math.nan], 0.0), ([0.1], 1.0), ([0.1], -1.0)]
)
def test_values_outside_the_scale_are_refused(values, limit):
    with pytest.raises(ValueError, match=r"\[-1, 1\]|between -1 and 1"):
        always_valid(np.array(values, dtype=np.float64), limit)


def test_any_sequence_of_numbers_is_taken_and_none_decides_nothing():
    credits = [1, 1, 0, -1, 1, 1] * 20
    assert always_valid(credits, 0) == always_valid(np.array(credits, float), 0.0)
    assert always_valid(tuple(credits), 0).verdict == "pass"
    none = always_valid([], 0)
    assert (none.verdict, none.lower, none.upper, none.n) == ("inconclusive", -1, 1, 0)


# --- the number of queries is known ---

PUBLISHED = {
    (0.2, 0.4, 0.6, 0.8, 1.0): [4.8769, 3.3569, 2.6803, 2.2898, 2.0310],
    (0.5, 1.0): [2.9626, 1.9686],
}
"""Lan and DeMets's boundaries of O'Brien and Fleming's form, two-sided .05, as published (ldbounds in R)."""


@pytest.mark.parametrize("fractions", PUBLISHED)
def test_critical_values_are_the_published_ones(fractions):
    found = critical_values(fractions, 0.025)
    assert found == pytest.approx(PUBLISHED[fractions], abs=2e-4)


def test_one_look_is_a_single_test_and_a_look_too_early_can_find_nothing():
    assert critical_values([1.0], 0.05) == pytest.approx([1.6449], abs=1e-4)
    early, last = critical_values([0.01, 1.0], 0.05)
    assert early == math.inf
    assert last == pytest.approx(1.6449, abs=1e-4)


def test_paths_cross_the_critical_values_as_often_as_is_allowed():
    fractions = np.array([0.1, 0.3, 0.35, 0.7, 1.0])
    steps = np.sqrt(np.diff(fractions, prepend=0))
    rng = np.random.default_rng(0)
    statistic = np.cumsum(rng.normal(size=(200_000, 5)) * steps, axis=1) / np.sqrt(fractions)
    crossed = statistic >= critical_values(fractions, 0.05)
    assert crossed.any(axis=1).mean() == pytest.approx(0.05, abs=0.002)
    assert crossed[:, -1].mean() < 0.05


LOOKS = [200, 400, 600, 800, 1000]


def decided(mean: float, runs: int = 200) -> list[tuple[str, int | None]]:
    """What each of several runs decides, looking until it does."""
    rng, found = np.random.default_rng(1), []
    for _ in range(runs):
        look = group_sequential(differences(rng, 1000, mean), LIMIT, LOOKS, 1000)
        found.append((look.verdict, look.decided_at))
    return found


def test_a_model_at_the_limit_is_promoted_in_five_percent_and_a_better_one_before_the_end():
    assert np.mean([verdict == "pass" for verdict, _ in decided(LIMIT)]) < 0.075
    better = decided(0.03)
    assert np.mean([verdict == "pass" for verdict, _ in better]) > 0.9
    assert np.mean([at for verdict, at in better if verdict == "pass"]) < 600
    assert np.mean([verdict == "fail" for verdict, _ in decided(-0.06)]) > 0.95


def test_the_last_look_costs_little_against_a_single_test():
    values = differences(np.random.default_rng(2), 1000, 0.0)
    single, last = paired_interval(values), group_sequential(values, -0.9, [1000], 1000)
    assert last.lower == pytest.approx(single.lower)
    several = critical_values([look / 1000 for look in LOOKS], 0.05)
    assert several[-1] < 1.75


def test_equal_values_decide_only_at_the_end():
    zeros = np.zeros(200)
    early = group_sequential(zeros[:100], LIMIT, [100], 200)
    assert (early.verdict, early.decided_at) == ("inconclusive", None)
    assert group_sequential(zeros, LIMIT, [100, 200], 200).decided_at == 200


@pytest.mark.parametrize("looks", [[], [10], [50, 50], [50, 40], [50, 50.4], [50, 101], [50, 95]])
def test_looks_that_no_plan_can_have_are_refused(looks):
    with pytest.raises(ValueError, match="look"):
        group_sequential(np.zeros(90), LIMIT, looks, 100)

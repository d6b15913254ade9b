from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from reembed.evaluation.figures import Estimate, Needed
from reembed.evaluation.statistics import (
    holm,
    needed,
    numbered,
    paired_interval,
    probability_below,
    queries_needed,
)


def test_interval_equals_scipy():
    half = np.random.default_rng(0).normal(0, 0.2, 18)
    values = 0.01 + np.concatenate([half, [0], -half])  # without skewness
    interval = paired_interval(values, unseen=0)
    low, high = stats.t.interval(0.95, 36, values.mean(), stats.sem(values))
    assert (interval.low, interval.high) == pytest.approx((low, high))
    test = stats.ttest_1samp(values, interval.lower, alternative="greater")
    assert test.pvalue == pytest.approx(0.05)
    assert interval.upper - interval.mean == pytest.approx(interval.mean - interval.lower)


def test_interval_of_one_value_is_unbounded():
    interval = paired_interval(np.array([0.3]))
    assert interval == Estimate(0.3, None, None, None, None, None, None, 1, 1)


def test_interval_of_equal_values_has_no_width_but_for_what_they_cannot_show():
    interval = paired_interval(np.ones(50), unseen=0)
    assert (interval.low, interval.lower, interval.upper, interval.high) == (1.0, 1.0, 1.0, 1.0)
    assert paired_interval(np.ones(50)).lower == pytest.approx(
        1 - stats.t.ppf(0.95, 49) * 0.75 / 50
    )
    assert paired_interval(np.ones(50)).error == 0


def test_bounds_reach_further_into_the_longer_tail():
    values = np.random.default_rng(0).exponential(0.1, 60)
    plain, found = stats.ttest_1samp(values, 0), paired_interval(values, unseen=0)
    t, error = stats.t.ppf(0.95, 59), stats.sem(values)
    skewness = stats.skew(values) * (59 / 60) ** 0.5 / math.sqrt(60)
    assert found.lower == pytest.approx(values.mean() - t * error)
    assert found.upper == pytest.approx(
        values.mean() + (t + skewness * (1 + 2 * t**2) / 6) * error, rel=1e-3
    )
    assert plain.statistic == pytest.approx(found.mean / found.error)


def test_a_model_that_rarely_loses_much_is_not_found_above_the_limit_as_student_s_t_finds_it():
    """Near the ceiling most queries change nothing. Five percent are meant."""
    rng = np.random.default_rng(0)
    for n, least in ((20, 0.3), (50, 0.1), (300, 0.07)):
        draws = rng.choice([0.0, 0.1, -0.1, -0.6], (4000, n), p=[0.75, 0.1, 0.1, 0.05])
        lower = np.array([paired_interval(values).lower for values in draws])
        means, sds = draws.mean(axis=1), draws.std(axis=1, ddof=1)
        student = means - stats.t.ppf(0.95, n - 1) * sds / math.sqrt(n)
        assert (lower > -0.03).mean() <= 0.07
        assert (student > -0.03).mean() > least


@pytest.mark.parametrize("values", [[], [0.1, math.nan], [math.inf, 0.0]])
def test_interval_refuses_nothing_and_nan(values):
    with pytest.raises(ValueError, match="at least one value"):
        paired_interval(np.array(values, dtype=np.float64))


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=40))
@settings(deadline=None)
def test_interval_mirrors_when_releases_swap_places(deltas):
    there, back = paired_interval(np.array(deltas)), paired_interval(-np.array(deltas))
    assert there.lower == pytest.approx(-back.upper)
    assert there.low <= there.lower <= there.mean <= there.upper <= there.high


def test_queries_needed_matches_the_formula_and_rounds_up():
    assert queries_needed(0.2, 0.01, unseen=0) == math.ceil((2.487 * 20) ** 2) == 2475
    assert queries_needed(0.0, 0.01, unseen=0) == 1
    assert queries_needed(0.0, 0.01) == math.ceil(2.487 * 75)
    n = queries_needed(0.2, 0.01)
    assert n == pytest.approx((2.487 / 0.01) ** 2 * (0.2**2 + 0.75**2 / n), abs=1)


def test_queries_needed_gives_80_percent_power_to_an_equal_system():
    rng = np.random.default_rng(1)
    n = queries_needed(0.2, 0.05)
    cleared = [paired_interval(rng.normal(0, 0.2, n)).lower > -0.05 for _ in range(1500)]
    assert 0.75 < np.mean(cleared) < 0.85


def jackknife(values: np.ndarray, groups: np.ndarray) -> float:
    """The standard error by leaving out one group at a time, around the mean of all."""
    means = [values[groups != g].mean() for g in range(groups.max() + 1)]
    return math.sqrt(sum((m - values.mean()) ** 2 for m in means))


def satterthwaite(groups: np.ndarray) -> float:
    """The degrees of freedom from the matrix of the jackknife's quadratic form in the values."""
    n, form = len(groups), np.zeros((len(groups), len(groups)))
    for g in range(groups.max() + 1):
        inside = groups == g
        left_out = ~inside / (~inside).sum() - np.ones(n) / n
        form += np.outer(left_out, left_out)
    return float(np.trace(form) ** 2 / np.trace(form @ form))


SIZES = [[11] * 20, [1, 2, 3, 5, 8, 13, 21], [40, *[3] * 12]]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_grouped_error_and_degrees_of_freedom_are_those_of_the_jackknife(sizes):
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    values = np.random.default_rng(1).normal(0, 0.2, len(groups)) + groups * 0.01
    found = paired_interval(values, groups)
    assert found.error == pytest.approx(jackknife(values, groups))
    assert found.df == pytest.approx(satterthwaite(groups))
    assert (found.n, found.independent) == (sum(sizes), len(sizes))


def test_groups_of_one_are_no_groups_and_one_group_bounds_nothing():
    values = np.random.default_rng(0).normal(0, 1, 30)
    assert paired_interval(values, np.arange(30)) == paired_interval(values)
    assert paired_interval(values, np.zeros(30, int)).lower is None


def test_equal_groups_have_the_interval_of_their_means():
    values = np.random.default_rng(0).normal(0, 1, (25, 4))
    found = paired_interval(values.ravel(), np.repeat(np.arange(25), 4))
    means = paired_interval(values.mean(axis=1))
    assert found.df == pytest.approx(means.df)
    assert found.error == pytest.approx(means.error * math.sqrt(25 / 24))
    assert found.lower == pytest.approx(means.lower, rel=0.2)


PLANS = {
    "11 phrasings": [11] * 20,
    "few groups": [11] * 10,
    "one big": [50, *[5] * 19],
    "falling": [max(1, 200 // rank) for rank in range(1, 21)],
}


@pytest.mark.parametrize("plan", PLANS)
def test_a_mean_at_the_limit_is_found_above_it_in_at_most_six_percent_of_grouped_samples(plan):
    rng = np.random.default_rng(0)
    sizes = np.array(PLANS[plan])
    groups = np.repeat(np.arange(len(sizes)), sizes)
    above, naive = [], []
    for _ in range(2000):
        values = rng.normal(0, 0.15, len(sizes))[groups] + rng.normal(0, 0.1, len(groups))
        above.append(paired_interval(values, groups).lower > 0)
        naive.append(paired_interval(values).lower > 0)
    assert np.mean(above) < 0.06
    assert np.mean(naive) > 0.15


def test_probability_below_is_the_t_test_s():
    values = np.random.default_rng(0).normal(-0.03, 0.2, 60)
    test = stats.ttest_1samp(values, -0.01, alternative="less")
    assert probability_below(paired_interval(values), -0.01) == pytest.approx(test.pvalue)


def test_probability_below_without_variance_or_with_one_value():
    assert probability_below(paired_interval(np.full(30, -0.1))) == 0
    assert probability_below(paired_interval(np.zeros(30))) == 1
    assert probability_below(paired_interval(np.array([-0.5]))) == 1


def test_holm_equals_the_definition():
    p_values = [0.01, 0.04, 0.03, 0.005]
    assert holm(p_values) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_holm_finds_nothing_where_nothing_is_in_95_percent():
    p_values = np.random.default_rng(0).uniform(size=(4000, 12))
    found = [min(holm(p)) <= 0.05 for p in p_values]
    assert 0.04 < np.mean(found) < 0.06
    assert np.mean(p_values.min(axis=1) <= 0.05) > 0.4


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
@settings(deadline=None)
def test_holm_is_between_no_adjustment_and_bonferroni_and_keeps_the_order(p_values):
    adjusted = holm(p_values)
    for p, a in zip(p_values, adjusted, strict=True):
        assert p <= a <= min(1, p * len(p_values)) or a == pytest.approx(p)
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def test_groups_are_numbered_by_name():
    assert numbered(["b", "a", "b", "c"]).tolist() == [1, 0, 1, 2]


def test_queries_that_are_needed_come_in_groups_of_the_sizes_seen():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 5)
    values = rng.normal(0, 0.2, 40)[groups] + rng.normal(0, 0.01, 200)
    found = needed(paired_interval(values, groups), 0.05, 10, 0.2)
    assert found.queries == 5 * found.groups
    assert found.groups == pytest.approx((2.487 * 0.2 / 0.05) ** 2, rel=0.5)
    alone = needed(paired_interval(values), 0.05, 20, 0.2)
    assert alone.queries == alone.groups < found.queries / 2


def grouped(rng: np.random.Generator, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Values of a true mean of 0 in groups of 2, 4 and 9, and the groups."""
    groups_Q = np.repeat(np.arange(groups), np.resize([2, 4, 9], groups))
    return rng.normal(0, 0.2, groups)[groups_Q] + rng.normal(0, 0.1, len(groups_Q)), groups_Q


def test_queries_that_are_needed_give_80_percent_power_to_grouped_queries():
    rng = np.random.default_rng(0)
    more = needed(paired_interval(*grouped(rng, 3000)), 0.05, 10, 0.2)
    lower = [paired_interval(*grouped(rng, more.groups)).lower for _ in range(1500)]
    assert 0.75 < np.mean(np.array(lower) > -0.05) < 0.85


def test_nothing_decides_between_a_limit_and_itself_and_few_queries_take_the_typical_variance():
    found = paired_interval(np.full(5, 0.1))
    assert needed(found, 0.0, 20, 0.2) is None
    assert needed(found, 0.01, 20, 0.2) == Needed(2489, 2489)
    assert needed(found, 5.0, 20, 0.2) == Needed(20, 20)

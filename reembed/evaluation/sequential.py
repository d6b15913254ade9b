"""Tests of evidence that arrives over time, and may be looked at before all of it is there.

Two designs. `always_valid` needs no plan: look after every query, or never; a decision is wrong in at most 5 %.
`group_sequential` decides earlier, but the number of queries must be known before the first look. Both judge
values in [-1, 1] in the order in which they came: differences of a metric, or credits of
interleaved answers. They keep no state: the same values give the same answer after a restart.

With groups (a user, a session, phrasings of one question), a group counts once, with the mean of its queries,
at the place of its first one. The mean that is judged is then that over groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reembed.catalog.reports import Outcome
from reembed.evaluation.statistics import Floats, Groups, paired_interval

MIN_LOOK = 0.01
"""Smallest share of the planned values between two looks of `group_sequential`."""
MIN_FIRST_LOOK = 20
"""Fewest values at its first look, as many as the gate needs for a t bound."""
_BETS = np.geomspace(0.02, 0.95, 24)
"""Shares of the stake that are bet, all at once: small ones for small differences with many queries."""
_GRID = 500
_WIDEST = 8.0


@dataclass(frozen=True)
class Look:
    """What the values so far show of their true mean."""

    verdict: Outcome
    """pass: it is above the limit; fail: it is below."""
    decided_at: int | None
    """How many values (groups, if there are any) were there when it was decided; None while inconclusive."""
    mean: float
    lower: float
    """One-sided bound: the true mean is above it, however often one looks."""
    upper: float
    n: int
    independent: int
    """Groups among the n values; n where each stands alone."""


def always_valid(
    values_Q: Sequence[float] | Floats,
    limit: float,
    groups_Q: Groups | None = None,
    level: float = 0.95,
) -> Look:
    """Judge values against a limit, so that looking at any time and any number of times is allowed.

    A test by betting (Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting"):
    a fair game is played against "the true mean is at most the limit", with a mixture of constant bets.
    By Ville's inequality (1939), its stake ever reaches 1 / (1 - level) in at most 1 - level of cases. It
    assumes no variance, so that a rare large loss is not taken for none.

    Args:
        values_Q: numbers in [-1, 1], in order of arrival; without any, it is inconclusive and the mean NaN.
        limit: for a margin m, -m.
        groups_Q: the group of each value.
        level: 1 minus the allowed share of wrong decisions, on either side.

    Raises:
        ValueError: a value is not in [-1, 1], or the limit is not inside (-1, 1).
    """
    if not -1 < limit < 1:
        raise ValueError(f"limit is {limit}, not between -1 and 1")
    values_Q = np.asarray(values_Q, np.float64)
    if not len(values_Q):
        return Look("inconclusive", None, math.nan, -1.0, 1.0, 0, 0)
    values_U = _units(values_Q, groups_Q)
    needed = -math.log(1 - level)
    above = _first(_log_stakes(values_U, limit) >= needed)
    below = _first(_log_stakes(-values_U, -limit) >= needed)
    return Look(
        *_decided(above, below),
        mean=float(values_U.mean()),
        lower=_bound(values_U, needed),
        upper=-_bound(-values_U, needed),
        n=len(values_Q),
        independent=len(values_U),
    )


def expected(values_Q: Floats, limit: float, groups_Q: Groups | None = None) -> int | None:
    """Return about how many values (or groups) `always_valid` needs if those that come are like these.

    Args:
        values_Q: float64 [Q], at least one.
        limit: as of `always_valid`.
        groups_Q: as of `always_valid`.

    Returns None if the stake would grow on neither side: the mean is too near the limit.
    """
    values_U = _units(values_Q, groups_Q)
    sides = (_log_odds(values_U, limit), _log_odds(-values_U, -limit))
    rate = max(float(logs_BU.mean(axis=1).max()) for logs_BU in sides)
    if rate <= 0:
        return None
    # The best bet alone makes the mixture's stake, which has it once among all.
    return math.ceil(math.log(len(_BETS) / 0.05) / rate)


def _units(values_Q: Floats, groups_Q: Groups | None) -> Floats:
    """Return the independent values [U]: the mean of each group, in order of their first queries."""
    if len(values_Q) == 0 or not (np.abs(values_Q) <= 1).all():
        raise ValueError("a sequence needs at least one value, all of them in [-1, 1]")
    if groups_Q is None:
        return values_Q
    _, first_G, group_Q = np.unique(groups_Q, return_index=True, return_inverse=True)
    mean_G = np.bincount(group_Q, weights=values_Q) / np.bincount(group_Q)
    units_U: Floats = mean_G[np.argsort(first_G)]
    return units_U


def _log_stakes(values_U: Floats, limit: float) -> Floats:
    """Return the logarithm of the stake after each value [U], won against "the mean is at most the limit"."""
    return _log_mean(np.cumsum(_log_odds(values_U, limit), axis=1))


def _log_odds(values_U: Floats, limit: float) -> Floats:
    """Return the logarithm of what each value multiplies the stake of each bet by [B, U]."""
    # A bet of share b multiplies it by 1 + b (x - limit) / (1 + limit), which is never below 1 - b.
    odds_U = (values_U - limit) / (1 + limit)
    logs_BU: Floats = np.log1p(_BETS[:, None] * odds_U)
    return logs_BU


def _log_mean(logs_BU: Floats) -> Floats:
    """Return the logarithm of the mean over bets [U]."""
    best_U = logs_BU.max(axis=0)
    mean_U: Floats = best_U + np.log(np.exp(logs_BU - best_U).mean(axis=0))
    return mean_U


def _bound(values_U: Floats, needed: float) -> float:
    """Return the largest limit that the mean is shown to be above; -1 if none."""
    from scipy.optimize import brentq

    def more(limit: float) -> float:
        return float(_log_mean(_log_odds(values_U, limit).sum(axis=1))) - needed

    lowest = -1 + 1e-6
    if more(lowest) <= 0:
        return -1.0
    return float(brentq(more, lowest, float(values_U.mean()), xtol=1e-9))


def _first(reached_U: np.ndarray) -> int | None:
    """Return after how many values it was first reached."""
    return int(reached_U.argmax()) + 1 if reached_U.any() else None


def _decided(above: int | None, below: int | None) -> tuple[Outcome, int | None]:
    if above is None and below is None:
        return "inconclusive", None
    if below is None or (above is not None and above < below):
        return "pass", above
    return "fail", below


def group_sequential(
    values_Q: Floats,
    limit: float,
    looks: Sequence[int],
    planned: int,
    groups_Q: Groups | None = None,
) -> Look:
    """Judge values against a limit at looks before a planned end, by a t statistic at each.

    The allowed error is spent over the looks as O'Brien and Fleming's design does (Lan and DeMets 1983): little
    at first, so that the last look needs hardly more than a single test. The looks need no plan, but must
    not be chosen by what was seen. t quantiles stand for normal ones, at the same probability.
    At most 5 % of decisions are wrong, on either side.

    Args:
        values_Q: float64 [Q] in [-1, 1], in order of arrival.
        limit: for a margin m, -m.
        looks: how many values (groups, if there are any) there were at each look so far.
        planned: how many there will be at the end.
        groups_Q: the group of each value.

    Raises:
        ValueError: the first look has fewer than 20 values, one adds less than 1 % of the plan, or they go
            beyond the plan or the values that are there.
    """
    values_U = _units(values_Q, groups_Q)
    _require_looks(looks, planned, len(values_U))
    critical = critical_values([look / planned for look in looks], 0.05)
    for look, normal in zip(looks, critical, strict=True):
        mean, lower, upper = _bounds(values_U[:look], normal)
        verdict = _side(lower, upper, limit)
        if verdict != "inconclusive":
            break
    decided_at = None if verdict == "inconclusive" else look
    return Look(verdict, decided_at, mean, lower, upper, len(values_Q), len(values_U))


def _bounds(values_U: Floats, normal: float) -> tuple[float, float, float]:
    """Return the mean, and its bounds at the one-sided level of a normal statistic."""
    from scipy.special import ndtr

    level = float(ndtr(normal))
    if level == 1:
        return float(values_U.mean()), -1.0, 1.0
    found = paired_interval(values_U, level=level)
    assert found.lower is not None  # there are 20 values at least
    assert found.upper is not None
    return found.mean, max(found.lower, -1.0), min(found.upper, 1.0)


def _side(lower: float, upper: float, limit: float) -> Outcome:
    if lower >= limit:
        return "pass"
    return "fail" if upper < limit else "inconclusive"


def _require_looks(looks: Sequence[int], planned: int, there: int) -> None:
    if not len(looks) or looks[0] < MIN_FIRST_LOOK:
        raise ValueError(f"looks at {list(looks)}: the first needs {MIN_FIRST_LOOK} values")
    if np.diff(looks, prepend=0).min() < MIN_LOOK * planned:
        raise ValueError(f"looks at {list(looks)} of {planned}: each must add 1 % of the plan")
    if looks[-1] > min(planned, there):
        raise ValueError(f"a look at {looks[-1]} where {there} of {planned} values are there")


def critical_values(fractions: Sequence[float], alpha: float) -> list[float]:
    """Return the value that a normal statistic must reach at each look to be significant, one-sided.

    Lan and DeMets's spending function like O'Brien and Fleming's, 2 - 2 Phi(z / sqrt(t)) with
    z = Phi^-1(1 - alpha / 2), by numerical integration over the looks (Armitage, McPherson and Rowe 1969).

    Args:
        fractions: share of the planned information at each look, growing, at most 1.
        alpha: the chance of a wrong decision over all looks.
    """
    from scipy.special import ndtr, ndtri

    spent = 2 - 2 * ndtr(ndtri(1 - alpha / 2) / np.sqrt(fractions))
    to_spend = np.diff(spent, prepend=0.0)
    values: list[float] = []
    path = _Path(np.zeros(1), np.ones(1))
    before = 0.0
    for fraction, chance in zip(fractions, to_spend, strict=True):
        sd = math.sqrt(fraction - before)
        bound = path.bound(sd, chance)
        path, before = path.beyond(sd, bound, math.sqrt(fraction)), fraction
        values.append(bound / math.sqrt(fraction))
    return values


@dataclass(frozen=True)
class _Path:
    """Where a Brownian path that was not stopped may be: points and their probabilities, below 1 in sum."""

    at_P: Floats
    weight_P: Floats

    def bound(self, sd: float, chance: float) -> float:
        """Return the bound that the path's next step of this deviation exceeds with this chance."""
        from scipy.optimize import brentq
        from scipy.special import ndtr

        def excess(bound: float) -> float:
            return float(self.weight_P @ ndtr((self.at_P - bound) / sd)) - chance

        highest = float(self.at_P[-1]) + _WIDEST * sd
        if excess(highest) >= 0:
            return math.inf  # so early that nothing measurable is spent
        return float(brentq(excess, float(self.at_P[0]) - _WIDEST * sd, highest, xtol=1e-10))

    def beyond(self, sd: float, bound: float, spread: float) -> _Path:
        """Return the path after that step if it stayed below the bound; its deviation is then `spread`."""
        edges = np.linspace(-_WIDEST * spread, min(bound, _WIDEST * spread), _GRID + 1)
        middle_P = (edges[1:] + edges[:-1]) / 2
        density_PP = np.exp(-(((middle_P[:, None] - self.at_P) / sd) ** 2) / 2)
        weight_P = (
            density_PP @ self.weight_P * ((edges[1] - edges[0]) / (sd * math.sqrt(2 * math.pi)))
        )
        return _Path(middle_P, weight_P)

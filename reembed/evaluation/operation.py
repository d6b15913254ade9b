"""Whether the candidate can take live's place, whatever its relevance.

A rule fails only where its bound shows harm: one query, one document or one busy second is not enough
(docs/decisions/028-statistics.md). Arrays: Q queries, T timed queries, I documents that are looked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from reembed.catalog.reports import Outcome
from reembed.evaluation.comparisons import Rule
from reembed.evaluation.figures import Sides
from reembed.evaluation.statistics import Floats, Groups, paired_interval
from reembed.plural import counted

if TYPE_CHECKING:
    from reembed.config.gate import GateConfig
    from reembed.evaluation.known_items import Searched

FAST_MS = 10.0
"""A p95 below this is not slow, however fast live is."""
MORE_EMPTY = 0.01
"""Share of the queries that may find nothing, beyond those that find nothing in live."""
JUDGED_GAP = 0.05
"""Share of the first 10 results that may be less judged than live's: its judges saw what live found, and what
they did not see counts as not relevant."""
KNOWN_ITEMS_FALL = 0.3
"""Largest fall, as a share of live's value, of MRR@10 when documents are searched by their first sentence."""
KNOWN_ITEMS_LIVE, KNOWN_ITEMS_FEWEST = 0.3, 30
"""MRR@10 of live, and documents, below which such a fall says nothing: where live hardly finds them,
they are not told apart by their first sentences."""
_RESAMPLES, _BLOCK = 1000, 10
SEED = 0


@dataclass(frozen=True)
class Operation:
    """How both releases answer."""

    judged_at_10: Sides[float]
    empty: Sides[Floats]
    """1 for each query that finds nothing, else 0 [Q]."""
    search_s: Sides[Floats] | None
    """Seconds of a search, timed in turns [T]; None if too few were timed."""
    known_items: Searched


def operation_rules(
    gate: GateConfig, found: Operation, groups_Q: Groups | None = None
) -> list[Rule]:
    """Return the rules about how the candidate answers; none about what was not measured."""
    rules = [empty_rule(found.empty, groups_Q), judged_rule(found.judged_at_10)]
    if found.search_s is not None:
        rules.append(latency_rule(found.search_s, gate.latency_ratio))
    if found.known_items.figures.asked:
        rules.append(known_item_rule(found.known_items))
    return rules


def latency_rule(search_s: Sides[Floats], ratio: float) -> Rule:
    """Require a p95 of at most so many times live's, or below 10 ms.

    The bounds of the ratio are percentiles of a bootstrap over blocks of consecutive pairs (Künsch 1989): a
    machine is busy for a while, so neighbours resemble each other.
    """
    ms = search_s.each(lambda seconds_T: seconds_T * 1e3)
    live, new = float(_p95(ms.live)), float(_p95(ms.candidate))
    allowed = max(ratio * live, FAST_MS)
    lower, upper = _ratio_bounds(ms, FAST_MS / ratio)
    outcome: Outcome = "inconclusive"
    if new <= FAST_MS or upper <= ratio:
        outcome = "pass"
    elif lower > ratio:
        outcome = "fail"
    why = (
        f"p95 of a search {new:.2f} ms, live's {live:.2f} ms: at most {allowed:.2f} ms allowed"
        f" ({ratio:g} times, or {FAST_MS:g} ms), one-sided 95 % bounds {lower:.2f} and {upper:.2f} times"
    )
    if outcome == "inconclusive":
        why = f"{why}; compare again on a quiet machine"
    return Rule("latency", outcome, why, observed=new, required=allowed, n=len(ms.live))


def _ratio_bounds(ms: Sides[Floats], least: float) -> tuple[float, float]:
    """Return one-sided 95 % bounds of the ratio of both p95; live's counts as `least` ms or more."""
    at = _blocks(len(ms.live))
    ratios = _p95(ms.candidate[at]) / np.maximum(_p95(ms.live[at]), least)
    lower, upper = np.percentile(ratios, (5, 95))
    return float(lower), float(upper)


def _blocks(pairs: int) -> NDArray[np.intp]:
    """Draw pairs as often as there are, in blocks of consecutive ones [resample, pair]."""
    length = max(1, min(_BLOCK, pairs // 5))
    rng = np.random.default_rng(SEED)
    starts = rng.integers(0, pairs - length + 1, (_RESAMPLES, -(-pairs // length), 1))
    return (starts + np.arange(length)).reshape(_RESAMPLES, -1)[:, :pairs]


def _p95(values: Floats) -> Floats:
    return np.asarray(np.percentile(values, 95, axis=-1, method="inverted_cdf"))


def empty_rule(empty: Sides[Floats], groups_Q: Groups | None = None) -> Rule:
    """Require that hardly more queries find nothing than in live; one query alone shows nothing."""
    live, new, n = float(empty.live.mean()), float(empty.candidate.mean()), len(empty.live)
    allowed = max(MORE_EMPTY * n, 1)
    more = paired_interval(empty.candidate - empty.live, groups_Q)
    outcome: Outcome = "inconclusive"
    if empty.candidate.sum() - empty.live.sum() <= allowed:
        outcome = "pass"
    elif more.lower is not None and more.lower > MORE_EMPTY:
        outcome = "fail"
    what = f"{new:.1%} of {counted(n, 'query')} find nothing, {live:.1%} in live"
    why = f"{what}: at most {MORE_EMPTY:.0%} more allowed, or one"
    if outcome == "inconclusive":
        why = f"{why}; too few queries show whether it is chance: judge more, or look at these"
    required = live + allowed / n
    return Rule("zero results", outcome, why, observed=new, required=required, n=n)


def judged_rule(found: Sides[float]) -> Rule:
    """Require that the candidate's results are judged about as completely as live's; else they look too bad."""
    required = found.live - JUDGED_GAP
    what = f"judged@10 {found.candidate:.3f}, {found.live:.3f} in live"
    why = f"{what}: at most {JUDGED_GAP:g} less allowed"
    if found.candidate >= required:
        return Rule("judged@10", "pass", why, observed=found.candidate, required=required)
    more = f"{why}; judge what only the candidate finds"
    return Rule("judged@10", "inconclusive", more, observed=found.candidate, required=required)


def known_item_rule(searched: Searched) -> Rule:
    """Veto a model that is shown to no longer find documents by their own first sentence.

    It tells a catastrophe (-34 to -66 % measured) from healthy models, which differ by up to 20 % in either
    direction, and not in the order of their relevance. So it never speaks for a candidate.
    """
    ranks, items = searched.reciprocal, len(searched.reciprocal.live)
    live, new = float(ranks.live.mean()), float(ranks.candidate.mean())
    # What is left beyond the largest fall that is allowed; so live's value may be uncertain, too.
    beyond = paired_interval(ranks.candidate - (1 - KNOWN_ITEMS_FALL) * ranks.live)
    shown = beyond.upper is not None and beyond.upper < 0
    not_applied = _says_nothing(items, live)
    outcome: Outcome = "fail" if shown and not not_applied else "pass"
    what = f"{counted(items, 'document')} searched by their first sentence: MRR@10 {new:.3f}, {live:.3f} in live"
    if searched.repeated:
        what = f"{what} ({searched.repeated:,} left out, others begin with the same sentence)"
    judged = f"a fall of more than {KNOWN_ITEMS_FALL:.0%} is {'' if shown else 'not '}shown"
    required = live * (1 - KNOWN_ITEMS_FALL)
    why = f"{what}: {not_applied or judged}"
    return Rule("known items", outcome, why, observed=new, required=required, n=items)


def _says_nothing(items: int, live: float) -> str:
    """Return why a fall would show nothing; empty if it does."""
    if items < KNOWN_ITEMS_FEWEST:
        return f"no veto, at least {KNOWN_ITEMS_FEWEST} documents needed"
    if live < KNOWN_ITEMS_LIVE:
        return f"no veto, live must find them with {KNOWN_ITEMS_LIVE:g} at least"
    return ""

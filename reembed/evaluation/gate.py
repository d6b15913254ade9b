"""The gate: measurements in, verdict out.

A candidate passes only when every rule shows it to be good enough; "not shown to be worse" promotes
a loss of .03 in 83 % of cases at 50 queries. So each rule is a test of non-inferiority: the lower
one-sided 95 % Student t bound must clear the threshold, and only an upper bound below it fails.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from reembed.catalog.reports import Outcome
from reembed.errors import IntegrityError
from reembed.evaluation.metrics import Floats, Interval, paired_interval, queries_needed

if TYPE_CHECKING:
    from reembed.config.settings import GateConfig

MIN_QUERIES = 20
"""Fewest queries that may pass: below it the t bound was not checked, and a few equal differences
have no variance at all."""
MARGIN, MARGIN_SHARE = 0.01, 0.02
"""The margin where the config sets none: absolute, or this share of live's mean where that is more,
so that a high metric is not held to noise. A margin that is set is applied as it is."""
_TYPICAL_SD = 0.2
"""Standard deviation of nDCG@10 differences (measured .16 to .21); used if too few queries show their own."""
MIN_PRESENT = 0.5
"""Share of the relevant documents that must be in the candidate for a comparison to say anything."""
MIN_SHARED_JUDGED, MIN_SHARED = 0.98, 0.95
"""Share of the relevant documents, and of all documents, of either release that must be in both. A
relevant document that one lacks counts as not found by its model: 2 % weigh as much as the default
margin. Others only make the task easier, and live may be somewhat behind."""


@dataclass(frozen=True)
class Rule:
    """What one rule found. A number is None if nothing was measured."""

    name: str
    verdict: Outcome
    detail: str
    observed: float | None = None
    """The mean."""
    bound: float | None = None
    """The lower one-sided 95 % bound of the mean; None when one query gives none."""
    required: float | None = None
    """What the bound must reach."""
    margin: float | None = None
    """The loss that was allowed; only of a rule about a change."""
    queries_needed: int | None = None
    """About how many queries would decide; only when inconclusive."""
    n: int = 0
    """Queries it was measured on."""


@dataclass(frozen=True)
class Verdict:
    """The worst verdict of all rules: fail, else inconclusive, else pass."""

    verdict: Outcome
    rules: tuple[Rule, ...]
    queries_needed: int | None
    margin_needed: float | None
    """The smallest margin, to three digits, with which it would pass; None where no margin would."""


def require_verdict_of_rules(found: Verdict) -> None:
    """Check that a verdict is the one its rules give.

    Raises:
        IntegrityError: it is not.
    """
    expected = combine(*found.rules)
    if any(getattr(found, f.name) != getattr(expected, f.name) for f in fields(Verdict)):
        raise IntegrityError(
            "the recorded verdict is damaged",
            f"it says {found.verdict!r}, its rules give {expected.verdict!r}",
            "reembed compare",
        )


@dataclass(frozen=True)
class Shared:
    """Shares of the documents of either release that both hold."""

    judged: float
    """Share of the relevant documents."""
    all: float
    why: str = ""
    """What differs, in words."""


@dataclass(frozen=True)
class Relevance:
    """Metrics of both releases on the same judged queries, each float64 [Q]."""

    live_ndcg_Q: Floats
    candidate_ndcg_Q: Floats
    live_recall_Q: Floats
    candidate_recall_Q: Floats


def judge(
    gate: GateConfig,
    *,
    verified: bool,
    ann_recall_Q: Floats,
    relevance: Relevance | None,
    judged_present: float = 1.0,
    shared: Shared = Shared(1.0, 1.0),
) -> Verdict:
    """Decide whether a candidate may be promoted.

    Args:
        gate: margin and ann_recall, fixed before results exist.
        verified: `verify` found the candidate's table and index complete and unharmed.
        ann_recall_Q: ann_recall@10 of the candidate's index, per query; ones for exact search.
        judged_present: share of the judgements whose document can be found; where few can,
            both releases score near zero, and equal zeros would look like "no change".
        shared: how far both releases hold the same documents; metrics over different ones are not
            of one task.
        relevance: nDCG@10 and recall@10 of both releases; None without judged queries.
    """
    rules = [verify_rule(verified), ann_recall_rule(ann_recall_Q, gate.ann_recall)]
    if relevance is None:
        return combine(*rules, no_evidence_rule())
    return combine(
        *rules,
        present_rule(judged_present),
        shared_rule("relevant documents", shared.judged, MIN_SHARED_JUDGED, shared.why),
        shared_rule("documents", shared.all, MIN_SHARED, shared.why),
        change_rule("nDCG@10", relevance.live_ndcg_Q, relevance.candidate_ndcg_Q, gate.margin),
        change_rule(
            "recall@10", relevance.live_recall_Q, relevance.candidate_recall_Q, gate.margin
        ),
    )


def combine(*rules: Rule) -> Verdict:
    """Return the verdict of several rules; inconclusive without any."""
    outcomes = {rule.verdict for rule in rules} or {"inconclusive"}
    outcome: Outcome = "pass"
    if "fail" in outcomes:
        outcome = "fail"
    elif "inconclusive" in outcomes:
        outcome = "inconclusive"
    needed: list[int] = []
    if outcome == "inconclusive":
        needed = [rule.queries_needed for rule in rules if rule.queries_needed is not None]
    return Verdict(outcome, rules, max(needed, default=None), _margin_needed(rules))


def _margin_needed(rules: tuple[Rule, ...]) -> float | None:
    """Return the smallest margin that passes; None if all pass, or if a rule without a margin blocks."""
    blocking = [rule for rule in rules if rule.verdict != "pass"]
    bounds = [rule.bound for rule in blocking if rule.margin is not None and rule.n >= MIN_QUERIES]
    known = [bound for bound in bounds if bound is not None]
    if not blocking or len(known) < len(blocking):
        return None
    margin = math.ceil(-min(known) * 1000) / 1000
    if margin >= 1:
        return None
    return margin


def verify_rule(verified: bool) -> Rule:
    """Require that what was built is what was planned, row by row (G0)."""
    if verified:
        return Rule("verify", "pass", "verify passed")
    return Rule("verify", "fail", "verify did not pass")


def no_evidence_rule() -> Rule:
    """Return the rule of a comparison without judged queries (G1): inconclusive."""
    return Rule("relevance", "inconclusive", "no relevance evidence: structural checks only")


def present_rule(share: float) -> Rule:
    """Require that the judged documents are there: judgements of others show nothing."""
    detail = f"{share:.1%} of the relevant documents can be found in the candidate"
    return _share_rule("judged documents", detail, share, MIN_PRESENT)


def shared_rule(what: str, share: float, required: float, why: str) -> Rule:
    """Require that both releases were asked the same task."""
    detail = f"{share:.1%} of the {what} of either release are in both"
    return _share_rule(f"same {what}", detail, share, required, why)


def _share_rule(name: str, detail: str, share: float, required: float, why: str = "") -> Rule:
    detail = f"{detail}, at least {required:.0%} needed"
    if share >= required:
        return Rule(name, "pass", detail, observed=share, required=required)
    if why:
        detail = f"{detail}: {why}"
    return Rule(name, "inconclusive", detail, observed=share, required=required)


def ann_recall_rule(ann_recall_Q: Floats, required: float) -> Rule:
    """Require that the index finds what exact search finds (G0): bound >= required. float64 [Q]."""
    if len(ann_recall_Q) == 0:
        return Rule(
            "ann_recall@10", "inconclusive", "ann_recall@10 was not measured", required=required
        )
    interval = paired_interval(ann_recall_Q)
    distance = max(interval.mean - required, 0)
    return _rule("ann_recall@10", interval, required, distance)


def change_rule(metric: str, live_Q: Floats, candidate_Q: Floats, margin: float | None) -> Rule:
    """Require that the candidate loses no more than the margin (G1): bound of the paired changes >= -margin.

    Args:
        metric: its name, for people.
        live_Q: float64, live's metric per query.
        candidate_Q: float64, the candidate's, on the same queries in the same order.
        margin: absolute; None: 0.01, or 2 % of live's mean where that is more.
    """
    if live_Q.shape != candidate_Q.shape:
        raise ValueError(f"{metric}: {len(live_Q)} and {len(candidate_Q)} queries are not pairs")
    name = f"{metric} change"
    if len(live_Q) == 0:
        return Rule(name, "inconclusive", f"{metric} was not measured")
    if not live_Q.any() and not candidate_Q.any():
        return Rule(
            name, "inconclusive", f"{metric} is 0 for every query in both: nothing was found"
        )
    if margin is None:
        margin = max(MARGIN, MARGIN_SHARE * float(live_Q.mean()))
    interval = paired_interval(candidate_Q - live_Q)
    return replace(_rule(name, interval, -margin, margin), margin=margin)


def _rule(name: str, interval: Interval, required: float, distance: float) -> Rule:
    """Judge a mean by its bounds; `distance` is what the queries must resolve for a pass."""
    outcome: Outcome = "inconclusive"
    if interval.n >= MIN_QUERIES and interval.lower >= required:
        outcome = "pass"
    elif interval.upper < required:
        outcome = "fail"
    needed = _queries_for(interval, distance) if outcome == "inconclusive" else None
    return Rule(
        name=name,
        verdict=outcome,
        detail=_detail(name, interval, required, outcome, needed),
        observed=interval.mean,
        bound=interval.lower if math.isfinite(interval.lower) else None,
        required=required,
        queries_needed=needed,
        n=interval.n,
    )


def _queries_for(interval: Interval, distance: float) -> int | None:
    """Return how many queries decide; None if as many were asked already or nothing separates mean and limit."""
    if distance <= 0:
        return None
    sd = interval.sd if interval.n >= MIN_QUERIES else _TYPICAL_SD
    needed = max(MIN_QUERIES, queries_needed(sd, distance))
    if needed <= interval.n:
        return None
    return needed


def _detail(
    name: str, interval: Interval, required: float, outcome: Outcome, needed: int | None
) -> str:
    form = "+.4f" if required < 0 else ".4f"
    text = (
        f"{name} {interval.mean:{form}} over {interval.n} queries, one-sided 95 % bounds "
        f"{interval.lower:{form}} and {interval.upper:{form}}, at least {required:{form}} needed"
    )
    if outcome != "inconclusive":
        return text
    if needed is None:
        return f"{text}: too close to the limit for a few more queries to decide"
    return f"{text}: about {needed} queries would decide"

"""The gate: measurements in, verdict out.

A candidate passes only when every rule shows it to be good enough; "not shown to be worse" promotes
a loss of .03 in 83 % of cases at 50 queries. So each rule is a test of non-inferiority: the lower
one-sided 95 % Student t bound must clear the threshold, and only an upper bound below it fails.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from reembed.catalog.reports import Outcome
from reembed.errors import IntegrityError
from reembed.evaluation.comparisons import Estimate, Rule, Verdict
from reembed.evaluation.metrics import Floats, paired_interval, queries_needed

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


def judge(
    gate: GateConfig,
    *,
    verified: bool,
    ann_recall_Q: Floats,
    relevance: Mapping[str, tuple[Floats, Floats]],
    judged_present: float = 1.0,
    shared: Shared = Shared(1.0, 1.0),
) -> Verdict:
    """Decide whether a candidate may be promoted.

    Args:
        gate: margin and ann_recall, fixed before results exist.
        verified: `verify` found the candidate's table and index complete and unharmed.
        ann_recall_Q: ann_recall@10 of the candidate's index, per query; ones for exact search.
        relevance: metrics of live and of the candidate by name, float64 [Q] each, on the same queries.
        judged_present: share of the judgements whose document can be found; where few can,
            both releases score near zero, and equal zeros would look like "no change".
        shared: how far both releases hold the same documents; metrics over different ones are not
            of one task.
    """
    did, why = "passed" if verified else "did not pass", shared.why
    ann_recall = paired_interval(ann_recall_Q)
    distance = max(ann_recall.mean - gate.ann_recall, 0)
    present = "relevant documents can be found in the candidate"
    same = "documents of either release are in both"
    return combine(
        Rule("verify", "pass" if verified else "fail", f"verify {did}"),
        _rule("ann_recall@10", ann_recall, gate.ann_recall, distance),
        _share_rule("judged documents", present, judged_present, MIN_PRESENT),
        _share_rule(
            "same relevant documents", f"relevant {same}", shared.judged, MIN_SHARED_JUDGED, why
        ),
        _share_rule("same documents", same, shared.all, MIN_SHARED, why),
        *(change_rule(name, *values, gate.margin) for name, values in relevance.items()),
    )


def combine(*rules: Rule) -> Verdict:
    """Return the verdict of several rules; inconclusive without any."""
    outcomes = {rule.verdict for rule in rules} or {"inconclusive"}
    worst_first: tuple[Outcome, ...] = ("fail", "inconclusive", "pass")
    outcome = next(o for o in worst_first if o in outcomes)
    needed = [r.queries_needed for r in rules if r.queries_needed and outcome == "inconclusive"]
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


def _share_rule(name: str, what: str, share: float, required: float, why: str = "") -> Rule:
    """Require that enough documents are there, or are the same: else the figures show nothing."""
    detail = f"{share:.1%} of the {what}, at least {required:.0%} needed"
    if share >= required:
        return Rule(name, "pass", detail, observed=share, required=required)
    if why:
        detail = f"{detail}: {why}"
    return Rule(name, "inconclusive", detail, observed=share, required=required)


def change_rule(metric: str, live_Q: Floats, candidate_Q: Floats, margin: float | None) -> Rule:
    """Require that the candidate loses no more than the margin: bound of the paired changes >= -margin.

    The metric of both releases is float64 [Q], of the same queries in the same order. The margin is
    absolute; None is 0.01, or 2 % of live's mean where that is more.
    """
    if live_Q.shape != candidate_Q.shape:
        raise ValueError(f"{metric}: {len(live_Q)} and {len(candidate_Q)} queries are not pairs")
    name = f"{metric} change"
    if not live_Q.any() and not candidate_Q.any():
        return Rule(
            name, "inconclusive", f"{metric} is 0 for every query in both: nothing was found"
        )
    if margin is None:
        margin = max(MARGIN, MARGIN_SHARE * float(live_Q.mean()))
    return _rule(name, paired_interval(candidate_Q - live_Q), -margin, margin, margin)


def _rule(
    name: str, found: Estimate, required: float, distance: float, margin: float | None = None
) -> Rule:
    """Judge a mean by its bounds; `distance` is what the queries must resolve for a pass."""
    outcome: Outcome = "inconclusive"
    if found.lower is not None and found.n >= MIN_QUERIES and found.lower >= required:
        outcome = "pass"
    elif found.upper is not None and found.upper < required:
        outcome = "fail"
    needed = None
    if outcome == "inconclusive":
        needed = _queries_for(found, distance)
    return Rule(
        name=name,
        verdict=outcome,
        detail=_detail(name, found, required, outcome, needed),
        observed=found.mean,
        bound=found.lower,
        required=required,
        margin=margin,
        queries_needed=needed,
        n=found.n,
    )


def _queries_for(found: Estimate, distance: float) -> int | None:
    """Return how many queries decide; None if as many were asked already or nothing separates mean and limit."""
    if distance <= 0:
        return None
    sd = found.sd
    if sd is None or found.n < MIN_QUERIES:
        sd = _TYPICAL_SD
    needed = max(MIN_QUERIES, queries_needed(sd, distance))
    if needed <= found.n:
        return None
    return needed


def _detail(
    name: str, found: Estimate, required: float, outcome: Outcome, needed: int | None
) -> str:
    form = "+.4f" if required < 0 else ".4f"
    text = f"{name} {found.mean:{form}} over {found.n} queries"
    if found.lower is not None:
        text += f", one-sided 95 % bounds {found.lower:{form}} and {found.upper:{form}}"
    text += f", at least {required:{form}} needed"
    if outcome != "inconclusive":
        return text
    if needed is None:
        return f"{text}: too close to the limit for a few more queries to decide"
    return f"{text}: about {needed} queries would decide"

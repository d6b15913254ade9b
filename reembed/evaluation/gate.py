"""The gate: measurements in, verdict out.

A candidate passes only when every rule shows it to be good enough; "not shown to be worse" promotes
a loss of .03 in 83 % of cases at 50 queries. So each rule is a test of non-inferiority: the lower
one-sided 95 % Student t bound must clear the threshold, and only an upper bound below it fails.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np

from reembed.catalog.reports import Outcome, ShadowLook
from reembed.errors import IntegrityError
from reembed.evaluation import shadows
from reembed.evaluation.comparisons import Rule, Verdict, metric_name
from reembed.evaluation.figures import Estimate, Needed, SliceChange
from reembed.evaluation.operation import Operation, operation_rules
from reembed.evaluation.slices import HARM
from reembed.evaluation.statistics import UNSEEN, Floats, Groups, needed, paired_interval
from reembed.plural import counted

if TYPE_CHECKING:
    from reembed.config.gate import GateConfig

MIN_QUERIES = 20
"""Fewest queries that may pass: below it the t bound was not checked, and a few equal differences
have no variance at all."""
MIN_GROUPS = 10
"""Fewest groups that may pass, where queries have groups: so many were simulated."""
MARGIN, MARGIN_SHARE = 0.01, 0.02
"""The margin where the config sets none: absolute, or this share of live's mean where that is more,
so that a high metric is not held to noise. A margin that is set is applied as it is."""
_NAMED = 5
"""Slices that the rule about them names."""
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


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a comparison measured, of Q queries in the same order."""

    verified: bool
    """`verify` found the candidate's table and index complete and unharmed."""
    ann_recall_Q: Floats
    """ann_recall@10 of the candidate's index [Q]; ones for exact search, NaN for a query without a vector."""
    relevance: Mapping[str, tuple[Floats, Floats]]
    """By key, the metrics that judge, of live and of the candidate, float64 [Q] each."""
    groups_Q: Groups | None = None
    """The group of each query, if they have any; only groups are independent."""
    judged_present: float = 1.0
    """Share of the judgements whose document can be found; where few can, both releases score near
    zero, and equal zeros would look like "no change"."""
    shared: Shared = Shared(1.0, 1.0)
    """How far both releases hold the same documents; metrics over different ones are not of one task."""
    slices: tuple[SliceChange, ...] = ()
    """How the metrics changed in parts of the queries."""
    looked: ShadowLook | None = None
    """The look of a shadow that judges the metrics; None: these values do."""
    operation: Operation | None = None
    """How the candidate answers beside live, whatever is relevant; None leaves these rules out."""


def judge(gate: GateConfig, found: Measured) -> Verdict:
    """Decide whether a candidate may be promoted, by margin and ann_recall fixed before results exist."""
    did = "passed" if found.verified else "did not pass"
    shared, groups_Q = found.shared, found.groups_Q
    ann_recall = _mean_of_known(found.ann_recall_Q, groups_Q)
    present = "relevant documents can be found in the candidate"
    same = "documents of either release are in both"
    return combine(
        Rule("verify", "pass" if found.verified else "fail", f"verify {did}"),
        _rule("ann_recall@10", ann_recall, gate.ann_recall),
        share_rule("judged documents", present, found.judged_present, MIN_PRESENT),
        share_rule(
            "same relevant documents",
            f"relevant {same}",
            shared.judged,
            MIN_SHARED_JUDGED,
            shared.why,
        ),
        share_rule("same documents", same, shared.all, MIN_SHARED, shared.why),
        *(shadows.rules(found.looked) if found.looked else _change_rules(gate, found)),
        *slice_rules(found.slices),
        *(operation_rules(gate, found.operation, groups_Q) if found.operation else ()),
    )


def _change_rules(gate: GateConfig, found: Measured) -> list[Rule]:
    pairs = found.relevance.items()
    return [change_rule(name, *pair, gate.margin, found.groups_Q) for name, pair in pairs]


def _mean_of_known(values_Q: Floats, groups_Q: Groups | None) -> Estimate:
    """Return the mean of the values that are not NaN."""
    known_Q = np.isfinite(values_Q)
    if groups_Q is not None:
        groups_Q = np.unique(groups_Q[known_Q], return_inverse=True)[1]
    return paired_interval(values_Q[known_Q], groups_Q, unseen=0)


def combine(*rules: Rule) -> Verdict:
    """Return the verdict of several rules; inconclusive without any."""
    outcomes = {rule.verdict for rule in rules} or {"inconclusive"}
    worst_first: tuple[Outcome, ...] = ("fail", "inconclusive", "pass")
    outcome = next(o for o in worst_first if o in outcomes)
    undecided = [r for r in rules if r.verdict == "inconclusive" and outcome == r.verdict]
    unchanged = [r.if_unchanged for r in undecided if r.if_unchanged]
    real = [r.if_real for r in undecided if r.if_real]
    return Verdict(outcome, rules, _most(unchanged), _most(real), _margin_needed(rules))


def _most(found: list[Needed]) -> Needed | None:
    return max(found, key=lambda n: n.queries, default=None)


def _margin_needed(rules: tuple[Rule, ...]) -> float | None:
    """Return the smallest margin that passes; None if all pass, or if a rule without a margin blocks."""
    blocking = [rule for rule in rules if rule.verdict != "pass"]
    bounds = [rule.bound for rule in blocking if rule.margin is not None and _enough(rule)]
    known = [bound for bound in bounds if bound is not None]
    if not blocking or len(known) < len(blocking):
        return None
    margin = math.ceil(-min(known) * 1000) / 1000
    if margin >= 1:
        return None
    return margin


def share_rule(name: str, what: str, share: float, required: float, why: str = "") -> Rule:
    """Require that enough documents are there, or are the same: else the figures show nothing."""
    detail = f"{share:.1%} of the {what}, at least {required:.0%} needed"
    if share >= required:
        return Rule(name, "pass", detail, observed=share, required=required)
    if why:
        detail = f"{detail}: {why}"
    return Rule(name, "inconclusive", detail, observed=share, required=required)


def applied_margin(margin: float | None, live_Q: Floats) -> float:
    """Return the loss that is allowed: the one that is set, else 0.01, or 2 % of live's mean where that is more."""
    if margin is not None:
        return margin
    return max(MARGIN, MARGIN_SHARE * float(live_Q.mean()))


def change_rule(
    metric: str,
    live_Q: Floats,
    candidate_Q: Floats,
    margin: float | None,
    groups_Q: Groups | None = None,
) -> Rule:
    """Require that the candidate loses no more than the margin: bound of the paired changes >= -margin.

    The metric of both releases is float64 [Q], of the same queries in the same order. The margin is
    absolute; None is the default (`applied_margin`).
    """
    if live_Q.shape != candidate_Q.shape:
        raise ValueError(f"{metric}: {len(live_Q)} and {len(candidate_Q)} queries are not pairs")
    shown = metric_name(metric)
    name = f"{shown} change"
    if not live_Q.any() and not candidate_Q.any():
        nothing = f"{shown} is 0 for every query in both: nothing was found"
        return Rule(name, "inconclusive", nothing, metric=metric)
    allowed = applied_margin(margin, live_Q)
    rule = _rule(name, paired_interval(candidate_Q - live_Q, groups_Q), -allowed, allowed)
    return replace(rule, metric=metric)


def _rule(name: str, found: Estimate, required: float, margin: float | None = None) -> Rule:
    """Judge a mean by its bounds."""
    outcome: Outcome = "inconclusive"
    if found.lower is not None and _enough(found) and found.lower >= required:
        outcome = "pass"
    elif found.upper is not None and found.upper < required:
        outcome = "fail"
    rule = Rule(
        name=name,
        verdict=outcome,
        detail=_detail(name, found, required),
        observed=found.mean,
        bound=found.lower,
        required=required,
        margin=margin,
        n=found.n,
        independent=found.independent,
    )
    if outcome != "inconclusive":
        return rule
    return _with_needed(rule, found, abs(found.mean - required))


def _fewest(found: Estimate | Rule) -> int:
    """Return how many queries, or groups of queries, must be there for a pass."""
    return MIN_QUERIES if found.independent == found.n else MIN_GROUPS


def _enough(found: Estimate | Rule) -> bool:
    return found.n >= MIN_QUERIES and found.independent >= _fewest(found)


def _with_needed(rule: Rule, found: Estimate, distance: float) -> Rule:
    """Add how many queries decide: if the true change is 0, and if it is the observed one."""
    unseen = 0 if rule.margin is None else UNSEEN
    unchanged = needed(found, rule.margin or 0, _fewest(found), _TYPICAL_SD, unseen)
    if unchanged is not None and unchanged.queries <= found.n:
        unchanged = None
    real = needed(found, distance, _fewest(found), _TYPICAL_SD, unseen)
    detail = f"{rule.detail}: {_what_decides(unchanged, real)}"
    return replace(rule, detail=detail, if_unchanged=unchanged, if_real=real)


def _what_decides(unchanged: Needed | None, real: Needed | None) -> str:
    if real is None:
        return "it lies at the limit, and no number of queries would decide"
    if unchanged is None:
        return f"too near the limit; about {real} would decide if the true value is this one"
    return f"about {unchanged} would decide if nothing changes, about {real} if this change is real"


def _detail(name: str, found: Estimate, required: float) -> str:
    form = "+.4f" if required < 0 else ".4f"
    text = f"{name} {found.mean:{form}} over {counted(found.n, 'query')}"
    if found.independent != found.n:
        text += f" in {counted(found.independent, 'group')}"
    if found.lower is not None:
        text += f", one-sided 95 % bounds {found.lower:{form}} and {found.upper:{form}}"
    return f"{text}, at least {required:{form}} needed"


def slice_rules(found: Sequence[SliceChange]) -> list[Rule]:
    """Return the rule about slices: fail if one is harmed; none if no slice was tested."""
    tested = [change for change in found if change.p is not None]
    if not tested:
        return []
    harmed = sorted((c for c in tested if c.harmed), key=lambda c: c.change.mean)
    slices = len({(c.field, c.value) for c in tested})
    if not harmed:
        why = f"no loss of more than {HARM} is shown in {counted(slices, 'slice')}"
        return [Rule("slices", "pass", why)]
    named = "; ".join(map(_named, harmed[:_NAMED]))
    lost = f"losses of more than {HARM} that are significant"
    why = f"{lost}: {len(harmed):,} in {counted(slices, 'slice')}: {named}"
    return [Rule("slices", "fail", why, observed=harmed[0].change.mean, required=-HARM)]


def _named(c: SliceChange) -> str:
    change = f"{metric_name(c.metric)} {c.change.mean:+.4f}"
    return f"{c.field} = {c.value}: {change} (n {c.change.n}, p {c.p:.1g})"

"""Whether the candidate can take live's place, whatever its relevance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reembed.catalog.reports import Outcome
from reembed.evaluation.comparisons import Rule
from reembed.evaluation.figures import HowAnswered, KnownItems, Latency, Sides

if TYPE_CHECKING:
    from reembed.config.gate import GateConfig

FAST_MS = 10.0
"""A p95 below this is not slow, however fast live is."""
MORE_EMPTY = 0.01
"""Share of the queries that may find nothing, beyond those that find nothing in live."""
JUDGED_GAP = 0.05
"""Share of the first 10 results that may be less judged than live's: its judges saw what live found, and what
they did not see counts as not relevant."""
KNOWN_ITEMS_FALL = 0.3
"""Largest fall, as a share of live's value, of MRR@10 when documents are searched by their first sentence."""


@dataclass(frozen=True)
class Operation:
    """How both releases answer."""

    answered: HowAnswered
    known_items: KnownItems


def operation_rules(gate: GateConfig, found: Operation) -> list[Rule]:
    """Return the rules about how the candidate answers; none about what was not measured."""
    rules = [empty_rule(found.answered.zero_results), judged_rule(found.answered.judged_at_10)]
    if found.answered.latency is not None:
        rules.append(latency_rule(found.answered.latency, gate.latency_ratio))
    if found.known_items.mrr_at_10 is not None:
        rules.append(known_item_rule(found.known_items.mrr_at_10))
    return rules


def latency_rule(found: Sides[Latency], ratio: float) -> Rule:
    """Require a p95 of at most so many times live's, or below 10 ms."""
    live, new = found.live.p95_ms, found.candidate.p95_ms
    allowed = max(ratio * live, FAST_MS)
    what = f"p95 of a search {new:.2f} ms, live's {live:.2f} ms"
    why = f"{what}: at most {allowed:.2f} ms allowed ({ratio:g} times, or {FAST_MS:g} ms)"
    return Rule("latency", _passes(new <= allowed), why, observed=new, required=allowed)


def empty_rule(found: Sides[float]) -> Rule:
    """Require that hardly more queries find nothing than in live."""
    allowed = found.live + MORE_EMPTY
    what = f"{found.candidate:.1%} of the queries find nothing, {found.live:.1%} in live"
    why = f"{what}: at most {MORE_EMPTY:.0%} more allowed"
    verdict = _passes(found.candidate <= allowed)
    return Rule("zero results", verdict, why, observed=found.candidate, required=allowed)


def judged_rule(found: Sides[float]) -> Rule:
    """Require that the candidate's results are judged about as completely as live's; else they look too bad."""
    required = found.live - JUDGED_GAP
    what = f"judged@10 {found.candidate:.3f}, {found.live:.3f} in live"
    why = f"{what}: at most {JUDGED_GAP:g} less allowed"
    if found.candidate >= required:
        return Rule("judged@10", "pass", why, observed=found.candidate, required=required)
    more = f"{why}; judge what only the candidate finds"
    return Rule("judged@10", "inconclusive", more, observed=found.candidate, required=required)


def known_item_rule(found: Sides[float]) -> Rule:
    """Veto a model that no longer finds documents by their own first sentence.

    It tells a catastrophe (-34 to -66 % measured) from healthy models, which differ by up to 20 % in either
    direction, and not in the order of their relevance. So it never speaks for a candidate.
    """
    required = found.live * (1 - KNOWN_ITEMS_FALL)
    what = f"documents found by their first sentence: MRR@10 {found.candidate:.3f}, {found.live:.3f} in live"
    verdict = _passes(found.candidate >= required)
    why = f"{what}: a fall of at most {KNOWN_ITEMS_FALL:.0%} allowed"
    return Rule("known items", verdict, why, observed=found.candidate, required=required)


def _passes(met: bool) -> Outcome:
    return "pass" if met else "fail"

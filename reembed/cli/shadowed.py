"""A shadow as text for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from reembed.cli.layout import Lines, coloured, next_lines
from reembed.evaluation import shadows
from reembed.evaluation.comparisons import metric_name
from reembed.evaluation.report import choices, shadow_words
from reembed.plural import counted

if TYPE_CHECKING:
    from reembed.lifecycle.holdover import Shadow
    from reembed.strategies.dual_index import Shadowed


def shadowed(r: Shadowed) -> Lines:
    """Yield the lines of a shadow."""
    found = r.shadow
    plan, look = found.plan, found.look
    yield f"{plan.alias}: shadow {plan.number}, {r.new} (candidate) beside {r.old}; {r.live} is live"
    allowed = (f"{metric_name(key)} {margin:.4f}" for key, margin in plan.margins.items())
    yield f"  allowed loss, fixed at the start: {', '.join(allowed)}"
    if look is None:
        yield "  no query was judged yet"
    else:
        yield from (f"  {line}" for line in shadow_words(look.found))
        for rule in shadows.rules(look.found):
            yield coloured(rule.verdict, rule.verdict, before="  ", after=f"  {rule.detail}")
    yield f"  {_stands(found)}"
    report = f"   report: {r.comparison.report}" if r.comparison else ""
    yield coloured(r.verdict, r.verdict, before="verdict: ", after=report)
    yield from next_lines(*_next(r))


def shadow_line(found: Shadow | None) -> Lines:
    """Yield where a shadow stands, in one line, if there is one."""
    if found is None:
        return
    look = found.look
    seen = "no look yet"
    if look is not None:
        queries = counted(look.found.queries, "query")
        seen = f"look {look.number}, {queries}: {look.found.verdict}"
    yield f"  shadow     {found.plan.number} of {found.plan.candidate}  {seen}; {_stands(found)}"


def _stands(found: Shadow) -> str:
    if found.stage == "holdover":
        until = f"until {found.cut_over.until}" if found.cut_over else "from its next look on"
        return f"the candidate is live; the release before is kept up to date {until}"
    if found.stage == "over":
        assert found.cut_over is not None  # that is how it is known
        return f"the candidate is live; the holdover ended at {found.cut_over.until}"
    if found.stage == "rolled back":
        return "the candidate was live, and was rolled back"
    if found.stage == "superseded":
        return "a release of neither is live"
    if found.is_exhausted:
        return "all planned queries were judged"
    return "the candidate is not live"


def _next(r: Shadowed) -> Iterator[str]:
    stage = r.shadow.stage
    if stage == "judging" and r.verdict != "inconclusive" and r.comparison:
        yield from choices(r.comparison)
    elif r.is_settled and stage != "over":
        yield "reembed history"
        yield "reembed shadow --new --reason 'WHY'     # begins another one; recorded"
    elif r.is_settled:
        yield "reembed gc"
    else:
        yield "reembed shadow --every 1h"

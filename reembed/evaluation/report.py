"""A comparison for people: what it says, and what can follow."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from reembed.catalog.reports import GateMargin, GateSettings
from reembed.evaluation import shadows
from reembed.evaluation.beside import without_vectors
from reembed.evaluation.comparisons import not_passed_by_runs
from reembed.plural import counted

if TYPE_CHECKING:
    from reembed.catalog.reports import (
        Change,
        ComparisonSummary,
        Evidence,
        GateQueries,
        ShadowLook,
    )
    from reembed.evaluation.comparisons import Comparison

_NAMED = 20
"""Slices that are named, of those that are too small to be tested."""


def choices(c: Comparison) -> list[str]:
    """Return the commands that can follow a comparison, the usual first; only a catch-up embeds documents."""
    new, live = c.candidate.release, c.live.release
    overrule = f"reembed promote {new} --force --reason 'WHY'     # overrule the gate; recorded permanently"
    if not_passed_by_runs(c):
        return [again(c), overrule]
    if c.verdict == "pass":
        return [f"reembed promote {new}"]
    keep = f"reembed status     # keep {live}: it stays live, nothing changes"
    if c.shadow and c.verdict == "inconclusive":
        return ["reembed shadow     # with the queries that arrive", keep, overrule]
    if _needs_quiet(c):
        return [again(c), keep, overrule]
    queries, margin = _changed(c)
    found = [keep]
    same = {rule.verdict for rule in c.rules if rule.name.startswith("same ")}
    if c.documents.behind and same != {"pass"}:
        missing = "it lacks documents; then compare again"
        found.insert(0, f"reembed catch-up {c.documents.behind}     # {missing}")
    if more := _more_queries(c):
        found.append(f"{_judged_again(c)} --changed-queries{margin} --reason 'WHY'     # {more}")
    if c.margin_needed is not None:
        wider = f"{c.margin_needed:g}"
        accept = f"accept a loss of up to {wider}; recorded, with who and why"
        found.append(f"{_judged_again(c)}{queries} --margin {wider} --reason 'WHY'     # {accept}")
    return [*found, overrule]


def again(c: Comparison) -> str:
    """Return the command that may decide after a comparison that was inconclusive."""
    if made := not_passed_by_runs(c):
        why = "promote needs run files that pass, as those before did not"
        return f"{compare_again(c.candidate.release, made.runs)}     # {why}"
    queries, margin = _changed(c)
    if not _needs_quiet(c):
        more = _more_queries(c) or "after judging more queries"
        return f"{_judged_again(c)} --changed-queries{margin} --reason 'WHY'     # {more}"
    reason = " --reason 'WHY'" if c.changes else ""
    return f"{_judged_again(c)}{queries}{margin}{reason}     # on a quiet machine: only the latency is undecided"


def _needs_quiet(c: Comparison) -> bool:
    return [(r.name, r.verdict) for r in c.rules if r.verdict != "pass"] == [
        ("latency", "inconclusive")
    ]


def _judged_again(c: Comparison) -> str:
    """Return the command that compares again by the same settings and run files."""
    summary = c.summary()
    settings = " --changed-gate" if "settings" in summary.changed else ""
    return f"{compare_again(c.candidate.release, summary.runs)}{settings}"


def _changed(c: Comparison) -> tuple[str, str]:
    """Return the options for queries and margin that were not the planned ones."""
    changed = c.summary().changed
    queries = " --changed-queries" if "queries" in changed else ""
    return queries, f" --margin {c.gate.margin:g}" if "margin" in changed else ""


def compare_again(release: str, runs: tuple[str, str] | None) -> str:
    """Return the command that compares a candidate again, by the same run files if there were any."""
    files = f" --runs {shlex.join(runs)}" if runs else ""
    return f"reembed compare --candidate {release}{files}"


def _more_queries(c: Comparison) -> str:
    """Return in words how many more judged queries would decide; empty if more would not help."""
    cases = (c.if_unchanged, "if nothing changes"), (c.if_real, "if the observed change is real")
    ways = [f"about {needed} {case}" for needed, case in cases if needed]
    if not ways:
        return ""
    return f"after judging more: {', '.join(ways)}, would decide; there are {c.queries.count:,}"


def to_compare(release: str, *, judged: bool) -> str:
    """Return the command that compares a candidate; without judged queries, one that names them."""
    command = f"reembed compare --candidate {release}"
    if judged:
        return command
    without = f"or without any: reembed promote {release} --without-evidence --reason 'WHY'"
    return f"{command} --set gate.queries=FOLDER     # FOLDER: judged queries (docs/evaluate.md); {without}"


def evidence(compared: Comparison | Evidence) -> list[str]:
    """Return what a reader must know of how a comparison came about."""
    lines = [changed_words(change) for change in compared.changes]
    if look := compared.shadow:
        lines += shadow_words(look)
    if earlier := compared.earlier:
        against = "the same live release, or with another of its line"
        lines.append(f"earlier comparisons of this model with {against}: {len(earlier)}")
        lines += [f"  {told(summary)}" for summary in earlier]
    return lines


def by_itself(look: ShadowLook) -> str:
    """Return in words that `reembed shadow` made a step of the alias, and on what grounds."""
    found = "; ".join(rule.detail for rule in shadows.rules(look))
    return f"by shadow {look.shadow} itself, without a command: {found}"


def shadow_words(look: ShadowLook) -> list[str]:
    """Return what the shadow of a look judged by."""
    design = "always-valid sequence, any number of looks"
    if look.planned:
        design = f"group-sequential, of {look.planned:,} planned"
    lines = [f"metrics by shadow {look.shadow}, look {look.look}: {design}"]
    if look.earlier:
        before = ", ".join(map(str, look.earlier))
        lines.append(f"earlier shadows of the same two lines: {before}")
    return lines


def changed_words(change: Change) -> str:
    """Return a recorded change of the gate in words: from what to what, by whom and why."""
    before, after = _gate_words(change.before), _gate_words(change.after)
    return f"changed from {before} to {after} by {change.by}, {change.at}: {change.reason}"


def _gate_words(setting: GateMargin | GateQueries | GateSettings) -> str:
    if isinstance(setting, GateMargin):
        return f"margin {_margin(setting.margin)}"
    if isinstance(setting, GateSettings):
        slices, metrics = ", ".join(setting.slices) or "none", ", ".join(setting.metrics)
        ratio = f"latency_ratio {setting.latency_ratio:g}"
        return f"group {setting.group or 'none'}; slices {slices}; metrics {metrics}; {ratio}"
    return f"{counted(setting.count, 'query')} ({setting.sha256[:12]})"


def told(summary: ComparisonSummary) -> str:
    """Return a comparison in one line."""
    changed = f", {' and '.join(summary.changed)} changed" if summary.changed else ""
    queries = f"{counted(summary.queries.count, 'query')} ({summary.queries.sha256[:12]})"
    runs = ", by run files" if summary.runs else ""
    if look := summary.shadow:
        runs = f", by look {look.look} of shadow {look.shadow}"
    return (
        f"{summary.at}  {summary.verdict}  candidate {summary.candidate}  on {queries},"
        f" margin {_margin(summary.margin)}{changed}{runs}  by {summary.by}"
    )


def notes(c: Comparison) -> list[str]:
    """Return what to know of the evidence before reading the figures, and what was left out of it."""
    return [*warnings(c), *left_out(c)]


def warnings(c: Comparison) -> list[str]:
    """Return what makes the evidence weaker than it looks."""
    queries, lines = c.queries, []
    if made := not_passed_by_runs(c):
        lines.append(
            f"promote does not accept this comparison, which is by searches: the last one by run files"
            f" ({made.at}) was {made.verdict}"
        )
    if c.same_lists == queries.count:
        lines.append(
            "ATTENTION: live and candidate have the same list of documents for every query:"
            " are they two different searches?"
        )
    if c.gate_is_late:
        lines.append("the plan named no queries: they were named only at the first comparison")
    if clicked := [found.name for found in queries.sets if found.evidence == "clicks"]:
        lines.append(
            f"relevance by clicks, not by judges: {', '.join(clicked)}; clicks favour what live showed"
        )
        if queries.clicks_outside:
            clicks = counted(queries.clicks, "click")
            lines.append(
                f"{queries.clicks_outside:,} of {clicks} on documents that neither release finds:"
                " they count as relevant, and as not found"
            )
    return [*lines, *_gate_notes(c)]


def left_out(c: Comparison) -> list[str]:
    """Return which queries, documents and fields were left out or counted apart, how many, and why."""
    queries, lines = c.queries, []
    if queries.dropped:
        lines.append(f"left out: {counted(queries.dropped, 'query')} without a relevant document")
    if queries.not_held:
        judgements = counted(queries.not_held, "judgement")
        lines.append(
            f"{judgements} of relevant documents that the candidate does not have: they count as not found"
        )
    if queries.own_documents:
        own = f"{queries.own_documents:,} queries have a document's id: it is left out of their results, as BEIR does"
        if queries.own_judged:
            own += f"; {queries.own_judged:,} of these documents are judged relevant: are the ids equal by chance?"
        lines.append(own)
    if queries.same_text:
        lines.append(f"{queries.same_text:,} queries have a text that another query has as well")
    for name in queries.constant_slices:
        lines.append(f"slice {name}: all queries have one value, left out")
    return [*lines, *without_vectors(c)]


def _gate_notes(c: Comparison) -> Iterator[str]:
    """Yield what the gate could not look at, or looked at too favourably."""
    if found := c.likely_groups:
        like = f"{found.queries:,} queries have {found.how} as another, such as {found.example!r} and {found.like!r}"
        again = compare_again(c.candidate.release, c.summary().runs)
        group = f"`{again} --set gate.group=FIELD --changed-gate --reason WHY`"
        yield f"{like}: if they belong together, the bounds are too narrow without {group}"
    small = {(s.field, s.value): s.change.independent for s in c.slices if s.p is None}
    if small:
        of = counted(len({(s.field, s.value) for s in c.slices}), "slice")
        told = [f"{field} = {value} (n {n})" for (field, value), n in small.items()]
        named = ", ".join([*told[:_NAMED], *["…"] * (len(told) > _NAMED)])
        yield f"too small to show harm or rule it out: {len(small):,} of {of}: {named}"
    if c.known_items.why:
        yield f"known items were not searched: {c.known_items.why}"


def _margin(margin: float | None) -> str:
    return "0.01 (or 2 % of live's value if that is more)" if margin is None else f"{margin:g}"

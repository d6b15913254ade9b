"""What stands beside a verdict, in words: run files, logged queries, clicks, cut-offs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from reembed.evaluation.comparisons import metric_name
from reembed.evaluation.figures import DEPTH
from reembed.plural import counted

if TYPE_CHECKING:
    from reembed.catalog.reports import CutOff, CutOffs
    from reembed.evaluation.comparisons import Comparison
    from reembed.evaluation.figures import Clicked, LoggedQueries, RunFile, Sides


def beside(c: Comparison) -> list[str]:
    """Return the lines of what was compared beside the gate, or in another way."""
    lines: list[str] = []
    if c.runs:
        lines += run_words(c.runs)
    if c.logged:
        lines += logged_words(c.logged)
    if c.cutoffs:
        lines += cutoff_words(c.cutoffs)
    return lines


def without_vectors(c: Comparison) -> Iterator[str]:
    """Yield which queries a model embeds not at all, or not whole."""
    count = "" if c.runs else "; they count as without results"
    for role, queries in vars(c.not_embedded).items():
        if queries:
            yield f"not embedded by the model of {role}: {counted(queries, 'query')}{count}"
    for role, queries in vars(c.truncated).items():
        if queries:
            yield f"longer than the model of {role} reads, and cut: {counted(queries, 'query')}"


def run_words(runs: Sides[RunFile]) -> Iterator[str]:
    """Yield which run files were judged, and what of them was not."""
    yield "the metrics come from run files, not from searches of the releases"
    for role, run in vars(runs).items():
        yield f"{role}: {run.place} (sha256 {run.sha256[:12]}), {counted(run.queries, 'judged query')}"
        if run.unjudged:
            yield f"  not looked at: {counted(run.unjudged, 'other query')} in it"
        if run.unknown:
            yield f"  not in the release: {counted(run.unknown, 'document')} of its results"
    if left_out := runs.live.missing:
        yield f"left out: {counted(left_out, 'query')} that live's file does not have"
    if empty := runs.candidate.missing:
        yield f"without results: {counted(empty, 'judged query')} that the candidate's file lacks"


def logged_words(found: LoggedQueries) -> Iterator[str]:
    """Yield what logged queries show."""
    there = f"{counted(found.distinct, 'different text')} in {counted(found.rows, 'row')}"
    yield (
        f"logged queries: {found.asked:,} of {there}:"
        f" overlap@10 {found.overlap_at_10:.3f}, rank-biased overlap {found.rbo:.3f},"
        f" without results {found.zero_results.live:.1%} in live, {found.zero_results.candidate:.1%} in the candidate"
    )
    if found.empty:
        yield f"  left out: {counted(found.empty, 'row')} without a text"
    if found.clicked:
        yield from _clicked(found.clicked)


def _clicked(found: Clicked) -> Iterator[str]:
    judged = found.judged_at_10
    yield (
        f"  {found.queries:,} of them with clicks, which favour what live showed"
        f" (clicked@10: {judged.live:.3f} in live, {judged.candidate:.3f} in the candidate):"
    )
    for key, m in found.metrics.items():
        interval = ""
        if m.change.low is not None and m.change.high is not None:
            interval = f" ({m.change.low:+.3f} .. {m.change.high:+.3f})"
        yield f"    {metric_name(key)} {m.live:.3f} -> {m.candidate:.3f}, {m.change.mean:+.3f}{interval}"
    if found.outside:
        yield f"  {found.outside:,} of {counted(found.clicks, 'click')} on documents that neither release finds"
    if found.unknown:
        yield f"  not in the candidate: {counted(found.unknown, 'clicked document')}"


def cutoff_words(found: CutOffs) -> Iterator[str]:
    """Yield what corresponds to a cut-off of live."""
    yield (
        f"cut-off {found.cutoff:g} of live shows {found.live_results:.1f} results a query"
        f" and {found.live_recall:.1%} of the relevant documents; of the candidate,"
    )
    yield f"  the same recall: {cut_off_words(found.same_recall)}"
    yield f"  the same share of results: {cut_off_words(found.same_share)}"
    if found.full_lists:
        full = counted(found.full_lists, "query")
        yield f"  {full} with at least {DEPTH} results of live above it, of which {DEPTH} are known"


def cut_offs_in_a_line(found: CutOffs) -> str:
    """Return the cut-offs of a release that correspond to one of the release before it."""
    return (
        f"cut-off {found.cutoff:g} of the release that it was compared with:"
        f" {cut_off_words(found.same_recall)} for the same recall,"
        f" {cut_off_words(found.same_share)} for the same share of results"
    )


def cut_off_words(found: CutOff) -> str:
    """Return a cut-off with its interval, or why there is none."""
    if found.score is None:
        return f"not known: {found.why}"
    low, high = (f"{end:.4f}" if end is not None else "?" for end in (found.low, found.high))
    return f"{found.score:.4f} ({low} .. {high})"

"""A comparison as text for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from reembed.cli.layout import Lines, aligned, coloured, documents_of, next_lines
from reembed.evaluation.beside import beside
from reembed.evaluation.comparisons import metric_name
from reembed.evaluation.figures import Sides
from reembed.evaluation.report import choices, evidence, notes
from reembed.plural import counted
from reembed.store.storage import readable

if TYPE_CHECKING:
    from reembed.catalog.reports import ReleaseSummary
    from reembed.evaluation.comparisons import Comparison


def compared(c: Comparison) -> Lines:
    """Yield the lines of a comparison."""
    live, new = c.live, c.candidate
    yield (
        f"{c.alias}: {new.release} (candidate) against {live.release} (live),"
        f" {counted(c.queries.count, 'query')}"
    )
    sides = (("candidate", new), ("live", live))
    yield from aligned([(n, *_model(s, c), documents_of(s)) for n, s in sides])
    yield ""
    yield from aligned([*_metrics(c), *_operation(c)], right=(1, 2))
    yield ""
    yield from (f"  {line}" for line in (*notes(c), *beside(c)))
    for rule in c.rules:
        yield coloured(rule.verdict, rule.verdict, before="  ", after=f"  {rule.detail}")
    yield from (f"  {line}" for line in evidence(c))
    yield from (f"  the sources differ: {words}" for words in c.documents.differ)
    yield coloured(c.verdict, c.verdict, before="verdict: ", after=f"   report: {c.report}")
    yield from next_lines(*choices(c))


def _model(side: ReleaseSummary, c: Comparison) -> tuple[str, str]:
    """Return a side's model, with the id of its space where both have the same name."""
    one_name = c.live.model == c.candidate.model and c.live.space != c.candidate.space
    name = f"{side.model} (space {side.space})" if one_name else side.model
    return name, f"{side.dim} dimensions"


def _metrics(c: Comparison) -> Iterator[tuple[str, ...]]:
    yield "", "live", "candidate", "difference (95 % interval)", "worse / same / better"
    for name, m in c.metrics.items():
        interval = f"({_signed(m.change.low)} .. {_signed(m.change.high)})"
        difference = f"{m.change.mean:+.3f} {interval}"
        shown = f"{m.worse:,} / {m.same:,} / {m.better:,}"
        yield metric_name(name), f"{m.live:.3f}", f"{m.candidate:.3f}", difference, shown
    for name, sides in (("judged@10", c.judged_at_10), ("ann_recall@10", c.ann_recall_at_10)):
        yield name, f"{sides.live:.3f}", f"{sides.candidate:.3f}", "", ""
    yield "overlap@10", "", f"{c.overlap_at_10:.3f}", "(different is not worse)", ""
    yield "rank-biased overlap", "", f"{c.rbo:.3f}", "", ""


def _operation(c: Comparison) -> Iterator[tuple[str, ...]]:
    if c.zero_results != Sides(0.0, 0.0):
        sides = c.zero_results
        yield "without results", f"{sides.live:.1%}", f"{sides.candidate:.1%}", "", ""
    for what, found in (("latency", c.latency), ("encoding", c.encoding)):
        if found:
            for p in ("p50", "p95", "p99"):
                a, b = (getattr(side, f"{p}_ms") for side in (found.live, found.candidate))
                yield f"{p} {what}", f"{a:.2f}ms", f"{b:.2f}ms", f"x{b / a:.2f}", ""
    live, new = c.index.live, c.index.candidate
    yield "index on disk", readable(live.disk_bytes), readable(new.disk_bytes), "", ""
    if live.memory_bytes is not None and new.memory_bytes is not None:
        yield "index in memory", readable(live.memory_bytes), readable(new.memory_bytes), "", ""


def _signed(value: float | None) -> str:
    return "?" if value is None else f"{value:+.3f}"

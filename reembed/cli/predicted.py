"""A prediction of a migration's gain as text for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from reembed.cli.layout import Lines, aligned, coloured
from reembed.evaluation.comparisons import metric_name
from reembed.plural import counted

if TYPE_CHECKING:
    from reembed.evaluation.rerank import Prediction


def predicted(p: Prediction) -> Lines:
    """Yield the lines of a prediction."""
    if p.queries is None:
        yield f"{p.alias}: nothing shows that {p.model} is better: there are no judged queries"
        yield f"  it may start without evidence: {p.reason}"
        return
    yield (
        f"{p.alias}: would {p.model} gain anything over {p.live.model} (live, {p.live.release})?"
        f" {counted(p.queries.count, 'query')}"
    )
    yield from aligned([*_metrics(p)], right=(1, 2))
    yield ""
    yield from (f"  {line}" for line in (*_means(p), *_left_out(p)))
    for rule in p.rules:
        yield coloured(rule.verdict, rule.verdict, before="  ", after=f"  {rule.detail}")
    yield coloured(p.verdict, p.verdict, before="prediction: ", after=f"   {_cost(p)}")


def _metrics(p: Prediction) -> Iterator[tuple[str, ...]]:
    yield "", "live", "ranked again", "difference (95 % interval)"
    for m in p.metrics:
        interval = f"({m.low:+.3f} .. {m.high:+.3f})"
        again = f"{m.live + m.change:.3f}"
        yield metric_name(m.metric), f"{m.live:.3f}", again, f"{m.change:+.3f} {interval}"
    if p.judged_at_10:
        sides = p.judged_at_10
        yield "judged@10", f"{sides.live:.3f}", f"{sides.candidate:.3f}", ""


def _means(p: Prediction) -> Iterator[str]:
    yield f"the new model ranked again what live finds: the first {p.depth} results of each query"
    yield "what only the new model would find is not in it: a gain or a loss is usually larger after the migration"


def _left_out(p: Prediction) -> Iterator[str]:
    assert p.queries is not None
    found = p.documents
    if found.changed:
        yield f"left out, in their places: {counted(found.changed, 'document')} whose text changed since"
    if found.gone:
        yield f"left out, in their places: {counted(found.gone, 'document')} that the source no longer has"
    if found.failed:
        yield f"not embedded by the new model: {counted(found.failed, 'document')}; it would not find them"
    if p.queries.not_embedded:
        queries = counted(p.queries.not_embedded, "query")
        yield f"not embedded by the new model: {queries}; they count as without results"
    for name in p.not_predicted:
        yield f"not predicted: {metric_name(name)}, which counts too many of {p.depth} results"
    if clicked := [found.name for found in p.queries.sets if found.evidence == "clicks"]:
        yield f"relevance by clicks, not by judges: {', '.join(clicked)}; clicks favour what live showed"


def _cost(p: Prediction) -> str:
    tokens = f", {counted(p.tokens, 'token')}" if p.tokens else ""
    return f"{counted(p.documents.embedded, 'document')} embedded{tokens}, in {p.seconds:.1f} s"

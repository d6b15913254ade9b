"""What a lazy migration would do, as text for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from reembed.cli.layout import Lines, aligned, next_lines
from reembed.evaluation.comparisons import metric_name
from reembed.plural import counted

if TYPE_CHECKING:
    from reembed.catalog.lazies import Fusion
    from reembed.strategies.simulate import Course, Simulated


def simulated(r: Simulated) -> Lines:
    """Yield the lines of a simulation."""
    yield f"{r.alias}: a lazy migration from {r.live.model} (live, {r.live.release}) to {r.model}"
    queries = f"{counted(r.replayed, 'query')} of {r.logged:,} in the log, {r.texts:,} different"
    share = r.turned_up / max(1, r.documents)
    yield f"  {queries}: their first {r.k} results are {share:.1%} of {counted(r.documents, 'document')}"
    for course in r.courses:
        yield ""
        yield (
            f"  with a sweep of {course.sweep}, what turned up included:"
            if course.sweep
            else "  by traffic alone, at once:"
        )
        yield from aligned([*_rows(r, course)], right=range(4 + len(_rules(r))))
        yield f"  {_end(course)}"
    yield ""
    yield from (f"  {line}" for line in _quality(r))
    yield "  not counted: the time that batches take"
    with_sweep = () if r.courses[-1].sweep else ("reembed simulate --sweep 3/q     # with a sweep",)
    yield from next_lines("reembed lazy start", *with_sweep)


def _rules(r: Simulated) -> tuple[Fusion, ...]:
    return r.fusions if r.judged else ()


def _rows(r: Simulated, course: Course) -> Iterator[tuple[str, ...]]:
    named = [f"{metric_name(r.judged.metric)} {rule}" for rule in r.fusions] if r.judged else []
    days = ["days"] if any(point.days for point in course.points) else []
    yield "queries", *days, "documents", "results", *named
    for p in course.points[:1] if course.complete == 0 else course.points:  # the others are equal
        passed = [f"{p.days or 0:.1f}" for _ in days]
        measured = [f"{p.quality[rule]:.4f}" for rule in _rules(r)]
        yield f"{p.queries:,}", *passed, f"{p.documents:.1%}", f"{p.answers:.1%}", *measured


def _end(course: Course) -> str:
    if course.complete == 0:
        return "the start alone migrates every document"
    if course.complete is not None:
        return f"every document is migrated after {counted(course.complete, 'query')}"
    return f"{course.points[-1].documents:.1%} of the documents are migrated in the end, not all"


def _quality(r: Simulated) -> Iterator[str]:
    if r.judged is None:
        yield f"quality: not known ({r.no_quality})"
        return
    found = r.judged
    name, by = metric_name(found.metric), counted(found.queries, "judged query")
    end = ", ".join(f"{value:.4f} by {rule}" for rule, value in found.in_the_end.items())
    yield f"{name} by {by}: {found.live:.4f} on live alone; with all documents migrated {end}"
    tokens = f" of {counted(found.tokens, 'token')}" if found.tokens else ""
    yield f"{counted(found.embedded, 'document')}{tokens} embedded for it, in {found.seconds:.1f} s"
    if {"zscore", "rrf"}.intersection(r.fusions):
        yield (
            "zscore and rrf also find documents that live does not find: they are seen here on those that"
            " live finds for a judged query, so their gain and their loss may be larger"
        )

"""Sections on how both sides answer: scores, latency, cut-offs, the index, and what logged queries show."""

from __future__ import annotations

from collections.abc import Iterator

from reembed.evaluation.beside import cut_off_words, logged_words
from reembed.evaluation.comparisons import Comparison
from reembed.evaluation.figures import DEPTH, Curve, IndexUsed, Quartiles, Sides
from reembed.evaluation.page.model import Block, Code, Items, Line, Paragraph, Section, Table
from reembed.evaluation.page.plots import operating, scores
from reembed.plural import counted
from reembed.store.storage import readable

_SIDES = ("", "live", "candidate")


def score_section(c: Comparison) -> Section:
    """Return how both sides score relevant results and others."""
    title = "Distribution of the scores"
    if c.scores is None:
        return Section(title, (Paragraph("No query has results."),))
    cuts: Sides[float | None] = Sides(None, None)
    if c.cutoffs:
        cuts = Sides(c.cutoffs.cutoff, c.cutoffs.same_recall.score)
    rows: list[tuple[Line, ...]] = []
    for role, of in vars(c.scores.of).items():
        for kind, quartiles, counts in (
            ("relevant", of.of_relevant, of.relevant),
            ("others", of.of_others, of.others),
        ):
            rows.append((f"{role}, {kind}", f"{sum(counts):,}", *_quartiles(quartiles)))
    columns = ("side", "results", "25 %", "median", "75 %")
    table = Table("Quartiles of the scores of the first ten results", columns, tuple(rows))
    blocks: tuple[Block, ...] = (scores(c.scores, cuts), table)
    if c.runs:
        blocks += (Paragraph("The scores are those of the run files."),)
    return Section(title, blocks)


def _quartiles(found: Quartiles | None) -> tuple[str, ...]:
    if found is None:
        return ("", "", "")
    return tuple(f"{value:.4f}" for value in vars(found).values())


def latency(c: Comparison) -> Section:
    """Return the percentiles of a search and of encoding a query."""
    rows: list[tuple[Line, ...]] = []
    for what, found in (("search of the index", c.latency), ("encoding of a query", c.encoding)):
        if found is None:
            continue
        for p in ("p50", "p95", "p99"):
            live, new = (getattr(side, f"{p}_ms") for side in (found.live, found.candidate))
            timed = f"{found.live.queries:,}"
            rows.append((f"{what}, {p}", f"{live:.2f} ms", f"{new:.2f} ms", f"x{new / live:.2f}", timed))  # fmt: skip
    if not rows:
        return Section("Latency", (Paragraph("Too few queries were timed."),))
    how = (
        "One query at a time, both sides in turns, after a few that are not counted. A search has the"
        " query's vector already."
    )
    columns = (*_SIDES, "ratio", "queries")
    return Section("Latency", (Table("Latency of one query", columns, tuple(rows)), Paragraph(how)))


def cut_offs(c: Comparison) -> Section | None:
    """Return what corresponds to a cut-off of live; None if none was asked for."""
    if (found := c.cutoffs) is None:
        return None
    shows = (
        f"The cut-off {found.cutoff:g} of live shows {found.live_results:.1f} results a query and"
        f" {found.live_recall:.1%} of the relevant documents."
    )
    rows = (
        ("the same recall", cut_off_words(found.same_recall)),
        ("the same number of results", cut_off_words(found.same_share)),
    )
    columns = ("keeps", "cut-off (95 % interval)")
    table = Table("Cut-offs of the candidate that correspond", columns, rows, (1,))
    blocks: tuple[Block, ...] = (Paragraph(shows), table)
    if found.full_lists:
        many = f"{DEPTH} results or more above it, of which {DEPTH} are known"
        full = f"Live has {many}, for {counted(found.full_lists, 'query')}."
        blocks += (Paragraph(full),)
    return Section("Score cut-offs", blocks)


def curves(c: Comparison) -> Section:
    """Return what each index finds the more it looks into."""
    plot = operating(c.curve)
    blocks: list[Block] = [plot] if plot else []
    for role, curve in vars(c.curve).items():
        used: IndexUsed = getattr(c.index, role)
        if curve is None:
            exact = " looks at all vectors and has no setting."
            blocks.append(Paragraph((f"{role}: ", Code(used.factory), exact)))
        else:
            blocks.append(_curve(role, curve))
    return Section("Operating curve of the index", tuple(blocks))


def _curve(role: str, c: Curve) -> Table:
    rows = tuple(
        (
            f"{p.value:,}{' (in use)' if p.value == c.value else ''}",
            f"{p.ann_recall_at_10:.4f}",
            f"{p.ms:.3f} ms",
        )
        for p in c.points
    )
    caption = (
        f"{role}: ann_recall@10 against exact search, on {counted(c.queries, 'judged query')};"
        " time of a query in a batch of these"
    )
    return Table(caption, (c.setting, "ann_recall@10", "time"), rows)


def sizes(c: Comparison) -> Section:
    """Return what both indexes take."""
    live, new = c.index.live, c.index.candidate
    recall = c.ann_recall_at_10
    rows: tuple[tuple[Line, ...], ...] = (
        ("kind", Code(live.factory), Code(new.factory)),
        ("operating point", _point(live), _point(new)),
        ("ann_recall@10, all judged queries", f"{recall.live:.4f}", f"{recall.candidate:.4f}"),
        ("on disk", readable(live.disk_bytes), readable(new.disk_bytes)),
        ("in memory of a process that serves it", _memory(live), _memory(new)),
    )
    return Section("Index size and memory", (Table("Indexes of both", _SIDES, rows),))


def _point(index: IndexUsed) -> str:
    return ", ".join(f"{name} {value}" for name, value in index.operating_point.items()) or "none"


def _memory(index: IndexUsed) -> str:
    if index.memory_bytes is None:
        return "read as needed"
    return readable(index.memory_bytes)


def logged(c: Comparison) -> Section | None:
    """Return what logged queries show; None if none were asked."""
    if c.logged is None:
        return None
    return Section("Logged queries", (Items(tuple(_stripped(logged_words(c.logged)))),))


def _stripped(lines: Iterator[str]) -> Iterator[str]:
    """Yield lines without the indentation of a terminal."""
    return (line.strip() for line in lines)

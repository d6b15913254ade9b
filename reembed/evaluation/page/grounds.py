"""Sections on what was compared, and on how to go forward and back."""

from __future__ import annotations

from reembed.catalog.releases import AliasRecord, Release
from reembed.catalog.reports import ComparisonSummary
from reembed.evaluation.beside import run_words
from reembed.evaluation.comparisons import Comparison
from reembed.evaluation.page.model import (
    Block,
    Code,
    Commands,
    Items,
    Judged,
    Line,
    Paragraph,
    Section,
    Table,
)
from reembed.evaluation.page.numbers import clipped
from reembed.evaluation.report import left_out
from reembed.plural import counted

_SHORT = 12
"""Digits of a digest that are shown."""
_STEPS = 20
"""Of the alias's history and of earlier comparisons, the newest."""


def compared(c: Comparison, candidate: Release, log: list[AliasRecord]) -> Section:
    """Return the releases, the queries, what was left out, the machine, and what was compared before."""
    parts = [_queries(c), _left_out(c), _machine(c), _verified(candidate), _earlier(c), _history(log)]  # fmt: skip
    return Section("What was compared", (_releases(c),), tuple(parts))


def _releases(c: Comparison) -> Table:
    live, new = c.live, c.candidate

    def row(name: str, of: str) -> tuple[Line, ...]:
        return name, Code(str(getattr(live, of))), Code(str(getattr(new, of)))

    def count(name: str, of: str) -> tuple[Line, ...]:
        return name, f"{getattr(live, of):,}", f"{getattr(new, of):,}"

    rows = (
        row("release", "release"),
        row("model", "model"),
        row("digest of the model", "model_sha256"),
        row("space", "space"),
        count("dimensions", "dim"),
        count("documents", "documents"),
        count("rows", "rows"),
        count("documents without a vector", "dead_letters"),
        count("source version", "source_version"),
        row("built", "created_at"),
        ("digest of the index", Code(c.index.live.sha256), Code(c.index.candidate.sha256)),
    )
    return Table("Releases", ("", "live", "candidate"), rows, (1, 2))


def _queries(c: Comparison) -> Section:
    used = c.queries
    rows: tuple[tuple[Line, ...], ...] = tuple(
        (Code(s.name), Code(s.source), s.evidence, f"{s.count:,}", f"{s.dropped:,}")
        for s in used.sets
    )
    columns = ("set", "source", "relevance by", "queries", "left out")
    blocks: list[Block] = [Table("Sets of judged queries", columns, rows, (1, 2))]
    there = f". {used.judged_present:.1%} of the relevant documents are in the candidate."
    blocks += [
        Paragraph(("Digest of all queries: ", Code(used.sha256), there)),
        Paragraph(("Values of each query: ", Code(f"{c.per_query_sha256}.parquet"))),
    ]
    if c.runs:
        blocks.append(Items(tuple(line.strip() for line in run_words(c.runs))))
    return Section("Queries", tuple(blocks))


def _left_out(c: Comparison) -> Section:
    lines = left_out(c)
    nothing = Paragraph("Nothing was left out.")
    return Section("Left out, or counted apart", (Items(tuple(lines)) if lines else nothing,))


def _machine(c: Comparison) -> Section:
    ran = c.environment
    packages = ", ".join(f"{name} {version}" for name, version in ran.packages.items())
    seeds = ", ".join(f"{what} {seed}" for what, seed in ran.seeds.items())
    rows: tuple[tuple[Line, ...], ...] = (
        ("platform", Code(ran.platform)),
        ("cores", f"{ran.cpus}"),
        ("versions", f"Python {ran.python}, {packages}"),
        ("seeds", seeds),
        ("made", (f"{c.at} by ", Code(c.by))),
    )
    return Section("Versions, machine and seeds", (Table("What it ran on", ("", ""), rows, (1,)),))


def _verified(candidate: Release) -> Section:
    found = candidate.verify
    sizes = (
        f"{counted(found.documents, 'document')}, {counted(found.rows, 'row')},"
        f" {counted(found.dead_letters, 'dead letter')}. {found.confidence}."
    )
    kinds = " · ".join(f"{kind} {d.count:,}" for kind, d in found.differences.items())
    rows = "Rows, or documents, that differ from the source, by kind; all must be 0: "
    return Section("Verification of the candidate", (Paragraph(sizes), Paragraph(f"{rows}{kinds}")))


def _earlier(c: Comparison) -> Section:
    made = [*c.earlier, c.summary()]
    columns = ("when", "verdict", "queries", "digest", "margin", "changed", "candidate", "by")
    rows = tuple(map(_made, made[-_STEPS:]))
    table = Table(
        "Comparisons, newest last; the last is this one", columns, rows, (1, 3, 4, 5, 6, 7)
    )
    told = "A release that a catch-up made counts as the one that it continues."
    title = "All comparisons of this model with the live one"
    return Section(title, (Paragraph(told), table, *_more(len(made))))


def _made(e: ComparisonSummary) -> tuple[Line, ...]:
    margin = "0.01 or 2 %, the larger" if e.margin is None else f"{e.margin:g}"
    return (
        e.at,
        Judged(e.verdict),
        f"{e.queries.count:,}",
        Code(e.queries.sha256[:_SHORT]),
        margin,
        ", ".join(e.changed),
        Code(e.candidate),
        Code(e.by),
    )


def _more(count: int) -> tuple[Block, ...]:
    if count <= _STEPS:
        return ()
    return (Paragraph(f"{count - _STEPS:,} older ones are not shown."),)


def _history(log: list[AliasRecord]) -> Section:
    columns = ("step", "when", "what", "release", "compared", "by", "why")
    rows = tuple(map(_step, log[-_STEPS:]))
    table = Table("Steps of the alias, newest last", columns, rows, (1, 2, 3, 4, 5, 6))
    return Section("History of the alias", (table, *_more(len(log))))


def _step(r: AliasRecord) -> tuple[Line, ...]:
    grounds, compared = r.grounds, ""
    flags = {" (forced)": grounds.forced, " (without evidence)": grounds.without_evidence}
    if made := grounds.comparison:
        compared = f"{made.verdict}, {len(made.earlier) + 1:,} made"
    return (
        f"{r.generation}",
        r.at,
        "".join([r.action, *(words for words, given in flags.items() if given)]),
        Code(r.release.id),
        compared,
        Code(r.by),
        clipped(grounds.reason or "", 200),
    )


def forward_and_back(c: Comparison) -> Section:
    """Return how to promote the candidate, and how to go back to what is live now."""
    new, live = c.candidate.release, c.live.release
    forward = (
        f"reembed promote {new}     # makes the candidate live; it catches up with the source first"
    )
    if c.verdict != "pass":
        forward = f"reembed promote {new} --force --reason 'WHY'     # overrules the gate; recorded permanently"
    back = f"reembed rollback --to {live}     # makes what is live now live again: one write, no data is moved"
    then = "reembed history     # who promoted what, when and why"
    both = "Readers see the old or the new release, never a mix. With the same -c FILE as for the comparison:"
    return Section("Promote and roll back", (Paragraph(both), Commands.of([forward, back, then])))

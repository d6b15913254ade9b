"""Sections on relevance: the verdict, the change of the metrics, slices, and the queries that changed most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from reembed.evaluation.comparisons import Comparison, metric_name
from reembed.evaluation.figures import SliceChange
from reembed.evaluation.page.model import (
    Beside,
    Block,
    Code,
    Commands,
    Folded,
    Items,
    Judged,
    Line,
    Paragraph,
    Section,
    Soft,
    Table,
)
from reembed.evaluation.page.numbers import between, clipped, interval, signed
from reembed.evaluation.page.plots import forest
from reembed.evaluation.per_query import ChangedMost, Found, QueryChange
from reembed.evaluation.report import changed_words, choices, shadow_words, warnings
from reembed.evaluation.slices import HARM, MIN_SLICE
from reembed.plural import counted

_MOST_SLICES = 100
_MOST_TEXT = 300
_FIRST = 10
_CHANGE = (
    *("metric", "live", "candidate", "change", "95 % interval", "one-sided bounds"),
    *("allowed loss", "worse/same/better"),
)


def lead(c: Comparison) -> tuple[Block, ...]:
    """Return what the verdict is about, what to do first, and what speaks against it."""
    what: Line = (
        Code(c.candidate.release),
        " (candidate) against ",
        Code(c.live.release),
        f" (live), {counted(c.queries.count, 'query')}",
        Soft(f" · {c.at} · {c.by}"),
    )
    found: list[Block] = [Paragraph(what)]
    open_rules = [rule for rule in c.rules if rule.verdict != "pass"]
    if open_rules:
        found.append(Items(tuple((Judged(r.verdict), " ", r.detail) for r in open_rules)))
    found.append(Paragraph("What to do first, with the same -c FILE as for the comparison:"))
    first, *others = choices(c)
    found.append(Commands.of([first]))
    if others:
        found += [Paragraph("Or:"), Commands.of(others)]
    differ = [f"the sources differ: {words}" for words in c.documents.differ]
    shadow = shadow_words(c.shadow) if c.shadow else []
    if told := [*shadow, *warnings(c), *differ, *map(changed_words, c.changes)]:
        found += [Paragraph("To know before reading on:"), Items(tuple(told))]
    return tuple(found)


def changes(c: Comparison) -> Section:
    """Return the change of every metric with its intervals and the applied margins, and the gate's rules."""
    named = {metric_name(key): m for key, m in c.metrics.items()}
    rows: list[tuple[Line, ...]] = []
    for name, m in named.items():
        change = m.change
        rows.append(
            (
                name,
                f"{m.live:.3f}",
                f"{m.candidate:.3f}",
                signed(change.mean),
                interval(change),
                between(change.lower, change.upper),
                "" if m.margin is None else f"{m.margin:.4f}",
                f"{m.worse:,} / {m.same:,} / {m.better:,}",
            )
        )
    table = Table("Metrics of both, and their change", _CHANGE, tuple(rows))
    margin = "0.01, or 2 % of live's value if that is more"
    if c.planned_gate.margin is not None:
        margin = f"{c.planned_gate.margin:g}"
    of = " and ".join(map(metric_name, c.gate.metrics))
    planned = f"Loss of {of} that the plan allows (gate.margin): {margin}."
    if c.gate.margin is not None and c.gate.margin != c.planned_gate.margin:
        planned += f" {c.gate.margin:g} was used instead, for the reason above."
    plot = (forest(named),) if named else ()
    return Section("Change of the metrics", (*plot, table, Paragraph(planned)), (_rules(c), _alike(c)))  # fmt: skip


def _rules(c: Comparison) -> Section:
    rows = tuple((r.name, Judged(r.verdict), r.detail) for r in c.rules)
    table = Table("Rules of the gate", ("rule", "verdict", "what was found"), rows, words=(1, 2))
    return Section("Gate", (table,))


def _alike(c: Comparison) -> Section:
    judged, empty = c.judged_at_10, c.zero_results
    different = "different is not worse"
    unjudged = (
        "share of the first 10 results that have a judgement; the others count as not relevant"
    )
    rows = (
        ("judged@10", f"{judged.live:.3f}", f"{judged.candidate:.3f}", unjudged),
        ("overlap@10", "", f"{c.overlap_at_10:.3f}", f"share that both have; {different}"),
        ("rank-biased overlap", "", f"{c.rbo:.3f}", f"likeness from 0 to 1; {different}"),
        ("without results", f"{empty.live:.1%}", f"{empty.candidate:.1%}", "share of the queries"),
    )
    columns = ("", "live", "candidate", "what it is")
    return Section("Likeness of the results", (Table("Result lists of both", columns, rows, (3,)),))


def slices(c: Comparison) -> Section:
    """Return the change in each part of the queries; of those that are too small, that nothing is shown."""
    if not c.slices:
        none = "No slices: gate.slices names no field that divides the queries."
        return Section("Slices", (Paragraph(none),))
    shown = sorted(c.slices, key=_worst_first)[:_MOST_SLICES]
    rows = tuple(_slice(s) for s in shown)
    columns = ("slice", "metric", "queries", "groups", "change", "95 % interval", "p", "verdict")
    small = sum(s.p is None for s in c.slices)
    words = (
        f"Harmed: a loss of more than {HARM} that is significant after Holm's correction. Not testable: fewer"
        f" than {MIN_SLICE} queries, or groups ({small:,} of {len(c.slices):,})."
    )
    blocks: list[Block] = [Table("Change in each slice", columns, rows, (1, 7)), Paragraph(words)]
    if len(c.slices) > len(shown):
        blocks.append(Paragraph(f"{len(c.slices) - len(shown):,} more are in the record (JSON)."))
    return Section("Slices", tuple(blocks))


def _worst_first(s: SliceChange) -> tuple[bool, bool, float]:
    return not s.harmed, s.p is None, s.change.mean


def _slice(s: SliceChange) -> tuple[Line, ...]:
    verdict: Line = "no harm shown"
    if s.harmed:
        verdict = (Judged("fail"), " harmed")
    elif s.p is None:
        verdict = "not testable"
    return (
        (f"{s.field} = ", Code(clipped(s.value))),
        metric_name(s.metric),
        f"{s.change.n:,}",
        f"{s.change.independent:,}",
        signed(s.change.mean),
        interval(s.change),
        "" if s.p is None else f"{s.p:.3f}",
        verdict,
    )


def changed_most(found: dict[str, ChangedMost]) -> Section:
    """Return the queries that lost and won most by each metric, with the first results of both sides."""
    parts = [
        Section(f"{metric_name(metric)}: {what} most", tuple(_queries(some, what)))
        for metric, most in found.items()
        for what, some in (("lost", most.lost), ("won", most.won))
    ]
    how = (
        "Each opens to the first ten results of both, with what the judgements say of them and the rank on the other"
        " side; ↑: the candidate shows it further up. All queries are in the Parquet file beside the record."
    )
    return Section("Queries that lost and won most", (Paragraph(how),), tuple(parts))


def _queries(some: Sequence[QueryChange], what: str) -> Iterator[Block]:
    if not some:
        yield Paragraph(f"No query {what}.")
    times = Counter(q.set for q in some)
    for number, q in enumerate(some):
        of = f" of {clipped(q.set)}" if len(times) > 1 else ""
        metric = f" {q.metric.live:.3f} → {q.metric.candidate:.3f}, {signed(q.change)}"
        yield Folded((Code(clipped(q.query_id)), of, metric), tuple(_query(q)), open=number == 0)


def _query(q: QueryChange) -> Iterator[Block]:
    if q.text is not None:
        yield Paragraph(("Query: ", Code(clipped(q.text, _MOST_TEXT))))
    hits = {r: sum((d.grade or 0) > 0 for d in f) for r, f in vars(q.found).items()}
    there = f"{counted(q.relevant, 'relevant document')}, of which the first {_FIRST} results have"
    yield Paragraph(f"{there} {hits['live']} in live and {hits['candidate']} in the candidate.")
    live, candidate = q.found.live, q.found.candidate
    yield Beside(
        (
            _results("live", live, "candidate", candidate),
            _results("candidate", candidate, "live", live),
        )
    )


def _results(role: str, found: tuple[Found, ...], other: str, others: tuple[Found, ...]) -> Table:
    places = {result.doc_id: rank for rank, result in enumerate(others, 1)}
    rows = tuple(
        (
            str(rank),
            _document(r),
            f"{r.score:.4f}",
            _grade(r.grade),
            _place(places.get(r.doc_id), rank, earlier=role == "live"),
        )
        for rank, r in enumerate(found, 1)
    )
    columns = ("rank", "document", "score", "relevant", f"in {other}")
    return Table(f"First results of {role}", columns, rows, (1, 3))


def _document(found: Found) -> Line:
    doc_id = Code(clipped(found.doc_id))
    return doc_id if found.text is None else (doc_id, Soft(f" {found.text}"))


def _grade(grade: int | None) -> Line:
    if grade is None:
        return Soft("not judged")
    if grade <= 0:
        return "no"
    return f"✓ yes ({grade})" if grade > 1 else "✓ yes"


def _place(there: int | None, here: int, *, earlier: bool) -> Line:
    """Return the rank on the other side, and whether the candidate shows it further up or down."""
    if there is None:
        return Soft("no")
    gained = here - there if earlier else there - here
    sign = "=" if not gained else "↑" if gained > 0 else "↓"
    return f"{there} {sign}"

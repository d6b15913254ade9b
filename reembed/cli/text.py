"""Results as text for people."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from reembed.cli.paste import after_import, after_run, after_status, pasteable
from reembed.cli.progress import counted, lag_words
from reembed.evaluation.comparisons import metric_name
from reembed.evaluation.report import choices, evidence, notes, told
from reembed.redact import one_line
from reembed.store.storage import readable

if TYPE_CHECKING:
    from reembed.api import Built
    from reembed.catalog.releases import Grounds, Release
    from reembed.catalog.reports import Difference, ReleaseSummary
    from reembed.config.settings import ResolvedConfig
    from reembed.evaluation.comparisons import Comparison
    from reembed.lifecycle.dead_letters import DeadLetters
    from reembed.lifecycle.gc_plan import Collected, Removable
    from reembed.lifecycle.moves import History, Moved
    from reembed.lifecycle.status import Candidate, OpenRun, Status
    from reembed.lifecycle.verification import Verified
    from reembed.planning.tune import Tuned
    from reembed.serving.live import SearchResult
    from reembed.source.importer import Imported
    from reembed.source.lag import Lag
    from reembed.strategies.up_to_date import CaughtUp

Lines = Iterable[str]
_COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}
_EXAMPLES = 5
_INDENT = " " * 13


class _Coloured(str):
    """A line that is harmless already, and holds a colour."""

    __slots__ = ()


def text(verb: str, result: Any, given: Sequence[str] = ()) -> str:
    """Return a verb's result for people; what to do next has the `given` options in it."""
    lines = (x if isinstance(x, _Coloured) else one_line(x) for x in _TEXTS[verb](result))
    said = "\n".join(lines)
    return said if verb == "search" else pasteable(said, given)  # a query may look like a command


def _coloured(verdict: str, words: str, before: str = "", after: str = "") -> _Coloured:
    """Return a line whose `words` have the colour of a verdict."""
    shown = click.style(one_line(words), fg=_COLOURS[verdict])
    return _Coloured(one_line(before) + shown + one_line(after))


def _table(rows: Sequence[Sequence[object]], right: Sequence[int] = ()) -> list[str]:
    """Return rows as indented lines with aligned columns; those in `right` to the right."""
    from tabulate import tabulate

    if not rows:
        return []
    cells = [[one_line(str(cell)) for cell in row] for row in rows]
    sides = ["right" if n in right else "left" for n in range(len(rows[0]))]
    lines = tabulate(cells, tablefmt="plain", disable_numparse=True, colalign=sides).splitlines()
    return [f"  {line}".rstrip() for line in lines]


def _next(first: str, *others: str) -> list[str]:
    return [f"Next: {first}", *(f"  or: {other}" for other in others)]


def _import(r: Imported) -> Lines:
    yield f"{r.uri}: {r.rows:,} rows, every cell read back and compared"
    notes = {column: f"({note})" for column, note in r.notes.items()}
    yield from _table([(column, kind, notes.get(column, "")) for column, kind in r.types.items()])
    if r.skipped:
        yield f"Left out (no values, or not in --columns): {', '.join(r.skipped)}"
    yield from _next(after_import(r))


def _tune(r: Tuned) -> Lines:
    yield (
        f"{r.docs_per_s:,.1f} docs/s, {r.tokens_per_s:,} tokens/s on this machine"
        f" (measured in {r.seconds:.0f} s on {r.sample.documents:,} documents)"
    )
    yield "embed:"
    yield from (f"  {name}: {value}" for name, value in vars(r.embed).items())
    by_hand = "reembed run     # with the lines above in its config"
    yield from _next(f"reembed run -c {shlex.quote(r.out)}" if r.out else by_hand)


def _run(r: Built) -> Lines:
    new = r.release
    yield f"release {new.id}: {_documents(new)}, model {new.space.model} (space {new.space.id})"
    yield from _next(after_run(new, r.live, judged=r.judged))


def _documents(release: Release | ReleaseSummary) -> str:
    """Return the documents of a release, and its rows where they are more or fewer."""
    if release.documents == release.rows:
        return counted(release.documents, "document")
    return f"{counted(release.documents, 'document')} in {counted(release.rows, 'row')}"


def _lag(lag: Lag) -> Lines:
    if words := lag_words(lag):
        yield f"{_INDENT}{words}"


def _status(r: Status) -> Lines:
    yield r.alias
    if r.live and r.lag:
        yield _release("live", r.live.release)
        yield from _lag(r.lag)
    else:
        yield "  live       nothing yet"
    if r.previous:
        yield _release("previous", r.previous)
    if r.forced:
        yield "  the live release was promoted with --force"
    if r.live:
        yield from _left_out(r.live.grounds)
    for old in r.older_candidates:
        verdict = old.verdict or "not with the live release"
        yield f"  candidate  {old.release}  compared: {verdict}"
    yield from (f"{_release('candidate', c.release)}  {_compared(c)}" for c in r.candidates)
    if back := r.rolled_back:
        reason = f": {back.reason}" if back.reason else ""
        yield f"  rolled back from {back.release} at {back.at}{reason}"
    if r.older_runs:
        yield f"  runs       {', '.join(r.older_runs)}  unfinished"
    for run in r.runs:
        yield from _open_run(run)
    yield from _next(*after_status(r))


def _left_out(grounds: Grounds) -> Lines:
    """Return what a gate that was left out or overruled would have asked for."""
    yield from (f"  not known: {words}" for words in grounds.unknown)
    if grounds.below_gate:
        yield f"  below its gate: {grounds.below_gate}"


def _compared(c: Candidate) -> str:
    if c.verdict:
        return f"compared: {c.verdict}"
    if c.superseded:
        return "an older build of what is live"
    if c.compared_with:
        return f"compared with {', '.join(c.compared_with)}, which is no longer live"
    return "compared: not yet"


def _open_run(run: OpenRun) -> Lines:
    state, at_work = f"stopped; `{run.resume}` resumes it", "was embedding"
    if run.driven:
        state, at_work = "running", "embedding"
    elif run.driven is None:
        state = f"last driven from {run.host}; if that process is gone: `{run.resume}`"
    yield f"  run        {run.run}  {run.staged:,} of {run.units or '?'} units staged  {state}"
    for w in run.workers:
        yield f"{_INDENT}{at_work} unit {w.unit}, attempt {w.attempt}, since {w.at}"
    if run.waiting:
        yield f"{_INDENT}waiting: {run.waiting}"


def _release(role: str, r: Release) -> str:
    return (
        f"  {role:9}  {r.id}  {r.space.model}  space {r.space.id}  {_documents(r)}"
        f"  source version {r.source.version}"
    )


def _verify(r: Verified) -> Lines:
    found = r.report
    sizes = (
        f"{counted(found.documents, 'document')}, {counted(found.rows, 'row')},"
        f" {counted(found.dead_letters, 'dead letter')}"
    )
    yield f"release {r.release}: {sizes}"
    kinds = found.differences.items()
    yield from _table([(k, f"{d.count:,}", _examples(d)) for k, d in kinds], right=(1,))
    yield f"  {found.confidence}"
    if r.passed:
        yield _coloured("pass", f"equal to source version {found.source_version}")
    else:
        yield _coloured("fail", f"differs from source version {found.source_version}")
    if behind := lag_words(r.lag):
        kinds = (found.behind or {}).items()
        newer = ", ".join(f"{d.count:,} {k}" for k, d in kinds if d.count)
        yield f"{behind}: {newer}" if newer else behind
    if not r.passed:
        yield from _next(r.rebuild)
    elif r.larger:
        yield "an earlier verification that checked more failed, so the release counts as failed"
        yield from _next(r.larger)
    elif r.lag.documents == 0:
        yield from _next("reembed status")
    else:
        yield from _next(f"reembed catch-up {r.release}")


def _examples(difference: Difference) -> str:
    return f"e.g. {', '.join(map(repr, difference.examples))}" if difference.count else ""


def _compare(c: Comparison) -> Lines:
    live, new = c.live, c.candidate
    yield (
        f"{c.alias}: {new.release} (candidate) against {live.release} (live),"
        f" {c.queries.count:,} queries"
    )
    sides = (("candidate", new), ("live", live))
    yield from _table([(n, s.model, f"{s.dim} dimensions", _documents(s)) for n, s in sides])
    yield ""
    yield from _table([*_metrics(c)], right=(1, 2))
    yield ""
    yield from (f"  {line}" for line in notes(c))
    for rule in c.rules:
        yield _coloured(rule.verdict, rule.verdict, before="  ", after=f"  {rule.detail}")
    yield from (f"  {line}" for line in evidence(c))
    yield from (f"  the sources differ: {words}" for words in c.documents.differ)
    yield _coloured(c.verdict, c.verdict, before="verdict: ", after=f"   report: {c.report}")
    yield from _next(*choices(c))


def _metrics(c: Comparison) -> Iterator[tuple[str, ...]]:
    yield "", "live", "candidate", "difference (95 % interval)", "worse / same / better"
    for name, m in c.metrics.items():
        interval = f"({_signed(m.change.low)} .. {_signed(m.change.high)})"
        difference = f"{m.change.mean:+.3f} {interval}"
        shown = f"{m.worse:,} / {m.same:,} / {m.better:,}"
        yield metric_name(name), f"{m.live:.3f}", f"{m.candidate:.3f}", difference, shown
    ann = c.ann_recall_at_10
    yield "ann_recall@10", f"{ann.live:.3f}", f"{ann.candidate:.3f}", "", ""
    yield "overlap@10", "", f"{c.overlap_at_10:.3f}", "(different is not worse)", ""
    if c.latency:
        old, new = c.latency.live, c.latency.candidate
        for name, a, b in (("p50", old.p50_ms, new.p50_ms), ("p95", old.p95_ms, new.p95_ms)):
            yield f"{name} latency", f"{a:.2f}ms", f"{b:.2f}ms", f"x{b / a:.2f}", ""


def _signed(value: float | None) -> str:
    return "?" if value is None else f"{value:+.3f}"


def _caught_up(r: CaughtUp) -> Lines:
    new = r.release
    if r.before == new.id:
        yield f"{r.before} has every document as the source has it; nothing was embedded"
    elif r.generation:
        yield f"{new.id} is now live for {r.alias}, in place of {r.before}"
    else:
        yield f"{new.id} replaces {r.before}, which is not live"
    yield f"  {_documents(new)}, {counted(new.dead_letters, 'dead letter')}"
    yield from _lag(r.behind)
    yield from _next("reembed status")


def _dead_letters(r: DeadLetters) -> Lines:
    so_far = "" if r.finished else " so far"
    count = f"{counted(len(r.dead_letters), 'dead letter')}{so_far}"
    yield f"{r.of}: {count}, of source version {r.source_version}"
    yield from (f"  {d.doc_id}  {d.reason}" for d in r.dead_letters)
    if r.dead_letters and r.finished:
        yield from _next(f"reembed catch-up {r.of} --retry-dead-letters")


def _moved(r: Moved) -> Lines:
    new = r.release
    if r.before == new.id:
        yield f"{r.alias}: {new.id} ({new.space.model}) is live already; nothing moved"
        yield from _lag(r.behind)
        return
    before = r.before or "nothing"
    yield f"{r.alias}: {before} -> {new.id} ({new.space.model}), generation {r.generation}"
    yield from _left_out(r.grounds)
    if r.grounds.forced:
        yield "  forced: without a passing comparison; `reembed history` shows the reason"
    if compared := r.grounds.comparison:
        yield f"  compared: {told(compared)}"
        yield from (f"  {line}" for line in evidence(compared))
    yield from _lag(r.behind)
    yield from _next("reembed search 'some words'")
    if r.before is None:
        yield "  no release was live before, so there is none to roll back to"
    else:
        yield f"Back: reembed rollback --to {r.before}"


def _history(r: History) -> Lines:
    yield f"{r.alias}: {counted(len(r.steps), 'step')}"
    rows = [
        (s.generation, s.at, s.action, s.release.id, s.release.space.model, f"by {s.by}", _why(s.grounds))
        for s in r.steps
    ]  # fmt: skip
    for step, line in zip(r.steps, _table(rows, right=(0,)), strict=True):
        yield line
        if compared := step.grounds.comparison:
            yield f"        compared: {told(compared)}"
            yield from (f"        {line}" for line in evidence(compared))
    yield from _next("reembed status")


def _why(grounds: Grounds) -> str:
    return f"forced: {grounds.reason}" if grounds.forced else grounds.reason or ""


def _search(r: SearchResult) -> Lines:
    yield f"release {r.release.id} ({r.release.space.model})"
    for query, hits in zip(r.queries, r.hits, strict=True):
        yield query
        yield from _table(
            [
                (rank, f"{hit.score:.4f}", hit.doc_id, *(str(v)[:80] for v in hit.columns.values()))
                for rank, hit in enumerate(hits, 1)
            ],
            right=(0,),
        )


def _gc(r: Collected) -> Lines:
    plan, done = r.plan, "removed" if r.deleted else "remove "
    yield from _table([("keep", k.release, k.why) for k in plan.keep])
    for run in plan.held_runs:
        give_up = f"reembed gc --drop-run {shlex.quote(run)} gives it up"
        yield f"  keep  the table of run {run}, which is not finished     # {give_up}"
    for n, x in enumerate(plan.remove):
        table = _going_table(x, plan.remove[:n])
        yield f"  {done} {x.release}  index {readable(x.index_bytes)}, {table}  {x.why}"
    yield from (f"  {done} what run {run} staged; it was given up" for run in plan.dropped_runs)
    yield from (f"  {done} {t}; only runs that were given up used it" for t in plan.tables)
    yield from (f"  {done} versions of {t} that no release names" for t in plan.trim)
    if plan.orphans:
        size = readable(sum(o.size for o in plan.orphans))
        yield f"  {done} {len(plan.orphans)} files ({size}) that no release uses:"
        yield from (f"            {o.path}" for o in plan.orphans[:_EXAMPLES])
    if not any((plan.remove, plan.dropped_runs, plan.tables, plan.trim, plan.orphans)):
        yield "Nothing to remove."
    elif r.deleted:
        yield f"{readable(plan.bytes)} freed."
        yield from _next("reembed status")
    else:
        yield f"Nothing was removed; this would free {readable(plan.bytes)}."
        dropping = f"reembed gc --drop-run {r.drop_run} --yes"
        yield from _next(dropping if r.drop_run else "reembed gc --yes")


def _going_table(x: Removable, listed: Sequence[Removable]) -> str:
    """Return what goes of a release's table; its size stands once, at the first of its releases."""
    if not x.whole_table:
        return f"its version of {x.table}"
    if any(x.table == before.table for before in listed):
        return "its table is counted above"
    return f"table {readable(x.table_bytes)}"


def _config(r: ResolvedConfig) -> Lines:
    if r.check:
        return ["The config is valid.", *_next("reembed run")]
    settings = _flat(r.config.shown())
    return _table([(k, repr(v), f"# {r.origins.get(k, 'default')}") for k, v in settings])


def _flat(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


_TEXTS: dict[str, Callable[[Any], Lines]] = {
    "import": _import,
    "run": _run,
    "tune": _tune,
    "status": _status,
    "verify": _verify,
    "compare": _compare,
    "promote": _moved,
    "catch-up": _caught_up,
    "dead-letters": _dead_letters,
    "rollback": _moved,
    "history": _history,
    "search": _search,
    "gc": _gc,
    "config": _config,
}

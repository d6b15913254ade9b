"""Results as text for people."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from reembed.cli.compared import compared
from reembed.cli.layout import INDENT, Coloured, Lines, aligned, coloured, documents_of, next_lines
from reembed.cli.lazied import lazied, lazy_left, lazy_line, swept
from reembed.cli.paste import after_import, after_run, after_status, pasteable
from reembed.cli.progress import lag_words
from reembed.cli.shadowed import shadow_line, shadowed
from reembed.cli.simulated import simulated
from reembed.evaluation.beside import cut_offs_in_a_line, cutoff_words
from reembed.evaluation.report import by_itself, evidence, told
from reembed.plural import counted
from reembed.redact import one_line
from reembed.store.storage import readable

if TYPE_CHECKING:
    from reembed.catalog.releases import AliasRecord, Release
    from reembed.catalog.reports import CutOffs, Difference, Grounds
    from reembed.config.settings import ResolvedConfig
    from reembed.lifecycle.dead_letters import DeadLetters
    from reembed.lifecycle.gc_plan import Collected, Removable
    from reembed.lifecycle.moves import History, Moved
    from reembed.lifecycle.status import Candidate, OpenRun, Status
    from reembed.lifecycle.verification import Verified
    from reembed.planning.tune import Tuned
    from reembed.serving.http.server import Served
    from reembed.serving.live import SearchResult
    from reembed.source.importer import Imported
    from reembed.source.lag import Lag
    from reembed.strategies.candidate import Built
    from reembed.strategies.up_to_date import CaughtUp

_EXAMPLES = 5


def text(verb: str, result: Any, given: Sequence[str] = ()) -> str:
    """Return a verb's result for people; what to do next has the `given` options in it."""
    lines = (x if isinstance(x, Coloured) else one_line(x) for x in _TEXTS[verb](result))
    said = "\n".join(lines)
    return said if verb == "search" else pasteable(said, given)  # a query may look like a command


def _import(r: Imported) -> Lines:
    yield f"{r.uri}: {r.rows:,} rows, every cell read back and compared"
    notes = {column: f"({note})" for column, note in r.notes.items()}
    yield from aligned([(column, kind, notes.get(column, "")) for column, kind in r.types.items()])
    if r.skipped:
        yield f"Left out (no values, or not in --columns): {', '.join(r.skipped)}"
    yield from next_lines(after_import(r))


def _tune(r: Tuned) -> Lines:
    yield (
        f"{r.docs_per_s:,.1f} docs/s, {r.tokens_per_s:,} tokens/s on this machine"
        f" (measured in {r.seconds:.0f} s on {r.sample.documents:,} documents)"
    )
    yield "embed:"
    yield from (f"  {name}: {value}" for name, value in vars(r.embed).items())
    by_hand = "reembed run     # with the lines above in its config"
    yield from next_lines(f"reembed run -c {shlex.quote(r.out)}" if r.out else by_hand)


def _run(r: Built) -> Lines:
    new = r.release
    yield f"release {new.id}: {documents_of(new)}, model {new.model} (space {new.space.id})"
    yield from next_lines(after_run(new, r.live, judged=r.judged, dual=r.dual))


def _lag(lag: Lag) -> Lines:
    if words := lag_words(lag):
        yield f"{INDENT}{words}"


def _status(r: Status) -> Lines:
    yield r.alias
    if r.live and r.lag:
        yield _release("live", r.live.release)
        yield from _query_only(r.live.release, r.promoted)
        yield from _lag(r.lag)
        yield from _cut_offs(r.cutoffs)
    else:
        yield "  live       nothing yet"
    if r.previous:
        yield _release("previous", r.previous)
    if r.forced:
        yield "  the live release was promoted with --force"
    if r.without_evidence:
        yield "  the live release was promoted with --without-evidence"
    if r.live:
        yield from _left_out(r.live.grounds)
    yield from _candidates(r)
    if back := r.rolled_back:
        reason = f": {back.reason}" if back.reason else ""
        yield f"  rolled back from {back.release} at {back.at}{reason}"
    yield from shadow_line(r.shadow)
    yield from lazy_line(r.lazy)
    if r.older_runs:
        yield f"  runs       {', '.join(r.older_runs)}  unfinished"
    for run in r.runs:
        yield from _open_run(run)
    yield from next_lines(*after_status(r))


def _query_only(live: Release, promoted: AliasRecord | None) -> Lines:
    """Return that queries are by another model than the documents, and what shows that this works."""
    if live.queries is None:
        return
    proof = "not proven by any comparison"
    if promoted and (shown := promoted.grounds.comparison):
        proof = (
            f"{shown.verdict} in comparison {shown.number} of {shown.candidate} with {shown.live}"
        )
    yield f"{INDENT}documents by {live.model}: {proof}"


def _candidates(r: Status) -> Lines:
    for old in r.older_candidates:
        verdict = old.verdict or "not with the live release"
        yield f"  candidate  {old.release}  compared: {verdict}"
    for c in r.candidates:
        yield f"{_release('candidate', c.release)}  {_compared(c)}"
        yield from _cut_offs(c.cutoffs)


def _cut_offs(found: CutOffs | None) -> Lines:
    if found:
        yield f"{INDENT}{cut_offs_in_a_line(found)}"


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
        yield f"{INDENT}{at_work} unit {w.unit}, attempt {w.attempt}, since {w.at}"
    if run.waiting:
        yield f"{INDENT}waiting: {run.waiting}"


def _release(role: str, r: Release) -> str:
    return (
        f"  {role:9}  {r.id}  {r.model}  space {r.space.id}  {documents_of(r)}"
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
    yield from aligned([(k, f"{d.count:,}", _examples(d)) for k, d in kinds], right=(1,))
    yield f"  {found.confidence}"
    if r.passed:
        yield coloured("pass", f"equal to source version {found.source_version}")
    else:
        yield coloured("fail", f"differs from source version {found.source_version}")
    if behind := lag_words(r.lag):
        kinds = (found.behind or {}).items()
        newer = ", ".join(f"{d.count:,} {k}" for k, d in kinds if d.count)
        yield f"{behind}: {newer}" if newer else behind
    if not r.passed:
        yield from next_lines(r.rebuild)
    elif r.larger:
        yield "an earlier verification that checked more failed, so the release counts as failed"
        yield from next_lines(r.larger)
    elif r.lag.documents == 0:
        yield from next_lines("reembed status")
    else:
        yield from next_lines(f"reembed catch-up {r.release}")


def _examples(difference: Difference) -> str:
    return f"e.g. {', '.join(map(repr, difference.examples))}" if difference.count else ""


def _caught_up(r: CaughtUp) -> Lines:
    new = r.release
    if r.before == new.id:
        yield f"{r.before} has every document as the source has it; nothing was embedded"
    elif r.generation:
        yield f"{new.id} is now live for {r.alias}, in place of {r.before}"
    else:
        yield f"{new.id} replaces {r.before}, which is not live"
    yield f"  {documents_of(new)}, {counted(new.dead_letters, 'dead letter')}"
    yield from _lag(r.behind)
    yield from next_lines("reembed status")


def _dead_letters(r: DeadLetters) -> Lines:
    so_far = "" if r.finished else " so far"
    count = f"{counted(len(r.dead_letters), 'dead letter')}{so_far}"
    yield f"{r.of}: {count}, of source version {r.source_version}"
    yield from (f"  {d.doc_id}  {d.reason}" for d in r.dead_letters)
    if r.dead_letters and r.finished:
        yield from next_lines(f"reembed catch-up {r.of} --retry-dead-letters")


def _moved(r: Moved) -> Lines:
    new = r.release
    if r.before == new.id:
        yield f"{r.alias}: {new.id} ({new.model}) is live already; nothing moved"
        yield from _lag(r.behind)
        return
    before = r.before or "nothing"
    yield f"{r.alias}: {before} -> {new.id} ({new.model}), generation {r.generation}"
    if r.lazy is not None:
        yield f"  lazy migration {r.lazy} does not serve while {new.id} is live:"
        yield f"{INDENT}`reembed rollback --to {r.before}` brings it back"
        yield f"{INDENT}`reembed lazy stop --drop --reason 'another line is live'` gives it up"
    yield from _left_out(r.grounds)
    if r.grounds.shadow:
        yield f"  {by_itself(r.grounds.shadow)}"
    if r.grounds.forced:
        yield "  forced: without a passing comparison; `reembed history` shows the reason"
    if r.grounds.without_evidence:
        yield "  no relevance evidence, only structural checks; `reembed history` shows the reason"
    if compared := r.grounds.comparison:
        yield f"  compared: {told(compared)}"
        yield from (f"  {line}" for line in evidence(compared))
        if compared.cutoffs:
            yield from (f"  {line}" for line in cutoff_words(compared.cutoffs))
    yield from _lag(r.behind)
    yield from next_lines("reembed search 'some words'")
    if r.before is None:
        yield "  no release was live before, so there is none to roll back to"
    else:
        yield f"Back: reembed rollback --to {r.before}"


def _history(r: History) -> Lines:
    yield f"{r.alias}: {counted(len(r.steps), 'step')}"
    rows = [
        (s.generation, s.at, s.action, s.release.id, s.release.model, f"by {s.by}", _why(s.grounds))
        for s in r.steps
    ]  # fmt: skip
    for step, line in zip(r.steps, aligned(rows, right=(0,)), strict=True):
        yield line
        if look := step.grounds.shadow:
            yield f"        {by_itself(look)}"
        if compared := step.grounds.comparison:
            yield f"        compared: {told(compared)}"
            yield from (f"        {line}" for line in evidence(compared))
    yield from next_lines("reembed status")


def _why(grounds: Grounds) -> str:
    if grounds.forced:
        return f"forced: {grounds.reason}"
    if grounds.without_evidence:
        return f"without evidence: {grounds.reason}"
    return grounds.reason or ""


def _search(r: SearchResult) -> Lines:
    yield f"release {r.release.id} ({r.release.model})"
    if r.alone is not None:
        yield f"  alone, though a lazy migration serves: {r.side or 'its new side'} did not answer: {r.alone}"
    elif r.side is not None:
        yield f"  and {r.side}, the new side of the lazy migration that serves"
    for query, hits in zip(r.queries, r.hits, strict=True):
        yield query
        yield from aligned(
            [
                (rank, f"{hit.score:.4f}", hit.doc_id, *(str(v)[:80] for v in hit.columns.values()))
                for rank, hit in enumerate(hits, 1)
            ],
            right=(0,),
        )


def _served(r: Served) -> Lines:
    yield f"stopped: {counted(r.requests, 'request')} answered at {r.address}"


def _gc(r: Collected) -> Lines:
    plan, done = r.plan, "removed" if r.deleted else "remove "
    yield from aligned([("keep", k.release, k.why) for k in plan.keep])
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
    yield from (f"  {done} {lazy_left(left)}" for left in r.lazies)
    if not any((plan.remove, plan.dropped_runs, plan.tables, plan.trim, plan.orphans, r.lazies)):
        yield "Nothing to remove."
    elif r.deleted:
        yield f"{readable(r.bytes)} freed."
        yield from next_lines("reembed status")
    else:
        yield f"Nothing was removed; this would free {readable(r.bytes)}."
        dropping = f"reembed gc --drop-run {r.drop_run} --yes"
        yield from next_lines(dropping if r.drop_run else "reembed gc --yes")


def _going_table(x: Removable, listed: Sequence[Removable]) -> str:
    """Return what goes of a release's table; its size stands once, at the first of its releases."""
    if not x.whole_table:
        return f"its version of {x.table}"
    if any(x.table == before.table for before in listed):
        return "its table is counted above"
    return f"table {readable(x.table_bytes)}"


def _config(r: ResolvedConfig) -> Lines:
    if r.check:
        return ["The config is valid.", *next_lines("reembed run")]
    settings = _flat(r.config.shown())
    return aligned([(k, repr(v), f"# {r.origins.get(k, 'default')}") for k, v in settings])


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
    "compare": compared,
    "shadow": shadowed,
    "lazy": lazied,
    "sweep": swept,
    "simulate": simulated,
    "promote": _moved,
    "catch-up": _caught_up,
    "dead-letters": _dead_letters,
    "rollback": _moved,
    "history": _history,
    "search": _search,
    "serve": _served,
    "gc": _gc,
    "config": _config,
}

"""Lazy migrations as text for people."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import TYPE_CHECKING

from reembed.cli.layout import INDENT, Lines, next_lines
from reembed.plural import counted
from reembed.store.storage import readable

if TYPE_CHECKING:
    from reembed.lifecycle.gc_plan import LazyLeft
    from reembed.lifecycle.lazy_status import LazyStatus
    from reembed.strategies.sweep import Swept


def lazied(r: LazyStatus) -> Lines:
    """Yield the lines of a lazy migration."""
    plan, step = r.lazy.plan, r.lazy.step
    yield f"{plan.alias}: lazy migration {plan.number} to {plan.space.model} (space {plan.space.id}): {_state(r)}"
    because = f": {step.reason}" if step.reason else ""
    yield f"  since {step.at}, by {step.by}{because}"
    if _is_gone(r):
        yield "  gc removed its new side"
        yield from next_lines("reembed status")
        return
    yield f"  {_migrated(r)}; the live release began as {plan.live}"
    if _is_beside(r):
        yield f"  answers are of {r.instead} alone, which is live and no release of that line"
    for found in plan.predicted:
        yield f"  {found.words}"
    if r.newer is not None:
        yield f"  the source has a newer version since, of {counted(r.newer, 'document')}"
    yield f"  {_answers(r)}"
    if words := _waiting(r):
        yield f"  {words}"
    yield f"  {_cost(r)}"
    if not r.is_complete and not _is_over(r):
        yield from (f"  {line}" for line in _finish(r))
    yield from next_lines(*_next(r))


def lazy_line(r: LazyStatus | None) -> Lines:
    """Yield where a lazy migration stands, if there is one."""
    if r is not None:
        yield f"  lazy       {r.lazy.plan.number} to {r.lazy.plan.space.model}  {_state(r)}"
        yield f"{INDENT}{_migrated(r)}; {_answers(r)}"
        waits, finish = _waiting(r), () if r.is_complete else _finish(r)
        yield from (f"{INDENT}{line}" for line in (*([waits] if waits else ()), *finish))


def lazy_left(left: LazyLeft) -> str:
    """Return what gc removes of a lazy migration, and why."""
    what = f"all of lazy migration {left.number}, which is {left.why}"
    if not left.whole:
        older = counted(len(left.releases), "older release")
        what = f"{older} of {left.side}, which lazy migration {left.number} fills"
    return f"{what}: {readable(left.bytes)}"


def swept(r: Swept) -> Lines:
    """Yield what a sweep did."""
    done = f"{counted(r.added, 'document')} migrated in {_batches(r.batches)}"
    yield f"{r.alias}: {done}; ended because {r.ended}"
    yield f"  {r.migrated:,} of {counted(r.documents, 'document')} are migrated"
    if r.is_complete:
        yield from next_lines("reembed run     # copies their vectors; then compare and promote")
    else:
        yield from next_lines("reembed sweep", "reembed lazy status")


def _is_gone(r: LazyStatus) -> bool:
    return r.lazy.step.state in ("finished", "stopped") and r.migrated == 0


def _is_over(r: LazyStatus) -> bool:
    """Whether it can migrate nothing any more."""
    return r.lazy.step.state == "finished" or (
        r.lazy.step.state == "stopped" and not r.lazy.step.keep
    )


def _is_beside(r: LazyStatus) -> bool:
    return r.lazy.serves and r.instead is not None


def _state(r: LazyStatus) -> str:
    step = r.lazy.step
    if _is_beside(r):
        return f"{step.state}, but another line is live"
    if step.state == "stopped":
        return "stopped, the new side is kept" if step.keep else "stopped, the new side is dropped"
    return step.state


def _migrated(r: LazyStatus) -> str:
    return f"{r.migrated:,} of {counted(r.known, 'document')} migrated ({r.coverage:.1%})"


def _answers(r: LazyStatus) -> str:
    """Return how much of what users see is migrated, by the log."""
    if r.of_log is None:
        return f"of answers: not known ({r.no_log})"
    log = r.of_log
    what = "clicks" if log.only_clicks else "results"
    return f"{log.answers:.1%} of the {what} of {counted(log.queries, 'logged query')} are migrated"


def _waiting(r: LazyStatus) -> str | None:
    if r.oldest_s is None:
        return None
    return f"{counted(r.queued, 'document')} turned up and wait, the first for {_time(r.oldest_s)}"


def _cost(r: LazyStatus) -> str:
    tokens = f" of {counted(r.tokens, 'token')}" if r.tokens else ""
    return (
        f"{_batches(r.batches)}: {counted(r.embedded, 'document')}{tokens} embedded in"
        f" {_time(r.seconds)}, in which models computed {_time(r.model_s)}"
        " (not counted: the start, and batches that were killed)"
    )


def _finish(r: LazyStatus) -> Iterator[str]:
    """Yield when it would end, by traffic and by a sweep."""
    if log := r.of_log:
        shown = "had clicks on" if log.only_clicks else "showed"
        days = f" in {log.days:.1f} days" if log.days else ""
        yield (
            f"traffic alone would level off near {log.levels_off:.0%} of the documents: the log {shown}"
            f" {log.documents:,} different ones{days}, {log.migrated:,} of them migrated{_gone(log.gone)}"
        )
    else:
        yield "how far traffic alone would lead is not known either"
    if r.sweep_s is not None:
        yield f"a sweep would migrate the rest in {_time(r.sweep_s)}, at the rate of the batches so far"
    elif r.newer is not None and r.migrated >= r.known:
        yield "when a sweep would end is not known: it must first read what changed in the source"
    else:
        yield "when a sweep would end is not known: no batch has migrated a document yet"


def _gone(documents: int) -> str:
    return f", and {documents:,} that the source does not have" if documents else ""


def _time(seconds: float) -> str:
    return str(dt.timedelta(seconds=round(seconds)))


def _next(r: LazyStatus) -> Iterator[str]:
    step = r.lazy.step
    if _is_beside(r):
        yield "reembed lazy stop --drop --reason 'another line is live'     # then: reembed lazy start"
    elif step.state == "running" and r.is_complete:
        yield "reembed run     # copies the vectors; then compare and promote"
        yield "reembed lazy stop --reason 'WHY'     # returns to the live release alone, at once"
    elif step.state == "running":
        yield "reembed sweep --budget 10000     # migrates what turned up, then others"
        yield "reembed lazy stop --reason 'WHY'     # returns to the live release alone, at once"
    elif step.state == "paused" or (step.state == "stopped" and step.keep):
        yield "reembed lazy resume"
        yield "reembed lazy stop --drop --reason 'WHY'"
    else:
        yield "reembed gc"


def _batches(number: int) -> str:
    return "1 batch" if number == 1 else f"{number:,} batches"

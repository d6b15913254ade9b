"""Progress for people, on stderr: one line for each event."""

from __future__ import annotations

import datetime as dt
import functools
import math
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from reembed import events
from reembed.events import ChangedSetting, Event, Progress
from reembed.plural import counted
from reembed.redact import one_line

if TYPE_CHECKING:
    from reembed.source.lag import Lag

_BAR = 24
_GAP = "  "
_COLUMNS = 80
_PROGRESS_EVERY_S = 10.0
_UNTIL_SEALED = ("embed.max_dead_letters",)
"""Settings that count until the table is sealed; those of the index count until it is built."""


class Console:
    """Prints events on stderr: progress in one line on a terminal, as a new line every 10 s elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._progress_at = time.monotonic()
        self._open = ""
        """The progress line on the terminal."""
        self._one_at_a_time = threading.Lock()

    def __call__(self, event: Event) -> None:
        prefix = f"{dt.datetime.now():%H:%M:%S} {event.stage:9} "
        with self._one_at_a_time:
            if not isinstance(event, Progress):
                self._print(prefix + words(event))
            elif self._terminal:
                self._rewrite(prefix, event)
            elif event.last or time.monotonic() - self._progress_at >= _PROGRESS_EVERY_S:
                self._progress_at = time.monotonic()
                self._print(prefix + words(event))

    def _print(self, line: str) -> None:
        if self._open:
            click.echo("", err=True)
            self._open = ""
        click.echo(one_line(line), err=True)

    def _rewrite(self, prefix: str, progress: Progress) -> None:
        """Replace the progress line; one that a narrower terminal has wrapped stays."""
        width = _width() - 1  # a line that wraps cannot be rewritten
        line = one_line(_fitted([(6, prefix.rstrip()), *_progress_parts(progress)], width))
        start = "\n" if len(self._open) > width else "\r\x1b[2K"
        click.echo(start + line, err=True, nl=False)
        self._open = line


def _width() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or _COLUMNS
    except OSError:
        return _COLUMNS


def _fitted(parts: list[tuple[int, str]], width: int) -> str:
    """Return the parts that fit side by side; without room for all, the highest rank goes first."""
    left = list(parts)
    while len(left) > 1 and len(_GAP.join(text for _, text in left)) > width:
        left.remove(max(left))
    return _GAP.join(text for _, text in left)[:width]


def _progress_parts(e: Progress) -> list[tuple[int, str]]:
    """Return the parts of the progress line, each with its rank."""
    p = e.figures
    share = p.done / p.total
    full = int(share * _BAR)
    rates = []
    if p.docs_per_s:
        rates = [(3, f"{p.docs_per_s:,.1f} docs/s"), (9, f"{p.tokens_per_s:,} tokens/s")]
    parts = [
        (10, "█" * full + "░" * (_BAR - full)),
        (4, f"{p.done:,}/{p.total:,}"),
        (0, f"{share:.1%}"),
        *rates,
        (7, f"{counted(p.actors, 'actor')} {p.busy:.0%} busy"),
        (8, f"units {p.units_done:,}/{p.units:,}"),
    ]
    if e.eta_s and p.done < p.total:
        parts.append((2, f"ETA {_duration(e.eta_s)}"))
    if p.dead_letters:
        parts.append((5, counted(p.dead_letters, "dead letter")))
    if e.waiting:
        parts.append((1, f"waiting: {e.waiting}"))
    return parts


_WORDS: dict[type[Event], str] = {
    events.Working: "{e.what} ...",
    events.Notice: "{e.what}",
    events.AlreadyBuilt: "run {e.run} is complete: release {e.release}",
    events.Resumed: (
        "run {e.run}: {e.staged:,} of {e.units:,} units are staged, source version {e.source_version}"
    ),
    events.Connected: "{e.where}",
    events.ChangesFound: (
        "source version {e.before} -> {e.after}: {e.embed:,} documents to embed, {e.removed:,} removed,"
        " {e.refresh:,} with new values of carried columns only, {e.copied:,} with the text of another"
        " document, whose vector is copied (found by {e.how})"
    ),
    events.WaitingForNode: (
        "no node of the cluster has the {e.cpus:g} CPUs and {e.gpus:g} GPUs of an actor;"
        " waiting for one, at most {e.stall_s:,.0f} s (embed.stall_s)"
    ),
    events.Draining: (
        "finishing units in progress, for at most {e.seconds:.0f} s;"
        " press Ctrl-C or send the signal again to stop now"
    ),
    events.Serving: "{e.alias} at {e.address} (release {e.release}); Ctrl-C or SIGTERM ends it",
    events.Sealed: (
        "{e.table} version {e.version}: {e.rows:,} rows in one commit, {e.dead_letters:,} dead letters"
    ),
}
"""What the line of an event says after its time and stage, where that is the same for all of its kind."""


@functools.singledispatch
def words(event: Event) -> str:
    """Return what the line of an event says after its time and stage."""
    return _WORDS[type(event)].format(e=event)


@words.register
def _(e: events.Kept) -> str:
    return f"of files that changed, {counted(e.rows, 'row')} in {counted(e.units, 'unit')} stay without embedding"


@words.register
def _(e: events.Planned) -> str:
    line = (
        f"run {e.run}: {counted(e.documents, 'document')} of {e.source} version {e.source_version}"
        f" in {counted(e.units, 'unit')} -> {e.model} (space {e.space}, {e.dim} dimensions)"
    )
    if e.pinned:
        return line
    return f"{line}; the source is read-only, so its version could not be tagged"


@words.register
def _(e: events.Progress) -> str:
    return _fitted(_progress_parts(e), sys.maxsize)


@words.register
def _(e: events.Embedded) -> str:
    p, copied, mfu = e.figures, "", ""
    if p.copied:
        copied = f"{p.copied:,} vectors copied; "
    if p.mfu:
        mfu = f", {p.mfu:.0%} of the device's matrix product"
    idle = max(0.0, 1 - p.busy)
    waits = min(idle, p.waits_for_input)
    records = min(idle - waits, p.waits_for_records)
    return (
        f"{copied}{p.path}: {p.docs_per_s:,.1f} docs/s, {p.tokens_per_s:,} tokens/s,"
        f" padding {p.padding:.1%}{mfu}; the model was idle {idle:.1%} of the time"
        f" ({waits:.1%} waiting for input, {records:.1%} checks and records of units,"
        f" {idle - waits - records:.1%} transfer and start-up)"
    )


@words.register
def _(e: events.WorkerEnded) -> str:
    worker = "its worker is gone"
    if e.ended:
        worker = "its worker was stopped"
    return (
        f"unit {e.unit} took {e.seconds:.0f} s, more than its deadline of {e.deadline_s:.0f} s:"
        f" {worker}; trying the unit again"
    )


@words.register
def _(e: events.Indexed) -> str:
    point = "".join(f", {name} {value}" for name, value in e.operating_point.items())
    shards = f" in {e.shards} shards" if e.shards > 1 else ""
    embedded = ", including embedding the queries" if e.tuned_on == "queries" else ""
    grown = ""
    if e.deltas or e.tombstones:
        more = f"{counted(e.deltas, 'delta')} and {counted(e.tombstones, 'tombstone')}"
        grown = f" when it was built, grown by {more}"
    return (
        f"{e.factory} on {e.device}, {e.rows:,} vectors{shards} in {e.seconds:.1f} s{embedded}{point};"
        f" ann_recall@10 {e.ann_recall_at_10:.3f} on {e.num_queries} {e.tuned_on}{grown}"
    )


@words.register
def _(e: events.Verified) -> str:
    wrong = ", ".join(f"{count} {kind}" for kind, count in e.differences.items())
    found = wrong or "each document once, with the right text and space; every vector finite"
    return f"{e.rows:,} rows: {found}; {e.confidence}"


@words.register
def _(e: events.Candidate) -> str:
    if e.live is None:
        return f"{e.release} is ready; nothing is live yet"
    return f"{e.release} is ready; {e.live} is still live"


@words.register
def _(e: events.Looked) -> str:
    what = "guardrail" if e.guards else "verdict"
    return f"shadow {e.shadow}, look {e.look}: {counted(e.queries, 'query')} judged, {what} {e.verdict}"


@words.register
def _(e: events.LookFailed) -> str:
    why = f" ({e.why})" if e.why else ""
    return f"this look was not finished: {e.what}{why}; the next one is in {_duration(e.seconds)}"


@words.register
def _(e: events.AliasMoved) -> str:
    return f"{e.alias}: {e.before or 'nothing'} -> {e.release}"


@words.register
def _(e: events.Behind) -> str:
    return f"{e.release} is {lag_words(e) or f'up to date with source version {e.newest}'}"


def lag_words(lag: events.Behind | Lag) -> str:
    """Return how far a release is behind its source; empty if it is not."""
    if lag.newest is None:
        return f"not known to be up to date: {lag.why}"
    if lag.documents == 0:
        return ""
    words = f"behind its source: equal to version {lag.source_version}, the newest is {lag.newest}"
    if lag.seconds is None:
        words += "; for how long is not known, because older versions were cleaned up"
    else:
        words += f"; what changed in the last {_duration(lag.seconds)} is not in it"
        if lag.documents is not None:
            words += f" (at most {counted(lag.documents, 'document')})"
    if lag.why:
        words += f" ({lag.why})"
    return words


@words.register
def _(e: events.Ignored) -> str:
    built = [s for s in e.settings if s.name.startswith("index.") or s.name in _UNTIL_SEALED]
    planned = [s for s in e.settings if s not in built]
    said, ways = [], []
    if planned:
        said.append(f"fixed when the run was planned: {_each(planned, 'planned')}")
    if built:
        said.append(f"built already: {_each(built, 'built with')}")
    gate = [s.name.startswith("gate.") for s in e.settings]
    if not all(gate):
        ways.append(
            "the same command with --fresh plans again, and copies the vectors it can (embed.reuse)"
        )
    if any(gate):
        ways.append(
            "`reembed compare --changed-gate --reason WHY` judges by group, slices, metrics and latency_ratio as"
            " they are now; it takes `--margin X --reason WHY` and `--changed-queries --reason WHY`, too"
        )
    return "; ".join([*said, " and ".join(ways)])


def _each(settings: Sequence[ChangedSetting], word: str) -> str:
    return ", ".join(f"{s.name} {_set(s.now)} ({word}: {_set(s.used)})" for s in settings)


def _set(value: Any) -> Any:
    if value is None:
        return "left out"
    return value


def _duration(seconds: float) -> str:
    """Return a time in words, rounded up to at least a second."""
    minutes, rest = divmod(max(1, math.ceil(seconds)), 60)
    if not minutes:
        return f"{rest}s"
    if minutes < 60:
        return f"{minutes}m{rest:02}s"
    return f"{minutes // 60}h{minutes % 60:02}m"

"""Progress for people, on stderr: one line for each event."""

from __future__ import annotations

import datetime as dt
import functools
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from reembed import events
from reembed.events import ChangedSetting, Event, Progress
from reembed.redact import one_line

if TYPE_CHECKING:
    from reembed.source.lag import Lag

_BAR = 24
_GAP = "  "
_COLUMNS = 80
_PROGRESS_EVERY_S = 10.0


class Console:
    """Prints events on stderr: progress in one line on a terminal, as a new line every 10 s elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._progress_at = time.monotonic()
        self._open = ""
        """The progress line on the terminal."""
        self._one_at_a_time = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Print an event."""
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
        line = one_line(_fitted([_Part(6, prefix.rstrip()), *_progress_parts(progress)], width))
        start = "\n" if len(self._open) > width else "\r\x1b[2K"
        click.echo(start + line, err=True, nl=False)
        self._open = line


def _width() -> int:
    """Columns of the terminal that stderr is."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or _COLUMNS
    except OSError:
        return _COLUMNS


class _Part(NamedTuple):
    """A part of the progress line; without room for all, the one with the highest rank goes first."""

    rank: int
    text: str


def _fitted(parts: list[_Part], width: int) -> str:
    """The parts that fit side by side, in their order."""
    left = [p for p in parts if p.text]
    while len(left) > 1 and len(_GAP.join(p.text for p in left)) > width:
        left.remove(max(left))
    return _GAP.join(p.text for p in left)[:width]


def _progress_parts(e: Progress) -> list[_Part]:
    p = e.figures
    share = p.done / p.total
    full = int(share * _BAR)
    parts = [
        _Part(10, "█" * full + "░" * (_BAR - full)),
        _Part(4, f"{p.done:,}/{p.total:,}"),
        _Part(0, f"{share:.1%}"),
        _Part(3, f"{p.docs_per_s:,.1f} docs/s"),
        _Part(9, f"{p.tokens_per_s:,} tokens/s"),
        _Part(7, f"{p.actors} actor(s) {p.busy:.0%} busy"),
        _Part(8, f"units {p.units_done:,}/{p.units:,}"),
    ]
    if e.eta_s:
        parts.append(_Part(2, f"ETA {_duration(e.eta_s)}"))
    if p.dead_letters:
        parts.append(_Part(5, f"{p.dead_letters} dead letters"))
    if e.waiting:
        parts.append(_Part(1, f"waiting: {e.waiting}"))
    return parts


@functools.singledispatch
def words(event: Event) -> str:
    """Return what the line of an event says after its time and stage."""
    raise TypeError(f"no words for {event}")


@words.register
def _(e: events.Working) -> str:
    return f"{e.what} ..."


@words.register
def _(e: events.Notice) -> str:
    return e.what


@words.register
def _(e: events.AlreadyBuilt) -> str:
    return f"run {e.run} is complete: release {e.release}"


@words.register
def _(e: events.Planned) -> str:
    pinned = "" if e.pinned else "; the source is read-only, so its version could not be tagged"
    return (
        f"run {e.run}: {e.documents:,} documents of {e.source} version {e.source_version}"
        f" in {e.units:,} units -> {e.model} (space {e.space}, {e.dim} dimensions){pinned}"
    )


@words.register
def _(e: events.Resumed) -> str:
    return (
        f"run {e.run}: {e.staged:,} of {e.units:,} units are staged,"
        f" source version {e.source_version}"
    )


@words.register
def _(e: events.Connected) -> str:
    return e.where


@words.register
def _(e: events.ChangesFound) -> str:
    return (
        f"source version {e.before} -> {e.after}: {e.embed:,} documents to embed,"
        f" {e.removed:,} removed, {e.refresh:,} with other carried values,"
        f" {e.copied:,} with the text of another document, whose vector is copied (found by {e.how})"
    )


@words.register
def _(e: events.Progress) -> str:
    return _fitted(_progress_parts(e), sys.maxsize)


@words.register
def _(e: events.Embedded) -> str:
    p = e.figures
    copied = f"{p.copied:,} vectors copied; " if p.copied else ""
    mfu = f", {p.mfu:.0%} of the device's matrix product" if p.mfu else ""
    idle = max(0.0, 1 - p.busy)
    waits = min(idle, p.waits_for_input)
    records = min(idle - waits, p.waits_for_records)
    return (
        f"{copied}{p.path}: {p.docs_per_s:,.1f} docs/s, {p.tokens_per_s:,} tokens/s,"
        f" padding {p.padding:.1%}{mfu}; the model idle {idle:.1%}"
        f" ({waits:.1%} waiting for input, {records:.1%} checks and records of units,"
        f" {idle - waits - records:.1%} transfer and start-up)"
    )


@words.register
def _(e: events.WaitingForNode) -> str:
    return (
        f"no node of the cluster has the {e.cpus:g} CPUs and {e.gpus:g} GPUs of an actor;"
        f" waiting for one, {e.stall_s:,.0f} s in all (embed.stall_s)"
    )


@words.register
def _(e: events.WorkerEnded) -> str:
    worker = "its worker is ended" if e.ended else "its worker is gone"
    return (
        f"unit {e.unit} was worked on for {e.seconds:.0f} s, over its deadline of"
        f" {e.deadline_s:.0f} s: {worker}; trying it again"
    )


@words.register
def _(e: events.Draining) -> str:
    return (
        f"finishing units in progress, for at most {e.seconds:.0f} s;"
        " press Ctrl-C or send the signal again to stop now"
    )


@words.register
def _(e: events.Kept) -> str:
    return f"{e.rows:,} rows in {e.units:,} units are kept without embedding them"


@words.register
def _(e: events.Sealed) -> str:
    return (
        f"{e.table} version {e.version}: {e.rows:,} rows in one commit,"
        f" {e.dead_letters:,} dead letters"
    )


@words.register
def _(e: events.Indexed) -> str:
    point = "".join(f", {name} {value}" for name, value in e.operating_point.items())
    return (
        f"{e.factory} on {e.device}, {e.rows:,} vectors in {e.seconds:.1f} s{point};"
        f" ann_recall@10 {e.ann_recall_at_10:.3f} on {e.num_queries} {e.tuned_on}"
    )


@words.register
def _(e: events.Verified) -> str:
    wrong = ", ".join(f"{count} {kind}" for kind, count in e.differences.items())
    found = wrong or "every document once, right text, right space, finite"
    return f"{e.rows:,} rows: {found}; {e.confidence}"


@words.register
def _(e: events.Candidate) -> str:
    serves = f"{e.live} still serves" if e.live else "nothing serves yet"
    return f"{e.release} is ready; {serves}"


@words.register
def _(e: events.Behind) -> str:
    return f"{e.release} is {lag_words(e) or f'up to date with source version {e.newest}'}"


def lag_words(lag: events.Behind | Lag) -> str:
    """Return how far a release is behind its source; empty if it is not."""
    why = f" ({lag.why})" if lag.why else ""
    if lag.newest is None:
        return f"not known to be up to date: {lag.why}"
    if lag.documents == 0:
        return ""
    behind = f"behind its source: equal to version {lag.source_version}, the newest is {lag.newest}"
    if lag.seconds is None:
        return f"{behind}; since when is not known, as older versions were cleaned up{why}"
    most = "" if lag.documents is None else f" (at most {lag.documents:,} documents)"
    since = f"what changed in the last {_duration(lag.seconds)} is not in it"
    return f"{behind}; {since}{most}{why}"


@words.register
def _(e: events.Ignored) -> str:
    built = [s for s in e.settings if _is_built(s.name)]
    planned = [s for s in e.settings if s not in built]
    said = []
    if planned:
        said.append(f"fixed when the run was planned: {_each(planned, 'planned')}")
    if built:
        said.append(f"built already: {_each(built, 'built with')}")
    gate = [s.name.startswith("gate.") for s in e.settings]
    ways = []
    if not all(gate):
        ways.append("`reembed run --fresh` plans again")
    if any(gate):
        ways.append(
            "`reembed compare` takes `--margin X --reason WHY` and `--changed-queries --reason WHY`"
        )
    return "; ".join([*said, " and ".join(ways)])


def _is_built(setting: str) -> bool:
    """Whether it counts until the table is sealed, or until the index is built."""
    return setting.startswith("index.") or setting == "embed.max_dead_letters"


def _each(settings: Sequence[ChangedSetting], word: str) -> str:
    return ", ".join(f"{s.name} {_set(s.now)} ({word}: {_set(s.used)})" for s in settings)


def _set(value: Any) -> Any:
    return "left out" if value is None else value


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02}m" if minutes >= 60 else f"{minutes}m{rest:02}s"

"""Progress for people, on stderr: one line per thing that happened."""

from __future__ import annotations

import datetime as dt
import os
import sys
import threading
from typing import Any, NamedTuple

import click

from reembed.redact import one_line

_BAR = 24
_GAP = "  "
_COLUMNS = 80


class Console:
    """Progress on stderr: one line that is rewritten on a terminal, a new one every 10 s elsewhere."""

    def __init__(self) -> None:
        """Find out what stderr is."""
        self._terminal = sys.stderr.isatty()
        self.every_s = 1.0 if self._terminal else 10.0
        self._open = ""
        """The line that is rewritten, as it stands on the terminal."""
        self._one_at_a_time = threading.Lock()

    def __call__(self, stage: str, **fields: Any) -> None:
        """Print one thing that happened."""
        prefix = f"{dt.datetime.now():%H:%M:%S} {stage:9} "
        with self._one_at_a_time:
            if stage == "embed" and self._terminal:
                self._rewrite(prefix, fields)
                return
            line = one_line(prefix + _EVENTS[stage](fields))
            click.echo(("\n" if self._open else "") + line, err=True)
            self._open = ""

    def _rewrite(self, prefix: str, fields: dict[str, Any]) -> None:
        """Put the line in place of the one before, which a narrower terminal has wrapped: that one stays."""
        width = _width() - 1  # a line that wraps cannot be rewritten
        line = one_line(_fitted([_Part(6, prefix.rstrip()), *_embed_parts(fields)], width))
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
    """A part of the progress line; where there is no room, the highest rank goes first."""

    rank: int
    text: str


def _fitted(parts: list[_Part], width: int) -> str:
    """The parts that fit side by side, in their order."""
    left = [p for p in parts if p.text]
    while len(left) > 1 and len(_GAP.join(p.text for p in left)) > width:
        left.remove(max(left))
    return _GAP.join(p.text for p in left)[:width]


def _say_plan(f: dict[str, Any]) -> str:
    space = f["space"]
    pinned = "" if f["pinned"] else "; the source is read-only, so its version could not be tagged"
    return (
        f"run {f['run']}: {f['rows']:,} documents of {f['source'].uri} version {f['source'].version}"
        f" in {f['units']:,} units -> {space['model']} (space {space['id']}, {space['dim']} dimensions){pinned}"
    )


def _say_resume(f: dict[str, Any]) -> str:
    version = f["source"].version
    return f"run {f['run']}: {f['staged']:,} of {f['units']:,} units are staged, source version {version}"


def _embed_parts(f: dict[str, Any]) -> list[_Part]:
    share = f["done"] / f["total"]
    full = int(share * _BAR)
    return [
        _Part(10, "█" * full + "░" * (_BAR - full)),
        _Part(4, f"{f['done']:,}/{f['total']:,}"),
        _Part(0, f"{share:.1%}"),
        _Part(3, f"{f['docs_per_s']:,.1f} docs/s"),
        _Part(9, f"{f['tokens_per_s']:,} tokens/s"),
        _Part(7, f"{f['actors']} actor(s) {f['busy']:.0%} busy"),
        _Part(8, f"units {f['units_done']:,}/{f['units']:,}"),
        _Part(2, f"ETA {_duration(f['eta_s'])}" if f["eta_s"] else ""),
        _Part(5, f"{f['dead_letters']} dead letters" if f["dead_letters"] else ""),
        _Part(1, f"waiting: {f['waiting']}" if f["waiting"] else ""),
    ]


def _say_embed(f: dict[str, Any]) -> str:
    return _fitted(_embed_parts(f), sys.maxsize)


def _say_table(f: dict[str, Any]) -> str:
    return f"{f['path']} version {f['version']}: {f['rows']:,} rows in one commit, {f['dead_letters']:,} dead letters"


def _say_index(f: dict[str, Any]) -> str:
    point = ", ".join(f"{k} {v}" for k, v in f["operating_point"].items())
    return (
        f"{f['factory']} on {f['device']}, {f['rows']:,} vectors in {f['seconds']:.1f} s"
        f"{', ' + point if point else ''}; ann_recall@10 {f['ann_recall_at_10']:.3f}"
        f" on {f['num_queries']} {f['tuned_on']}"
    )


def _say_verify(f: dict[str, Any]) -> str:
    wrong = [f"{d['count']} {k}" for k, d in f["differences"].items() if d["count"]]
    found = ", ".join(wrong) or "every document once, right text, right space, finite"
    return f"{f['rows']:,} rows: {found}; {f['confidence']}"


def _say_changes(f: dict[str, Any]) -> str:
    return (
        f"source version {f['before']} -> {f['after']}: {f['embed']:,} documents to embed,"
        f" {f['removed']:,} removed, {f['refresh']:,} with other carried values,"
        f" {f['copied']:,} with the text of another document, whose vector is copied (found by {f['how']})"
    )


def lag_words(lag: dict[str, Any]) -> str:
    """How far a release is behind its source; empty where it is not."""
    if lag["newest"] is None:
        return f"not known to be up to date: {lag['why']}"
    if lag["documents"] == 0:
        return ""
    if lag["seconds"] is None:
        return (
            f"behind its source: equal to version {lag['source_version']}, the newest is"
            f" {lag['newest']}; since when is not known, as older versions were cleaned up{_why(lag)}"
        )
    most = "" if lag["documents"] is None else f" (at most {lag['documents']:,} documents)"
    return (
        f"behind its source: equal to version {lag['source_version']}, the newest is {lag['newest']};"
        f" what changed in the last {_duration(lag['seconds'])} is not in it{most}{_why(lag)}"
    )


def _why(lag: dict[str, Any]) -> str:
    return f" ({lag['why']})" if lag["why"] else ""


def _say_lag(f: dict[str, Any]) -> str:
    behind = lag_words(f)
    return f"{f['release']} is {behind or 'up to date with source version ' + str(f['newest'])}"


def _say_candidate(f: dict[str, Any]) -> str:
    return f"{f['release']} is ready; " + (
        f"{f['live']} still serves" if f["live"] else "nothing serves yet"
    )


def _say_embedded(f: dict[str, Any]) -> str:
    copied = f"{f['copied']:,} vectors copied; " if f["copied"] else ""
    mfu = f", {f['mfu']:.0%} of the device's matrix product" if f["mfu"] else ""
    idle = max(0.0, 1 - f["busy"])
    waits = min(idle, f["waits_for_input"])
    records = min(idle - waits, f["waits_for_records"])
    rest = idle - waits - records
    return (
        f"{copied}{f['path']}: {f['docs_per_s']:,.1f} docs/s, {f['tokens_per_s']:,} tokens/s,"
        f" padding {f['padding']:.1%}{mfu}; the model idle {idle:.1%}"
        f" ({waits:.1%} for want of input, {records:.1%} for checks and records of units,"
        f" {rest:.1%} handing over, at the beginning and the end)"
    )


def _say_ignored(f: dict[str, Any]) -> str:
    planned = [s for s in f["settings"] if not _is_built(s[0])]
    built = [s for s in f["settings"] if _is_built(s[0])]
    said = [f"fixed when the run was planned: {_each(planned, 'planned')}"] if planned else []
    said += [f"built already: {_each(built, 'built with')}"] if built else []
    gate = [name.startswith("gate.") for name, _, _ in f["settings"]]
    ways = [] if all(gate) else ["`reembed run --fresh` plans again"]
    if any(gate):
        ways += [
            "`reembed compare` takes `--margin X --reason WHY` and `--changed-queries --reason WHY`"
        ]
    return "; ".join([*said, " and ".join(ways)])


def _is_built(setting: str) -> bool:
    """Whether it counts until the table is sealed, or until the index is built."""
    return setting.startswith("index.") or setting == "embed.max_dead_letters"


def _each(settings: list[tuple[str, Any, Any]], word: str) -> str:
    return ", ".join(f"{name} {_set(now)} ({word}: {_set(used)})" for name, used, now in settings)


def _set(value: Any) -> Any:
    return "left out" if value is None else value


_EVENTS = {
    "already": lambda f: f"run {f['run']} is complete: release {f['release']}",
    "ignored": _say_ignored,
    "begin": lambda f: f["what"] + " ...",
    "plan": _say_plan,
    "resume": _say_resume,
    "ray": lambda f: f["where"],
    "embed": _say_embed,
    "embedded": _say_embedded,
    "changes": _say_changes,
    "lag": _say_lag,
    "table": _say_table,
    "index": _say_index,
    "verify": _say_verify,
    "candidate": _say_candidate,
}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02}m" if minutes >= 60 else f"{minutes}m{rest:02}s"

"""Commands to paste: what fixes an error or follows a result, completed by the options that were given."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reembed.errors import ConfigError, ReembedError
from reembed.redact import one_line, plain

if TYPE_CHECKING:
    from reembed.catalog.releases import Release
    from reembed.lifecycle.status import Status
    from reembed.source.importer import Imported

_CONFIGURED = (
    "run", "tune", "status", "verify", "compare", "shadow", "lazy", "sweep", "promote", "catch-up", "dead-letters",
    "rollback", "history", "search", "serve", "simulate", "gc", "config",
)  # fmt: skip
"""Verbs that take -c and --set."""
_OF_A_RUN = re.compile(r" -c \S.*/runs/[^/]+/config\.yaml")
_CONFIG = re.compile(r"\breembed config -c \S")
"""A look at one config: what was given is not the one that is meant."""
_SETS = re.compile(r"--set '?([\w.]+)=")
_OF_GC = "storage.keep"
"""The setting that gc alone acts on."""
_LABELLED = re.compile(
    r"""(\ *(?:fix|Next|or|Back):\ )    # what the command is for
        ((?:'[^']*'|"[^"]*"|[^'"])*?)  # the command; what it quotes holds no comment
        (\ {5}\#\ .*|)                  # a comment""",
    re.VERBOSE | re.DOTALL,
)


def error(problem: ReembedError, given: Sequence[str] = ()) -> str:
    """Return an error as text: what happened, why, and the command that fixes it."""
    # A name out of a document must not add a line, least of all one that begins with "fix:".
    parts = [plain(problem.what) if isinstance(problem, ConfigError) else one_line(problem.what)]
    if problem.why:
        parts.append(f"  {one_line(problem.why)}")
    if problem.fix:
        parts.append(f"  fix: {one_line(problem.fix)}")
    return click.style("error: ", fg="red") + pasteable("\n".join(parts), given)


def error_record(problem: ReembedError, given: Sequence[str] = ()) -> dict[str, Any]:
    """Return an error as --json prints it."""
    return {
        "error": type(problem).__name__,
        "what": problem.what,
        "why": problem.why,
        # As a whole: what it quotes may have several lines.
        "fix": problem.fix and _complete(f"fix: {problem.fix}", given).removeprefix("fix: "),
        "exit_code": problem.exit_code,
    }


def pasteable(lines: str, given: Sequence[str]) -> str:
    """Return the lines with the `given` options in each command that takes them.

    A command that resumes a run with the run's own settings stays as it is: --set would override them.
    """
    return "\n".join(_complete(line, given) for line in lines.split("\n"))


def _complete(line: str, given: Sequence[str]) -> str:
    if (labelled := _LABELLED.fullmatch(line)) is None:
        return _completed(line, "`", given)
    label, command, comment = labelled.groups()
    return label + _completed(command, "^", given) + _completed(comment, r"\b", given)


def _completed(words: str, before: str, given: Sequence[str]) -> str:
    """Return the words with the options after each `reembed VERB` that follows the pattern `before`.

    At the beginning and in backquotes it is a command; elsewhere it may be part of a query.
    """
    if _OF_A_RUN.search(words):
        return words
    if _CONFIG.search(words):
        given = [g for g in given if not g.startswith("-c ")]
    verbs = "|".join(_CONFIGURED)

    def with_options(command: re.Match[str]) -> str:
        set_anew, _, _ = words.partition(" -- ")  # what follows is a query
        unused = {*_SETS.findall(set_anew)}
        if command[1] not in ("gc", "config"):
            unused.add(_OF_GC)
        return command[0] + "".join(f" {g}" for g in given if not unused & {*_SETS.findall(g)})

    return re.sub(rf"{before}reembed ({verbs})\b", with_options, words)


def after_import(r: Imported) -> str:
    """Return the run of what was imported; the config, which may be missing, names the model and the root."""
    from reembed.cli.command import DEFAULT_CONFIG
    from reembed.source.columns import likely_text, set_to

    if _is_configured(r):
        return "reembed run"
    columns = r.columns
    id_column = next((c for c in ("doc_id", "_id", "id") if c in columns), columns[0])
    strings = [c for c in columns if r.types[c].endswith("string") and c != id_column]
    text = likely_text(strings or columns[-1:])
    others = ", ".join(c for c in strings if c != text)
    hints = [f"or another column as text: {others}"] if others else []
    if Path(DEFAULT_CONFIG).exists():
        uri = f"source.uri={r.uri}"
        named = [set_to("source.id_column", id_column), set_to("source.text", text)]
        command = " ".join([f"reembed run --set {shlex.quote(uri)}", *named])
    else:
        command = "reembed run"
        source = json.dumps({"uri": r.uri, "id_column": id_column, "text": text})
        hints.insert(0, f"first write {DEFAULT_CONFIG} (README.md), with source: {source}")
    return "     # ".join([command, *filter(None, ["; ".join(hints)])])


def _is_configured(r: Imported) -> bool:
    """Return whether the folder's config names this dataset and columns that it has: --set would override it."""
    from reembed.api import config
    from reembed.cli.command import DEFAULT_CONFIG
    from reembed.source.columns import template_columns
    from reembed.store.paths import absolute

    try:
        source = config([DEFAULT_CONFIG]).config.source
        named = [source.id_column, *(template_columns(source.text) or [source.text])]
        return absolute(source.uri) == absolute(r.uri) and set(named) <= set(r.columns)
    except ReembedError:  # no config in this folder, or an invalid one
        return False


def after_run(release: Release, live: Release | None, *, judged: bool, dual: bool) -> str:
    """Return the command that follows a build, given what is live and whether judged queries are named.

    `dual`: the strategy is dual_index.
    """
    from reembed.evaluation.report import to_compare

    if live is None:
        return _first_promotion(release.id)
    if live.origin == release.origin:
        return "reembed status"
    if dual and judged:
        return f"reembed shadow --candidate {release.id} --every 1h"
    return to_compare(release.id, judged=judged)


def after_status(status: Status) -> list[str]:
    """Return the commands that can follow, the usual one first."""
    if any(run.driven for run in status.runs):
        return ["reembed status     # a run is in progress"]
    stopped = [run for run in status.runs if run.driven is False]
    if status.runs and not stopped:
        return [f"reembed status     # on {status.runs[-1].host}, where a run may be in progress"]
    passed = any(verdict == "pass" for verdict, _, _ in _waiting(status))
    if status.shadow and not stopped and not passed:
        return ["reembed shadow --every 1h"]
    if status.lazy and not stopped and not status.candidates:
        return ["reembed lazy status"]
    of_candidates = [_after_candidates(status)] if status.candidates or not stopped else []
    if not stopped:
        return of_candidates
    run = stopped[-1]
    return [run.resume, *of_candidates, f"reembed gc --drop-run {run.run} --yes     # give it up"]


def _first_promotion(release: str) -> str:
    return f"reembed promote {release} --initial --reason 'the first release'"


def _waiting(status: Status) -> Iterator[tuple[str | None, str, str]]:
    """Yield verdict, id and line of each candidate, oldest first, but no older build of what is live."""
    for old in status.older_candidates:
        if not old.superseded:
            yield old.verdict, old.release, old.origin
    for c in status.candidates:
        if not c.superseded:
            yield c.verdict, c.release.id, c.release.origin


def _after_live(status: Status) -> str:
    if status.lag is None:
        return "reembed run"
    if status.lag.versions and status.lag.documents != 0:
        return "reembed catch-up live"
    return "reembed search 'some words'"


def _after_candidates(status: Status) -> str:
    from reembed.evaluation.report import compare_again

    waiting = list(_waiting(status))
    if not waiting:
        return _after_live(status)
    if not status.live:
        return _first_promotion(status.candidates[-1].release.id)
    left = status.rolled_back.origin if status.rolled_back else None
    by_verdict = {verdict: release for verdict, release, line in waiting if line != left}
    if not by_verdict:
        return "reembed history"
    if "pass" in by_verdict:
        return f"reembed promote {by_verdict['pass']}"
    if None in by_verdict:
        return f"reembed compare --candidate {by_verdict[None]}"
    if "inconclusive" in by_verdict:
        release = by_verdict["inconclusive"]
        again = {c.release: c.again for c in status.older_candidates}
        again |= {c.release.id: c.again for c in status.candidates}
        return again.get(release) or compare_again(release, None)
    why = "the candidates failed" if left is None else "no other candidate passed"
    return f"reembed run     # with another model: {why}"

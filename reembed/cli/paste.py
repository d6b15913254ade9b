"""Errors as text, and commands to paste: each is completed by the config files and settings that were given."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import click

from reembed.errors import ConfigError, ReembedError
from reembed.redact import one_line, plain

_CONFIGURED = (
    "run", "tune", "status", "verify", "compare", "promote", "catch-up", "dead-letters", "rollback",
    "history", "search", "gc", "config",
)  # fmt: skip
"""Verbs that take -c and --set."""
_OF_A_RUN = re.compile(r" -c \S.*/runs/[^/]+/config\.yaml")
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
    parts += [f"  {one_line(problem.why)}"] if problem.why else []
    parts += [f"  fix: {one_line(problem.fix)}"] if problem.fix else []
    return click.style("error: ", fg="red") + pasteable("\n".join(parts), given)


def error_record(problem: ReembedError, given: Sequence[str] = ()) -> dict[str, Any]:
    """Return an error as --json prints it."""
    # As a whole: what it quotes may have several lines.
    fix = _complete(f"fix: {problem.fix}", _options(given))[5:] if problem.fix else None
    return {
        "error": type(problem).__name__,
        "what": problem.what,
        "why": problem.why,
        "fix": fix,
        "exit_code": problem.exit_code,
    }


def pasteable(lines: str, given: Sequence[str]) -> str:
    """Return the lines with the `given` options in each command that takes them.

    A command that resumes a run with the run's own settings stays as it is: --set would overrule them.
    """
    options = _options(given)
    return "\n".join(_complete(line, options) for line in lines.split("\n"))


def _options(given: Sequence[str]) -> str:
    return "".join(f" {g}" for g in given)


def _complete(line: str, options: str) -> str:
    if (labelled := _LABELLED.fullmatch(line)) is None:
        return _completed(line, "`", options)
    label, command, comment = labelled.groups()
    return label + _completed(command, "^", options) + _completed(comment, r"\b", options)


def _completed(words: str, before: str, options: str) -> str:
    """Return the words with the options after each `reembed VERB` that follows the pattern `before`.

    At the beginning and in backquotes it is a command; elsewhere it may be part of a query.
    """
    if _OF_A_RUN.search(words):
        return words
    verbs = "|".join(_CONFIGURED)
    return re.sub(rf"{before}reembed ({verbs})\b", lambda m: m[0] + options, words)

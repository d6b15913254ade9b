"""Conditions in Lance's SQL: what Lance says against one, and what it takes although it is not meant so."""

from __future__ import annotations

import re
from collections.abc import Iterable

import lance

from reembed.store.storage import first_line

_TOKEN = re.compile(
    r"'(?:[^']|'')*'"
    r'|"(?:[^"]|"")*"'
    r"|`[^`]*`"
    r"|--[^\n]*|/\*.*?\*/"
    r"|\w+|\s+|.",
    re.DOTALL,
)
_OF_THE_MOMENT = re.compile(
    r"current_(timestamp|date|time)|(now|today|current_\w+|random|rand|uuid)\s*\(", re.IGNORECASE
)
"""Functions of Lance that return another value at each evaluation."""


def tokens_of(condition: str) -> list[str]:
    """Return the tokens of a condition; joined they are the condition."""
    return _TOKEN.findall(condition)


def quoted_column(condition: str, columns: Iterable[str]) -> tuple[str, str] | None:
    """Return a token in double quotes that reads as a column's name, and the column: in Lance it is a text."""
    names = {name.lower(): name for name in columns}
    for token in tokens_of(condition):
        if token.startswith('"') and (column := names.get(token[1:-1].lower())):
            return token, column
    return None


def of_the_moment(condition: str) -> str | None:
    """Return the name of a function in it that asks for the time or a random number; None without one."""
    found = _OF_THE_MOMENT.search(unquoted(condition))
    return found[0].strip(" (") if found else None


def unquoted(condition: str) -> str:
    """Return a condition without its texts and quoted names."""
    return "".join(t for t in tokens_of(condition) if t[0] not in "'\"`")


def error_of(dataset: lance.LanceDataset, condition: str, *, evaluate: bool = False) -> str | None:
    """Return what Lance says against a condition when it plans a scan by it; None if it takes it.

    No row is read, or with `evaluate` those up to the first one that meets the condition.
    """
    try:
        scanner = dataset.scanner(columns=[], with_row_id=True, filter=condition, limit=1)
        scanner.explain_plan()
        if evaluate:
            scanner.to_table()
    except (
        ValueError,
        OSError,
        RuntimeError,
    ) as error:  # RuntimeError: a part that it has no plan for
        return first_line(error)
    return None

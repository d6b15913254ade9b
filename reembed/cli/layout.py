"""Lines of text for people: colours, tables, and what to do next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

from reembed.plural import counted
from reembed.redact import one_line

if TYPE_CHECKING:
    from reembed.catalog.releases import Release
    from reembed.catalog.reports import ReleaseSummary

Lines = Iterable[str]
INDENT = " " * 13
"""Of what a line of `reembed status` goes on with."""
_COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


class Coloured(str):
    """A line that is harmless already, and holds a colour."""

    __slots__ = ()


def coloured(verdict: str, words: str, before: str = "", after: str = "") -> Coloured:
    """Return a line whose `words` have the colour of a verdict."""
    shown = click.style(one_line(words), fg=_COLOURS[verdict])
    return Coloured(one_line(before) + shown + one_line(after))


def aligned(rows: Sequence[Sequence[object]], right: Sequence[int] = ()) -> list[str]:
    """Return rows as indented lines with aligned columns; those in `right` to the right."""
    from tabulate import tabulate

    if not rows:
        return []
    cells = [[one_line(str(cell)) for cell in row] for row in rows]
    sides = ["right" if n in right else "left" for n in range(len(rows[0]))]
    lines = tabulate(cells, tablefmt="plain", disable_numparse=True, colalign=sides).splitlines()
    return [f"  {line}".rstrip() for line in lines]


def next_lines(first: str, *others: str) -> list[str]:
    """Return the commands that can follow, the usual first."""
    return [f"Next: {first}", *(f"  or: {other}" for other in others)]


def documents_of(release: Release | ReleaseSummary) -> str:
    """Return the documents of a release, and its rows where they are more or fewer."""
    if release.documents == release.rows:
        return counted(release.documents, "document")
    return f"{counted(release.documents, 'document')} in {counted(release.rows, 'row')}"

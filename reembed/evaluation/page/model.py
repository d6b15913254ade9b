"""What a page consists of, whatever it is rendered as. Nothing in it is markup."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from reembed.catalog.reports import Outcome

Tone = Literal["live", "candidate", "limit", "soft", "ink"]
"""What a mark of a plot stands for; the renderer chooses its colour."""


@dataclass(frozen=True)
class Code:
    """Text that is shown as it is: an id, a path, a command, anything from outside."""

    text: str
    kind: ClassVar = "code"


@dataclass(frozen=True)
class Judged:
    """A verdict: a word and a sign, so that its colour says nothing alone."""

    text: Outcome
    kind: ClassVar = "verdict"

    @property
    def sign(self) -> str:
        """A sign that can be told from the others without colour."""
        return {"pass": "✓", "fail": "✗", "inconclusive": "?"}.get(self.text, "")


@dataclass(frozen=True)
class Soft:
    """Words that explain others."""

    text: str
    kind: ClassVar = "soft"


Piece = str | Code | Judged | Soft
Line = Piece | tuple[Piece, ...]


def pieces(line: Line) -> tuple[Piece, ...]:
    """Return the pieces of a line."""
    return line if isinstance(line, tuple) else (line,)


@dataclass(frozen=True)
class Paragraph:
    """A sentence or more."""

    line: Line
    kind: ClassVar = "paragraph"


@dataclass(frozen=True)
class Items:
    """A list."""

    lines: tuple[Line, ...]
    kind: ClassVar = "items"


@dataclass(frozen=True)
class Commands:
    """Commands to paste, each with what it is for."""

    lines: tuple[tuple[str, str], ...]
    kind: ClassVar = "commands"

    @classmethod
    def of(cls, choices: Iterable[str]) -> Commands:
        """Take commands as they are printed: `COMMAND     # why`."""
        parts = [choice.partition("     # ") for choice in choices]
        return cls(tuple((command, why) for command, _, why in parts))


@dataclass(frozen=True)
class Table:
    """Rows with a name each, under named columns. The first column names the rows."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Line, ...], ...]
    words: tuple[int, ...] = ()
    """Columns of words, beside the first; the others hold numbers."""
    kind: ClassVar = "table"


@dataclass(frozen=True)
class Stroke:
    """A line."""

    x1: float
    y1: float
    x2: float
    y2: float
    tone: Tone
    width: float = 1.5
    dashed: bool = False
    kind: ClassVar = "stroke"


@dataclass(frozen=True)
class Dot:
    """A point. Hollow ones have the colour of the paper inside."""

    x: float
    y: float
    tone: Tone
    hollow: bool = False
    radius: float = 5
    kind: ClassVar = "dot"


@dataclass(frozen=True)
class Box:
    """A bar from its upper left corner."""

    x: float
    y: float
    width: float
    height: float
    tone: Tone
    hollow: bool = False
    kind: ClassVar = "box"


@dataclass(frozen=True)
class Label:
    """Words in a plot."""

    x: float
    y: float
    text: str
    tone: Tone = "ink"
    anchor: Literal["start", "middle", "end"] = "start"
    kind: ClassVar = "label"


Mark = Stroke | Dot | Box | Label


@dataclass(frozen=True)
class Plot:
    """A figure, in units of which a line of text is 12 high."""

    caption: str
    alternative: str
    """What it shows, for who cannot see it."""
    width: float
    height: float
    marks: tuple[Mark, ...]
    kind: ClassVar = "plot"


@dataclass(frozen=True)
class Beside:
    """Tables of which as many are side by side as there is room for."""

    tables: tuple[Table, ...]
    kind: ClassVar = "beside"


@dataclass(frozen=True)
class Folded:
    """Blocks that show when their summary is opened. Those that are open are printed."""

    summary: Line
    blocks: tuple[Block, ...]
    open: bool
    kind: ClassVar = "folded"


Block = Paragraph | Items | Commands | Table | Plot | Beside | Folded


@dataclass(frozen=True)
class Section:
    """A heading, what is under it, and headings of the next level."""

    title: str
    blocks: tuple[Block, ...]
    parts: tuple[Section, ...] = ()


@dataclass(frozen=True)
class Page:
    """A report."""

    title: str
    verdict: Judged
    lead: tuple[Block, ...]
    """What comes before the first section."""
    sections: tuple[Section, ...]

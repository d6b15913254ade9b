"""A page as Markdown, as GitHub and GitLab render it in a comment.

What comes from outside becomes code or has its marks escaped, so that it is text: no tag, link, mention or
reference to an issue.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

from reembed.evaluation.page.model import (
    Beside,
    Block,
    Code,
    Commands,
    Folded,
    Items,
    Judged,
    Line,
    Page,
    Paragraph,
    Piece,
    Plot,
    Section,
    Table,
    pieces,
)
from reembed.redact import one_line

_MARKS = re.compile(r"([\\`*_\[\]<>#!~$&])")
_BEGINS_A_LIST = re.compile(r"^(\s*\d*)([-+=.)])(?=[\s=-]|$)")
_REFERS = re.compile(r"((?<!\w)@|#(?=\d)|\bGH-|\bhttps?:|\bwww\.)", re.IGNORECASE)
_APART = "\u200b"
"""Zero-width space: what it divides is no mention and no link."""


def markdown(page: Page) -> str:
    """Return the page as Markdown."""
    blocks = [f"# {_words(page.title)} {_piece(page.verdict)}", *map(_block, page.lead)]
    for section in page.sections:
        blocks += _section(section, "##")
    return "\n\n".join(blocks) + "\n"


def _section(section: Section, level: str) -> Iterator[str]:
    yield f"{level} {_words(section.title)}"
    yield from map(_block, section.blocks)
    for part in section.parts:
        yield from _section(part, f"{level}#")


def _block(block: Block) -> str:
    match block:
        case Paragraph():
            return _line(block.line)
        case Items():
            return "\n".join(f"- {_line(line)}" for line in block.lines)
        case Commands():
            return _commands(block)
        case Table():
            return _table(block)
        case Plot():
            return f"_{_words(block.alternative)}_"
        case Beside():
            return "\n\n".join(map(_table, block.tables))
        case Folded():
            inner = "\n\n".join(map(_block, block.blocks))
            return f"<details><summary>{_summary(block.summary)}</summary>\n\n{inner}\n\n</details>"


def _commands(block: Commands) -> str:
    lines = [f"{command}     # {why}" if why else command for command, why in block.lines]
    code = "\n".join(map(one_line, lines))
    fence = _fence(code, 3)
    return f"{fence}sh\n{code}\n{fence}"


def _table(table: Table) -> str:
    aligned = ["---" if n == 0 or n in table.words else "---:" for n in range(len(table.columns))]
    rows = [" | ".join(map(_cell, row)) for row in (table.columns, *table.rows)]
    head, *body = (f"| {row} |" for row in rows)
    lines = [f"_{_words(table.caption)}_", "", head, f"|{'|'.join(aligned)}|", *body]
    return "\n".join(lines)


def _cell(line: Line) -> str:
    """Return a line in which no bar ends the cell; in a code span, nothing would escape it."""
    return "".join(
        _entities(p) if isinstance(p, Code) and "|" in p.text else _piece(p) for p in pieces(line)
    )


def _entities(code: Code) -> str:
    shown = "".join(c if c.isalnum() or c == " " else f"&#{ord(c)};" for c in one_line(code.text))
    return f"<code>{shown}</code>"


def _line(line: Line) -> str:
    return "".join(map(_piece, pieces(line)))


def _piece(piece: Piece) -> str:
    match piece:
        case str():
            return _words(piece)
        case Code():
            return _code(piece.text)
        case Judged():
            return f"**{_words(f'{piece.sign} {piece.text}'.strip())}**"
        case _:
            return _words(piece.text)


def _words(text: str) -> str:
    """Return words with what Markdown reads as marks escaped."""
    escaped = _BEGINS_A_LIST.sub(r"\1\\\2", _MARKS.sub(r"\\\1", one_line(text)))
    return _REFERS.sub(rf"\1{_APART}", escaped).replace("|", "&#124;")


def _code(text: str) -> str:
    """Return a code span."""
    plain = one_line(text)
    fence = _fence(plain, 1)
    room = " " if plain.startswith("`") or plain.endswith("`") or not plain.strip() else ""
    return f"{fence}{room}{plain}{room}{fence}"


def _fence(text: str, least: int) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    return "`" * max(least, longest + 1 if longest else least)


def _summary(line: Line) -> str:
    """Return a line as HTML: Markdown inside a summary is not rendered everywhere."""
    return "".join(_as_html(piece) for piece in pieces(line))


def _as_html(piece: Piece) -> str:
    escaped = html.escape(one_line(piece if isinstance(piece, str) else piece.text))
    if isinstance(piece, Code):
        return f"<code>{escaped}</code>"
    return _REFERS.sub(rf"\1{_APART}", escaped)

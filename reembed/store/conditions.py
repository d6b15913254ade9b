"""Conditions in Lance's SQL: what Lance says against one, and what it takes although it is not meant so."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import lance

from reembed.store.storage import first_line

MOST_CHARACTERS = 65_536
"""AND and OR were planned up to this length in every form that was tried."""
MOST_WORDS = 128
"""Words and signs of one part of a condition. Lance plans a chain of operators by recursion: 450 times IS TRUE,
900 signs + or 1,500 times BETWEEN end the process with SIGSEGV."""
MOST_BRACKETS = 32
"""Brackets inside each other. Lance refuses more than about 45, and may try CASTs for minutes before it does."""
MOST_JOINED = 256
"""Conditions joined by AND, or by OR behind NOT. The time to plan them grows with their square or faster: 400
comparisons of a column take .1 s, 1,000 one second."""
MOST_TOGETHER = 50_000
"""Sum of the squares of the words of all parts. Lance takes about 1 us for each: sums are the slowest."""

_OPENED_BY = {")": "(", "]": "[", "}": "{", "END": "CASE"}
_PLACEHOLDER = re.compile(r"\$\w*|\?|(?<!:):(?!:)\w*|\b[A-Za-z](?=['\"])")
"""$1, ?, :name, and the letter of a literal as N'x': Lance panics at each."""
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


def unsafe(condition: str) -> str | None:
    """Return why Lance must not be given a condition: it could end the process, panic or plan for minutes."""
    if len(condition) > MOST_CHARACTERS:
        return f"it has {len(condition):,} characters; up to {MOST_CHARACTERS:,} are taken"
    tokens = [_plain(token) for token in tokens_of(condition)]
    if found := _PLACEHOLDER.search("".join(tokens)):
        return f"Lance has no value for {found[0]}; write values themselves, texts as 'x' and odd names in backticks"
    return _too_large([t.upper() for t in tokens if not t.isspace()])


def _too_large(words: list[str]) -> str | None:
    """Return what a condition of these words has too much of, and how much is taken; None if it is none of it."""
    brackets, whole = _levels(words)
    if brackets > MOST_BRACKETS:
        return f"{brackets:,} brackets are inside each other; up to {MOST_BRACKETS} are taken"
    if whole.height > MOST_WORDS:
        return (
            f"a part of it has {whole.height:,} words and signs; up to {MOST_WORDS} are taken"
            " between two of AND, OR and commas"
        )
    joined, by = whole.ands + 1, "AND"
    if ("NOT", "(") in pairwise(words):  # then Lance makes AND of OR
        joined, by = joined + whole.ors, "AND and OR"
    if joined > MOST_JOINED:
        return f"{joined:,} conditions are joined by {by}; up to {MOST_JOINED} are taken (IN takes more values)"
    if whole.squares > MOST_TOGETHER:
        return (
            "Lance would plan it for too long: the squares of the words and signs of its parts are"
            f" {whole.squares:,} together; up to {MOST_TOGETHER:,} are taken (IN takes more values)"
        )
    return None


def _plain(token: str) -> str:
    """Return a token, of a text or a quoted name its quote, and a space for a comment."""
    if token.startswith(("--", "/*")):
        return " "
    return token[0] if token[0] in "'\"`" else token


@dataclass
class _Level:
    """What is inside one bracket, or outside all."""

    opener: str = ""
    words: int = 0
    """Of the part that is read."""
    most: int = 0
    """Of the parts before it."""
    betweens: int = 0
    """BETWEEN whose AND did not come yet."""
    ands: int = 0
    ors: int = 0
    squares: int = 0
    """Of the words of the parts before it; of what is in a part's brackets if that is more."""
    inside: int = 0
    """Squares in the brackets of the part that is read."""

    @property
    def height(self) -> int:
        return max(self.most, self.words)

    def take(self, word: str) -> None:
        """Count a word or sign; AND, OR and commas begin a new part."""
        of_between = word == "AND" and self.betweens > 0
        self.betweens += (word == "BETWEEN") - of_between
        if word in ("AND", "OR", ",") and not of_between:
            self.ands += word == "AND"
            self.ors += word == "OR"
            self.end()
        else:
            self.words += 1

    def end(self) -> None:
        """Begin a new part."""
        self.squares += max(self.words**2, self.inside)
        self.most, self.words, self.inside = self.height, 0, 0

    def hold(self, inner: _Level) -> None:
        """Count what was inside a bracket, which is a word itself."""
        inner.end()
        self.words += inner.height + 1
        self.ands += inner.ands
        self.ors += inner.ors
        self.inside += inner.squares


def _levels(words: Iterable[str]) -> tuple[int, _Level]:
    """Return how many brackets of a condition are inside each other, and the level outside all.

    The height of that is at least the height of the tree that Lance makes of any part between AND and OR.
    """
    levels, brackets = [_Level()], 0
    for word in words:
        if word in _OPENED_BY.values():
            levels.append(_Level(word))
            brackets = max(brackets, len(levels) - 1)
        elif _OPENED_BY.get(word) == levels[-1].opener:
            inner = levels.pop()
            levels[-1].hold(inner)
        else:
            levels[-1].take(word)
    while len(levels) > 1:  # brackets that were not closed
        inner = levels.pop()
        levels[-1].hold(inner)
    levels[0].end()
    return brackets, levels[0]


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

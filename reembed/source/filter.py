"""Check that each part of a filter names a column, before documents are counted by it."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterator
from itertools import accumulate

import lance
import pyarrow as pa

from reembed.errors import SourceError
from reembed.store.conditions import error_of, of_the_moment, quoted_column, tokens_of, unsafe


def check_filter(dataset: lance.LanceDataset, where: str, condition: str) -> None:
    """Refuse a filter that cannot be evaluated, or of which a part is the same for every document.

    Raises:
        SourceError: it is not a condition, it has a column's name in double quotes, which is text
            in Lance, one of its comparisons names no column, it asks for the time or a random number,
            or it is too deep for Lance.
    """
    _require_safe(dataset, condition)
    tokens = tokens_of(condition)
    if quoted := quoted_column(condition, dataset.schema.names):
        token, column = quoted
        meant = _renamed(tokens, token, column)
        raise SourceError(
            f"source.filter = {condition!r}: {token} is a text, not the column {column}",
            "write columns plainly or in backticks, and texts in single quotes",
            f"reembed run --set {shlex.quote(f'source.filter={meant}')}",
        )
    if found := of_the_moment(condition):
        raise SourceError(
            f"source.filter = {condition!r}: {found} is not the same at every evaluation",
            "the documents would change while the dataset does not, and no check could see it",
            _example(dataset),
        )
    if error := error_of(dataset, condition, evaluate=True):
        raise _not_a_filter(dataset, where, condition, error, _example(dataset))
    without_columns = lance.write_dataset(pa.table({"reembed": pa.nulls(0)}), "memory://")
    for part in _comparisons(dataset, tokens):
        if error_of(without_columns, part) is None:
            raise SourceError(
                f"source.filter = {condition!r}: {part!r} does not name a column",
                f"it is the same for every document; columns: {', '.join(dataset.schema.names)}",
                _example(dataset),
            )


def require_condition(dataset: lance.LanceDataset, where: str, condition: str) -> None:
    """Refuse a filter that was a condition over an earlier version's columns; reads no row.

    Raises:
        SourceError: a column is not there, or of a type that cannot be compared so, or the filter is too
            deep for Lance.
    """
    _require_safe(dataset, condition)
    if error := error_of(dataset, condition):
        otherwise = "reembed config     # shows source.filter; it must name columns that are there"
        raise _not_a_filter(dataset, where, condition, error, otherwise)


def _require_safe(dataset: lance.LanceDataset, condition: str) -> None:
    if why := unsafe(condition):
        raise SourceError(
            f"source.filter = {condition!r:.200} cannot be given to Lance", why, _example(dataset)
        )


def _not_a_filter(
    dataset: lance.LanceDataset, where: str, condition: str, error: str, otherwise: str | None
) -> SourceError:
    return SourceError(
        f"source.filter = {condition!r} is not a filter over {where}: {error}",
        f"columns: {', '.join(dataset.schema.names)}",
        _with_like_names(dataset, condition) or otherwise,
    )


def _with_like_names(dataset: lance.LanceDataset, condition: str) -> str | None:
    """Return a run with the same filter, if one name in it is close to a column's."""
    tokens = tokens_of(condition)
    for token in dict.fromkeys(tokens):
        for column in difflib.get_close_matches(token.strip("`"), dataset.schema.names, 1):
            meant = _renamed(tokens, token, column)
            if token.strip("`") != column and error_of(dataset, meant) is None:
                return f"reembed run --set {shlex.quote(f'source.filter={meant}')}"
    return None


def _renamed(tokens: list[str], token: str, column: str) -> str:
    """Return the filter with a column's name in place of a token."""
    return "".join(f"`{column}`" if t == token else t for t in tokens)


def _example(dataset: lance.LanceDataset) -> str | None:
    """Return a run with a filter that this dataset can answer."""
    quotable = [name for name in dataset.schema.names if "`" not in name]
    if not quotable:
        return None
    example = f"`{quotable[0]}` IS NOT NULL"
    return f"reembed run --set {shlex.quote(f'source.filter={example}')}"


def _comparisons(dataset: lance.LanceDataset, tokens: list[str]) -> Iterator[str]:
    """Yield what AND and OR join, at any depth. A part that fails alone is joined again: x BETWEEN 1 AND 2."""
    parts = _split(tokens)
    if len(parts) == 1 and (inner := _inside(tokens)) is not None:
        yield from _comparisons(dataset, inner)
        return
    part: list[str] = []
    for piece in parts:
        part += piece
        if part == tokens:
            yield "".join(tokens).strip()
        elif error_of(dataset, "".join(part)) is not None:
            part.append("AND")
        else:
            yield from _comparisons(dataset, part)
            part = []


def _split(tokens: list[str]) -> list[list[str]]:
    """Split at each AND and OR outside parentheses."""
    parts: list[list[str]] = [[]]
    depth = 0
    for token in tokens:
        depth += (token == "(") - (token == ")")
        if depth == 0 and token.upper() in ("AND", "OR"):
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def _inside(tokens: list[str]) -> list[str] | None:
    """Return what is inside parentheses around the whole, or after NOT; None if there is neither."""
    solid = [t for t in tokens if not t.isspace()]
    if solid and solid[0].upper() == "NOT":
        return tokens[tokens.index(solid[0]) + 1 :]
    if not solid or (solid[0], solid[-1]) != ("(", ")"):
        return None
    inner = tokens[tokens.index("(") + 1 : -1 - tokens[::-1].index(")")]
    if min(accumulate((t == "(") - (t == ")") for t in inner), default=0) < 0:
        return None
    return inner

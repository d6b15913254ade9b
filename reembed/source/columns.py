"""Columns of a dataset that hold ids and text: which they may be, and templates over them."""

from __future__ import annotations

import difflib
import json
import re
import shlex
import string
from collections.abc import Callable, Collection
from dataclasses import dataclass

import pyarrow as pa

from reembed.errors import SourceError

_YAML_WORDS = ("y", "n", "yes", "no", "on", "off", "true", "false", "null")
"""Which YAML reads as something else than a text."""


def template_columns(text: str) -> list[str]:
    """Columns named in a template; empty when `text` is a plain column name."""
    if "{" not in text:
        return []
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise SourceError(
            f"source.text = {text!r} is not a template", str(error), 'write "{title} {text}"'
        ) from error
    for _, name, spec, conversion in parts:
        if name is not None and (
            not name.replace("_", "a").replace("-", "a").isalnum() or spec or conversion
        ):
            raise SourceError(
                f"source.text = {text!r}: {name!r} is not a plain column name",
                "a template may only name columns",
                'write "{title} {text}"',
            )
    return [name for _, name, _, _ in parts if name]


_TEXT_NAMES = (
    "text",
    "body",
    "content",
    "contents",
    "passage",
    "document",
    "abstract",
    "description",
)


def likely_text(names: list[str]) -> str:
    """Of columns that hold strings, the one whose name says that it is the text; else the first."""
    return min(names, key=lambda n: (*_TEXT_NAMES, n.lower()).index(n.lower()))


def is_text(kind: pa.DataType) -> bool:
    """Whether it is a string type."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_id(kind: pa.DataType) -> bool:
    return is_text(kind) or bool(pa.types.is_integer(kind))


@dataclass(frozen=True)
class Role:
    """What a column is read as."""

    setting: str
    what: str
    fits: Callable[[pa.DataType], bool]

    def usable(self, schema: pa.Schema, taken: Collection[str]) -> list[str]:
        """Columns whose type fits, other than those that are `taken` already."""
        return [f.name for f in schema if self.fits(plain(f.type)) and f.name not in taken]


IDS = Role("source.id_column", "ids", _is_id)
TEXTS = Role("source.text", "text", is_text)


def require(schema: pa.Schema, where: str, column: str, role: Role, taken: Collection[str]) -> None:
    """Refuse a column of a type that does not fit; says which would."""
    found = schema.field(column).type
    if not role.fits(plain(found)):
        usable = role.usable(schema, taken)
        raise SourceError(
            f"column {column!r} of {where} is {found}, which cannot be {role.what}",
            f"columns that can: {', '.join(usable) or 'none'}",
            f"reembed run {set_to(role.setting, usable[0])}" if usable else None,
        )


def set_to(setting: str, column: str) -> str:
    """The option that sets a setting to a column's name, to be pasted into a shell, whatever the name holds."""
    plain_name = re.fullmatch(r"[A-Za-z_][\w-]*", column) and column.lower() not in _YAML_WORDS
    value = column if plain_name else json.dumps(column)
    return f"--set {shlex.quote(f'{setting}={value}')}"


def nearest(column: str, names: list[str]) -> str:
    """The name that is most like this one."""
    return str(difflib.get_close_matches(column, names, 1, 0.0)[0])


def plain(kind: pa.DataType) -> pa.DataType:
    """string or int64 for what Arrow has several forms of."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    return pa.int64() if pa.types.is_integer(kind) else kind

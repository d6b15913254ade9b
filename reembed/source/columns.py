"""Check the columns that hold ids, text and carried values; read templates over them."""

from __future__ import annotations

import difflib
import json
import re
import shlex
import string
from collections.abc import Collection
from dataclasses import dataclass

import lance
import pyarrow as pa

from reembed.catalog.releases import SourceRef
from reembed.errors import SourceError
from reembed.store.storage import first_line

_YAML_WORDS = ("y", "n", "yes", "no", "on", "off", "true", "false", "null")
"""Words that YAML does not read as text."""
_TEXT_NAMES = (
    "text", "body", "content", "contents", "passage", "document", "abstract", "description"
)  # fmt: skip


def text_columns(ref: SourceRef) -> list[str]:
    """Return the columns that the text is made of."""
    return template_columns(ref.text) or [ref.text]


def template_columns(text: str) -> list[str]:
    """Return the columns named in a template; empty when `text` is a plain column name."""
    if "{" not in text:
        return []
    said = f"source.text = {text!r}"
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        what = f"{said} is not a template"
        raise SourceError(what, str(error), 'write "{title} {text}"') from error
    for _, name, spec, conversion in parts:
        plain_name = name is None or re.fullmatch(r"[\w-]+", name)
        if not plain_name or spec or conversion:
            what = f"{said}: {name!r} is not a plain column name"
            raise SourceError(what, "a template may only name columns", 'write "{title} {text}"')
    return [name for _, name, _, _ in parts if name]


def likely_text(names: list[str]) -> str:
    """Return, among columns that hold strings, the one whose name says that it is the text; else the first."""
    return min(names, key=lambda n: (*_TEXT_NAMES, n.lower()).index(n.lower()))


@dataclass(frozen=True)
class Role:
    """What a column is read as."""

    setting: str
    what: str
    types: tuple[pa.DataType, ...]
    """As `plain` gives them."""

    def usable(self, schema: pa.Schema, taken: Collection[str]) -> list[str]:
        """Return the columns whose type fits, except those in `taken`."""
        return [f.name for f in schema if plain(f.type) in self.types and f.name not in taken]


_IDS = Role("source.id_column", "ids", (pa.string(), pa.int64()))
_TEXTS = Role("source.text", "text", (pa.string(),))


def _require(
    schema: pa.Schema, where: str, column: str, role: Role, taken: Collection[str]
) -> None:
    """Refuse a column of a type that does not fit; name those that do."""
    found = schema.field(column).type
    if plain(found) not in role.types:
        usable = role.usable(schema, taken)
        raise SourceError(
            f"column {column!r} of {where} is {found}, which cannot be {role.what}",
            f"columns that can: {', '.join(usable) or 'none'}",
            f"reembed run {set_to(role.setting, usable[0])}" if usable else None,
        )


def check_columns(dataset: lance.LanceDataset, ref: SourceRef) -> None:
    """Refuse a version that lacks a column, or in which one has a type that does not fit.

    Raises:
        SourceError: with the columns that would fit.
    """
    schema, where, texts = dataset.schema, f"{ref.uri} version {ref.version}", text_columns(ref)
    for column in (ref.id_column, *texts, *ref.carry):
        if column not in schema.names:
            raise SourceError(
                f"{where} has no column {column!r}",
                f"it has: {', '.join(schema.names)}",
                _instead_of(column, ref, texts, schema),
            )
    if quoted := [c for c in (ref.id_column, *texts) if "`" in c]:
        raise SourceError(
            f"{ref.uri}: the column {quoted[0]!r} has a backtick in its name",
            "Lance cannot read such a column",
            "give the column another name, or name another one",
        )
    for column in texts:
        _require(schema, where, column, _TEXTS, taken=(ref.id_column,))
    _require(schema, where, ref.id_column, _IDS, taken=texts)
    for column in ref.carry:
        _check_carried(dataset, ref, column)


def _check_carried(dataset: lance.LanceDataset, ref: SourceRef, column: str) -> None:
    """Refuse a column that a scan returns in another type than the schema has, as it does of blobs."""
    stored = dataset.schema.field(column).type
    try:
        read = dataset.scanner(columns=[column]).projected_schema.field(column).type
        pa.schema([(column, read)]).empty_table()  # pyarrow cannot make some tensors
    except (ValueError, OSError, NotImplementedError) as error:
        why = first_line(error)
    else:
        if read == stored:
            return
        why = f"reading it gives {read}"
    raise SourceError(
        f"column {column!r} cannot be carried",
        f"it is {stored}: {why}",
        _carry_without(ref, column),
    )


def _instead_of(column: str, ref: SourceRef, texts: list[str], schema: pa.Schema) -> str:
    """Return the command that names another column, or carries one less."""
    if column not in (ref.id_column, *texts):
        return _carry_without(ref, column)
    role, taken = _TEXTS, [ref.id_column, *texts]
    if column == ref.id_column:
        role, taken = _IDS, texts
    names = role.usable(schema, taken) or schema.names
    nearest = difflib.get_close_matches(column, names, 1, 0.0)[0]
    value = nearest
    if role is _TEXTS and template_columns(ref.text):
        value = ref.text.replace(f"{{{column}}}", f"{{{nearest}}}")
    return f"reembed run {set_to(role.setting, value)}"


def _carry_without(ref: SourceRef, column: str) -> str:
    carried = f"[{', '.join(json.dumps(c) for c in ref.carry if c != column)}]"
    return f"reembed run --set table.carry={shlex.quote(carried)}"


def set_to(setting: str, column: str) -> str:
    """Return the option that sets a setting to a column's name, quoted for a shell and for YAML."""
    value = column
    if not re.fullmatch(r"[A-Za-z_][\w-]*", column) or column.lower() in _YAML_WORDS:
        value = json.dumps(column)
    return f"--set {shlex.quote(f'{setting}={value}')}"


def plain(kind: pa.DataType) -> pa.DataType:
    """Return string or int64 for a type that Arrow has several forms of; any other as it is."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_integer(kind):
        return pa.int64()
    return kind

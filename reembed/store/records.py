"""Reading a stored record back as what it was: every field there, of its type, or an error that names it.

A sha256 says that a record is as it was written, not who wrote it: a root, a dataset or a backup may
come from others.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError, create_model

from reembed.errors import IntegrityError, UsageError

T = TypeVar("T")

SCHEMA_VERSION = 4
"""Of every record; a record that changes its meaning takes a new one."""

DAMAGED = "reembed status     # and put the file back from a backup of the store"
_MAX_SHOWN = 120
_SHOWN = 30
_SHA256 = "_sha256"


class Record(dict[str, Any]):
    """The fields of a stored record, and where it was read from.

    Raises:
        IntegrityError: it is asked for a field that it does not have.
    """

    uri = ""

    def __missing__(self, field: str) -> Any:
        raise _other(self.uri, f"it has no field {field}")


def decode(kind: type[T], record: Any, at: str = "") -> T:
    """The dataclass, model or list that a record describes; unknown fields are refused.

    Raises:
        IntegrityError: naming the record's place, or `at`, and the first field that is wrong.
    """
    fields = record
    if isinstance(record, Mapping):
        fields = {k: v for k, v in record.items() if k != "schema_version"}
        _require_whole(kind, fields, at or _place(record, kind))
    return cast(T, _validated(kind, fields, at or _place(record, kind)))


def encode(record: Any) -> dict[str, Any]:
    """A dataclass as it is stored; `decode` makes the same of it again."""
    fields = cast(dict[str, Any], _writer(cast(Any, type(record))).dump_python(record, mode="json"))
    return {"schema_version": SCHEMA_VERSION, **fields}


@functools.cache
def _writer(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _require_whole(kind: Any, fields: Mapping[str, Any], place: str) -> None:
    """Also fields that have a default are written, and a record that lacks one is not ours."""
    names = (f.name for f in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else ()
    if lost := [n for n in names if n not in fields and n != "schema_version"]:
        raise _other(place, f"{lost[0]}: Field required")


def where(record: Any) -> str:
    """Where a record was read from; "" where that is not known."""
    return str(getattr(record, "uri", ""))


def _place(record: Any, kind: Any) -> str:
    return where(record) or f"a record of {getattr(kind, '__name__', kind)}"


def _validated(kind: Any, fields: Any, place: str) -> Any:
    try:
        body = json.dumps({"value": fields})
        return _form(kind).model_validate_json(body).value
    except ValidationError as error:
        raise _other(place, first_wrong(error, skip=1)) from None
    except (RecursionError, TypeError) as error:
        raise _other(place, str(error)) from None


def first_wrong(error: ValidationError, skip: int = 0) -> str:
    """Return the first field that is wrong, without its first `skip` names, and what is wrong with it."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"][skip:])
    return f"{field}: {first['msg']}" if field else first["msg"]


@functools.cache
def _form(kind: Any) -> Any:
    # The settings of a model hold for the plain dataclasses and dicts in it, too.
    return create_model(
        "Form", __config__=ConfigDict(extra="forbid", strict=True), value=(kind, ...)
    )


def _other(place: str, why: str) -> IntegrityError:
    return IntegrityError(
        f"{place} is not a valid reembed record", why.splitlines()[0][:_MAX_SHOWN], DAMAGED
    )


def to_bytes(record: Mapping[str, Any]) -> bytes:
    """A record as it is stored: JSON, with the sha256 of all the rest of it under `_sha256`.

    Raises:
        UsageError: a text in it has no UTF-8 form; nothing that reads records would take it.
    """
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        near = error.object[max(error.start - _SHOWN, 0) : error.end + _SHOWN]
        raise UsageError(
            f"a text to be stored is not UTF-8: ...{near.encode(errors='backslashreplace').decode()}...",
            "the record could not be read again, so it is not written",
            "locale     # and give the option, setting or file that holds this text in UTF-8",
        ) from error
    return json.dumps({**record, _SHA256: _digest(record)}, sort_keys=True).encode()


def from_bytes(body: bytes, uri: str) -> Record:
    """Return the stored record.

    Raises:
        IntegrityError: not one byte of it may differ.
        UsageError: a newer reembed wrote it.
    """
    try:
        record = Record(json.loads(body))
        record.uri = uri
        record.pop(_SHA256, None)
        intact = body == to_bytes(record)
    except (ValueError, TypeError, RecursionError, UsageError) as error:
        raise IntegrityError(f"{uri} is not a valid reembed record", str(error), DAMAGED) from error
    if not intact:
        raise IntegrityError(
            f"{uri} was changed after it was written",
            "its sha256 does not match its content",
            DAMAGED,
        )
    if (found := record.get("schema_version", SCHEMA_VERSION)) != SCHEMA_VERSION:
        raise UsageError(
            f"{uri} was written by another version of reembed",
            f"format {found}, this one knows {SCHEMA_VERSION}",
            "pip install -U reembed-ray",
        )
    return record


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()

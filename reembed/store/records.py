"""The codec of stored records: every field is there and of its type, or an error names it.

A sha256 says that a record is as it was written, not who wrote it: a root, a dataset or a backup may
come from others.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError, create_model

from reembed.errors import IntegrityError, UsageError
from reembed.space import sha256_of

T = TypeVar("T")

SCHEMA_VERSION = 19
"""Format of every record. Raise it when the meaning of a record changes."""

DAMAGED = "reembed status     # and put the file back from a backup of the store"
_MAX_SHOWN = 120
_SHOWN = 30
_SHA256 = "_sha256"


class Record(dict[str, Any]):
    """The fields of a stored record, and where it was read from. A missing field is an IntegrityError."""

    uri = ""

    def __missing__(self, field: str) -> Any:
        raise _other(self.uri, f"it has no field {field}")


def decode(kind: type[T], record: Any, at: str = "") -> T:
    """Return the dataclass, model or list that a record describes.

    Raises:
        IntegrityError: a field is missing, unknown or of another type; names the first one and the
            record's place, or `at`.
    """
    place = at or where(record) or f"a record of {getattr(kind, '__name__', kind)}"
    fields = record
    if isinstance(record, Mapping):
        fields = {k: v for k, v in record.items() if k != "schema_version"}
    if isinstance(record, Mapping) and dataclasses.is_dataclass(kind):
        for field in dataclasses.fields(kind):  # those with a default are written, too
            if field.name not in fields:
                raise _other(place, f"{field.name}: Field required")
    form = _form(cast(Any, kind))
    try:
        return cast(T, form.model_validate_json(json.dumps({"value": fields})).value)
    except ValidationError as error:
        raise _other(place, first_wrong(error, skip=1)) from None
    except (RecursionError, TypeError) as error:
        raise _other(place, str(error)) from None


def encode(record: Any) -> dict[str, Any]:
    """Return a dataclass as it is stored, for `decode` to read."""
    fields = cast(dict[str, Any], _writer(cast(Any, type(record))).dump_python(record, mode="json"))
    return {"schema_version": SCHEMA_VERSION, **fields}


@functools.cache
def _writer(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def where(record: Any) -> str:
    """Return where a record was read from; "" if that is not known."""
    return str(getattr(record, "uri", ""))


def first_wrong(error: ValidationError, skip: int = 0) -> str:
    """Return the first field that is wrong, without its first `skip` names, and what is wrong with it."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"][skip:])
    return f"{field}: {first['msg']}" if field else first["msg"]


@functools.cache
def _form(kind: Any) -> Any:
    # The settings of a model hold for the plain dataclasses and dicts in it, too.
    config = ConfigDict(extra="forbid", strict=True)
    return create_model("Form", __config__=config, value=(kind, ...))


def _other(place: str, why: str) -> IntegrityError:
    return IntegrityError(
        f"{place} is not a valid reembed record", why.splitlines()[0][:_MAX_SHOWN], DAMAGED
    )


def to_bytes(record: Mapping[str, Any]) -> bytes:
    """Return a record as it is stored: JSON, with the sha256 of the rest under `_sha256`.

    Raises:
        UsageError: a text in it has no UTF-8 form, so that the record could not be read.
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
    return json.dumps({**record, _SHA256: sha256_of(record)}, sort_keys=True).encode()


def from_bytes(body: bytes, uri: str) -> Record:
    """Return the stored record.

    Raises:
        IntegrityError: it is not a record, has no version, or a byte differs from what was written.
        UsageError: another version of reembed wrote it.
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
    if (found := record["schema_version"]) != SCHEMA_VERSION:
        raise UsageError(
            f"{uri} was written by another version of reembed",
            f"format {found}, this one knows {SCHEMA_VERSION}",
            "pip install -U reembed-ray",
        )
    return record

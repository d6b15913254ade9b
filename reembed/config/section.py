"""A section of settings: frozen, without unknown names, and without what cannot be stored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from reembed.redact import credentials_in

_MOST = 2**63 - 1


def _texts(value: Any) -> Iterator[str]:
    """Yield the strings of a setting: itself, or those in its list or map."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (v for v in value.values() if isinstance(v, str))
    elif isinstance(value, list | tuple):
        yield from (v for v in value if isinstance(v, str))


class Section(BaseModel):
    """A frozen section that refuses unknown settings, and credentials in any of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*")
    @classmethod
    def _can_be_stored(cls, value: Any) -> Any:
        for found in filter(None, map(credentials_in, _texts(value))):
            raise ValueError(
                f"holds {found}; settings are stored and printed: "
                "export it (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ...) or use the instance role"
            )
        try:
            json.dumps(value, ensure_ascii=False, default=repr).encode()
        except UnicodeEncodeError as error:
            raise ValueError("holds text that is not UTF-8; settings are stored") from error
        if any("\0" in text for text in _texts(value)):
            raise ValueError("holds a zero byte, which no path, column or store can have")
        if isinstance(value, int) and abs(value) > _MOST:
            raise ValueError(f"is beyond {_MOST:,}")
        return value

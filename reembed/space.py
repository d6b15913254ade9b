"""A space: everything that decides whether two vectors may be compared."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

from reembed.errors import SpaceMismatch


@dataclass(frozen=True)
class Space:
    """A model version, described by content: the same weights in another folder are the same space.

    `model` and `revision` are labels for people and for loading; the digests stand for them in the
    id, so a moved folder or a re-tagged revision with equal bytes keeps its vectors.
    """

    model: str
    revision: str | None
    weights_sha256: str
    tokenizer_sha256: str
    pooling: str
    prompt_query: str
    prompt_document: str
    normalize: bool
    truncate_dim: int | None
    max_length: int | None
    chunking: str
    vector_dtype: str
    dim: int

    @functools.cached_property
    def id(self) -> str:
        """12 hex digits over every field but the labels."""
        names = {f.name for f in fields(self)} - {"model", "revision"}
        content = {name: getattr(self, name) for name in names}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        """All fields, and the id for whoever reads the file."""
        return {"id": self.id, **asdict(self)}

    def require(self, other: Space, where: str) -> None:
        """Refuse to let vectors of another space in.

        Raises:
            SpaceMismatch: naming the fields that differ.
        """
        if self.id == other.id:
            return
        mine, theirs = asdict(self), asdict(other)
        differing = ", ".join(
            f"{k} {mine[k]!r} against {theirs[k]!r}"
            for k in mine
            if mine[k] != theirs[k] and k not in ("model", "revision")
        )
        raise SpaceMismatch(f"{where}: space {other.id} where {self.id} is needed", differing)


def with_id(record: Any, whole: Callable[[Any], Space]) -> Space:
    """The space that `whole` makes of a record without its id, which must be that of its fields.

    Raises:
        SpaceMismatch: the record's id is not the id of its fields.
    """
    is_record = isinstance(record, dict)
    space = whole({k: v for k, v in record.items() if k != "id"} if is_record else record)
    if is_record and space.id != record.get("id"):
        raise SpaceMismatch(f"space {record.get('id')} describes the fields of space {space.id}")
    return space

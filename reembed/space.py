"""A space: everything that decides whether two vectors may be compared."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from reembed.errors import SpaceMismatch

WHOLE_DOCUMENTS = "none"
"""Chunking of a space with one vector per document: tokens beyond max_length are cut."""
_LABELS = ("model", "revision")
_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class ContentIdentity:
    """A model whose files can be read: equal bytes are the same model, wherever they are stored."""

    weights_sha256: str
    """Digest of the weights and the settings of the modules."""
    tokenizer_sha256: str
    kind: Literal["content"] = "content"

    @property
    def model_sha256(self) -> str:
        """Digest of the weights: the model without its tokenizer, prompts and stored dtype."""
        return self.weights_sha256


@dataclass(frozen=True)
class ProviderIdentity:
    """A model behind an endpoint: the name under which its provider serves it.

    A name is a promise, not a proof; the golden vectors show whether the provider keeps it.
    """

    provider: str
    model: str
    revision: str | None
    """The provider's version of the model, if it has one."""
    pinned_on: str
    """ISO date from which the name is taken to mean this model; a new date is a new space."""
    kind: Literal["provider"] = "provider"

    @property
    def model_sha256(self) -> str:
        """Digest of the provider, the name, the revision and the date."""
        return sha256_of(asdict(self))


Identity = ContentIdentity | ProviderIdentity
"""What makes two models the same model."""


@dataclass(frozen=True)
class Space:
    """A model version: the model's identity, and every setting that changes its vectors.

    `model` and `revision` are labels for people and for loading; the identity stands for them in the
    id, so a moved folder or a re-tagged revision with equal bytes keeps its vectors.
    """

    model: str
    revision: str | None
    identity: Identity
    pooling: str | None
    """None if a provider pools."""
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
        """12 hex digits of a digest over every field except the labels."""
        return sha256_of({k: v for k, v in asdict(self).items() if k not in _LABELS})[:12]

    def beside(self, other: Space) -> str:
        """Return the model's name for people, with the id where another space has the same name."""
        if self.model != other.model or self.id == other.id:
            return self.model
        return f"{self.model} (space {self.id})"

    @property
    def tokenizer_sha256(self) -> str | None:
        """Digest of the tokenizer's files; None if a provider tokenizes."""
        return getattr(self.identity, "tokenizer_sha256", None)

    def stored_as(self, vector_dtype: str) -> Space:
        """Return the space of the same vectors stored in another number type."""
        return replace(self, vector_dtype=vector_dtype)

    def to_json(self) -> dict[str, Any]:
        """Return all fields, and the id for people who read the file."""
        return {"id": self.id, **asdict(self)}

    def require(self, other: Space, where: str) -> None:
        """Refuse vectors of another space.

        Raises:
            SpaceMismatch: naming the fields that differ.
        """
        if self.id == other.id:
            return
        mine, theirs = _flat(self), _flat(other)
        differing = ", ".join(
            f"{name} {_short(mine.get(name))} against {_short(theirs.get(name))}"
            for name in {**mine, **theirs}
            if mine.get(name) != theirs.get(name)
        )
        raise SpaceMismatch(
            f"{where}: space {other.id} where {self.id} is needed",
            differing,
            f"reembed config     # the model's files and settings must be those of space {self.id}",
        )


def with_id(record: Any, whole: Callable[[Any], Space]) -> Space:
    """Return the space that `whole` makes of a record without its id, which must match its fields.

    Raises:
        SpaceMismatch: the record's id is not the id of its fields.
    """
    if not isinstance(record, dict):
        return whole(record)
    space = whole({k: v for k, v in record.items() if k != "id"})
    if space.id != record.get("id"):
        raise SpaceMismatch(f"space {record.get('id')} describes the fields of space {space.id}")
    return space


def _short(value: object) -> str:
    """Return a value for people, of a digest its beginning."""
    is_digest = isinstance(value, str) and _DIGEST.fullmatch(value)
    return repr(str(value)[:12] if is_digest else value)


def _flat(space: Space) -> Mapping[str, object]:
    """Return the fields by name, including those of the identity, without the labels."""
    fields = {k: v for k, v in asdict(space).items() if k not in _LABELS}
    return ChainMap(fields.pop("identity"), fields)


def sha256_of(content: Mapping[str, object]) -> str:
    """Return the sha256 of content as JSON, with its keys sorted."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

"""The model that embeds queries for a release, which may be another one than embedded its documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import PlainSerializer, WrapValidator

from reembed.config.settings import EncoderConfig
from reembed.space import Space, sha256_of, with_id

StoredSpace = Annotated[Space, WrapValidator(with_id), PlainSerializer(Space.to_json)]
"""A space within another record."""


@dataclass(frozen=True)
class Bridge:
    """A matrix that brings vectors of the query model into the space of the documents."""

    path: str
    """Under the root."""
    sha256: str
    pairs: int
    """Documents asked for, to fit it to."""
    fitted: int
    """Of these, documents that both models have a vector of."""


@dataclass(frozen=True)
class QueryModel:
    """A model that embeds queries."""

    space: StoredSpace
    encoder: EncoderConfig
    """The encoder section that loads it."""
    golden_sha256: str
    """Digest of its golden vectors, which it must produce wherever it is loaded."""
    bridge: Bridge | None = None

    @property
    def id(self) -> str:
        """What makes query vectors comparable: the space's id, or with a bridge a digest of both."""
        if self.bridge is None:
            return self.space.id
        return sha256_of({"space": self.space.id, "bridge": self.bridge.sha256})[:12]

    @property
    def label(self) -> str:
        """Return the model's name for people, with its bridge."""
        return self.beside(self.space)

    def beside(self, documents: Space) -> str:
        """Return the label next to the model of the documents: also with the id where both have one name."""
        name = self.space.beside(documents)
        if self.bridge is None:
            return name
        return f"{name} over a bridge of {self.bridge.fitted:,} documents"

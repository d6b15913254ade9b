"""The encoder protocol: texts in, vectors out, and typed errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from reembed.errors import DocumentError
from reembed.space import Space

Kind = Literal["document", "query"]
Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
T = TypeVar("T")


@dataclass(frozen=True)
class EncoderStats:
    """How texts were embedded. Nothing here changes a vector."""

    device: str = ""
    """A torch device, or the host of an endpoint."""
    path: str = ""
    """How texts go through the model: form and number type."""
    notes: tuple[str, ...] = ()
    """Why it does not go the fastest way, where it does not."""
    batch_tokens: int = 0
    """Tokens per forward pass, padding included, after the last call."""
    peak_flops: float = 0.0
    """FLOP/s of a large matrix product on the device; 0 where it was not measured."""
    tokens: int = 0
    """Tokens of all texts."""
    model_tokens: int = 0
    """Tokens that went through the model: equal texts do once."""
    computed_tokens: int = 0
    """The same with padding."""
    flop: float = 0.0
    """Useful arithmetic, without padding."""

    def __add__(self, later: EncoderStats) -> EncoderStats:
        """Counts of both; everything else as it was later."""
        return replace(
            later,
            tokens=self.tokens + later.tokens,
            model_tokens=self.model_tokens + later.model_tokens,
            computed_tokens=self.computed_tokens + later.computed_tokens,
            flop=self.flop + later.flop,
        )


@dataclass(frozen=True)
class Embedded:
    """Vectors of N documents."""

    vectors: Vectors
    """float32 [N, dim], in the order given; NaN in the rows of `failures`."""
    failures: Mapping[int, str] = field(default_factory=dict)
    """Why a document has no vector, by row."""
    stats: EncoderStats = EncoderStats()


class Encoder(Protocol):
    """A model, here or behind an endpoint.

    A vector depends on its text alone up to rounding, never on its neighbours; it has unit length
    where the space normalizes. Every method may raise:

        ProviderError: the provider does not answer (ProviderBusy: for now); the caller may try again.
        SetupError: the model, or what is configured about it, cannot work.
    """

    def describe(self) -> Space:
        """Return the space of the vectors, as float32."""
        ...

    def embed_documents(self, texts: Sequence[str]) -> Embedded:
        """Embed documents; one that fails is in `failures` and disturbs no other.

        Without texts it returns stats that name the device, and asks no provider.
        """
        ...

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """Return float32 [N, dim], in the order given.

        Raises:
            DocumentError: one of the texts cannot be embedded.
        """
        ...


def apart(rows: Rows, work: Callable[[Rows], T]) -> tuple[list[tuple[Rows, T]], dict[int, str]]:
    """Do `work` over rows, halved on a DocumentError until each failing row stands alone.

    Returns the results with the rows they are of, in order, and why the others failed, by row.
    """
    done: list[tuple[Rows, T]] = []
    failures: dict[int, str] = {}
    todo = [rows] if len(rows) else []
    while todo:
        some = todo.pop()
        try:
            done.append((some, work(some)))
        except DocumentError as error:
            if len(some) == 1:
                failures[int(some[0])] = error.what
            else:
                todo += [some[len(some) // 2 :], some[: len(some) // 2]]
    return done, failures

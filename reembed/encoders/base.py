"""What an encoder is: token ids in, vectors out; tokenizing apart, so that CPUs can do it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Kind = Literal["document", "query"]
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Tokens:
    """Token ids of N texts, flat: text i is ids[offsets[i]:offsets[i+1]].

    ids int32 [T]; offsets int64 [N+1]; prompt_length: leading tokens that pooling may have to skip.
    """

    ids: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    prompt_length: int = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens per text, int64 [N]."""
        return np.diff(self.offsets)

    def take(self, rows: npt.NDArray[np.int64]) -> Tokens:
        """The texts at `rows`, in that order."""
        parts = [self.ids[self.offsets[r] : self.offsets[r + 1]] for r in rows]
        offsets = np.concatenate([[0], np.cumsum([len(p) for p in parts])]).astype(np.int64)
        ids = np.concatenate(parts) if parts else np.empty(0, np.int32)
        return Tokens(ids.astype(np.int32, copy=False), offsets, self.prompt_length)


@dataclass
class Work:
    """What went through a model: tokens of texts, tokens computed (padding included), useful FLOP."""

    tokens: int = 0
    computed: int = 0
    flop: float = 0.0

    def __sub__(self, other: Work) -> Work:
        return Work(
            self.tokens - other.tokens, self.computed - other.computed, self.flop - other.flop
        )


class Tokenizer(Protocol):
    """The CPU half; loads no weights."""

    def tokenize(self, texts: Sequence[str], kind: Kind) -> Tokens:
        """Prompt put before, special tokens added, cut at the space's max_length."""
        ...


class Encoder(Protocol):
    """The device half."""

    dim: int
    device: str
    batch_tokens: int
    """Tokens per forward pass, padding included, as it is now."""
    notes: tuple[str, ...]
    """Why it does not go the fastest way, where it does not."""
    work: Work
    """Done so far."""
    peak_flops: float
    """FLOP/s of a large matrix product on the device; 0 where there is none to compare with."""

    @property
    def path(self) -> str:
        """How texts go through the model: form and number type."""
        ...

    def tokenize(self, texts: Sequence[str], kind: Kind) -> Tokens:
        """As the matching Tokenizer does."""
        ...

    def embed(self, tokens: Tokens) -> Vectors:
        """float32 [N, dim], in the order given; unit length where the space normalizes.

        A vector depends on its text alone up to rounding, never on its neighbours.
        """
        ...

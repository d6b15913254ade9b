"""The tokenizing half of encoders that run in this process: token ids in, vectors out.

Tokenizing needs no weights, so the pipeline does it on CPUs and hands token ids to the GPUs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from reembed.encoders.base import Embedded, Encoder, EncoderStats, Kind, Rows, Vectors, apart
from reembed.errors import DocumentError, SetupError
from reembed.space import Space

# What a text can make a tokenizer or a model raise. Anything else is not the text's fault.
_OF_TEXTS = (
    ValueError, TypeError, IndexError, KeyError, RuntimeError, AssertionError, OverflowError,
)  # fmt: skip
_NO_MEMORY = ("out of memory", "_ALLOC_FAILED")
_MOST_SAID = 200
MOST_CHARACTERS = 1_000_000
"""Length limit of one text, if the model itself sets none: one document must not exhaust a worker."""


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

    def take(self, rows: Rows) -> Tokens:
        """Return the texts at `rows`, in that order."""
        if np.array_equal(rows, np.arange(len(self))):
            return self
        parts = [self.ids[self.offsets[r] : self.offsets[r + 1]] for r in rows]
        offsets = np.concatenate([[0], np.cumsum([len(p) for p in parts])]).astype(np.int64)
        ids = np.concatenate([np.empty(0, np.int32), *parts])
        return Tokens(ids.astype(np.int32, copy=False), offsets, self.prompt_length)


class Tokenizer(Protocol):
    """Loads no weights."""

    @property
    def sha256(self) -> str:
        """Digest of the files that decide the token ids, as in the space's identity."""
        ...

    def tokenize(self, texts: Sequence[str], kind: Kind) -> Tokens:
        """Put the prompt before, add special tokens, cut at the space's max_length.

        Raises:
            DocumentError: one of the texts cannot be tokenized.
        """
        ...


@contextmanager
def blaming_texts() -> Iterator[None]:
    """The block, or the decorated function, in which a library works on texts.

    An error of the device is raised as it is: every later call would fail as well.

    Raises:
        DocumentError: in place of an error that a text can cause.
    """
    try:
        yield
    except _OF_TEXTS as error:
        if _is_of_device(error):
            raise
        said = str(error).splitlines()[:1]
        raise DocumentError(f"{type(error).__name__}: {''.join(said)}"[:_MOST_SAID]) from error


def _is_of_device(error: Exception) -> bool:
    """Return whether the device failed; false if it has too little memory, as a smaller text may fit."""
    said = str(error)
    if any(words in said for words in _NO_MEMORY):
        return False
    # By name, as torch need not be installed. Older versions raise a plain RuntimeError.
    named = any(kind.__name__ == "AcceleratorError" for kind in type(error).__mro__)
    return named or said.startswith("CUDA error")


class TokenEncoder(ABC):
    """An encoder made of two halves, `tokenize` and `embed`.

    Threads may share it for queries. `embed_tokens` and `embed_documents` count, for one caller at a
    time.
    """

    dim: int
    batch_tokens: int
    """Tokens per forward pass, padding included."""
    counts = EncoderStats()
    """What went through the model since the last `embed_tokens` began."""

    @property
    @abstractmethod
    def about(self) -> EncoderStats:
        """How texts go through the model now, without counts."""

    @abstractmethod
    def describe(self) -> Space:
        """Return the space of the vectors, as float32."""

    @abstractmethod
    def tokenize(self, texts: Sequence[str], kind: Kind) -> Tokens:
        """Do as the model's Tokenizer does."""

    @abstractmethod
    def embed(self, tokens: Tokens) -> Vectors:
        """Return float32 [N, dim], in the order given."""

    def embed_tokens(self, tokens: Tokens) -> Embedded:
        """Embed texts that are tokenized already; one that fails is in `failures`."""
        self.counts = EncoderStats(tokens=int(tokens.lengths.sum()))
        parts, failures = apart(
            np.arange(len(tokens)), lambda rows: self._embed_checked(tokens.take(rows))
        )
        if len(parts) == 1 and not failures:
            return Embedded(parts[0][1], failures, self.counts + self.about)
        vectors = np.full((len(tokens), self.dim), np.nan, np.float32)
        for rows, found in parts:
            vectors[rows] = found
        return Embedded(vectors, failures, self.counts + self.about)

    def embed_documents(self, texts: Sequence[str]) -> Embedded:
        """Tokenize documents and embed them; one that fails is in `failures`."""
        tokens, refused = tokenize_documents(self.tokenize, texts, np.arange(len(texts)))
        made = self.embed_tokens(tokens)
        made.vectors[list(refused)] = np.nan
        return replace(made, failures={**made.failures, **refused})

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        return self._embed_checked(self.tokenize(texts, "query"))

    @blaming_texts()
    def _embed_checked(self, tokens: Tokens) -> Vectors:
        return self.embed(tokens)


def tokenize_documents(
    tokenize: Callable[[Sequence[str], Kind], Tokens], texts: Sequence[str], rows: Rows
) -> tuple[Tokens, dict[int, str]]:
    """Return the tokens of N texts, and why some could not be tokenized, by row.

    Only the texts at `rows`, in ascending order, are tokenized. All others, and those that fail, get
    no tokens.
    """
    parts, failures = apart(rows, lambda some: tokenize([texts[row] for row in some], "document"))
    lengths = np.zeros(len(texts), np.int64)
    for some, found in parts:
        lengths[some] = found.lengths
    ids = np.concatenate([np.empty(0, np.int32), *(found.ids for _, found in parts)])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    prompt_length = max((found.prompt_length for _, found in parts), default=0)
    return Tokens(ids, offsets, prompt_length), failures


def require_tokens(encoder: Encoder) -> TokenEncoder:
    """Return an encoder that takes tokens.

    Raises:
        SetupError: it takes texts only.
    """
    if isinstance(encoder, TokenEncoder):
        return encoder
    raise SetupError(f"{encoder.describe().model} takes texts, not tokens: its provider tokenizes")


def clean(text: str) -> str:
    """Return the text with split surrogate pairs joined and lone halves replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def check_truncate_dim(truncate_dim: int | None, dim: int) -> None:
    """Refuse to keep more dimensions than there are.

    Raises:
        SetupError: truncate_dim is larger than dim.
    """
    if truncate_dim is not None and truncate_dim > dim:
        raise SetupError(
            f"encoder.truncate_dim {truncate_dim}: the model gives {dim} dimensions",
            fix=f"reembed run --set encoder.truncate_dim={dim}",
        )

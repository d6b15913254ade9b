"""The encoder `hashing:DIM[:SALT]`: hashed words and letter triples, without a model or a download.

Texts that share words get similar vectors, and equal texts get equal vectors on every machine. A
different salt is a different space.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from reembed.encoders.base import EncoderStats, Kind, Vectors
from reembed.encoders.tokens import (
    MOST_CHARACTERS,
    TokenEncoder,
    Tokens,
    blaming_texts,
    check_truncate_dim,
    clean,
)
from reembed.errors import SetupError
from reembed.space import WHOLE_DOCUMENTS, ContentIdentity, Space

if TYPE_CHECKING:
    from reembed.config.settings import EncoderConfig

_VERSION = "1"  # counts up when the features change, so that old vectors get another space
_REFERENCE = re.compile(r"hashing:([1-9]\d{0,4})(?::(.+))?")
_SPACE = ord(" ")
_SEPARATORS = np.array([not chr(code).isalnum() for code in range(128)])
_PRIME = np.uint64(0x100000001B3)

Hashes = npt.NDArray[np.uint64]


class HashingEncoder(TokenEncoder):
    """Tokens are int32 hashes of features; a hash decides its dimension, sign and weight."""

    batch_tokens = 0
    about = EncoderStats(device="cpu", path="hashing")

    def __init__(self, config: EncoderConfig) -> None:
        match = _REFERENCE.fullmatch(config.model)
        if match is None:
            raise SetupError(
                f"encoder.model {config.model}: not of the form hashing:DIM or hashing:DIM:SALT",
                "DIM is 1 to 99999.",
                "reembed run --set encoder.model=hashing:64",
            )
        if config.pooling is not None:
            raise SetupError(
                f"encoder.pooling {config.pooling}: {config.model} has no pooling",
                fix="remove encoder.pooling",
            )
        self._config = config
        self._buckets = int(match[1])
        self._salt = match[2] or ""
        check_truncate_dim(config.truncate_dim, self._buckets)
        self.dim = config.truncate_dim or self._buckets
        self._normalize = config.normalize is not False
        self._prompts: dict[Kind, str] = {
            "query": config.prompts.query or "",
            "document": config.prompts.document or "",
        }

    @property
    def sha256(self) -> str:
        return _sha256(f"hashing {_VERSION} {self._salt}")

    def describe(self) -> Space:
        weights = _sha256(f"hashing {_VERSION} {self._buckets} {self._salt}")
        return Space(
            model=self._config.model,
            revision=self._config.revision,
            identity=ContentIdentity(weights, self.sha256),
            pooling="sum",
            prompt_query=self._prompts["query"],
            prompt_document=self._prompts["document"],
            normalize=self._normalize,
            truncate_dim=self._config.truncate_dim,
            max_length=self._config.max_length,
            chunking=WHOLE_DOCUMENTS,
            vector_dtype="float32",
            dim=self.dim,
        )

    @blaming_texts()
    def tokenize(self, texts: Sequence[str], kind: Kind) -> Tokens:
        """Return every word and letter triple in text order, the first max_length kept.

        A text without letters and digits has one fixed token. Texts are cut at a million characters.
        """
        prompt = self._prompts[kind]
        parts = [
            _features([prompt + clean(text[:MOST_CHARACTERS]) for text in group])
            for group in _groups(texts)
        ]
        hashes = np.concatenate([np.empty(0, np.uint64), *(h for h, _ in parts)])
        counts = np.concatenate([np.empty(0, np.int64), *(c for _, c in parts)])
        seed = np.uint64(int(_sha256(self._salt)[:16], 16))
        ids = (_mix(hashes ^ seed) >> np.uint64(32)).astype(np.uint32).view(np.int32)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return _shorten(Tokens(ids, offsets), self._config.max_length)

    def embed(self, tokens: Tokens) -> Vectors:
        """Return float32 [N, dim], C-contiguous, in the order given."""
        bits = tokens.ids.view(np.uint32).astype(np.int64)
        rows = np.repeat(np.arange(len(tokens)), tokens.lengths)
        # Weights in [1, 2) keep two features of opposite sign from cancelling to a zero vector.
        weights = np.where(bits & 1, 1.0, -1.0) * (1 + ((bits >> 1) & 255) / 256)
        places = rows * self._buckets + (bits >> 9) % self._buckets
        flat = np.bincount(places, weights, minlength=len(tokens) * self._buckets)
        vectors = flat.reshape(len(tokens), self._buckets)[:, : self.dim]
        if self._normalize:
            with np.errstate(invalid="ignore"):  # truncating may leave nothing: NaN, as documented
                vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.ascontiguousarray(vectors, dtype=np.float32)


def _groups(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield groups of a few million characters: making a feature takes about fifty bytes."""
    start = held = 0
    for end, text in enumerate(texts):
        if held > MOST_CHARACTERS:
            yield texts[start:end]
            start, held = end, 0
        held += min(len(text), MOST_CHARACTERS)
    yield texts[start:]


def _features(texts: list[str]) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """Return the feature hashes of all texts, flat and in order, and how many each text has."""
    padded = [f" {' '.join(text.lower().split())} " for text in texts]
    codes = np.frombuffer("".join(padded).encode("utf-32-le"), np.uint32).astype(np.uint64)
    codes = np.where((codes < 128) & _SEPARATORS[np.minimum(codes, 127)], _SPACE, codes)
    codes = codes.astype(np.uint64)
    letter = codes != _SPACE
    # Two columns per character: the word that begins there, and the triple around it. Every text
    # begins and ends with a space, so no triple reaches into a neighbour.
    table = np.zeros((len(codes), 2), np.uint64)
    begins = letter & ~np.concatenate([[False], letter[:-1]])
    table[begins, 0] = _words(codes, letter, np.flatnonzero(begins))
    before, after = np.roll(codes, 1), np.roll(codes, -1)
    table[:, 1] = (before << np.uint64(42)) | (codes << np.uint64(21)) | after
    present = np.stack([begins, letter], axis=1)
    lengths = np.array([len(text) for text in padded], np.int64)
    return _with_fixed_token(table[present], present.sum(axis=1), lengths)


def _words(codes: Hashes, letter: npt.NDArray[np.bool_], starts: npt.NDArray[np.int64]) -> Hashes:
    """Return one polynomial hash per word; starts: where words begin, int64."""
    if not len(starts):
        return np.empty(0, np.uint64)
    spans = np.diff(np.append(starts, len(codes)))
    powers = np.cumprod(np.full(int(spans.max()), _PRIME, np.uint64))
    inside = np.arange(starts[0], len(codes)) - np.repeat(starts, spans)
    terms = (codes * letter)[starts[0] :] * powers[inside]
    # The top bit sets words apart from triples, which use 63 bits.
    return np.add.reduceat(terms, starts - starts[0]) | np.uint64(1 << 63)


def _with_fixed_token(
    hashes: Hashes, per_character: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """Give texts without features the feature 0; lengths: characters per text."""
    ends = np.cumsum(lengths)
    running = np.concatenate([[0], np.cumsum(per_character)])
    counts = running[ends] - running[ends - lengths]
    empty = np.flatnonzero(counts == 0)
    before = (np.cumsum(counts) - counts)[empty]
    counts[empty] = 1
    return np.insert(hashes, before, np.uint64(0)), counts


def _shorten(tokens: Tokens, most: int | None) -> Tokens:
    if most is None:
        return tokens
    place = np.arange(len(tokens.ids)) - np.repeat(tokens.offsets[:-1], tokens.lengths)
    offsets = np.concatenate([[0], np.cumsum(np.minimum(tokens.lengths, most))]).astype(np.int64)
    return Tokens(tokens.ids[place < most], offsets)


def _mix(hashes: Hashes) -> Hashes:
    """splitmix64's finalizer: every input bit reaches every output bit."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

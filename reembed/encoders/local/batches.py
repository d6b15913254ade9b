"""Batches: how many texts go through the model together, longest first, and in which form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from reembed.encoders.base import Rows
from reembed.encoders.local.attention import Layout
from reembed.encoders.tokens import Tokens

Features = dict[str, Any]
"""What sentence-transformers' modules take and return, by name."""
_VECTOR = 16  # float32 values in the widest vector register


class Form(ABC):
    """How the texts of a batch are arranged."""

    name: str
    takes_empty = False
    """Whether a text without tokens can be in a batch."""

    def fit(self, lengths: Rows, budget: int) -> int:
        """Return how many of these texts, longest first, make a batch of `budget` tokens; at least one."""
        return max(1, int(np.searchsorted(np.cumsum(lengths), budget, "right")))

    @abstractmethod
    def features(self, batch: Tokens, device: str, budget: int) -> Features:
        """Return the first module's input, by name, on `device`."""


@dataclass
class Padded(Form):
    """input_ids, attention_mask (and token_type_ids) int64 [N, longest], padded on the right."""

    pad_id: int
    type_ids: bool
    name = "padded"

    def fit(self, lengths: Rows, budget: int) -> int:
        """Count tokens with padding to the longest text."""
        return max(1, budget // max(1, int(lengths[0])))

    def features(self, batch: Tokens, device: str, budget: int) -> Features:
        lengths = batch.lengths
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids = np.full(mask.shape, self.pad_id, np.int64)
        ids[mask] = batch.ids
        features = {
            "input_ids": on(device, ids),
            "attention_mask": on(device, mask.astype(np.int64)),
        }
        if self.type_ids:
            features["token_type_ids"] = torch.zeros_like(features["input_ids"])
        return features


@dataclass
class Packed(Form):
    """input_ids, position_ids (and token_type_ids) int64 [1, T]: texts end to end.

    seq_idx int64 [1, T] and cu_seq_lens_q int32 [N+1] are for the pooling, layout for the attention.

    Texts of padding at the end make T a multiple of 16. Without them a tensor, or a thread's share of
    it, could end within a vector register, where torch computes exp, sin and the like differently: a
    text's bits would depend on how many tokens are beside it. On CUDA, T is a multiple of a share of
    the budget, so that products have few shapes, and each shape always has the same kernel.
    """

    pad_id: int
    padding_idx: int | None
    """The id after which the model counts positions; None to count from 0."""
    dtype: torch.dtype
    """Of the attention."""
    type_ids: bool
    shapes: int | None = None
    """How many sizes batches have."""
    name: str = "packed"

    def features(self, batch: Tokens, device: str, budget: int) -> Features:
        multiple = max(_VECTOR, budget // self.shapes) if self.shapes else _VECTOR
        batch = _filled(batch, self.pad_id, multiple)
        lengths = batch.lengths
        starts = on(device, batch.offsets.astype(np.int32))
        ids = on(device, batch.ids[None].astype(np.int64))
        # A power of two, so that the attention's kernel is chosen by few values.
        longest = 1 << max(6, int(lengths.max() - 1).bit_length())
        features: Features = {
            "input_ids": ids,
            "position_ids": on(device, _positions(batch, self.padding_idx)[None]),
            "cu_seq_lens_q": starts,
            # Otherwise pooling derives them on the device, and waits for it.
            "seq_idx": on(device, np.repeat(np.arange(len(lengths)), lengths)[None]),
            "layout": Layout(_runs(lengths), starts, longest, self.dtype),
        }
        if self.type_ids:
            features["token_type_ids"] = torch.zeros_like(ids)
        return features


class Flat(Form):
    """input_ids int64 [T] and offsets int64 [N], for a static model."""

    name = "static"
    takes_empty = True

    def features(self, batch: Tokens, device: str, budget: int) -> Features:
        return {
            "input_ids": on(device, batch.ids.astype(np.int64)),
            "offsets": on(device, batch.offsets[:-1]),
        }


def longest_first(lengths: Rows, form: Form) -> Rows:
    """Return the rows in the order of embedding, so that the first batch is the largest."""
    order = np.argsort(-lengths, kind="stable")
    if form.takes_empty:
        return order
    return order[lengths[order] > 0]


def distinct(tokens: Tokens) -> tuple[Tokens, Rows]:
    """Return the unique texts, and for every input row its index among them."""
    keys = [tokens.ids[start:end].tobytes() for start, end in pairwise(tokens.offsets)]
    places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    like = np.array([places[key] for key in keys], np.int64)
    return tokens.take(np.unique(like, return_index=True)[1]), like


def _positions(batch: Tokens, padding_idx: int | None) -> Rows:
    """Return every token's position in its text, int64 [T].

    With a `padding_idx` they count as in RoBERTa: from the number after it, and a token with this id,
    even within a text, has the position `padding_idx` and is not counted.
    """
    if padding_idx is None:
        return np.arange(len(batch.ids)) - np.repeat(batch.offsets[:-1], batch.lengths)
    counts = (batch.ids != padding_idx).astype(np.int64)
    upto = np.concatenate([[0], np.cumsum(counts)])
    before = np.repeat(upto[batch.offsets[:-1]], batch.lengths)
    positions: Rows = (upto[1:] - before) * counts + padding_idx
    return positions


def _filled(batch: Tokens, pad_id: int, multiple: int) -> Tokens:
    """Append texts of padding, none longer than the longest, up to a multiple of tokens."""
    lacking = -len(batch.ids) % multiple
    if not lacking:
        return batch
    ids = np.concatenate([batch.ids, np.full(lacking, pad_id, np.int32)])
    ends = np.arange(len(batch.ids), len(ids), int(batch.lengths.max()))[1:]
    return Tokens(ids, np.concatenate([batch.offsets, ends, [len(ids)]]), batch.prompt_length)


def on(device: str, array: npt.NDArray[Any]) -> torch.Tensor:
    """Copy to the device; to a GPU from pinned memory, which torch reuses, without waiting."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.startswith("cuda"):
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def off(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """Copy to the host; from a GPU into pinned memory, which is several times as fast."""
    if not tensor.is_cuda:
        return np.asarray(tensor.numpy())
    held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return np.asarray(held.copy_(tensor).numpy())


def _runs(lengths: Rows) -> tuple[tuple[int, int, int], ...]:
    """Return (first token, texts, tokens per text) of neighbours of equal length."""
    edges = np.flatnonzero(np.diff(lengths)) + 1
    firsts = np.concatenate([[0], edges])
    counts = np.diff(np.concatenate([firsts, [len(lengths)]]))
    each = lengths[firsts]
    starts = np.concatenate([[0], np.cumsum(counts * each)[:-1]])
    return tuple(zip(starts.tolist(), counts.tolist(), each.tolist(), strict=True))

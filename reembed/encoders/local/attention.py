"""Attention over texts laid end to end, without padding and without a mask.

transformers' AttentionInterface has it under NAME. The models' own modules call it, and build no mask,
since no mask function has that name. On CUDA it is `torch.nn.attention.varlen`
(FlashAttention for variable lengths, in the torch wheel; 16-bit types only). Elsewhere texts of equal
length lie next to each other, and each such run is one plain attention on a view.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

NAME = "reembed_packed"
_CHUNK_BYTES = 1 << 20  # of scores at once and thread in bfloat16: they stay in its cache
_MOST_BYTES = 64 << 20  # of one text's scores; a longer text goes through the fused kernel
# One split, so that results do not depend on the rest of the batch. torch 2.11 has neither argument:
# its kernel takes fewer heads of keys and values as they are, and does not split.
_VARLEN = {
    name: value
    for name, value in {"enable_gqa": True, "num_splits": 1}.items()
    if name in signature(varlen_attn).parameters
}
# Arguments that models pass and this attention does not implement; ignoring them would change vectors.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias", "head_mask")


@dataclass(frozen=True)
class Layout:
    """Positions of the texts in a batch of T tokens.

    runs: (first token, texts, tokens per text), texts of one length side by side; starts: int32
    [N+1] on the device, the end included; longest: tokens of the longest text, or more; dtype: of the
    attention; masks: bool [length, length], made by the first layer that needs one.
    """

    runs: tuple[tuple[int, int, int], ...]
    starts: torch.Tensor
    longest: int
    dtype: torch.dtype
    masks: dict[tuple[int, int, bool], torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class _Sight:
    """Which tokens of a text attend to which, and the scale of the scores."""

    scale: float
    causal: bool
    window: int | None

    def mask(self, length: int, layout: Layout, *, whole: bool) -> torch.Tensor | None:
        """Return bool [length, length], or None if every token is seen or, unless `whole`, every earlier one."""
        window = min(self.window or length, length)
        if window == length and not (self.causal and whole):
            return None
        key = (length, window, self.causal)
        if key not in layout.masks:
            near = torch.ones(length, length, dtype=torch.bool, device=layout.starts.device)
            near.tril_(0 if self.causal else window - 1).triu_(1 - window)
            layout.masks[key] = near
        return layout.masks[key]


def packed_attention(  # noqa: PLR0913 - transformers' signature
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    layout: Layout | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """query [1, H, T, D], key and value [1, H or fewer, T, D] -> [1, T, H, D], of the query's dtype.

    A window means what it does in transformers' flash attention: a token sees those less than
    `sliding_window` away, on both sides, or only backwards if the model is causal.

    Raises:
        NotImplementedError: the model needs something that this attention does not implement.
    """
    if layout is None or attention_mask is not None:
        raise NotImplementedError(
            f"{type(module).__name__} does not pass on the layout of the texts"
        )
    if asked := [name for name in _UNSUPPORTED if rest.get(name) is not None]:
        raise NotImplementedError(f"{type(module).__name__} needs {', '.join(asked)}")
    if is_causal is None:
        is_causal = bool(getattr(module, "is_causal", False))
    sight = _Sight(scaling or query.shape[-1] ** -0.5, is_causal, sliding_window)
    q, k, v = (x[0].to(layout.dtype) for x in (query, key, value))
    attend = _by_varlen if q.is_cuda and q.dtype is not torch.float32 else _by_runs
    return attend(q, k, v, layout, sight).to(query.dtype), None


def _by_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, sight: _Sight
) -> torch.Tensor:
    reach = (sight.window or 0) - 1  # -1: no window
    attend: Any = varlen_attn
    out: torch.Tensor = attend(
        query.transpose(0, 1).contiguous(),
        key.transpose(0, 1).contiguous(),
        value.transpose(0, 1).contiguous(),
        layout.starts,
        layout.starts,
        layout.longest,
        layout.longest,
        scale=sight.scale,
        window_size=(reach, 0 if sight.causal else reach),
        **_VARLEN,
    )
    return out[None]


def _by_runs(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, sight: _Sight
) -> torch.Tensor:
    heads, tokens, _ = query.shape
    out = query.new_empty(tokens, heads, value.shape[-1])
    in_steps = query.dtype is torch.bfloat16 and not query.is_cuda
    for first, texts, length in layout.runs:
        in_bfloat16 = in_steps and 4 * heads * length**2 <= _MOST_BYTES
        q, k, v = (_texts(x, first, texts, length, heads) for x in (query, key, value))
        mask = sight.mask(length, layout, whole=in_bfloat16)
        place = out[first : first + texts * length].view(texts, length, heads, -1).transpose(1, 2)
        if in_bfloat16:
            _in_bfloat16(place, (q, k, v), sight.scale, mask)
        else:
            straight = sight.causal and mask is None and length > 1
            attended = scaled_dot_product_attention(
                q, k, v, attn_mask=mask, scale=sight.scale, is_causal=straight
            )
            place.copy_(attended)
    return out[None]


def _texts(x: torch.Tensor, first: int, texts: int, length: int, heads: int) -> torch.Tensor:
    """Return a run of [H, T, D] as [texts, heads, length, D]; fewer heads of keys and values are repeated."""
    own, _, width = x.shape
    run = x[:, first : first + texts * length]
    run = run.as_strided(
        (texts, own, length, width),
        (length * run.stride(1), run.stride(0), run.stride(1), run.stride(2)),
    )
    groups = heads // own
    if groups == 1:
        return run
    repeated = run[:, :, None].expand(texts, own, groups, length, width)
    return repeated.reshape(texts, heads, length, width)


def _in_bfloat16(
    place: torch.Tensor,
    states: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    scale: float,
    mask: torch.Tensor | None,
) -> None:
    """Compute two products with a float32 softmax between, which is faster than the fused kernel.

    Queries, keys, values and `place` are [texts, heads, length, D]; a few texts at a time.
    """
    texts, heads, length, _ = place.shape
    at_once = max(1, torch.get_num_threads() * _CHUNK_BYTES // (4 * heads * length * length))
    nothing = place.new_zeros(1, 1, 1)
    for first in range(0, texts, at_once):
        query, key, value = (x[first : first + at_once].flatten(0, 1) for x in states)
        scores = torch.baddbmm(nothing, query, key.transpose(1, 2), beta=0, alpha=scale).float()
        if mask is not None:
            scores.masked_fill_(~mask, -torch.inf)
        attended = torch.bmm(scores.softmax(-1).to(value.dtype), value)
        place[first : first + at_once].copy_(attended.view(-1, heads, *attended.shape[1:]))

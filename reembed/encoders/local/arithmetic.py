"""How much arithmetic a model does, and how much its device can: what is left is overhead.

Useful arithmetic counts real tokens only, never padding: 2 per weight of a linear layer and token,
and the attention's two products (Chowdhery et al. 2022, PaLM, appendix B: model FLOP utilisation);
a sliding window counts as if it were whole.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

_SIDE = {"cpu": 1_024, "cuda": 8_192}
_TRIES = 5


class Arithmetic:
    """Of one transformer: FLOP of texts of given lengths."""

    def __init__(self, transformer: nn.Module) -> None:
        """Count the linear layers before anything replaces them; a shared layer counts each time."""
        config: Any = getattr(transformer, "config", None)
        layers = int(getattr(config, "num_hidden_layers", 0) or 0)
        groups = int(getattr(config, "num_hidden_groups", 0) or layers)  # ALBERT shares its layers
        weights = sum(
            m.weight.numel()
            for name, m in transformer.named_modules()
            if type(m) is nn.Linear and "pooler" not in name  # which sees one token of a text
        )
        repeated = layers // groups if groups else 1
        causal = any(getattr(m, "is_causal", None) is True for m in transformer.modules())
        self._per_token = 2.0 * weights * repeated
        self._per_pair = (2.0 if causal else 4.0) * layers * _width(config)

    def of(self, lengths: npt.NDArray[np.int64]) -> float:
        """FLOP of one pass over texts of these many tokens."""
        pairs = float((lengths.astype(np.float64) ** 2).sum())
        return self._per_token * float(lengths.sum()) + self._per_pair * pairs


def _width(config: Any) -> int:
    """Of the attention's products: heads times their size."""
    hidden = int(getattr(config, "hidden_size", 0) or 0)
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    each = int(getattr(config, "head_dim", 0) or 0)
    return heads * each or hidden


def peak(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product, the best of five: what this device can here and now."""
    side = _SIDE["cuda" if device.startswith("cuda") else "cpu"]
    x = torch.randn(side, side, device=device).to(dtype)
    best = min(_seconds(x) for _ in range(_TRIES))
    return 2.0 * side**3 / best


def _seconds(x: torch.Tensor) -> float:
    from reembed.encoders.local import linears

    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    started = time.perf_counter()
    if x.is_cuda:
        torch.mm(x, x)
        torch.cuda.synchronize(x.device)
        return time.perf_counter() - started
    work = linears.product(x)
    started = time.perf_counter()
    work()
    return time.perf_counter() - started

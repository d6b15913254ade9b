"""How much arithmetic a model does, and how much its device can do: the ratio is the MFU.

Only real tokens count, never padding: 2 FLOP per weight of a linear layer and token, plus the
attention's two products (Chowdhery et al. 2022, PaLM, appendix B: model FLOP utilisation). A sliding
window counts as full attention.
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
    """FLOP of one transformer for texts of given lengths."""

    def __init__(self, transformer: nn.Module) -> None:
        """Count the linear layers, before any is replaced; a shared layer counts each time it runs."""
        config: Any = getattr(transformer, "config", None)
        layers = int(getattr(config, "num_hidden_layers", 0) or 0)
        groups = int(getattr(config, "num_hidden_groups", 0) or layers)  # ALBERT shares its layers
        weights = sum(
            m.weight.numel()
            for name, m in transformer.named_modules()
            if type(m) is nn.Linear and "pooler" not in name  # which sees one token of a text
        )
        repeated = max(1, layers // max(1, groups))
        causal = any(getattr(m, "is_causal", None) is True for m in transformer.modules())
        self._per_token = 2.0 * weights * repeated
        self._per_pair = (2.0 if causal else 4.0) * layers * _width(config)

    def of(self, lengths: npt.NDArray[np.int64]) -> float:
        """Return the FLOP of one pass over texts with `lengths` tokens."""
        pairs = float((lengths.astype(np.float64) ** 2).sum())
        return self._per_token * float(lengths.sum()) + self._per_pair * pairs


def _width(config: Any) -> int:
    """Return the width of the attention's products: heads times head size."""
    hidden = int(getattr(config, "hidden_size", 0) or 0)
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    each = int(getattr(config, "head_dim", 0) or 0)
    return heads * each or hidden


def peak(device: str, dtype: torch.dtype) -> float:
    """Return the FLOP/s of a large matrix product on the device, the best of five."""
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

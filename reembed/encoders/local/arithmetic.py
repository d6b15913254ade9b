"""How much arithmetic a model does, and how much its device can do: the ratio is the MFU.

Only real tokens count, never padding: 2 FLOP per weight of a linear layer and token, plus the
attention's two products (Chowdhery et al. 2022, PaLM, appendix B: model FLOP utilisation). A sliding
window counts as full attention.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from reembed.encoders.local import linears


class Arithmetic:
    """FLOP of one transformer for texts of given lengths."""

    def __init__(self, transformer: nn.Module) -> None:
        """Count the linear layers, before any is replaced; a shared layer counts each time it runs."""
        layers = _size(transformer, "num_hidden_layers")
        groups = _size(transformer, "num_hidden_groups") or layers  # ALBERT shares its layers
        width = _size(transformer, "num_attention_heads") * _size(transformer, "head_dim")
        width = width or _size(transformer, "hidden_size")
        weights = sum(
            m.weight.numel()
            for name, m in transformer.named_modules()
            if type(m) is nn.Linear and "pooler" not in name  # which sees one token of a text
        )
        repeated = max(1, layers // max(1, groups))
        causal = any(getattr(m, "is_causal", None) is True for m in transformer.modules())
        self._per_token = 2.0 * weights * repeated
        self._per_pair = (2.0 if causal else 4.0) * layers * width

    def of(self, lengths: npt.NDArray[np.int64]) -> float:
        """Return the FLOP of one pass over texts with `lengths` tokens."""
        pairs = float((lengths.astype(np.float64) ** 2).sum())
        return self._per_token * float(lengths.sum()) + self._per_pair * pairs


def _size(transformer: nn.Module, name: str) -> int:
    """Return a size that the model's configuration names; 0 if it does not."""
    return int(getattr(getattr(transformer, "config", None), name, 0) or 0)


def peak(device: str, dtype: torch.dtype) -> float:
    """Return the FLOP/s of a large matrix product on the device, the best of five."""
    side = 1_024
    if device.startswith("cuda"):
        side = 8_192
    x = torch.randn(side, side, device=device).to(dtype)
    multiply: Callable[[torch.Tensor], torch.Tensor] = x.mm
    if not x.is_cuda and linears.is_available():
        linear = nn.Linear(side, side, bias=False)
        linear.weight = nn.Parameter(x.float(), requires_grad=False)
        multiply = linears.PrepackedLinear(linear, dtype, narrow=True)
    return 2.0 * side**3 / min(_seconds(multiply, x) for _ in range(5))


def _seconds(multiply: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> float:
    synchronize: Callable[[torch.device], None] = torch.get_device_module(x.device).synchronize
    synchronize(x.device)
    started = time.perf_counter()
    multiply(x)
    synchronize(x.device)
    return time.perf_counter() - started

"""Linear layers with a number type of their own; on the CPU by oneDNN, with weights packed beforehand.

The residual stream, embeddings and LayerNorm stay float32. oneDNN's operator is the one that torch's
Inductor emits when it freezes a model. On processors where torch's default (MKL) is slow in float32 it
more than doubles a model's speed, and a row's result does not depend on how many rows there are. The
operator is private to torch, whose version is pinned, and loading compares the vectors every time.
Without the operator the model keeps its own linear layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

# (linear, activation) as attributes of one module, the activation on the linear's result alone.
_FUSED = (
    ("dense", "intermediate_act_fn"),  # BERT, RoBERTa, XLM-R, ELECTRA
    ("lin1", "activation"),  # DistilBERT
    ("ffn", "activation"),  # ALBERT
    ("fc1", "activation_fn"),  # Jina v3
    ("gate_proj", "act_fn"),  # Qwen, Mistral, Gemma, EuroBERT, Nomic
)
# (attribute, algorithm) of oneDNN, for activations that it computes exactly as torch does.
_ACTIVATIONS = {
    "GELUActivation": ("gelu", "none"),
    "GELUTanh": ("gelu", "tanh"),
    "SiLUActivation": ("swish", ""),
}
_NONE = ("none", "")
# Linear layers whose result goes straight into attention; a rotation before it promotes to float32.
_ATTENDED = {
    "query", "key", "value", "q_proj", "k_proj", "v_proj", "q_lin", "k_lin", "v_lin", "Wqkv",
}  # fmt: skip


class PrepackedLinear(nn.Module):
    """A linear layer, with or without an activation, that computes in `dtype`.

    It returns float32, as the residual stream is; with `narrow`, `dtype`, for results that go into
    attention or another linear layer. `activation` is oneDNN's (attribute, algorithm).
    """

    def __init__(
        self,
        linear: nn.Linear,
        dtype: torch.dtype,
        activation: tuple[str, str] = _NONE,
        *,
        narrow: bool = False,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._dtype, self._answer = dtype, dtype if narrow else torch.float32
        self._attr, self._algorithm = activation
        ops: Any = torch.ops.mkldnn
        self._operator = ops._linear_pointwise.default
        # Public, because models look at its dtype.
        self.weight = ops._reorder_linear_weight(linear.weight.detach().to(dtype).contiguous())
        bias: torch.Tensor | None = linear.bias
        self._bias = bias.detach().to(dtype) if bias is not None else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in_features] of any number type -> [..., out_features]."""
        out: torch.Tensor = self._operator(
            x.to(self._dtype), self.weight, self._bias, self._attr, [], self._algorithm
        )
        return out.to(self._answer)


class NarrowLinear(nn.Module):
    """A linear layer that computes in the number type of its weights; for CUDA.

    It returns float32; with `narrow`, the type it computes in.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, *, narrow: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self._is_narrow = narrow
        self.to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in_features] of any number type -> [..., out_features]."""
        out = functional.linear(x.to(self.weight.dtype), self.weight, self.bias)
        if self._is_narrow:
            return out
        return out.float()


def is_available() -> bool:
    """Whether this torch has the operator."""
    ops: Any = torch.ops.mkldnn
    mkldnn: Any = torch.backends.mkldnn
    return bool(mkldnn.is_available()) and all(
        hasattr(ops, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
    )


def has_bfloat16() -> bool:
    """Whether this processor has instructions for products in bfloat16."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # not in every torch
    return any(getattr(torch.cpu, name)() for name in names if hasattr(torch.cpu, name))


def prepack(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace the linear layers of a model on the CPU, in place."""
    for module in list(model.modules()):
        after = _activation_after(module)
        for name, child in _linears(module, dtype):
            narrow = name in after or name in _ATTENDED
            activation = after.get(name, _NONE)
            setattr(module, name, PrepackedLinear(child, dtype, activation, narrow=narrow))


def narrow(model: nn.Module, dtype: torch.dtype) -> None:
    """Make a model's linear layers compute in 16 bits; before activations and attention they return 16 bits."""
    for module in list(model.modules()):
        activated = [linear for linear, name in _FUSED if hasattr(module, name)]
        for name, child in _linears(module, dtype):
            is_narrow = name in activated or name in _ATTENDED
            setattr(module, name, NarrowLinear(child, dtype, narrow=is_narrow))


def _linears(module: nn.Module, dtype: torch.dtype) -> list[tuple[str, nn.Linear]]:
    """Return a module's own linear layers by name; input that several share is converted once."""
    children = dict(module.named_children())
    # With a LayerNorm, as in ALBERT, the input also goes into a sum.
    sums = any(isinstance(child, nn.LayerNorm) for child in children.values())
    if dtype is not torch.float32 and len(_ATTENDED & children.keys()) > 1 and not sums:
        module.register_forward_pre_hook(_narrowed, with_kwargs=True)
    return [(name, child) for name, child in children.items() if type(child) is nn.Linear]


def _narrowed(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Convert the input of queries, keys and values to their number type, once for all three."""
    dtype = next(c.weight.dtype for n, c in module.named_children() if n in _ATTENDED)
    if args:
        return (args[0].to(dtype), *args[1:]), kwargs
    return args, kwargs | {"hidden_states": kwargs["hidden_states"].to(dtype)}


def _activation_after(module: nn.Module) -> dict[str, tuple[str, str]]:
    """Return the linear layer that takes over its activation; the activation's module is switched off."""
    for linear, name in _FUSED:
        kind = type(getattr(module, name, None)).__name__
        if type(getattr(module, linear, None)) is nn.Linear and kind in _ACTIVATIONS:
            setattr(module, name, nn.Identity())
            return {linear: _ACTIVATIONS[kind]}
    return {}

"""A transformer's layers as compiled kernels, for 16-bit types on CUDA.

Between two products a layer only moves memory: it casts, adds, normalizes, rotates, gates. One kernel
for all that lies between two products reads and writes it once. Each layer is compiled by itself and
for any number of tokens, so that layers of one kind share their kernels: this takes seconds, and a
batch of another size compiles nothing.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

# One process compiles: the pool that Inductor starts otherwise stays beside the actor.
_OPTIONS: dict[str, Any] = {"compile_threads": 1}


def compile_layers(transformer: nn.Module) -> int:
    """Compile the repeated layers, in place, at their next call; how many there are."""
    layers = list(_layers(transformer))
    for layer in layers:
        layer.compile(dynamic=True, options=_OPTIONS)
    return len(layers)


def as_written() -> AbstractContextManager[None]:
    """Within this context compiled layers run as their modules are written."""
    stance: Any = torch.compiler.set_stance
    context: AbstractContextManager[None] = stance("force_eager")
    return context


def _layers(module: nn.Module) -> list[nn.Module]:
    """Those of the outermost lists: a layer may hold lists of its own, which are compiled with it."""
    if isinstance(module, nn.ModuleList):
        return list(module)
    return [layer for child in module.children() for layer in _layers(child)]

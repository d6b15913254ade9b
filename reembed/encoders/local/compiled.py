"""A transformer's layers as compiled kernels, for 16-bit types on CUDA.

Between two products a layer only moves memory: it casts, adds, normalizes, rotates, gates. One kernel
for all that lies between two products reads and writes it once. Each layer is compiled by itself and
for any number of tokens, so that layers of one kind share their kernels: this takes seconds, and
batches of other sizes compile at most once more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

# A whole layer or an error: parts that cannot be compiled would run as written, and nothing would say
# so. One process compiles: the pool that Inductor starts otherwise stays beside the actor.
_HOW: dict[str, Any] = {"dynamic": True, "fullgraph": True, "options": {"compile_threads": 1}}
_KINDS = 64
"""Of layers in one process at most, over all its models; torch stops compiling at 8."""


def failures() -> tuple[type[Exception], ...]:
    """The errors of compiling that are not RuntimeErrors."""
    from torch._dynamo.exc import FailOnRecompileLimitHit

    return (FailOnRecompileLimitHit,)


def compile_layers(transformer: nn.Module) -> None:
    """Compile the repeated layers, in place, at their next call."""
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _KINDS)
    for layer in _layers(transformer):
        layer.compile(**_HOW)


@contextmanager
def as_written(transformer: nn.Module) -> Iterator[None]:
    """Within this context its compiled layers run as their modules are written."""
    compiled = {layer: layer._compiled_call_impl for layer in _layers(transformer)}
    try:
        for layer in compiled:
            layer._compiled_call_impl = None
        yield
    finally:
        for layer, call in compiled.items():
            layer._compiled_call_impl = call


def _layers(module: nn.Module) -> list[nn.Module]:
    """Those of the outermost lists: a layer may hold lists of its own, which are compiled with it."""
    if isinstance(module, nn.ModuleList):
        return list(module)
    return [layer for child in module.children() for layer in _layers(child)]

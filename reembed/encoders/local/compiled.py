"""A transformer's layers as compiled kernels, for 16-bit types on CUDA.

Between two products a layer only moves memory: it casts, adds, normalizes, rotates, gates. One kernel
for everything between two products reads and writes that memory once. Each layer is compiled by itself
for any number of tokens, so that layers of one kind share their kernels. This takes seconds, and
batches of other sizes compile at most once more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

# fullgraph: a whole layer or an error; otherwise parts that do not compile run as written, silently.
# compile_threads: without it Inductor starts a pool of processes that outlives the compilation.
_HOW: dict[str, Any] = {"dynamic": True, "fullgraph": True, "options": {"compile_threads": 1}}
_KINDS = 64
"""Most kinds of layers in one process, over all its models; torch itself stops at 8."""


def compile_layers(transformer: nn.Module) -> None:
    """Make the repeated layers compile, in place, at their next call."""
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _KINDS)
    for layer in _layers(transformer):
        layer.compile(**_HOW)


@contextmanager
def as_written(transformer: nn.Module) -> Iterator[None]:
    """Run the compiled layers as their modules are written, within this context."""
    compiled = {layer: layer._compiled_call_impl for layer in _layers(transformer)}
    try:
        for layer in compiled:
            layer._compiled_call_impl = None
        yield
    finally:
        for layer, call in compiled.items():
            layer._compiled_call_impl = call


def _layers(module: nn.Module) -> list[nn.Module]:
    """Return the layers of the outermost lists; lists within a layer are compiled with it."""
    if isinstance(module, nn.ModuleList):
        return list(module)
    return [layer for child in module.children() for layer in _layers(child)]

"""Whether the tensors of a loaded model are those of its files.

transformers fills a tensor that it does not find in the checkpoint with random or constant values, and
goes on. Every later check would load the model in the same way and agree. So the tensors in memory are
compared, by value, with those in the files. A tensor that is in no file is filled with NaN, and the
model is refused if its vectors become NaN.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch

from reembed.encoders.local.files import Layout

_SAMPLE = 64
_LEAST_ROW = 8  # shorter rows can be equal by chance
_PREFIX = 2
_OLD_NAMES = {"gamma": "weight", "beta": "bias"}


def poison_unloaded(model: torch.nn.Module, layout: Layout) -> list[str]:
    """Fill the floating-point tensors that are in no file with NaN; return their names."""
    names: dict[Any, set[str]] = defaultdict(set)
    for name, tensor in _read(layout):
        names[_marks(tensor)].add(_plain(name))
    unloaded = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
        and not _is_held(layout, _plain(name), tensor, names[_marks(tensor)])
    }
    for tensor in unloaded.values():
        tensor.fill_(torch.nan)
    return list(unloaded)


def _is_held(layout: Layout, name: str, tensor: torch.Tensor, alike: set[str]) -> bool:
    """Whether a file has this tensor, or its first and last row: some tensors are cut or joined.

    `alike`: the names under which files have these values.
    """
    # All ones or all zeros may also be an initial value.
    if tensor.numel() == 0 or bool((tensor == tensor.reshape(-1)[0]).all()):
        return any(_is_same_name(name, other) for other in alike)
    return bool(alike) or _has_rows(layout, tensor) or _has_rows(layout, tensor.transpose(0, -1))


def _has_rows(layout: Layout, tensor: torch.Tensor) -> bool:
    rows = tensor.reshape(-1, tensor.shape[-1])
    if rows.shape[1] < _LEAST_ROW:
        return False
    ends = (rows[0].cpu(), rows[-1].cpu())
    return all(any(_holds(t, row) for _, t in _read(layout)) for row in ends)


def _read(layout: Layout) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import safe_open

    for module in layout.modules:
        for file in module.weights():
            with safe_open(str(file), "pt") as held:
                yield from ((n, held.get_tensor(n)) for n in held.keys())  # noqa: SIM118


def _holds(tensor: torch.Tensor, row: torch.Tensor) -> bool:
    """Whether this is a row of a tensor, or a part of one that has a single row."""
    width, wanted = (tensor.shape or (1,))[-1], len(row)
    if width < wanted or (tensor.dim() > 1 and width > wanted):
        return False
    return bool((tensor.float().unfold(-1, wanted, 1) == row.float()).all(dim=-1).any())


def _marks(tensor: torch.Tensor) -> tuple[int, tuple[float, ...]]:
    flat = tensor.detach().reshape(-1)
    count = min(flat.numel(), _SAMPLE)
    # Integer arithmetic: float32 cannot hold positions beyond 2**24.
    at = torch.arange(count) * (flat.numel() - 1) // max(1, count - 1)
    return flat.numel(), tuple(flat[at].float().tolist())


def _plain(name: str) -> str:
    stem, _, last = name.rpartition(".")
    return f"{stem}.{_OLD_NAMES.get(last, last)}" if stem else last


def _is_same_name(one: str, other: str) -> bool:
    """Whether two names are equal but for a prefix of either, such as `0.model.` or `bert.`."""
    a, b = one.split("."), other.split(".")
    return any(a[i:] == b[j:] for i in range(_PREFIX + 1) for j in range(_PREFIX + 1) if a[i:])

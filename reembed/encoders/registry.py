"""Which backend an `encoder.model` means, by the scheme before its colon.

A model without a scheme is a folder or a hub id.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reembed.encoders import hashing
from reembed.encoders.base import Encoder
from reembed.encoders.local.profile import read_profile
from reembed.encoders.tokens import Tokenizer
from reembed.errors import SetupError
from reembed.space import Space

if TYPE_CHECKING:
    from reembed.config.settings import EncoderConfig

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")


@dataclass(frozen=True)
class LoadOptions:
    """Where and how a model computes; a backend ignores what it cannot choose."""

    device: str = "auto"
    """A torch device; auto is CUDA if there is one, else the CPU."""
    dtype: str = "auto"
    """auto, float32, float16 or bfloat16; auto is float32 on the CPU, on CUDA float16, or bfloat16 for
    a bfloat16 checkpoint."""
    batch_tokens: int = 16_384
    """Tokens per forward pass, padding included; at least one text each."""
    for_job: bool = False
    """Spend seconds on throughput: compile layers on CUDA in 16 bits, and measure the device's peak."""


@dataclass(frozen=True)
class Backend:
    """One way to embed. Its functions raise SetupError where a configuration does not fit."""

    describe: Callable[[EncoderConfig], Space]
    """The space, as float32; loads no weights and asks no provider."""
    load: Callable[[EncoderConfig, LoadOptions], Encoder]
    tokenizer: Callable[[EncoderConfig], Tokenizer] | None = None
    """None where `load` gives no TokenEncoder."""


def _load_local(config: EncoderConfig, options: LoadOptions) -> Encoder:
    from reembed.encoders.local.load import load

    return load(
        config, options.device, options.dtype, options.batch_tokens, for_job=options.for_job
    )


_LOCAL = Backend(
    describe=lambda config: read_profile(config).space,
    load=_load_local,
    tokenizer=lambda config: read_profile(config).tokenizer,
)
_HASHING = Backend(
    describe=lambda config: hashing.HashingEncoder(config).describe(),
    load=lambda config, _: hashing.HashingEncoder(config),
    tokenizer=hashing.HashingEncoder,
)
BACKENDS: dict[str, Backend] = {"": _LOCAL, "package": _LOCAL, "hashing": _HASHING}
"""By scheme. A new backend is a line here."""


def backend_of(config: EncoderConfig) -> Backend:
    """Return the backend of `config.model`.

    Raises:
        SetupError: no backend has this scheme.
    """
    for scheme, backend in BACKENDS.items():
        if scheme and config.model.startswith(f"{scheme}:"):
            return backend
    match = _SCHEME.match(config.model)
    if match is None or Path(config.model).expanduser().is_dir():
        return BACKENDS[""]
    known = ", ".join(f"{name}:" for name in sorted(BACKENDS) if name)
    raise SetupError(
        f"encoder.model {config.model}: unknown scheme {match[1]}:",
        f"known: {known}, a folder, or a hub id org/name",
        "reembed run --set encoder.model=hashing:64     # or one of the others",
    )

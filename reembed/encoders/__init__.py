"""Encoders: which space a configuration means, and the model that embeds.

`encoder.model` is a sentence-transformers folder, a hub id with a commit, `package:NAME/FOLDER`, or
`hashing:DIM[:SALT]`. Importing this loads neither torch nor transformers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reembed.encoders.base import Encoder
from reembed.encoders.hashing import HashingEncoder
from reembed.encoders.local.profile import read_profile
from reembed.encoders.tokens import Tokenizer
from reembed.errors import SetupError
from reembed.space import Space

if TYPE_CHECKING:
    from reembed.config.settings import EncoderConfig

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")


@dataclass(frozen=True)
class Backend:
    """One way to embed. Its functions raise SetupError where a configuration does not fit."""

    describe: Callable[[EncoderConfig], Space]
    """The space, as float32; loads no weights and asks no provider."""
    load: Callable[..., Encoder]
    """Takes the configuration and, by name, the options of `load_encoder`."""
    tokenizer: Callable[[EncoderConfig], Tokenizer] | None = None
    """None where `load` gives no TokenEncoder."""


def _load_local(config: EncoderConfig, **options: Any) -> Encoder:
    from reembed.encoders.local.load import load

    return load(config, **options)


_LOCAL = Backend(
    describe=lambda config: read_profile(config).space,
    load=_load_local,
    tokenizer=lambda config: read_profile(config).tokenizer,
)
_HASHING = Backend(
    describe=lambda config: HashingEncoder(config).describe(),
    load=lambda config, **_: HashingEncoder(config),
    tokenizer=HashingEncoder,
)
BACKENDS: dict[str, Backend] = {"package": _LOCAL, "hashing": _HASHING}
"""By the scheme before a model's colon. A new backend is an entry here."""


def describe(config: EncoderConfig, vector_dtype: str) -> Space:
    """Return the space of the vectors that `config` gives, stored as `vector_dtype`.

    Loads no weights, but reads every byte of a local model's files for their digests.

    Raises:
        SetupError: the model is missing, unsafe or unsupported, or a setting does not fit it.
    """
    return _backend(config).describe(config).stored_as(vector_dtype)


def load_tokenizer(config: EncoderConfig) -> Tokenizer:
    """Return the tokenizing half of a local model, without weights.

    Raises:
        SetupError: as `describe`, or this model takes texts, not tokens.
    """
    make = _backend(config).tokenizer
    if make is None:
        raise SetupError(f"encoder.model {config.model} has no tokenizer: its provider tokenizes")
    return make(config)


def load_encoder(
    config: EncoderConfig,
    *,
    device: str = "auto",
    dtype: str = "auto",
    batch_tokens: int = 16_384,
    for_job: bool = False,
) -> Encoder:
    """Return the model, ready to embed. A backend ignores options that it does not have.

    `device`: a torch device; auto is CUDA if there is one, else the CPU. `dtype`: auto, float32,
    float16 or bfloat16; auto is float32 on the CPU, and on CUDA float16, or bfloat16 for a bfloat16
    checkpoint. `batch_tokens`: tokens per forward pass, padding included; at least one text each.
    `for_job`: spend seconds on throughput: compile layers on CUDA in 16 bits, and measure the device's
    peak FLOP/s.

    Raises:
        SetupError: as `describe`, or the weights cannot be loaded.
    """
    return _backend(config).load(
        config, device=device, dtype=dtype, batch_tokens=batch_tokens, for_job=for_job
    )


def _backend(config: EncoderConfig) -> Backend:
    """Return the backend of `config.model`: a model without a scheme is a folder or a hub id."""
    scheme, colon, _ = config.model.partition(":")
    if colon and scheme in BACKENDS:
        return BACKENDS[scheme]
    if not colon or not _SCHEME.fullmatch(scheme) or Path(config.model).expanduser().is_dir():
        return _LOCAL
    raise SetupError(
        f"encoder.model {config.model}: unknown scheme {scheme}:",
        f"known: {', '.join(f'{name}:' for name in sorted(BACKENDS))}, a folder, or a hub id org/name",
        "reembed run --set encoder.model=hashing:64     # or one of the others",
    )

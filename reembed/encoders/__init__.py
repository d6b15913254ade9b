"""Encoders: which space a configuration means, and the model that embeds.

`encoder.model` is a sentence-transformers folder, a hub id with a commit, `package:NAME/FOLDER`, or
`hashing:DIM[:SALT]`; `registry` maps each to its backend. Importing this loads neither torch nor
transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reembed.encoders.base import Embedded, Encoder, EncoderStats, Kind, Vectors
from reembed.encoders.registry import LoadOptions, backend_of
from reembed.encoders.tokens import TokenEncoder, Tokenizer, Tokens
from reembed.errors import SetupError
from reembed.space import Space

if TYPE_CHECKING:
    from reembed.config.settings import EncoderConfig

__all__ = [
    "Embedded",
    "Encoder",
    "EncoderStats",
    "Kind",
    "TokenEncoder",
    "Tokenizer",
    "Tokens",
    "Vectors",
    "describe",
    "load_encoder",
    "load_tokenizer",
]


def describe(config: EncoderConfig, vector_dtype: str) -> Space:
    """Return the space of the vectors that `config` gives, stored as `vector_dtype`.

    Loads no weights, but reads every byte of a local model's files for their digests.

    Raises:
        SetupError: the model is missing, unsafe or unsupported, or a setting does not fit it.
    """
    return backend_of(config).describe(config).stored_as(vector_dtype)


def load_tokenizer(config: EncoderConfig) -> Tokenizer:
    """Return the tokenizing half of a local model, without weights.

    Raises:
        SetupError: as `describe`, or this model takes texts, not tokens.
    """
    make = backend_of(config).tokenizer
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
    """Return the model, ready to embed; the options are those of LoadOptions.

    Raises:
        SetupError: as `describe`, or the weights cannot be loaded.
    """
    options = LoadOptions(device, dtype, batch_tokens, for_job)
    return backend_of(config).load(config, options)

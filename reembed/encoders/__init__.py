"""Encoders: which space a configuration means, its tokenizer, and the model that embeds.

`encoder.model` is a sentence-transformers folder, a hub id with a commit, `package:NAME/FOLDER`, or
`hashing:DIM[:SALT]`. Importing this loads neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reembed.encoders.base import Encoder, Kind, Tokenizer, Tokens, Vectors
from reembed.encoders.hashing import HashingEncoder
from reembed.encoders.local.profile import read_profile
from reembed.space import Space

if TYPE_CHECKING:
    from reembed.config.settings import EncoderConfig

__all__ = [
    "Encoder",
    "Kind",
    "Tokenizer",
    "Tokens",
    "Vectors",
    "describe",
    "load_encoder",
    "load_tokenizer",
    "tokenizer_sha256",
]


def describe(config: EncoderConfig, vector_dtype: str) -> Space:
    """The space of the vectors that `config` gives, stored as `vector_dtype`; loads no weights.

    Reads every byte of the model's files once, for their digests.

    Raises:
        EncoderError: the model is missing, unsafe or unsupported, or a setting does not fit it.
    """
    if _is_hashing(config):
        return HashingEncoder(config).space(vector_dtype)
    return read_profile(config).space(config, vector_dtype)


def tokenizer_sha256(config: EncoderConfig) -> str:
    """Of the tokenizer's files alone, as in the space.

    Raises:
        EncoderError: as `describe`.
    """
    if _is_hashing(config):
        return HashingEncoder(config).space("float32").tokenizer_sha256
    return read_profile(config).layout.tokenizer_sha256()


def load_tokenizer(config: EncoderConfig) -> Tokenizer:
    """The CPU half; loads no weights.

    Raises:
        EncoderError: as `describe`.
    """
    return HashingEncoder(config) if _is_hashing(config) else read_profile(config).tokenizer


def load_encoder(
    config: EncoderConfig,
    *,
    device: str = "auto",
    dtype: str = "auto",
    batch_tokens: int = 16_384,
    compile_layers: bool = False,
) -> Encoder:
    """The model, ready to embed.

    Args:
        config: the model and what is changed about it.
        device: a torch device; auto is CUDA where there is one, else the CPU.
        dtype: auto, float32, float16 or bfloat16; auto is float32 on the CPU, on CUDA float16 or,
            where the checkpoint is, bfloat16.
        batch_tokens: tokens per forward pass, padding included; at least one text each.
        compile_layers: on CUDA in 16 bits; takes seconds, so for jobs and not for a few texts.

    Raises:
        EncoderError: as `describe`, and where the weights cannot be loaded.
    """
    if _is_hashing(config):
        return HashingEncoder(config)
    from reembed.encoders.local.sentence import load

    return load(config, device, dtype, batch_tokens, compile_layers=compile_layers)


def _is_hashing(config: EncoderConfig) -> bool:
    return config.model.startswith("hashing:")

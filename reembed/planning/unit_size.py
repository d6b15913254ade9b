"""How many documents a unit has, where `embed.unit_documents` does not say it.

A unit is seconds of work, so that what a unit costs (records, files, the driver's time) does not count; it
fits into memory several times; and a run has at most 50,000 of them, unless units of so many documents would be too
large for that.
"""

from __future__ import annotations

import math

from reembed.config.settings import EmbedConfig

# About 4 s of BERT-base on an H100 (measured: 1.8 million tokens/s), and of MiniLM on a core.
_GPU_TOKENS = 7_000_000
_CPU_TOKENS = 100_000
_TOKEN_BYTES = 4  # of text, in most languages
_MOST_BYTES = 128 << 20
_MOST_UNITS = 50_000
_UNITS_EACH = 8
_LEAST_SHARED = 256


def unit_documents(embed: EmbedConfig, documents: int, text_bytes: float, dim: int) -> int:
    """Return the documents of a unit: the setting, or by the work, the memory and the number of units.

    Args:
        embed: The settings; with `unit_documents` nothing else counts.
        documents: Documents to embed in all.
        text_bytes: Mean length of a text.
        dim: Dimensions of a vector, float32.
    """
    if embed.unit_documents is not None:
        return embed.unit_documents
    tokens = max(1.0, text_bytes / _TOKEN_BYTES)
    work = _GPU_TOKENS if embed.gpus_per_actor else _CPU_TOKENS * embed.cpus_per_actor
    size = math.ceil(work / tokens)
    # Few documents: every replica gets some, and a kill costs a part of them.
    size = min(size, max(_LEAST_SHARED, math.ceil(documents / (_UNITS_EACH * embed.actors))))
    size = max(size, math.ceil(documents / _MOST_UNITS))
    # Text or token ids, and the vector: as `units_in_flight` counts them.
    most = _MOST_BYTES / (2 * text_bytes + 4 * dim)
    return max(1, min(size, int(most)))

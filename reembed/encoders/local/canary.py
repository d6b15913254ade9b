"""Compares this package's way through a model with sentence-transformers' own, at every start.

If a model's code does something that ours does not expect, it shows here, before a document is embedded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from reembed.encoders.base import Vectors
from reembed.encoders.local.profile import Profile
from reembed.encoders.probes import TEXTS, cosines_of

LEAST_COSINE = {"float32": 0.999999, "float16": 0.99999, "bfloat16": 0.9999}
_TOGETHER = (
    4  # few are as long as the longest; and the empty text, which breaks some models, is not alone
)


def reference(model: Any, profile: Profile) -> Vectors:
    """Return float32 [32, dim]: what `SentenceTransformer.encode` makes of the texts."""
    tokenizer = profile.tokenizer
    if hasattr(model[0], "max_seq_length"):
        model.max_seq_length = tokenizer.max_length
    vectors: Vectors = model.encode(
        list(TEXTS),
        batch_size=_TOGETHER,
        prompt=tokenizer.prompts["document"],  # "" keeps a model from adding one of its own
        normalize_embeddings=False,
        convert_to_numpy=True,
        show_progress_bar=False,
        truncate_dim=None,
    )
    return np.asarray(vectors, np.float32)[:, : profile.dim]


def cosine(golden: Vectors, embed: Callable[[list[str]], Vectors]) -> float:
    """Return the least cosine; texts whose reference is zero or NaN do not count."""
    found = embed(list(TEXTS))
    usable = np.isfinite(golden).all(axis=1) & (golden != 0).any(axis=1)
    cosines: npt.NDArray[np.float64] = cosines_of(golden[usable], found[usable])
    return float(np.nan_to_num(cosines, nan=-1.0).min(initial=1.0))

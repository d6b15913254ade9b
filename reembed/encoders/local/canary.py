"""Fixed texts through sentence-transformers' own path and through ours, at every start.

Whatever a model's code does that ours did not foresee shows here, before a document is embedded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from reembed.encoders.base import Vectors
from reembed.encoders.local.profile import Profile

LEAST_COSINE = {"float32": 0.999999, "float16": 0.99999, "bfloat16": 0.9999}
_LONG = (
    "When a team replaces its embedding model, vectors of the old and of the new one share a table"
    " but not a space; distances between them mean nothing, recall falls, and no error is raised. "
)
_WORDS = ("river", "copper", "seven", "quietly", "ambulance", "of", "theorem", "blue", "northward")
TEXTS: tuple[str, ...] = (
    "",
    " ",
    "a",
    "words around <pad> <pad> and [PAD]",
    "?",
    "42",
    "word",
    "Two words",
    "Two words",  # the same again
    "The old index answers while the new one is built.",
    "7 wings flutter at Mach 0.9",
    "UPPER CASE, lower case, and CamelCaseTogether",
    "def f(x):\n    return x ** 2 + 1\n",
    "tabs\tand\r\nlines  and   runs of spaces",
    "naïve café — “quoted” … déjà vu",
    "Грузовик едет на север",
    "北京的天气今天很好",
    "こんにちは、世界",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "e\u0301 is é in two characters; \ufb01 is a ligature",
    "emoji 👩‍🚀 🚀 and flags 🇫🇷",
    "\u200bzero\u200bwidth\u200b",
    "https://example.org/a/b?c=d&e=f#g",
    "SELECT doc_id FROM passages WHERE lang = 'en' LIMIT 10;",
    "supercalifragilisticexpialidocious" * 4,
    _LONG,
    _LONG[:97],
    _LONG * 2,
    " ".join(_WORDS[i * i % len(_WORDS)] for i in range(150)),
    " ".join(_WORDS[i * 5 % len(_WORDS)] for i in range(330)),
    _LONG * 32,  # beyond the models' usual 512 tokens, their windows, and the short way of bfloat16
)
_TOGETHER = 4  # few are as long as the long one; and the empty text, which some models choke on, is not alone


def reference(model: Any, profile: Profile) -> Vectors:
    """float32 [32, dim]: what `SentenceTransformer.encode` makes of the texts."""
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
    """The least of the texts; of those that the reference has nothing for (zero, NaN), none counts."""
    found = embed(list(TEXTS))
    usable = np.isfinite(golden).all(axis=1) & (golden != 0).any(axis=1)
    cosines: npt.NDArray[np.float64] = cosines_of(golden[usable], found[usable])
    return float(np.nan_to_num(cosines, nan=-1.0).min(initial=1.0))


def cosines_of(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Cosines of the rows of two [N, dim]: float64 [N]."""
    one, other = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosines: npt.NDArray[np.float64] = (one * other).sum(axis=1) / lengths
    return cosines

"""Fixed texts that show whether two encoders make the same vectors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

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


def least_cosine(
    first: npt.NDArray[np.floating], found: npt.NDArray[np.floating]
) -> tuple[float, int]:
    """Return the least cosine between the rows of two [N, dim], and its row.

    Rows that are zero or not finite do not count in `first`, and have cosine -1 in `found`, as have
    arrays that cannot be compared.
    """
    usable = np.flatnonzero(np.isfinite(first).all(axis=1) & first.any(axis=1))
    if first.shape != found.shape or not len(usable):
        return -1.0, 0
    one, other = first[usable].astype(np.float64), found[usable].astype(np.float64)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = np.nan_to_num((one * other).sum(axis=1) / lengths, nan=-1.0)
    at = int(cosines.argmin())
    return float(cosines[at]), int(usable[at])


def worst_length(
    first: npt.NDArray[np.floating], found: npt.NDArray[np.floating]
) -> tuple[float, int]:
    """Return the length of a row of `found` [N, dim] over that of `first` which is farthest from 1, and its row.

    Rows of `first` that are zero or not finite do not count; one at least is neither.
    """
    usable = np.flatnonzero(np.isfinite(first).all(axis=1) & first.any(axis=1))
    one, other = first[usable].astype(np.float64), found[usable].astype(np.float64)
    ratios = np.linalg.norm(other, axis=1) / np.linalg.norm(one, axis=1)
    at = int(np.abs(ratios - 1).argmax())
    return float(ratios[at]), int(usable[at])

"""Golden vectors: what the model that built a line of releases makes of fixed texts.

The first replica of the line's rebuild stores them with the run; whatever loads the model later (other
replicas, catch-ups, verification, serving) embeds the same texts and must get the same vectors. Equal
digests do not show that: a library version, a device or a damaged load can make other vectors of the
same files.
"""

from __future__ import annotations

import functools
import importlib.metadata
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator

from reembed.encoders.base import Encoder, Kind
from reembed.encoders.local.canary import TEXTS, cosines_of
from reembed.errors import IntegrityError, SpaceMismatch
from reembed.store.records import checked
from reembed.store.storage import Storage

SAME = 0.999
"""Cosine that equal models reach over devices, number types of 16 bits and more, and batches."""
_KINDS: tuple[Kind, ...] = ("document", "query")
_LIBRARIES = ("torch", "transformers", "sentence-transformers", "tokenizers")
_DIGITS = 7


def _even(vectors: list[list[float]]) -> list[list[float]]:
    if len({len(v) for v in vectors}) > 1:
        raise ValueError("vectors of several lengths")
    return vectors


_Even = Annotated[list[list[float]], AfterValidator(_even)]


@dataclass(frozen=True)
class _Vectors:
    document: _Even
    query: _Even


@dataclass(frozen=True)
class _Golden:
    device: str
    path: str
    versions: dict[str, str]
    vectors: _Vectors


def path(origin: str) -> str:
    """Path under the root of the golden vectors of a line, by the run that began it."""
    return f"runs/{origin}/golden.json"


def leave(storage: Storage, origin: str, encoder: Encoder) -> list[str]:
    """Store the vectors, or hold the encoder against those that are there; notes for people.

    Raises:
        SpaceMismatch: it makes other vectors.
    """
    mine = _record(encoder)
    if storage.create(path(origin), mine):
        return []
    first = checked(_Golden, storage.read(path(origin)))
    _hold(first, mine, f"run {origin}")
    if first["path"] == mine["path"]:
        return []
    return [
        f"the line's first replica computed by {first['path']}, this one by {mine['path']}:"
        " the same space, other last digits"
    ]


def require(storage: Storage, origin: str, encoder: Encoder) -> None:
    """Hold an encoder against the golden vectors of a line.

    Raises:
        SpaceMismatch: it makes other vectors.
        IntegrityError: the line has no golden vectors.
    """
    first = storage.read_if_there(path(origin))
    if first is None:
        raise IntegrityError(
            f"{path(origin)} is gone",
            "nothing shows that the model found now makes the vectors of this line",
            "reembed status     # and put the file back from a backup of the store",
        )
    _hold(checked(_Golden, first), _record(encoder), f"run {origin}")


def _record(encoder: Encoder) -> dict[str, Any]:
    return {
        "device": encoder.device,
        "path": encoder.path,
        "versions": _libraries(),
        "vectors": {kind: _vectors(encoder, kind) for kind in _KINDS},
    }


@functools.cache  # reading them takes 40 ms
def _libraries() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


def _vectors(encoder: Encoder, kind: Kind) -> list[list[float]]:
    """Rows of [32, dim]; zeros where the model has nothing for a text."""
    found = encoder.embed(encoder.tokenize(TEXTS, kind)).astype(np.float64)
    found[~np.isfinite(found).all(axis=1)] = 0.0
    rows: list[list[float]] = np.round(found, _DIGITS).tolist()
    return rows


def _hold(first: dict[str, Any], mine: dict[str, Any], where: str) -> None:
    for kind in _KINDS:
        least, text = _least(*(np.array(r["vectors"][kind]) for r in (first, mine)))
        if least < SAME:
            raise SpaceMismatch(
                f"the model on {mine['device']} makes other vectors than that of {where}"
                f" on {first['device']}",
                f"cosine {least:.4f} for the {kind} {TEXTS[text][:40]!r}; at least {SAME} is needed"
                + _versions(first["versions"], mine["versions"]),
                "reembed config     # the model folder, embed.dtype; pip install the versions above",
            )


def _least(golden: npt.NDArray[np.float64], found: npt.NDArray[np.float64]) -> tuple[float, int]:
    """The least cosine and its text, of those for which the golden vector is not zero."""
    if golden.shape != found.shape:
        return -1.0, 0
    usable = np.flatnonzero((golden != 0).any(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = np.nan_to_num(cosines_of(golden[usable], found[usable]), nan=-1.0)
    at = int(cosines.argmin())
    return float(cosines[at]), int(usable[at])


def _versions(first: dict[str, str], mine: dict[str, str]) -> str:
    other = [f"{n} {v} there, {mine.get(n)} here" for n, v in first.items() if mine.get(n) != v]
    return f"; {', '.join(other)}" if other else ""

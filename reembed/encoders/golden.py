"""Golden vectors: what the model that built a line of releases makes of fixed texts.

The first replica of the line's rebuild stores them with the run. Whatever loads the model later (other
replicas, catch-ups, verification, serving) embeds the same texts and must get the same vectors. Equal
digests do not show that: a library version, a device or a damaged load can give other vectors for the
same files, and a provider can change the model behind a name.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import AfterValidator

from reembed.encoders.base import Encoder, Vectors, apart
from reembed.encoders.probes import TEXTS, least_cosine, worst_length
from reembed.errors import IntegrityError, SpaceMismatch
from reembed.store.records import DAMAGED, decode, encode, from_bytes
from reembed.store.storage import Storage

SAME = 0.999
"""Cosine that equal models reach over devices, number types of 16 bits and more, and batches."""
SAME_LENGTH = 0.02
"""Of a vector's length, by which equal models may differ: scores are inner products."""
_LIBRARIES = ("torch", "transformers", "sentence-transformers", "tokenizers")
_DIGITS = 7


def _even(vectors: list[list[float]]) -> list[list[float]]:
    if len({len(v) for v in vectors}) > 1:
        raise ValueError("vectors of several lengths")
    return vectors


_Even = Annotated[list[list[float]], AfterValidator(_even)]


@dataclass(frozen=True)
class Golden:
    """What one encoder makes of the probe texts."""

    device: str
    path: str
    versions: dict[str, str]
    documents: _Even
    """[32, dim]; a row of zeros where the model has no vector for a text."""
    queries: _Even


def path(origin: str, *, queries: bool = False) -> str:
    """Return the path under the root of a line's golden vectors, by the run that began it.

    `queries`: of the model that embeds queries alone, where the line has one.
    """
    return f"runs/{origin}/golden{'-queries' if queries else ''}.json"


def leave(storage: Storage, origin: str, encoder: Encoder, *, queries: bool = False) -> list[str]:
    """Store an encoder's vectors, or compare them with those that are there; return notes for people.

    Raises:
        SpaceMismatch: the encoder produces different vectors.
    """
    mine = _golden(encoder)
    place = path(origin, queries=queries)
    if storage.create(place, encode(mine)):
        return []
    first = decode(Golden, storage.read(place))
    _require_same(first, mine, origin)
    if first.path == mine.path:
        return []
    return [
        f"the line's first replica computed by {first.path}, this one by {mine.path}:"
        " the space is the same, but the last digits may differ"
    ]


def require(
    storage: Storage,
    origin: str,
    encoder: Encoder,
    sha256: str | None = None,
    *,
    queries: bool = False,
) -> None:
    """Require that an encoder produces the golden vectors of a line.

    `sha256` is that of the file that a release was registered with; None before the first release.
    `queries` as of `path`.

    Raises:
        SpaceMismatch: it produces different vectors.
        IntegrityError: the line has no golden vectors, or others than it was registered with.
    """
    place = path(origin, queries=queries)
    body = _read(storage, place)
    found = hashlib.sha256(body).hexdigest()
    if sha256 not in (None, found):
        raise IntegrityError(
            f"{place} is not the file that the release was registered with",
            f"sha256 {found[:12]} where the release records {sha256[:12]}",
            DAMAGED,
        )
    first = decode(Golden, from_bytes(body, storage.uri(place)))
    _require_same(first, _golden(encoder), origin)


def measured(storage: Storage, origin: str, encoder: Encoder, *, queries: bool = False) -> str:
    """Return in words how an encoder's vectors differ from the golden ones of a line; `queries` as of `path`.

    Raises:
        IntegrityError: the line has no golden vectors.
    """
    place = path(origin, queries=queries)
    first = decode(Golden, from_bytes(_read(storage, place), storage.uri(place)))
    why = _differs(first, _golden(encoder))
    return why or "its vectors of the golden texts are the same"


def sha256_of(storage: Storage, origin: str, *, queries: bool = False) -> str:
    """Return the sha256 of a line's golden vectors, as a release records it; `queries` as of `path`.

    Raises:
        IntegrityError: the line has no golden vectors.
    """
    return hashlib.sha256(_read(storage, path(origin, queries=queries))).hexdigest()


def copy(storage: Storage, origin: str, to: str) -> None:
    """Leave the golden vectors of a line's documents to another line, which has the same documents."""
    storage.write_bytes(path(to), _read(storage, path(origin)))


def _read(storage: Storage, place: str) -> bytes:
    try:
        return storage.read_bytes(place)
    except FileNotFoundError as error:
        raise IntegrityError(
            f"{place} is missing",
            "nothing else shows that the model produces the vectors of this line",
            DAMAGED,
        ) from error


def _golden(encoder: Encoder) -> Golden:
    made = encoder.embed_documents(TEXTS)
    queries = np.full_like(made.vectors, np.nan)
    embedded, _ = apart(
        np.arange(len(TEXTS)), lambda rows: encoder.embed_queries([TEXTS[row] for row in rows])
    )
    for rows, found in embedded:
        queries[rows] = found
    return Golden(
        made.stats.device, made.stats.path, _libraries(), _rows(made.vectors), _rows(queries)
    )


@functools.cache  # reading them takes 40 ms
def _libraries() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


def _rows(vectors: Vectors) -> list[list[float]]:
    """Return rounded rows of [32, dim]; zeros where the model has no vector for a text."""
    found = vectors.astype(np.float64)
    found[~np.isfinite(found).all(axis=1)] = 0.0
    rows: list[list[float]] = np.round(found, _DIGITS).tolist()
    return rows


def _require_same(first: Golden, mine: Golden, origin: str) -> None:
    if why := _differs(first, mine):
        raise _other_model(first, mine, origin, why)


def _differs(first: Golden, mine: Golden) -> str | None:
    """Return how the documents differ, else how the queries do; None if neither do."""
    documents = _difference("document", np.array(first.documents), np.array(mine.documents))
    return documents or _difference("query", np.array(first.queries), np.array(mine.queries))


def _difference(kind: str, golden: Vectors, found: Vectors) -> str | None:
    """Return how vectors [32, dim] differ from golden ones; None if they are the same."""
    if golden.shape != found.shape:
        return f"vectors of {found.shape[1]} dimensions, where {golden.shape[1]} are needed"
    least, text = least_cosine(golden, found)
    if least < SAME:
        return f"cosine {least:.4f} for the {kind} {TEXTS[text][:40]!r}; at least {SAME} is needed"
    times, text = worst_length(golden, found)
    if abs(times - 1) > SAME_LENGTH:
        what = f"the {kind} {TEXTS[text][:40]!r}"
        return f"{what} has a vector {times:.3f} times as long; {SAME_LENGTH:.0%} more or less is taken"
    return None


def _other_model(first: Golden, mine: Golden, origin: str, why: str) -> SpaceMismatch:
    here = mine.versions
    others = [
        f"{name} {version} there, {here.get(name)} here"
        for name, version in first.versions.items()
        if here.get(name) != version
    ]
    return SpaceMismatch(
        f"the model on {mine.device} produces different vectors from the model of run {origin}"
        f" on {first.device}",
        "; ".join([why, *others]),
        "reembed config     # the model folder, embed.dtype; pip install the versions above",
    )

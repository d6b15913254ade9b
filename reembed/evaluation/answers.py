"""What a release answers to queries, and how long it takes.

Shapes: Q queries, D dimensions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reembed.catalog.index_manifest import LanceManifest, read_manifest
from reembed.encoders.base import Encoder, apart
from reembed.encoders.bridge import Bridged
from reembed.encoders.tokens import TokenEncoder
from reembed.errors import UsageError
from reembed.evaluation import metrics
from reembed.evaluation.figures import DEPTH, Curve, CurvePoint, IndexUsed, Latency, Sides
from reembed.evaluation.metrics import Ranked
from reembed.evaluation.queries import EvalSet
from reembed.evaluation.statistics import Floats
from reembed.index import exact as index_exact
from reembed.index.curve import curve
from reembed.index.types import Float32, Int64
from reembed.plural import counted
from reembed.serving.answers import OpenIndex
from reembed.serving.live import OpenRelease
from reembed.store.storage import Storage

ANN_K = 10
_TIMED_QUERIES = 200
_WARM_UP = 5
_CURVE_QUERIES, _CURVE_S = 100, 3.0
"""Queries that the operating curve is measured on, of those that were embedded anyway, and seconds for each release."""
_ENCODING_S = 20.0
"""Time after which no more queries are encoded to be timed; a percentile of fewer is as good as it gets."""


@dataclass(frozen=True)
class Answers:
    """What a release answers to some queries."""

    opened: OpenRelease
    texts: Sequence[str]
    vectors: npt.NDArray[np.float32]
    """[Q, D]: the queries; NaN where the model cannot embed one, which then finds nothing."""
    lists: Ranked

    @classmethod
    def of(cls, opened: OpenRelease, texts: Sequence[str], own_ids: Iterable[str]) -> Answers:
        """Search for the texts; `own_ids` are the documents that each is, which it does not find.

        Raises:
            UsageError: the model can embed none of them.
        """
        vectors = _encoded(opened, texts)
        if not len(_known(vectors)):
            raise UsageError(
                f"release {opened.release.id}: its model can embed none of {counted(len(texts), 'query')}",
                f"{opened.release.query_model.label} gives {texts[0]!r:.80} no vector",
                f"reembed search --release {opened.release.id} 'some words'     # what does it say?",
            )
        return cls(opened, texts, vectors, _without_own(opened, vectors, own_ids, DEPTH))

    @property
    def known(self) -> list[int]:
        """Return the queries that the model can embed."""
        return _known(self.vectors)

    def of_index(self) -> OfIndex:
        """Compare the index with exact search; a query's own document counts as any other."""
        recall_Q, known = np.full(len(self.texts), np.nan), self.known
        some, index = self.vectors[known], self.opened.index
        ids, scores = index_exact.exact_search(self.opened.table, some, 4 * ANN_K)
        recall_Q[known] = index_exact.ann_recall(index, some, ids, scores, ANN_K)
        few = slice(None, None, -(-len(known) // _CURVE_QUERIES))
        return OfIndex(recall_Q, _curve(index, some[few], (ids[few], scores[few])))


@dataclass(frozen=True)
class OfIndex:
    """How well an index, not the model, answers."""

    ann_recall_Q: Floats
    """ann_recall@10 [Q]; NaN where the model cannot embed a query."""
    curve: Curve | None
    """None where the index looks at all vectors."""


def _curve(index: OpenIndex, vectors: Float32, exact: tuple[Int64, Float32]) -> Curve | None:
    found = curve(index, vectors, exact, _CURVE_S)
    if found is None:
        return None
    setting, points = found
    measured = tuple(CurvePoint(p.value, p.recall, p.seconds * 1e3) for p in points)
    return Curve(setting.name, setting.value, len(vectors), measured)


def judged_lists(opened: OpenRelease, queries: EvalSet, depth: int | None = None) -> Ranked:
    """Return what a release finds for judged queries: nothing where its model cannot embed one."""
    return _without_own(opened, _encoded(opened, queries.texts), queries.query_ids, depth or DEPTH)


def _without_own(
    opened: OpenRelease, vectors: npt.NDArray[np.float32], own_ids: Iterable[str], depth: int
) -> Ranked:
    """Return the best of each query without the document that has its id."""
    # One more than is scored: the query's own document may be among them.
    found = zip(own_ids, _search(opened, vectors, depth + 1), strict=True)
    return Ranked.of(
        metrics.ranking([d for d, _ in hits], [score for _, score in hits], own, depth)
        for own, hits in found
    )


def lists_of(opened: OpenRelease, texts: Sequence[str], k: int | None = None) -> Ranked:
    """Return what a release finds for each text: nothing where its model cannot embed it."""
    return Ranked.of(_search(opened, _encoded(opened, texts), k or DEPTH))


def _encoded(opened: OpenRelease, texts: Sequence[str]) -> Float32:
    return encoded(opened.encoder, opened.release.space.dim, texts)


def encoded(encoder: Encoder, dim: int, texts: Sequence[str]) -> Float32:
    """Return the vectors of queries [Q, dim]; NaN where the model cannot embed one."""
    vectors = np.full((len(texts), dim), np.nan, np.float32)
    parts, _ = apart(
        np.arange(len(texts)), lambda rows: encoder.embed_queries([texts[row] for row in rows])
    )
    for rows, some in parts:
        vectors[rows] = some
    return vectors


def _known(vectors: npt.NDArray[np.float32]) -> list[int]:
    rows: list[int] = np.flatnonzero(np.isfinite(vectors).all(axis=1)).tolist()
    return rows


def _search(
    opened: OpenRelease, vectors: npt.NDArray[np.float32], k: int
) -> list[list[tuple[str, float]]]:
    """Return the k best ids and scores of each vector; nothing where it is NaN."""
    known = _known(vectors)
    lists: list[list[tuple[str, float]]] = [[] for _ in vectors]
    for row, hits in zip(known, opened.search(vectors[known], k), strict=True):
        lists[row] = [(str(hit.doc_id), hit.score) for hit in hits]
    return lists


def search_times(both: Sides[Answers]) -> Sides[Floats] | None:
    """Time one query at a time through each index, in turns; encoding is not timed.

    Returns seconds, float64 [T], of the same T queries in the same order; None if too few were timed.
    """

    def search(answers: Answers) -> Callable[[int], object]:
        return lambda q: answers.opened.search(answers.vectors[q : q + 1], ANN_K)

    return _in_turns(both.each(search), _known_to_both(both))


def encoding_latency(both: Sides[Answers]) -> Sides[Latency] | None:
    """Time the encoding of one query at a time with each model, in turns."""

    def encode(answers: Answers) -> Callable[[int], object]:
        return lambda q: answers.opened.encode_queries([answers.texts[q]])

    times = _in_turns(both.each(encode), _known_to_both(both), _ENCODING_S)
    return times.each(metrics.latency) if times else None


def _known_to_both(both: Sides[Answers]) -> list[int]:
    return sorted({*both.live.known}.intersection(both.candidate.known))


def _in_turns(
    asks: Sides[Callable[[int], object]], queries: Sequence[int], at_most_s: float = math.inf
) -> Sides[Floats] | None:
    """Time both for each query, the other one first each time; return seconds [T] of those after warming up.

    None where too few are timed.
    """
    sides = asks.live, asks.candidate
    timed: list[list[float]] = [[], []]
    began = time.perf_counter()
    for turn, query in enumerate(queries[:_TIMED_QUERIES]):
        for side in (0, 1) if turn % 2 else (1, 0):
            start = time.perf_counter()
            sides[side](query)
            timed[side].append(time.perf_counter() - start)
        if time.perf_counter() - began > at_most_s:
            break
    if len(timed[0]) <= _WARM_UP:
        return None
    old, new = (np.array(seconds[_WARM_UP:]) for seconds in timed)
    return Sides(old, new)


def index_used(storage: Storage, opened: OpenRelease) -> IndexUsed:
    """Return the index of a release, and what it takes on disk and in memory."""
    release = opened.release
    manifest = read_manifest(storage, release.index, release.index_sha256)
    memory = None
    if not isinstance(manifest, LanceManifest):
        memory = sum(file.size_bytes for file in {s.vectors for s in manifest.segments})
    return IndexUsed(
        factory=manifest.factory,
        operating_point=manifest.operating_point,
        sha256=release.index_sha256,
        disk_bytes=sum(proof.size_bytes for proof in manifest.stored(release.index).values()),
        memory_bytes=memory,
    )


def truncated(answers: Answers) -> int | None:
    """Return how many texts have more tokens than the model reads; None if it is a provider that tokenizes."""
    encoder = answers.opened.encoder
    if isinstance(encoder, Bridged):
        encoder = encoder.model
    if not isinstance(encoder, TokenEncoder):
        return None
    most = answers.opened.release.query_model.space.max_length
    if most is None:
        return 0
    texts = [answers.texts[at] for at in answers.known]
    lengths = encoder.tokenize(texts, "query").lengths
    cut = [texts[at] for at in np.flatnonzero(lengths >= most).tolist()]
    if not cut:
        return 0
    # A text of exactly as many tokens as the model reads is whole: its halves tell.
    halves = [half for text in cut for half in _halves(text)]
    first, second = encoder.tokenize(halves, "query").lengths.reshape(-1, 2).T
    one, other, both = encoder.tokenize(["a", "b", "a b"], "query").lengths
    special = one + other - both  # and the prompt: each half has them
    return int((first + second - special > most).sum())


def _halves(text: str) -> tuple[str, str]:
    """Return the text in two parts, between words if it has any."""
    text, middle = text.strip(), len(text) // 2
    between = max(text.rfind(" ", 0, middle), text.find(" ", middle))
    cut = between if between > 0 else middle
    return text[:cut], text[cut:]

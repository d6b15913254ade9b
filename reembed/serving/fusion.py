"""Fuse the two lists of a query in a lazy migration: the old model's over all documents, the new model's over some.

Scores of two models are on different scales, so they cannot be sorted together as they are. Each rule returns a
document once, ranked in its newest space, and returns the old list where nothing is migrated:

    slots    migrated documents change places among themselves; needs no search of the new side (the default)
    zscore   scores are compared in standard deviations above a background that both models embedded
    rrf      ranks are compared; for comparison only: it ranks a document that is first of few as the first of all

Shapes: Q queries, D documents that the old side found, E that the new side found, B background documents, K results.
A key is a number that a document has on both sides, such as its row in the old release; -1 where there is none.
Filters and `depth` apply before fusion: no other documents come out than came in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from reembed.errors import IntegrityError

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

ABSENT = -1
BACKGROUND = 300
"""Documents that tell the scale of a space; more of them change no result."""
RRF_K = 60
_LEAST_SPREAD = 1e-6
"""Of the largest background score: below it the standard deviation is rounding."""


@dataclass(frozen=True)
class OldList:
    """What the old side found, best first.

    Raises:
        IntegrityError: a score is NaN or infinite.
    """

    keys: Int64
    """[Q, D]; -1 where there is none."""
    scores: Float32
    """[Q, D], of the old model."""
    migrated: Bools
    """[Q, D]: whether the document, as it is in the old release, has a vector of the new model."""
    new_scores: Float32
    """[Q, D]: that vector's score with the query of the new model; read only where `migrated`."""

    def __post_init__(self) -> None:
        there = self.keys != ABSENT
        _require_finite("old scores", self.scores, there)
        _require_finite("new scores", self.new_scores, there & self.migrated)


@dataclass(frozen=True)
class NewList:
    """What the new side found, best first.

    Raises:
        IntegrityError: a score is NaN or infinite.
    """

    keys: Int64
    """[Q, E]; -1 where there is none, and for a document that the old release does not hold as it is here."""
    scores: Float32
    """[Q, E], of the new model."""

    def __post_init__(self) -> None:
        _require_finite("scores of the new side", self.scores, self.keys != ABSENT)


@dataclass(frozen=True)
class Background:
    """How each query scores the same documents in one space."""

    mean: Float64
    """[Q]."""
    sd: Float64
    """[Q]; 0 where the scores do not differ, so that they tell no scale."""

    @classmethod
    def of(cls, scores: Float32) -> Background:
        """Return it from scores [Q, B] of the background documents.

        Raises:
            IntegrityError: a score is NaN or infinite.
        """
        _require_finite("background scores", scores, np.ones(scores.shape, bool))
        wide = scores.astype(np.float64)
        sd = wide.std(axis=1)
        return cls(wide.mean(axis=1), np.where(sd > _LEAST_SPREAD * abs(wide).max(axis=1), sd, 0))

    def standard(self, scores: Float32) -> Float64:
        """Return scores [Q, N] in standard deviations above the mean."""
        sd = np.where(self.sd > 0, self.sd, 1)
        return np.asarray((scores - self.mean[:, None]) / sd[:, None])


class Fused(NamedTuple):
    """The answer to each query, best first."""

    keys: Int64
    """[Q, K]; -1 after the last document."""
    scores: Float32
    """[Q, K], on the scale that the rule says; -inf after the last document."""
    migrated: Bools
    """[Q, K]: whether the document was ranked by the new model."""


def slots(old: OldList, k: int) -> Fused:
    """Return the old list with its migrated documents sorted by new score among the places that they have.

    A document that is not migrated keeps its place, and the first D documents stay the same ones. Scores stay those of
    the places: they fall from first to last, and a limit that suits the old model's scores still does. Of equal new
    scores, the better old one comes first.

    This is re-ranking of a first stage's candidates (Matveeva et al. 2006, "High accuracy retrieval with multiple
    nested ranker"), where only those candidates move that the second model has a vector of.
    """
    keys = _once(old.keys)
    there = keys != ABSENT
    migrated = old.migrated & there
    by_place = np.argsort(~migrated, axis=1, kind="stable")
    by_score = _descending(old.new_scores, migrated)
    moved = np.empty_like(by_place)
    np.put_along_axis(moved, by_place, by_score, axis=1)
    keys = np.take_along_axis(keys, moved, axis=1)
    return _cut(Fused(keys, old.scores, migrated), np.argsort(~there, axis=1, kind="stable"), k)


def zscore(old: OldList, new: NewList, backgrounds: tuple[Background, Background], k: int) -> Fused:
    """Return the documents of both lists by standard deviations above the background of their newest space.

    `backgrounds`: of the old and of the new space, over the same documents. A query that scores all of them alike in
    one of the spaces keeps the old list. With all documents migrated this is the new side's list.

    Zero mean and unit variance is from Montague and Aslam 2001, "Relevance score normalization for metasearch". Taken
    over the result lists themselves it fails here, as the new side's best of few documents looks like a best of all;
    a background common to both is test normalization (Auckenthaler et al. 2000, "Score normalization for
    text-independent speaker verification systems").
    """
    scaled = ((backgrounds[0].sd > 0) & (backgrounds[1].sd > 0))[:, None]
    old = replace(old, migrated=old.migrated & scaled)
    new = replace(new, keys=np.where(scaled, new.keys, ABSENT))
    both = _joined(old, new)
    of_old, of_new = (b.standard(s) for b, s in zip(backgrounds, both.scores, strict=True))
    return _best(both, np.where(both.migrated, of_new, of_old), k)


def rrf(old: OldList, new: NewList, k: int) -> Fused:
    """Return the documents of both lists by 1 / (60 + rank) in the list of their newest space.

    Reciprocal rank fusion (Cormack, Clarke and Buettcher 2009), with each document counted once. It loses
    against the old list for as long as some documents are not migrated.
    """
    both = _joined(old, new)
    there = both.keys != ABSENT
    of_new = _places(_descending(both.scores[1], both.migrated & there))
    of_old = np.cumsum(old.keys != ABSENT, axis=1) - 1
    rank = np.where(both.migrated, of_new, np.hstack([np.zeros_like(new.keys), of_old]))
    return _best(both, 1 / (RRF_K + 1 + rank), k)


@dataclass(frozen=True)
class _Both:
    """The documents of both lists [Q, E + D], the new side's first."""

    keys: Int64
    migrated: Bools
    scores: tuple[Float32, Float32]
    """Of the old model, where not `migrated`; of the new one, where `migrated`."""


def _joined(old: OldList, new: NewList) -> _Both:
    found = np.ones(new.keys.shape, bool)
    return _Both(
        _once(np.hstack([new.keys, old.keys])),
        np.hstack([found, old.migrated]),
        (np.hstack([new.scores, old.scores]), np.hstack([new.scores, old.new_scores])),
    )


def _best(both: _Both, scores: Float64, k: int) -> Fused:
    order = _descending(scores, both.keys != ABSENT)
    return _cut(Fused(both.keys, scores.astype(np.float32), both.migrated), order, k)


def _cut(fused: Fused, order: Int64, k: int) -> Fused:
    """Return the first k in an order [Q, N] that has all documents before what is absent."""
    order = order[:, :k]
    keys = np.take_along_axis(fused.keys, order, axis=1)
    scores = np.take_along_axis(fused.scores, order, axis=1)
    migrated = np.take_along_axis(fused.migrated, order, axis=1)
    there = keys != ABSENT
    return Fused(keys, np.where(there, scores, np.float32(-np.inf)), migrated & there)


def _once(keys: Int64) -> Int64:
    """Return keys [Q, N] with -1 where a key was there before in its row."""
    order = np.argsort(keys, axis=1, kind="stable")
    ordered = np.take_along_axis(keys, order, axis=1)
    again = np.zeros(keys.shape, bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return np.where(np.take_along_axis(again, _places(order), axis=1), ABSENT, keys)


def _descending(scores: Float32 | Float64, where: Bools) -> Int64:
    """Return the order [Q, N] by falling score, equal ones as they are, and all others after them, as they are."""
    return np.argsort(np.where(where, -scores, np.inf), axis=1, kind="stable")


def _places(order: Int64) -> Int64:
    """Return where in an order [Q, N] each column is."""
    return np.argsort(order, axis=1, kind="stable")


def _require_finite(what: str, scores: Float32, where: Bools) -> None:
    bad = where & ~np.isfinite(scores)
    if bad.any():
        raise IntegrityError(
            f"{bad.sum()} of {where.sum()} {what} are NaN or infinite",
            "they are neither more nor less than another score",
            "reembed verify",
        )

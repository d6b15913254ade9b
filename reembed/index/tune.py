"""Choose the operating point of an index from what its shards found.

Each shard is searched at a ladder of points while it is in memory. What the shards found is merged as a
search over all of them would merge it, so no process needs the whole index. That search re-ranks k_factor candidates
of all shards together; a shard re-ranks as many of its own, so those that the others displace are left out by their
score by code, see `cut`.

Shapes: Q queries, E exact results, P points, K results, B blocks of candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from reembed.errors import IntegrityError
from reembed.index.cut import Blocks
from reembed.index.exact import EXACT_K, recalls
from reembed.index.search import SearchIndex
from reembed.index.types import RECALL_K, Float32, Float64, Int64
from reembed.index.wider import best

_SMALL = 50_000
"""Rows that a full scan searches as fast as anything; see `train.choose_factory`."""
_SHARE = 4
"""At most 1/4 of the lists of a larger index are probed: more is a full scan with detours."""
_STEP = 1.125
_ENOUGH = 0.9995
_GAIN = 0.001
_LOOK = 16
"""A ladder may end above this value where doubling it gains less than _GAIN, anywhere where it reaches _ENOUGH."""


@dataclass(frozen=True)
class Measured:
    """What one shard has for the queries: exactly, and by the index at each point. Ids are positions in the shard."""

    rows: int
    knob: str
    """nprobe or ef_search; "" if the index has neither."""
    by_score: bool
    """Whether scores are inner products of the vectors as they were given."""
    exact_ids: Int64
    """[Q, E]; -1 where there are fewer."""
    exact_scores: Float32
    points: Int64
    """[P, 2]: k_factor and value of the knob, 0 where the index has none; ascending."""
    found_ids: Int64
    """[P, Q, K]."""
    found_scores: Float32
    found_codes: Float32
    """[P, Q, K]: scores by code; 0 where nothing is re-ranked together with other shards."""
    tops: Float32
    """[P, Q, B]: the best score by code of each block of candidates; -inf where there are fewer."""

    @classmethod
    def of(cls, arrays: dict[str, npt.NDArray[Any]]) -> Measured:
        """Return it as its fields were stored: all as arrays."""
        plain = {name: arrays[name].item() for name in ("rows", "knob", "by_score")}
        return cls(**{**arrays, **plain})


@dataclass(frozen=True)
class Tuned:
    """An operating point, and ann_recall@10 of each query [Q] there."""

    operating_point: dict[str, int]
    recalls: Float64


def measure(
    index: SearchIndex,
    queries: Float32,
    exact: tuple[Int64, Float32],
    rows: int,
) -> Measured:
    """Search a shard at each point of the ladder.

    Per k_factor the ladder ends where the shard finds all of its own best, or no more than it did at half the value.

    Args:
        index: the shard.
        queries: [Q, D].
        exact: positions and scores [Q, E] of the best in this shard.
        rows: of all shards.
    """
    knob, _ = index.knob or ("", 0)
    points: list[tuple[int, int]] = []
    found: list[_Found] = []
    for k_factor in index.k_factors:
        reached: dict[int, float] = {}
        for value in _values(index, rows):
            index.operate(_operating_point(knob, k_factor or 0, value))
            points.append((k_factor or 0, value))
            found.append(_found(index, queries))
            share = recalls(found[-1].results, exact, by_score=index.scores_are_exact)
            reached[value] = float(share.mean())
            if _is_flat(reached, value):
                break
    return Measured(
        index.rows,
        knob,
        index.scores_are_exact,
        *exact,
        points=np.array(points, np.int64),
        found_ids=np.stack([f.ids for f in found]),
        found_scores=np.stack([f.scores for f in found]),
        found_codes=np.stack([f.codes for f in found]),
        tops=_padded([f.blocks.tops for f in found]),
    )


def choose(shards: Iterable[Measured], target: float) -> Tuned:
    """Return the cheapest point whose mean recall over all shards reaches `target`; the best one if none does."""
    merged = _merged(shards)
    highest: Tuned | None = None
    for (k_factor, value), found in sorted(merged.found.items()):
        share = recalls(found.re_ranked(k_factor), merged.exact, by_score=merged.by_score)
        here = Tuned(_operating_point(merged.knob, k_factor, value), share)
        if share.mean() >= target:
            return here
        if highest is None or share.mean() > highest.recalls.mean():
            highest = here
    assert highest is not None  # each shard was measured somewhere
    return highest


def first_to_reach(
    search: Callable[[dict[str, int]], tuple[Int64, Float32]],
    exact: tuple[Int64, Float32],
    target: float,
    *,
    k_factors: Sequence[int],
    most: int,
) -> Tuned:
    """Return the cheapest point of a complete index whose mean recall reaches `target`; the best if none does.

    Args:
        search: returns ids and exact scores [Q, K] of the queries at a point.
        exact: ids and scores [Q, E] of the true best.
        target: ann_recall@10.
        k_factors: candidates scored again per result, ascending; 0 where nothing is.
        most: lists that may be looked into.
    """
    highest: Tuned | None = None
    for k_factor in k_factors:
        reached: dict[int, float] = {}
        for value in ladder(1, most):
            point = _operating_point("nprobe", k_factor, value)
            share = recalls(search(point), exact, by_score=True)
            here = Tuned(point, share)
            reached[value] = float(share.mean())
            if highest is None or reached[value] > highest.recalls.mean():
                highest = here
            if reached[value] >= target:
                return here
            if _is_flat(reached, value):
                break
    assert highest is not None  # a ladder has at least one value
    return highest


@dataclass(frozen=True)
class _Found:
    """What some shards found at a point; see `Measured`."""

    ids: Int64
    scores: Float32
    codes: Float32
    blocks: Blocks

    @classmethod
    def best(cls, ids: Int64, scores: Float32, codes: Float32, blocks: Blocks) -> _Found:
        """Take the best of results [Q, .]."""
        places, highest = best(
            np.broadcast_to(np.arange(ids.shape[1]), ids.shape), scores, RECALL_K
        )
        ids, codes = np.take_along_axis(ids, places, 1), np.take_along_axis(codes, places, 1)
        return cls(ids, highest, codes, blocks)

    @property
    def results(self) -> tuple[Int64, Float32]:
        return self.ids, self.scores

    def re_ranked(self, k_factor: int) -> tuple[Int64, Float32]:
        """Return ids and scores, without those that other shards may displace before they are re-ranked."""
        kept = self.codes > self.blocks.cut(RECALL_K * k_factor)
        return np.where(kept, self.ids, -1), np.where(kept, self.scores, -np.inf)

    def joined(self, other: _Found, k_factor: int) -> _Found:
        """Return what both found, best first."""
        ids, codes = np.hstack([self.ids, other.ids]), np.hstack([self.codes, other.codes])
        scores = np.hstack([self.scores, other.scores])
        blocks = self.blocks.joined(other.blocks, RECALL_K * k_factor)
        return _Found.best(ids, scores, codes, blocks)


@dataclass(frozen=True)
class _Merged:
    knob: str
    by_score: bool
    exact: tuple[Int64, Float32]
    found: dict[tuple[int, int], _Found]
    """By k_factor and value."""


def _merged(shards: Iterable[Measured]) -> _Merged:
    """Merge what shards found as a search over all of them does. A position counts through the shards.

    A shard that ended its ladder counts at higher values with what it found last.
    """
    merged: _Merged | None = None
    start = 0
    for shard in shards:
        here = _of_one(shard, start)
        start += shard.rows
        if merged is None:
            merged = here
            continue
        both = merged.found.keys() | here.found.keys()
        found = {p: _at(merged, p).joined(_at(here, p), p[0]) for p in both}
        (ids, scores), (more, their) = merged.exact, here.exact
        exact = best(np.hstack([ids, more]), np.hstack([scores, their]), EXACT_K)
        merged = _Merged(merged.knob, merged.by_score, exact, found)
    if merged is None:
        raise IntegrityError("an index without shards")
    return merged


def _of_one(shard: Measured, start: int) -> _Merged:
    def placed(ids: Int64) -> Int64:
        return np.where(ids < 0, ids, ids + start)

    found = {}
    for number, (k_factor, value) in enumerate(shard.points.tolist()):
        ids, scores = placed(shard.found_ids[number]), shard.found_scores[number]
        blocks = _blocks(shard.tops[number], RECALL_K * k_factor)
        found[k_factor, value] = _Found(ids, scores, shard.found_codes[number], blocks)
    exact = placed(shard.exact_ids), shard.exact_scores
    return _Merged(shard.knob, shard.by_score, exact, found)


def _at(merged: _Merged, point: tuple[int, int]) -> _Found:
    """Return what was found at the point, or at the next lower value of the same k_factor."""
    lower = [p for p in merged.found if p[0] == point[0] and p[1] <= point[1]]
    return merged.found[max(lower, default=min(p for p in merged.found if p[0] == point[0]))]


def _found(index: SearchIndex, queries: Float32) -> _Found:
    """Search a shard in as many lists as its operating point says."""
    if not index.rescores or index.is_graph:
        ids, scores = index.at_operating_point(queries, RECALL_K)
        none = np.empty((len(ids), 0), np.float32)
        return _Found(ids, scores, np.zeros_like(scores), _blocks(none, 0))
    n = index.num_candidates(RECALL_K)
    positions, codes = index.candidates(queries, n, index.lists_near(queries, index.lists[0]))
    scores = np.where(positions < 0, -np.inf, index.rescored(queries, positions))
    return _Found.best(positions, scores, codes, _blocks(codes[:, _ranks(n) - 1], n))


def _blocks(tops: Float32, n: int) -> Blocks:
    ranks = _ranks(n)[: tops.shape[1]]
    return Blocks.of(tops[:, : len(ranks)], ranks, n)


def _ranks(n: int) -> Int64:
    """Return the ranks of n candidates, from 1, whose scores are kept."""
    return np.array(ladder(1, n) if n else [], np.int64)


def _padded(tops: Sequence[Float32]) -> Float32:
    shape = len(tops), len(tops[0]), max(t.shape[1] for t in tops)
    padded = np.full(shape, -np.inf, np.float32)
    for row, some in zip(padded, tops, strict=True):
        row[:, : some.shape[1]] = some
    return padded


def most_lists(lists: int, rows: int) -> int:
    """Return how many lists of an index may be probed before that is a full scan."""
    return max(1, int(lists * max(1 / _SHARE, min(1.0, _SMALL / rows))))


def ladder(least: int, most: int) -> list[int]:
    """Return values from `least` to `most`: each to 16, then each an eighth more than the one before."""
    values, value = [], float(least)
    while value < most:
        values.append(int(value))
        value = max(value + 1, value * _STEP)
    return [*values, most]


def _values(index: SearchIndex, rows: int) -> list[int]:
    if index.knob is None:
        return [0]
    name, most = index.knob
    if name == "ef_search":
        return ladder(min(RECALL_K, most), most)
    return ladder(1, most_lists(most, rows))


def _is_flat(reached: dict[int, float], value: int) -> bool:
    now = reached[value]
    half = max((v for v in reached if 2 * v <= value), default=None)
    return now >= _ENOUGH or (half is not None and value >= _LOOK and now - reached[half] < _GAIN)


def _operating_point(knob: str, k_factor: int, value: int) -> dict[str, int]:
    point = {knob: value} if knob else {}
    return point | ({"k_factor": k_factor} if k_factor else {})

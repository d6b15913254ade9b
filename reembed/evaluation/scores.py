"""How both releases score their first results: those that are relevant, and the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reembed.evaluation.figures import Quartiles, ScoreDistributions, Scores, Sides
from reembed.evaluation.metrics import Ranked
from reembed.evaluation.queries import EvalSet
from reembed.evaluation.statistics import Floats

_FIRST, _BINS = 10, 30


def score_distributions(queries: EvalSet, lists: Sides[Ranked]) -> ScoreDistributions | None:
    """Return how the scores of the first ten results are distributed; None if no query has any.

    Bins are equally wide and the same for both.
    """
    split = lists.each(lambda side: _split(queries, side))
    every = np.concatenate([*split.live, *split.candidate])
    if not len(every):
        return None
    edges = np.histogram_bin_edges(every, _BINS)
    of = split.each(lambda found: _counted(*found, edges))
    return ScoreDistributions(tuple(edges.tolist()), of)


def _split(queries: EvalSet, side: Ranked) -> tuple[Floats, Floats]:
    """Return the scores of relevant results, and of the others."""
    found: tuple[list[float], list[float]] = [], []
    for qrels, ids, scores in zip(queries.qrels, side.ids, side.scores, strict=True):
        for doc_id, score in zip(ids[:_FIRST], scores[:_FIRST], strict=True):
            found[qrels.get(doc_id, 0) <= 0].append(score)
    return np.array(found[0], np.float64), np.array(found[1], np.float64)


def _counted(relevant: Floats, others: Floats, edges: Floats) -> Scores:
    counts = [tuple(np.histogram(some, edges)[0].tolist()) for some in (relevant, others)]
    return Scores(counts[0], counts[1], _quartiles(relevant), _quartiles(others))


def _quartiles(scores: Sequence[float] | Floats) -> Quartiles | None:
    if not len(scores):
        return None
    return Quartiles(*np.quantile(scores, (0.25, 0.5, 0.75)).tolist())

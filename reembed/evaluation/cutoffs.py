"""Score cut-offs: which one of the candidate corresponds to one of live.

An application that shows only results above a score needs another score with another model, whose
scores are distributed otherwise.

Q queries; N results of all of them together.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from reembed.catalog.reports import CutOff, CutOffs
from reembed.errors import UsageError
from reembed.evaluation.figures import DEPTH, Sides
from reembed.evaluation.metrics import Ranked
from reembed.evaluation.queries import EvalSet
from reembed.evaluation.statistics import Floats
from reembed.plural import counted

_RESAMPLES = 1_000
SEED = 13
_LEVEL = 0.95
_MOST_FULL = 0.05
"""Share of the lists of either that may be full above its cut-off; for recall, and lack a relevant document. With
more, what is above is not known: the cut-off that gives as much as was looked at would depend on the few lowest scores,
of which a bootstrap knows little."""
_WHY = {
    math.inf: "live shows nothing above its cut-off",
    -math.inf: "no score of the candidate gives as much",
}
_ROUNDING = 1e-9
"""Sums of shares of relevant documents differ in their last digits by the order they are added in."""


def cut_offs(cutoff: float, queries: EvalSet, lists: Sides[Ranked]) -> CutOffs:
    """Return the cut-offs of the candidate that give the recall and the share of results of live's.

    Recall is the mean over queries of the share of their relevant documents that are among the
    results above the cut-off. Both cut-offs are the highest that give at least as much as live's.
    Intervals are 95 % percentile intervals of a bootstrap over queries, or over groups of queries,
    with a fixed seed (Efron and Tibshirani 1993, chapter 13). An end is None where so many queries
    were drawn that no cut-off reaches live's value.

    Args:
        cutoff: the cut-off that is in use with live.
        lists: the results of both, DEPTH at most of each query.

    Raises:
        UsageError: the cut-off, or a score, is not a finite number.
    """
    if not np.isfinite(cutoff):
        raise UsageError(f"cutoff is {cutoff}, not a number", None, "reembed compare --cutoff 0.35")
    draws_BQ = _draws(queries)
    found = lists.each(lambda side: _pooled(queries, side, relevant=True))
    every = lists.each(lambda side: _pooled(queries, side, relevant=False))
    relevant = _Known(lists, lists.each(lambda side: _lacks_relevant(queries, side)))
    results = _Known(lists, None)
    return CutOffs(
        cutoff=float(cutoff),
        live_recall=_above(found.live, cutoff) / len(queries.texts),
        live_results=_above(every.live, cutoff) / len(queries.texts),
        same_recall=_if_known(cutoff, found, draws_BQ, relevant),
        same_share=_if_known(cutoff, every, draws_BQ, results),
        full_lists=results.full("live", cutoff),
    )


def _lacks_relevant(queries: EvalSet, side: Ranked) -> list[bool]:
    """Return of each query whether a relevant document is not among the results that were looked at."""
    return [
        any(grade > 0 and d not in found for d, grade in qrels.items())
        for qrels, found in zip(queries.qrels, map(frozenset, side.ids), strict=True)
    ]


@dataclass(frozen=True)
class _Known:
    """What of the results is known."""

    lists: Sides[Ranked]
    lacks: Sides[list[bool]] | None
    """Whether a list lacks a relevant document, where only these count."""

    def full(self, role: Literal["live", "candidate"], cutoff: float) -> int:
        """Return how many lists may go on above a cut-off with what counts, beyond what was looked at."""
        scores = getattr(self.lists, role).scores
        full = [len(found) >= DEPTH and found[DEPTH - 1] >= cutoff for found in scores]
        if self.lacks is None:
            return sum(full)
        return sum(map(operator.and_, full, getattr(self.lacks, role)))

    def why_not(self, role: Literal["live", "candidate"], cutoff: float) -> str:
        """Return why it is not known what is above a cut-off; empty if it is."""
        full, lists = self.full(role, cutoff), len(self.lists.live.scores)
        if full <= _MOST_FULL * lists:
            return ""
        who = {"live": "live", "candidate": "the candidate"}[role]
        only = f"of which only {DEPTH} are known"
        if self.lacks is not None:
            only += ", and relevant documents that are not among these"
        many = f"{DEPTH} results or more above {cutoff:.4g}"
        return f"{who} has {many} in {full:,} of {counted(lists, 'query')}, {only}"


def _if_known(
    cutoff: float, pools: Sides[_Pool], draws_BQ: npt.NDArray[np.int64], known: _Known
) -> CutOff:
    """Return the candidate's cut-off that gives as much; not known where the results of either end above its own."""
    if why := known.why_not("live", cutoff):
        return CutOff(None, None, None, why)
    found = _matching(cutoff, pools, draws_BQ)
    if found.score is None:
        return found
    if why := known.why_not("candidate", found.score):
        return CutOff(None, None, None, why)
    if found.low is not None and known.why_not("candidate", found.low):
        return replace(found, low=None)
    return found


@dataclass(frozen=True)
class _Pool:
    """Scores of results, best first."""

    scores_N: Floats
    weights_N: Floats
    """What each adds to the sum over queries."""
    query_N: npt.NDArray[np.int64]


def _pooled(queries: EvalSet, side: Ranked, *, relevant: bool) -> _Pool:
    scores, weights, query = [], [], []
    for number, (found, given) in enumerate(zip(side.ids, side.scores, strict=True)):
        good = {d for d, grade in queries.qrels[number].items() if grade > 0}
        for doc_id, score in zip(found, given, strict=True):
            if not relevant or doc_id in good:
                scores.append(score)
                weights.append(1 / len(good) if relevant else 1.0)
                query.append(number)
    scores_N = np.array(scores, np.float64)
    if not np.isfinite(scores_N).all():
        raise UsageError(
            "a score of a result is not a finite number",
            f"{int((~np.isfinite(scores_N)).sum())} of {len(scores_N)} scores",
            "reembed verify",
        )
    order = np.argsort(-scores_N, kind="stable")
    return _Pool(scores_N[order], np.array(weights)[order], np.array(query, np.int64)[order])


def _above(pool: _Pool, cutoff: float) -> float:
    return float(pool.weights_N[pool.scores_N >= cutoff].sum())


def _draws(queries: EvalSet) -> npt.NDArray[np.int64]:
    """Return how often each query was drawn in each resample [B, Q]; groups are drawn whole."""
    named = queries.groups or tuple(map(str, range(len(queries.texts))))
    _, group_Q = np.unique(np.array(named), return_inverse=True)
    groups = int(group_Q.max()) + 1
    rng = np.random.default_rng(SEED)
    drawn_BG = rng.multinomial(groups, np.full(groups, 1 / groups), size=_RESAMPLES)
    return drawn_BG[:, group_Q]


def _matching(cutoff: float, pools: Sides[_Pool], draws_BQ: npt.NDArray[np.int64]) -> CutOff:
    """Return the candidate's cut-off that gives as much as live's."""
    found = _reached(cutoff, pools, np.ones(draws_BQ.shape[1], np.int64))
    drawn_B = np.array([_reached(cutoff, pools, draws_Q) for draws_Q in draws_BQ])
    low, high = np.quantile(drawn_B, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], method="inverted_cdf")
    score, low, high = (float(x) if np.isfinite(x) else None for x in (found, low, high))
    return CutOff(score, low, high, _WHY.get(found, ""))


def _reached(cutoff: float, pools: Sides[_Pool], draws_Q: npt.NDArray[np.int64]) -> float:
    """Return the highest score of the candidate at which its sum reaches live's.

    Infinity if live has nothing above its cut-off, so that any will do; minus infinity if none does.
    """
    live, candidate = pools.live, pools.candidate
    given_N = live.weights_N * draws_Q[live.query_N]
    target = given_N[live.scores_N >= cutoff].sum()
    if target == 0:
        return math.inf
    sums_N = np.cumsum(candidate.weights_N * draws_Q[candidate.query_N])
    place = int(np.searchsorted(sums_N, target - _ROUNDING))
    return float(candidate.scores_N[place]) if place < len(sums_N) else -math.inf

"""How good result lists are, per query.

Arrays: Q queries, K ranks, best first. A metric takes judged queries and a list of document ids for each,
best first, of any length. Relevance metrics follow trec_eval; a grade of 0 or less is not relevant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reembed.errors import IntegrityError, UsageError
from reembed.evaluation.figures import DEPTH, Latency
from reembed.evaluation.queries import EvalSet
from reembed.evaluation.statistics import Floats

Results = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Ranked:
    """Result lists of Q queries, best first."""

    ids: list[list[str]]
    scores: list[list[float]]

    @classmethod
    def of(cls, lists: Iterable[Sequence[tuple[str, float]]]) -> Ranked:
        """Return lists of ids and scores as lists of ids and lists of scores."""
        kept = list(lists)
        ids = [[doc_id for doc_id, _ in found] for found in kept]
        return cls(ids, [[score for _, score in found] for found in kept])

    def take(self, rows: Sequence[int]) -> Ranked:
        """Return the lists at some rows."""
        return Ranked([self.ids[row] for row in rows], [self.scores[row] for row in rows])


@dataclass(frozen=True)
class Metric:
    """A metric of result lists, at a depth."""

    at: Callable[[EvalSet, Results, int], Floats]
    k: int

    def of(self, queries: EvalSet, results: Results) -> Floats:
        """Return the metric of each query [Q]."""
        return self.at(queries, results, self.k)


def named(key: str) -> Metric:
    """Return the metric that a key such as ndcg@10 names.

    Raises:
        UsageError: it names none.
    """
    kind, _, depth = key.partition("@")
    if kind in _KINDS and depth.isdecimal() and 1 <= int(depth) <= DEPTH:
        return Metric(_KINDS[kind], int(depth))
    known = ", ".join(f"{kind}@K" for kind in _KINDS)
    raise UsageError(
        f"{key!r:.80} is not a metric",
        f"known: {known}, with K from 1 to {DEPTH}",
        "name one such as ndcg@10",
    )


def ranking(
    doc_ids: Sequence[str], scores: Sequence[float], query_id: str, k: int
) -> list[tuple[str, float]]:
    """Return the k best documents of a query and their scores, as BEIR and trec_eval rank them.

    A document whose id is the query's is left out, as in BEIR (in ArguAna each query is a document);
    of equal scores the document with the larger id comes first, as in trec_eval.

    Raises:
        IntegrityError: a document is there twice, or a score is NaN.
    """
    if len(set(doc_ids)) != len(doc_ids):
        twice = next(d for d in doc_ids if list(doc_ids).count(d) > 1)
        raise IntegrityError(
            f"query {query_id!r} found document {twice!r} twice",
            "a document has one vector, so it can be one result",
            "reembed verify",
        )
    found = [(s, d) for d, s in zip(doc_ids, scores, strict=True) if d != query_id]
    if any(math.isnan(score) for score, _ in found):
        what = f"query {query_id!r} found a document with the score NaN"
        raise IntegrityError(
            what, "NaN is neither more nor less than another score", "reembed verify"
        )
    return [(doc_id, score) for score, doc_id in sorted(found, reverse=True)[:k]]


def ndcg_at(queries: EvalSet, results: Results, k: int) -> Floats:
    """Return nDCG@k [Q], as trec_eval's ndcg_cut: the gain is the grade, the discount log2(rank + 1)."""
    discount_K = 1 / np.log2(np.arange(k) + 2)
    ideal_QK = _rows([sorted(_positive(q), reverse=True) for q in queries.qrels], k)
    return _share(_gains(queries, results, k) @ discount_K, ideal_QK @ discount_K)


def recall_at(queries: EvalSet, results: Results, k: int) -> Floats:
    """Return the share of the relevant documents that are among the first k [Q], as trec_eval's recall."""
    relevant_Q = np.array([len(_positive(q)) for q in queries.qrels])
    return _share((_gains(queries, results, k) > 0).sum(axis=1), relevant_Q)


def mrr_at(queries: EvalSet, results: Results, k: int) -> Floats:
    """Return 1 / rank of the first relevant document among the first k, else 0 [Q]."""
    best_Q: Floats = ((_gains(queries, results, k) > 0) / (np.arange(k) + 1)).max(axis=1)
    return best_Q


def judged_at(queries: EvalSet, results: Results, k: int) -> Floats:
    """Return the share of the first k results that were judged [Q]; 0 without results.

    A system whose results were never pooled loses nDCG by being new, not by being worse; a low
    share shows that.
    """
    pairs = list(zip(queries.qrels, results, strict=True))
    judged_Q = np.array([sum(d in qrels for d in found[:k]) for qrels, found in pairs])
    return _share(judged_Q, np.array([len(found[:k]) for _, found in pairs]))


def overlap_at(a: Results, b: Results, k: int) -> Floats:
    """Return the share of ids common to both top k [Q], of the longer list; 1 for two empty lists."""
    tops = [(x[:k], y[:k]) for x, y in zip(a, b, strict=True)]
    longer_Q = np.array([max(len(x), len(y)) for x, y in tops])
    overlap_Q = _share(np.array([len({*x} & {*y}) for x, y in tops]), longer_Q)
    overlap_Q[longer_Q == 0] = 1
    return overlap_Q


def rbo_at(a: Results, b: Results, k: int, p: float = 0.9) -> Floats:
    """Return the extrapolated rank-biased overlap of the first k [Q]: 1 for equal lists, 0 for disjoint ones.

    RBO_EXT of Webber, Moffat and Zobel (2010), "A similarity measure for indefinite rankings", equation
    32. Each rank weighs p times as much as the one before it. Two empty lists are equal; an empty
    one and another are disjoint.
    """
    return np.array([_rbo(x[:k], y[:k], p) for x, y in zip(a, b, strict=True)], np.float64)


def _rbo(a: Sequence[str], b: Sequence[str], p: float) -> float:
    short, long = sorted((a, b), key=len)
    s, most = len(short), len(long)
    if not s:
        return float(not most)
    place = {doc_id: rank for rank, doc_id in enumerate(long)}
    both = [max(rank, place[d]) for rank, d in enumerate(short) if d in place]
    common_D = np.cumsum(np.bincount(both, minlength=most))
    depth_D = np.arange(1, most + 1)
    agreement_D = common_D / depth_D
    agreement_D[s:] += common_D[s - 1] * (depth_D[s:] - s) / (s * depth_D[s:])
    seen = float((agreement_D * p**depth_D).sum()) * (1 - p) / p
    unseen = (common_D[-1] - common_D[s - 1]) / most + common_D[s - 1] / s
    return seen + float(unseen) * p**most


def _gains(queries: EvalSet, results: Results, k: int) -> Floats:
    """Return the grades of the first k results [Q, K], 0 if one is not relevant."""
    pairs = zip(queries.qrels, results, strict=True)
    return _rows([[max(qrels.get(d, 0), 0) for d in found[:k]] for qrels, found in pairs], k)


def _positive(qrels: dict[str, int]) -> list[int]:
    return [grade for grade in qrels.values() if grade > 0]


def _rows(values: list[list[int]], k: int) -> Floats:
    """Return the first k values of each row [Q, K], and zeros where a row is shorter."""
    rows_QK: Floats = np.zeros((len(values), k))
    for row, found in enumerate(values):
        rows_QK[row, : len(found)] = found[:k]
    return rows_QK


def _share(part_Q: NDArray[Any], whole_Q: NDArray[Any]) -> Floats:
    share_Q: Floats = np.zeros(len(whole_Q), dtype=np.float64)
    np.divide(part_Q, whole_Q, out=share_Q, where=whole_Q > 0)
    return share_Q


_KINDS: dict[str, Callable[[EvalSet, Results, int], Floats]] = {
    "ndcg": ndcg_at,
    "recall": recall_at,
    "mrr": mrr_at,
    "judged": judged_at,
}


def latency(latencies_s: Floats) -> Latency:
    """Return the percentiles of latencies in seconds."""
    percentiles = np.percentile(latencies_s, (50, 95, 99), method="inverted_cdf") * 1e3
    p50, p95, p99 = percentiles.tolist()
    return Latency(p50, p95, p99, len(latencies_s))

"""How good result lists are, per query.

Arrays: Q queries, K ranks, best first. A metric takes judged queries and a list of document ids for each,
best first, of any length. Relevance metrics follow trec_eval; a grade of 0 or less is not relevant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reembed.errors import IntegrityError
from reembed.evaluation.comparisons import Latency
from reembed.evaluation.queries import EvalSet
from reembed.evaluation.statistics import Floats

Results = Sequence[Sequence[str]]


def ranking(doc_ids: Sequence[str], scores: Sequence[float], query_id: str, k: int) -> list[str]:
    """Return the k best documents of a query, as BEIR and trec_eval rank them.

    A document whose id is the query's is left out, as in BEIR (in ArguAna each query is a document);
    of equal scores the document with the larger id comes first, as in trec_eval.

    Raises:
        IntegrityError: a document is there twice.
    """
    if len(set(doc_ids)) != len(doc_ids):
        twice = next(d for d in doc_ids if list(doc_ids).count(d) > 1)
        raise IntegrityError(
            f"query {query_id!r} found document {twice!r} twice",
            "a document has one vector, so it can be one result",
            "reembed verify",
        )
    found = [(s, d) for d, s in zip(doc_ids, scores, strict=True) if d != query_id]
    return [doc_id for _, doc_id in sorted(found, reverse=True)[:k]]


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


def latency(latencies_s: Floats) -> Latency:
    """Return the percentiles of latencies in seconds."""
    values = np.percentile(latencies_s, (50, 95, 99), method="inverted_cdf") * 1e3
    return Latency(*map(float, values))

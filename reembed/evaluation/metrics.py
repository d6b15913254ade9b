"""How good result lists are, per query, and what the mean of paired differences may be.

Arrays: Q queries, K ranks (best first), J judged pairs. A result is a document number, int64, and
-1 where a list has ended. Relevance metrics follow trec_eval; a grade of 0 or less is not relevant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reembed.errors import IntegrityError
from reembed.evaluation.comparisons import Estimate, Latency
from reembed.evaluation.queries import EvalSet

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_Z_CONFIDENCE = 1.645
_Z_POWER = 0.842


@dataclass(frozen=True)
class Judgements:
    """Graded (query, document) pairs as integers, sorted by query and document."""

    num_queries: int
    num_documents: int
    query_J: Ints
    document_J: Ints
    grade_J: Ints

    def grades_of(self, results_QK: Ints) -> tuple[Ints, Bools]:
        """Return the grade of each result, 0 if it has none, and whether it was judged; both [Q, K]."""
        num_queries = results_QK.shape[0]
        if num_queries != self.num_queries or results_QK.max(initial=-1) >= self.num_documents:
            raise ValueError("the results were not numbered together with these judgements")
        # A last key above all others keeps searchsorted's answer a valid position.
        key_J = np.append(
            self.query_J * self.num_documents + self.document_J, np.iinfo(np.int64).max
        )
        key_QK = np.arange(num_queries)[:, None] * self.num_documents + results_QK
        place_QK = np.searchsorted(key_J, key_QK)
        judged_QK = (key_J[place_QK] == key_QK) & (results_QK >= 0)
        return np.where(judged_QK, np.append(self.grade_J, 0)[place_QK], 0), judged_QK


def number_documents(
    eval_set: EvalSet, *result_lists: Sequence[Sequence[str]]
) -> tuple[Judgements, tuple[Ints, ...]]:
    """Number the documents of judgements and result lists together.

    Args:
        eval_set: the judged queries.
        result_lists: for each system, per query of the set, document ids, best first; lists may be
            of any length.

    Returns:
        The judgements and, per system, results_QK, as wide as its longest list.

    Raises:
        IntegrityError: a list names a document twice.
    """
    number_of: dict[str, int] = {}
    triples = sorted(
        (query, number_of.setdefault(doc_id, len(number_of)), grade)
        for query, qrels in enumerate(eval_set.qrels)
        for doc_id, grade in qrels.items()
    )
    results = tuple(_numbered(lists, eval_set, number_of) for lists in result_lists)
    query_J, document_J, grade_J = np.array(triples, dtype=np.int64).reshape(-1, 3).T
    num_queries = len(eval_set.query_ids)
    return Judgements(num_queries, len(number_of), query_J, document_J, grade_J), results


def _numbered(lists: Sequence[Sequence[str]], eval_set: EvalSet, number_of: dict[str, int]) -> Ints:
    if len(lists) != len(eval_set.query_ids):
        raise ValueError(f"{len(lists)} result lists for {len(eval_set.query_ids)} queries")
    results_QK = np.full((len(lists), max(map(len, lists), default=0)), -1, dtype=np.int64)
    for row, doc_ids in enumerate(lists):
        if len(set(doc_ids)) != len(doc_ids):
            twice = next(doc_id for doc_id in doc_ids if list(doc_ids).count(doc_id) > 1)
            query_id = eval_set.query_ids[row]
            raise IntegrityError(
                f"query {query_id!r} found document {twice!r} twice",
                "a document has one vector, so it can be one result",
                "reembed verify",
            )
        numbers = [number_of.setdefault(doc_id, len(number_of)) for doc_id in doc_ids]
        results_QK[row, : len(numbers)] = numbers
    return results_QK


def ranking(doc_ids: Sequence[str], scores: Sequence[float], query_id: str, k: int) -> list[str]:
    """Return the k best documents of a query, as BEIR and trec_eval rank them.

    A document whose id is the query's is left out, as in BEIR (in ArguAna each query is a document);
    of equal scores the document with the larger id comes first, as in trec_eval.
    """
    found = [(s, d) for d, s in zip(doc_ids, scores, strict=True) if d != query_id]
    return [doc_id for _, doc_id in sorted(found, reverse=True)[:k]]


# --- against judgements: quality of the model ---


def ndcg_at(results_QK: Ints, judgements: Judgements, k: int) -> Floats:
    """Return nDCG@k [Q], as trec_eval's ndcg_cut: the gain is the grade, the discount log2(rank + 1)."""
    grades_QK, _ = judgements.grades_of(results_QK[:, :k])
    discount_K = 1 / np.log2(np.arange(grades_QK.shape[1]) + 2)
    dcg_Q = np.maximum(grades_QK, 0) @ discount_K
    return _share(dcg_Q, _ideal_dcg(judgements, k))


def _ideal_dcg(judgements: Judgements, k: int) -> Floats:
    gain_J = np.maximum(judgements.grade_J, 0)
    order_J = np.lexsort((-gain_J, judgements.query_J))
    query_J, gain_J = judgements.query_J[order_J], gain_J[order_J]
    rank_J = np.arange(len(query_J)) - np.searchsorted(query_J, query_J)
    dcg_J = np.where(rank_J < k, gain_J / np.log2(rank_J + 2), 0)
    dcg_Q = np.bincount(query_J, weights=dcg_J, minlength=judgements.num_queries)
    return dcg_Q.astype(np.float64)


def recall_at(results_QK: Ints, judgements: Judgements, k: int) -> Floats:
    """Return the share of the relevant documents that are among the first k [Q], as trec_eval's recall."""
    grades_QK, _ = judgements.grades_of(results_QK[:, :k])
    relevant_J = judgements.grade_J > 0
    num_relevant_Q = np.bincount(
        judgements.query_J, weights=relevant_J, minlength=judgements.num_queries
    )
    return _share((grades_QK > 0).sum(axis=1), num_relevant_Q)


def mrr_at(results_QK: Ints, judgements: Judgements, k: int) -> Floats:
    """Return 1 / rank of the first relevant document among the first k, else 0 [Q]."""
    grades_QK, _ = judgements.grades_of(results_QK[:, :k])
    reciprocal_K = 1 / (np.arange(grades_QK.shape[1]) + 1)
    best_Q: Floats = np.where(grades_QK > 0, reciprocal_K, 0.0).max(axis=1, initial=0.0)
    return best_Q


def judged_at(results_QK: Ints, judgements: Judgements, k: int) -> Floats:
    """Return the share of the first k results that were judged [Q]; 0 without results.

    A system whose results were never pooled loses nDCG by being new, not by being worse; a low
    share shows that.
    """
    _, judged_QK = judgements.grades_of(results_QK[:, :k])
    return _share(judged_QK.sum(axis=1), (results_QK[:, :k] >= 0).sum(axis=1))


def _share(part_Q: NDArray[Any], whole_Q: NDArray[Any]) -> Floats:
    share_Q: Floats = np.zeros(len(whole_Q), dtype=np.float64)
    np.divide(part_Q, whole_Q, out=share_Q, where=whole_Q > 0)
    return share_Q


# --- against other results: difference of two lists ---


def overlap_at(a_QK: Ints, b_QK: Ints, k: int) -> Floats:
    """Return the share of ids common to both top k [Q], of the longer list; 1 for two empty lists."""
    a_QK, b_QK = a_QK[:, :k], b_QK[:, :k]
    num_longer_Q = np.maximum((a_QK >= 0).sum(axis=1), (b_QK >= 0).sum(axis=1))
    overlap_Q = _share(_is_in(a_QK, b_QK).sum(axis=1), num_longer_Q)
    overlap_Q[num_longer_Q == 0] = 1
    return overlap_Q


def _is_in(a_QK: Ints, b_QK: Ints) -> Bools:
    """Return whether each result of a is among the same query's results of b; -1 never is."""
    num_queries, num_ids = len(a_QK), 1 + max(a_QK.max(initial=-1), b_QK.max(initial=-1))
    offset_Q1 = np.arange(num_queries)[:, None] * num_ids
    common_QK: Bools = np.isin(a_QK + offset_Q1, (b_QK + offset_Q1)[b_QK >= 0]) & (a_QK >= 0)
    return common_QK


# --- over queries ---


def paired_interval(values_Q: Floats, level: float = 0.95) -> Estimate:
    """Return the Student t interval of the mean of per-query differences (or of any per-query values).

    Paired, because queries differ far more from each other than two systems do on one query.
    Values without variance give an interval of no width.

    Args:
        values_Q: float64, one per query; at least one, all finite.
        level: of the two-sided interval and of each one-sided bound.
    """
    from scipy.special import stdtrit

    n = len(values_Q)
    if n == 0 or not np.isfinite(values_Q).all():
        raise ValueError("an interval needs at least one value, all of them finite")
    mean = float(np.mean(values_Q))
    if n == 1:
        return Estimate(mean, None, None, None, None, None, n)
    sd = float(np.std(values_Q, ddof=1))
    error = sd / math.sqrt(n)
    two_sided = float(stdtrit(n - 1, (1 + level) / 2)) * error
    one_sided = float(stdtrit(n - 1, level)) * error
    return Estimate(
        mean, mean - two_sided, mean + two_sided, mean - one_sided, mean + one_sided, sd, n
    )


def queries_needed(sd: float, margin: float) -> int:
    """Return how many queries show, 80 % of the time at 95 %, that an equal system is within the margin."""
    return max(1, math.ceil(((_Z_CONFIDENCE + _Z_POWER) * sd / margin) ** 2))


def latency(latencies_s: Floats) -> Latency:
    """Return the percentiles of latencies in seconds."""
    values = np.percentile(latencies_s, (50, 95, 99), method="inverted_cdf") * 1e3
    return Latency(*map(float, values))

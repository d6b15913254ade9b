"""Queries that seem to belong together although no field says so.

A comparison that counts eleven phrasings of a question as eleven queries is too sure of itself. This is only a
note: the bounds use `gate.group`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from reembed.evaluation.figures import LikelyGroups
from reembed.evaluation.queries import EvalSet

MIN_SHARE = 0.5
"""Share of the queries that must have another one like them. Of five public collections .00 to .30 have."""
_MIN_GROUPS = 10
_ALIKE = 0.5
_MOST = 2_000
_ENDING = re.compile(r"(?:[._:#/-]\w+|(?<=\d)[a-z])$")
_WORD = re.compile(r"\w+")


def likely_groups(queries: EvalSet) -> LikelyGroups | None:
    """Return how the queries seem to be grouped: by the beginning of their ids, by words, or by what is relevant.

    Texts are compared among the first 2,000 queries.
    """
    relevant = [frozenset(d for d, grade in q.items() if grade > 0) for q in queries.qrels]
    sets = queries.set_names or [""] * len(queries.query_ids)
    beginnings = [
        (of, _ENDING.sub("", query_id))  # ids of another set may be the same by chance
        for of, query_id in zip(sets, queries.query_ids, strict=True)
    ]
    return (
        _shared("ids with the same beginning", beginnings, queries)
        or _alike(queries)
        or _shared("the same relevant documents", relevant, queries)
    )


def _shared(how: str, keys: Sequence[Hashable], queries: EvalSet) -> LikelyGroups | None:
    """Return the groups of equal keys, if most queries are in one and they are many."""
    sizes = Counter(keys)
    groups = [key for key, size in sizes.items() if size > 1]
    inside = sum(sizes[key] for key in groups)
    if len(groups) < _MIN_GROUPS or inside < MIN_SHARE * len(keys):
        return None
    first = keys.index(groups[0])
    return LikelyGroups(how, inside, queries.query_ids[first], _next(keys, first, queries))


def _next(keys: Sequence[Hashable], first: int, queries: EvalSet) -> str:
    return queries.query_ids[keys.index(keys[first], first + 1)]


def _alike(queries: EvalSet) -> LikelyGroups | None:
    """Return the queries whose words are half those of another, if most are so."""
    from scipy.sparse import csr_matrix

    words = [frozenset(_WORD.findall(text.lower())) for text in queries.texts[:_MOST]]
    count_Q = np.array([len(w) for w in words])
    column = {word: at for at, word in enumerate({w for ws in words for w in ws})}
    at = [column[word] for ws in words for word in ws]
    ends = np.concatenate([[0], np.cumsum(count_Q)])
    has_QW = csr_matrix((np.ones(len(at)), at, ends), shape=(len(words), len(column)))
    best_Q, like_Q = np.zeros(len(words)), np.zeros(len(words), dtype=int)
    for query in range(len(words)):
        common_Q = (has_QW @ has_QW[query].T).toarray()[:, 0]
        either_Q = count_Q + count_Q[query] - common_Q
        share_Q = np.divide(common_Q, either_Q, out=np.zeros(len(words)), where=either_Q > 0)
        share_Q[query] = 0
        like_Q[query] = share_Q.argmax()
        best_Q[query] = share_Q[like_Q[query]]
    inside = best_Q >= _ALIKE
    if inside.sum() < max(2 * _MIN_GROUPS, MIN_SHARE * len(words)):
        return None
    first = int(inside.argmax())
    ids = queries.query_ids[first], queries.query_ids[like_Q[first]]
    return LikelyGroups("nearly the same words", int(inside.sum()), *ids)

"""Judged queries and result lists made by hand or at random."""

from __future__ import annotations

import numpy as np

from reembed.evaluation.figures import QuerySet
from reembed.evaluation.queries import EvalSet


def eval_set(qrels: list[dict[str, int]]) -> EvalSet:
    ids = [f"q{number}" for number in range(len(qrels))]
    sets = (QuerySet("test", "test", len(qrels), 0),)
    return EvalSet(ids, [f"text of {i}" for i in ids], qrels, "test", "0" * 64, 0, sets)


def random_case(
    seed: int, num_queries: int = 40, num_docs: int = 150
) -> tuple[EvalSet, list[list[str]]]:
    """Grades -1..3, unjudged documents, and lists of 0 to 120 results."""
    rng = np.random.default_rng(seed)
    docs = [f"d{number}" for number in range(num_docs)]
    qrels, results = [], []
    for _ in range(num_queries):
        judged = rng.choice(docs, size=int(rng.integers(1, 60)), replace=False)
        grades = {str(doc): int(rng.integers(-1, 4)) for doc in judged}
        grades[str(judged[0])] = 1
        qrels.append(grades)
        found = rng.choice(docs, size=int(rng.integers(0, 121)), replace=False)
        results.append([str(doc) for doc in found])
    return eval_set(qrels), results

"""Metrics of two releases on the same queries, and how they differ.

Arrays: Q queries.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from reembed.evaluation import metrics
from reembed.evaluation.figures import DEPTH, MetricChange, Sides
from reembed.evaluation.metrics import Ranked, Results
from reembed.evaluation.per_query import Pairs
from reembed.evaluation.queries import EvalSet
from reembed.evaluation.statistics import Floats, Groups, paired_interval

METRICS = ("ndcg@10", "recall@1", "recall@10", f"recall@{DEPTH}", "mrr@10")
"""Metrics that every comparison has."""


def pairs_of(queries: EvalSet, live: Ranked, candidate: Ranked, also: Iterable[str] = ()) -> Pairs:
    """Return the metrics of both, by their keys: those that every comparison has, and others by name."""
    keys = dict.fromkeys([*METRICS, *also])
    asked = {key: metrics.named(key) for key in keys}
    return {
        key: (metric.of(queries, live.ids), metric.of(queries, candidate.ids))
        for key, metric in asked.items()
    }


def change_of(
    live_Q: Floats, candidate_Q: Floats, groups_Q: Groups | None, margin: float | None = None
) -> MetricChange:
    """Return the change of a metric; `margin` is the loss that the gate allows."""
    deltas_Q = candidate_Q - live_Q
    return MetricChange(
        live=float(live_Q.mean()),
        candidate=float(candidate_Q.mean()),
        change=paired_interval(deltas_Q, groups_Q),
        worse=int((deltas_Q < 0).sum()),
        same=int((deltas_Q == 0).sum()),
        better=int((deltas_Q > 0).sum()),
        margin=margin,
    )


def judged_of(queries: EvalSet, live: Ranked, candidate: Ranked) -> tuple[Floats, Floats]:
    """Return judged@10 of both."""
    live_Q, candidate_Q = (metrics.judged_at(queries, s.ids, 10) for s in (live, candidate))
    return live_Q, candidate_Q


def found_by_neither(queries: EvalSet, live: Ranked, candidate: Ranked) -> int:
    """Return how many documents that judgements or clicks name neither side finds, of each query."""
    lists = zip(queries.qrels, live.ids, candidate.ids, strict=True)
    return sum(len(named.keys() - {*a, *b}) for named, a, b in lists)


def likeness(live: Ranked, candidate: Ranked) -> dict[str, Floats]:
    """Return overlap@10 and rank-biased overlap of the lists."""
    return {
        "overlap@10": metrics.overlap_at(live.ids, candidate.ids, 10),
        "rbo": metrics.rbo_at(live.ids, candidate.ids, DEPTH),
    }


def means(pair: tuple[Floats, Floats]) -> Sides[float]:
    """Return the means of both."""
    live_Q, candidate_Q = pair
    return Sides(float(live_Q.mean()), float(candidate_Q.mean()))


def zero_results(live: Results, candidate: Results) -> Sides[float]:
    """Return the share of lists that are empty."""
    return means((is_empty(live), is_empty(candidate)))


def is_empty(lists: Results) -> Floats:
    """Return 1 for each list that is empty, else 0 [Q]."""
    return np.array([not found for found in lists], dtype=np.float64)

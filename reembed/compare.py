"""The same queries on two releases -> what changed, and whether the candidate may be promoted.

Shadow: both are opened beside whatever serves; nothing that is live is touched.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from reembed import evalset, gate, index_search, metrics
from reembed.catalog import Release, now
from reembed.config import GateConfig
from reembed.errors import UsageError
from reembed.live import OpenRelease
from reembed.storage import SCHEMA_VERSION, Storage

DEPTH = 100
ANN_K = 10
_TIMED_QUERIES = 200
_WARM_UP = 5

Recalls = npt.NDArray[np.float64]


def compare(
    storage: Storage, live: Release, candidate: Release, late: GateConfig | None = None
) -> dict[str, Any]:
    """Run the candidate's evaluation set on both releases; the record that `promote` asks for.

    The gate and its queries are those fixed in the candidate's plan, before results existed; only
    where the plan names no queries, `late` does, and the record says so.

    Raises:
        UsageError: neither names queries.
    """
    rules = GateConfig(**candidate.gate)
    is_late = rules.queries is None and late is not None and late.queries is not None
    rules = late if late is not None and is_late else rules
    if rules.queries is None:
        raise UsageError(
            f"release {candidate.id} was planned without judged queries: nothing shows that it is better",
            "no relevance evidence, only structural checks",
            "reembed compare --set gate.queries=BEIR_FOLDER",
        )
    queries = evalset.load_eval_set(rules.queries, rules.split, dict(storage.options))
    old, new = OpenRelease.open(storage, live), OpenRelease.open(storage, candidate)
    vectors_old, vectors_new = old.encode_queries(queries.texts), new.encode_queries(queries.texts)
    found_old, found_new = _results(old, vectors_old), _results(new, vectors_new)
    judgements, (old_QK, new_QK) = metrics.number_documents(queries, found_old, found_new)
    measured = {
        name: (metric(old_QK, judgements, k), metric(new_QK, judgements, k))
        for name, (metric, k) in _METRICS.items()
    }
    present = _judged_present(queries, new)
    recall_old, recall_new = _ann_recall(old, vectors_old), _ann_recall(new, vectors_new)
    verdict = gate.judge(
        rules,
        verified=bool(candidate.verify.get("passed")),
        ann_recall_Q=recall_new,
        relevance=gate.Relevance(*measured["ndcg@10"], *measured["recall@10"]),
        judged_present=present,
    )
    return {
        "schema_version": SCHEMA_VERSION,
        "alias": candidate.alias,
        "live": live.summary(),
        "candidate": candidate.summary(),
        "candidate_index_sha256": candidate.index_sha256,
        "queries": {
            "source": queries.source,
            "sha256": queries.sha256,
            "count": len(queries.query_ids),
            "dropped": queries.dropped,
            "judged_present": present,
        },
        "gate": rules.model_dump(),
        "gate_is_late": is_late,
        "metrics": {name: _change(*pair) for name, pair in measured.items()},
        "ann_recall@10": {"live": float(recall_old.mean()), "candidate": float(recall_new.mean())},
        "overlap@10": float(metrics.overlap_at(old_QK, new_QK, 10).mean()),
        "judged@10": {
            "live": float(metrics.judged_at(old_QK, judgements, 10).mean()),
            "candidate": float(metrics.judged_at(new_QK, judgements, 10).mean()),
        },
        "latency": _latencies(old, new, vectors_old, vectors_new),
        **verdict.to_json(),
        "at": now(),
    }


_METRICS: dict[str, tuple[Callable[..., Recalls], int]] = {
    "ndcg@10": (metrics.ndcg_at, 10),
    "recall@10": (metrics.recall_at, 10),
    "recall@100": (metrics.recall_at, DEPTH),
    "mrr@10": (metrics.mrr_at, 10),
}


def _results(opened: OpenRelease, vectors: npt.NDArray[np.float32]) -> list[list[str]]:
    row_ids, _ = opened.index.search(vectors, DEPTH)
    return [[str(d) for d in row] for row in opened.doc_ids(row_ids)]


def _judged_present(queries: evalset.EvalSet, opened: OpenRelease) -> float:
    """Share of the relevant documents that the release holds.

    Raises:
        UsageError: none; the ids of the judgements are not those of the documents.
    """
    relevant = {d for qrels in queries.qrels for d, grade in qrels.items() if grade > 0}
    held: set[str] = set()
    example = None
    for batch in opened.table.scan(["doc_id"]):
        ids = [str(d) for d in batch.column("doc_id").to_pylist()]
        example = example or next(iter(ids), None)
        held |= relevant.intersection(ids)
    if not held:
        raise UsageError(
            f"no judged document of {queries.source} is in release {opened.release.id}",
            f"judgements name documents like {min(relevant)!r}, the table has ids like {example!r}",
            "reembed config     # source.id_column and gate.queries must speak of the same ids",
        )
    return len(held) / len(relevant)


def _ann_recall(opened: OpenRelease, vectors: npt.NDArray[np.float32]) -> Recalls:
    ids, scores = index_search.exact_search(opened.table, vectors, 4 * ANN_K)
    return index_search.ann_recall(opened.index, vectors, ids, scores, ANN_K)


def _change(live: Recalls, candidate: Recalls) -> dict[str, Any]:
    deltas = candidate - live
    interval = metrics.paired_interval(deltas)
    finite = {k: v if np.isfinite(v) else None for k, v in asdict(interval).items()}
    return {
        "live": float(live.mean()),
        "candidate": float(candidate.mean()),
        "change": finite,
        "worse": int((deltas < 0).sum()),
        "same": int((deltas == 0).sum()),
        "better": int((deltas > 0).sum()),
    }


def _latencies(
    old: OpenRelease,
    new: OpenRelease,
    vectors_old: npt.NDArray[np.float32],
    vectors_new: npt.NDArray[np.float32],
) -> dict[str, Any]:
    """One query at a time through each index and its row lookup, taking turns; encoding is apart."""
    timed: dict[str, list[float]] = {"live": [], "candidate": []}
    for number in range(min(_TIMED_QUERIES, len(vectors_old))):
        for name, opened, vectors in (("live", old, vectors_old), ("candidate", new, vectors_new)):
            start = time.perf_counter()
            row_ids, _ = opened.index.search(vectors[number : number + 1], ANN_K)
            opened.doc_ids(row_ids)
            if number >= _WARM_UP:
                timed[name].append(time.perf_counter() - start)
    return {
        name: metrics.latency_ms(np.array(seconds)) for name, seconds in timed.items() if seconds
    }

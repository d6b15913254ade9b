"""The same queries on two releases -> what changed, and whether the candidate may be promoted.

Shadow: both are opened beside whatever serves; nothing that is live is touched.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from reembed.catalog.releases import Catalog, Release, who
from reembed.catalog.runs import Run
from reembed.clock import now
from reembed.config.settings import GateConfig
from reembed.errors import IntegrityError, UsageError
from reembed.evaluation import comparisons, gate, metrics
from reembed.evaluation import queries as evalset
from reembed.evaluation.comparisons import Asked
from reembed.index import search as index_search
from reembed.serving.live import OpenRelease
from reembed.source.lag import caught_up
from reembed.store.records import SCHEMA_VERSION
from reembed.table import provenance

DEPTH = 100
ANN_K = 10
_TIMED_QUERIES = 200
_WARM_UP = 5
PLANNED = Asked()
"""Judge by the plan."""

Recalls = npt.NDArray[np.float64]


def compare(
    catalog: Catalog,
    live: Release,
    candidate: Release,
    configured: GateConfig,
    asked: Asked = PLANNED,
) -> dict[str, Any]:
    """Run the candidate's evaluation set on both releases; the record that `promote` asks for.

    The gate and its queries are those fixed in the candidate's plan, before results existed; where
    the plan names no queries, these alone are those of the config at its first comparison. What is
    asked to be otherwise is recorded with its reason.

    Raises:
        UsageError: no queries are named, or they are no longer those that were fixed.
        IntegrityError: one of the two is damaged.
    """
    terms, queries = comparisons.agree(catalog, live, candidate, configured, asked)
    old, new = _opened(catalog, live, candidate)
    vectors_old, vectors_new = old.encode_queries(queries.texts), new.encode_queries(queries.texts)
    found_old, found_new = (
        _results(opened, queries.query_ids, vectors)
        for opened, vectors in ((old, vectors_old), (new, vectors_new))
    )
    judgements, (old_QK, new_QK) = metrics.number_documents(queries, found_old, found_new)
    measured = {
        name: (metric(old_QK, judgements, k), metric(new_QK, judgements, k))
        for name, (metric, k) in _METRICS.items()
    }
    ids_old, ids_new = (_Ids.read(opened, queries) for opened in (old, new))
    held, between = (
        _Held.by(ids_new, candidate, queries),
        _Between.sources(catalog, live, candidate),
    )
    recall_old, recall_new = _ann_recall(old, vectors_old), _ann_recall(new, vectors_new)
    verdict = gate.judge(
        terms.gate,
        verified=bool(candidate.verify.get("passed")),
        ann_recall_Q=recall_new,
        relevance=gate.Relevance(*measured["ndcg@10"], *measured["recall@10"]),
        judged_present=held.judged,
        shared=_shared(ids_old, ids_new, between),
    )
    return {
        "schema_version": SCHEMA_VERSION,
        "alias": candidate.alias,
        "live": live.summary(),
        "candidate": candidate.summary(),
        "candidate_index_sha256": candidate.index_sha256,
        "queries": {
            "source": queries.source,
            "place": terms.place.model_dump(include=comparisons.PLACE),
            "sha256": queries.sha256,
            "count": len(queries.query_ids),
            "dropped": queries.dropped,
            "judged_present": held.judged,
            "own_documents": held.own,
            "own_judged": held.own_judged,
        },
        "documents": asdict(between),
        "gate": terms.gate.model_dump(),
        "planned_gate": terms.planned.model_dump(),
        "gate_is_late": terms.late,
        "changes": [asdict(change) for change in terms.changes],
        "metrics": {name: _change(*pair) for name, pair in measured.items()},
        "ann_recall@10": {"live": float(recall_old.mean()), "candidate": float(recall_new.mean())},
        "overlap@10": float(metrics.overlap_at(old_QK, new_QK, 10).mean()),
        "judged@10": {
            "live": float(metrics.judged_at(old_QK, judgements, 10).mean()),
            "candidate": float(metrics.judged_at(new_QK, judgements, 10).mean()),
        },
        "latency": _latencies(old, new, vectors_old, vectors_new),
        **verdict.to_json(),
        "by": who(),
        "at": now(),
    }


def _opened(catalog: Catalog, live: Release, candidate: Release) -> tuple[OpenRelease, OpenRelease]:
    again = f"{Run(catalog.storage, candidate.run_id).rebuild}     # {live.id} serves on"
    new = _whole(catalog, candidate, "candidate", again)
    replace = f"reembed promote {candidate.id} --force --reason 'live is damaged'"
    return _whole(catalog, live, "live release", replace), new


def _whole(catalog: Catalog, release: Release, role: str, fix: str) -> OpenRelease:
    """The release, opened; `fix` is what helps where it is damaged."""
    try:
        opened = OpenRelease.open(catalog.storage, release)
        provenance.require_files(catalog.storage, release)
    except (IntegrityError, FileNotFoundError) as error:
        what = f"{role} {release.id} is damaged"
        raise IntegrityError(what, str(error).partition("\n")[0], fix) from error
    return opened


_METRICS: dict[str, tuple[Callable[..., Recalls], int]] = {
    "ndcg@10": (metrics.ndcg_at, 10),
    "recall@10": (metrics.recall_at, 10),
    "recall@100": (metrics.recall_at, DEPTH),
    "mrr@10": (metrics.mrr_at, 10),
}


def _results(
    opened: OpenRelease, query_ids: list[str], vectors: npt.NDArray[np.float32]
) -> list[list[str]]:
    # One more than is scored: the query's own document may be among them.
    row_ids, scores_QK = opened.index.search(vectors, DEPTH + 1)
    found = zip(query_ids, opened.doc_ids(row_ids), scores_QK.tolist(), strict=True)
    return [
        metrics.ranking([str(d) for d in docs], scores[: len(docs)], query_id, DEPTH)
        for query_id, docs, scores in found
    ]


@dataclass(frozen=True)
class _Ids:
    """Ids of a release's documents."""

    hashes: npt.NDArray[np.int64]
    """Of every one, each once, in order; comparable in this process."""
    asked: frozenset[str]
    """Those that the judged queries name."""
    relevant: frozenset[str]
    """Those that are relevant."""
    example: str | None

    @classmethod
    def read(cls, opened: OpenRelease, queries: evalset.EvalSet) -> _Ids:
        """Read the ids of every row."""
        relevant = {d for qrels in queries.qrels for d, grade in qrels.items() if grade > 0}
        asked = relevant.union(queries.query_ids)
        held: set[str] = set()
        hashes, example = [np.empty(0, np.int64)], None
        for batch in opened.table.scan(["doc_id"]):
            ids = [str(d) for d in batch.column("doc_id").to_pylist()]
            example = example or next(iter(ids), None)
            held |= asked.intersection(ids)
            hashes.append(np.fromiter(map(hash, ids), np.int64, len(ids)))
        every = np.unique(np.concatenate(hashes))
        return cls(every, frozenset(held), frozenset(held & relevant), example)


@dataclass(frozen=True)
class _Between:
    """How the documents of a candidate and of live were chosen otherwise."""

    differ: tuple[str, ...]
    """What differs, in words."""
    behind: str | None
    """The release that a catch-up would bring to the documents of the other, if one would."""

    @classmethod
    def sources(cls, catalog: Catalog, live: Release, candidate: Release) -> _Between:
        """From what both were last found to equal."""
        old, new = (vars(caught_up(catalog, r).ref) for r in (live, candidate))
        chosen = [k for k in ("uri", "id_column", "filter") if old[k] != new[k]]
        differ = [k for k in (*chosen, "version") if old[k] != new[k]]
        words = tuple(f"source.{k} is {old[k]} in live, {new[k]} in the candidate" for k in differ)
        if chosen or old["version"] == new["version"]:
            return cls(words, None)
        return cls(words, live.id if old["version"] < new["version"] else candidate.id)


def _shared(old: _Ids, new: _Ids, between: _Between) -> gate.Shared:
    either = len(old.relevant | new.relevant)
    both = len(np.intersect1d(old.hashes, new.hashes, assume_unique=True))
    return gate.Shared(
        judged=len(old.relevant & new.relevant) / either,
        all=both / (len(old.hashes) + len(new.hashes) - both),
        why=", ".join(between.differ),
    )


@dataclass(frozen=True)
class _Held:
    """What a release holds of an evaluation set."""

    judged: float
    """Share of the judgements whose relevant document is there and may be found."""
    own: int
    """Queries whose id is also a document's, which is left out of their results."""
    own_judged: int
    """Queries of these that judge that document relevant: perhaps the ids only happen to be equal."""

    @classmethod
    def by(cls, ids: _Ids, release: Release, queries: evalset.EvalSet) -> _Held:
        """Count, by the ids of the release's documents.

        Raises:
            UsageError: none is relevant; the ids of the judgements are not those of the documents.
        """
        held = ids.asked
        if not ids.relevant:
            named = min(d for qrels in queries.qrels for d, grade in qrels.items() if grade > 0)
            raise UsageError(
                f"no judged document of {queries.source} is in release {release.id}",
                f"judgements name documents like {named!r}, the table has ids like {ids.example!r}",
                "reembed config     # source.id_column and gate.queries must speak of the same ids",
            )
        own = held.intersection(queries.query_ids)
        pairs = [
            (query, document)
            for query, qrels in zip(queries.query_ids, queries.qrels, strict=True)
            for document, grade in qrels.items()
            if grade > 0
        ]
        found = sum(document in held and document != query for query, document in pairs)
        own_judged = sum(query == document and query in own for query, document in pairs)
        return cls(found / len(pairs), len(own), own_judged)


def _ann_recall(opened: OpenRelease, vectors: npt.NDArray[np.float32]) -> Recalls:
    """Of the index, not of the model: a query's own document counts as any other."""
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

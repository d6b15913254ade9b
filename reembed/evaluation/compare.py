"""The same queries on two releases: what changed, and whether the candidate may be promoted.

Both are opened beside whatever serves; nothing that is live is touched.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reembed.catalog.alias import who
from reembed.catalog.releases import Catalog, Release
from reembed.catalog.runs import Run
from reembed.clock import now
from reembed.config.gate import GateConfig
from reembed.errors import IntegrityError, UsageError
from reembed.evaluation import gate, metrics
from reembed.evaluation.comparisons import (
    Comparison,
    DocumentsCompared,
    Latency,
    MetricChange,
    QueriesUsed,
    Sides,
)
from reembed.evaluation.metrics import Results
from reembed.evaluation.queries import EvalSet
from reembed.evaluation.statistics import Floats, paired_interval
from reembed.evaluation.terms import Asked, Terms, agree
from reembed.index import exact as index_exact
from reembed.serving.live import OpenRelease
from reembed.source.lag import caught_up
from reembed.table import provenance

DEPTH = 100
ANN_K = 10
_TIMED_QUERIES = 200
_WARM_UP = 5
_METRICS: dict[str, tuple[Callable[[EvalSet, Results, int], Floats], int]] = {
    "ndcg@10": (metrics.ndcg_at, 10),
    "recall@10": (metrics.recall_at, 10),
    "recall@100": (metrics.recall_at, DEPTH),
    "mrr@10": (metrics.mrr_at, 10),
}
_CHOOSE_DOCUMENTS = ("uri", "id_column", "filter", "version")
"""Settings of a source that decide which documents there are."""


def compare(
    catalog: Catalog, live: Release, candidate: Release, configured: GateConfig, asked: Asked
) -> Comparison:
    """Run the candidate's judged queries on both releases and judge the difference.

    The gate and its queries are those fixed in the candidate's plan, before results existed. If the
    plan names no queries, those of the config at the first comparison count. Every change that
    `asked` makes is recorded with its reason.

    Raises:
        UsageError: no queries are named, or they are no longer those that were fixed.
        IntegrityError: one of the two releases is damaged.
    """
    terms, queries = agree(catalog, live, candidate, configured, asked)
    opened = _opened(catalog, live, candidate)
    old_held, new_held = (_Held.read(release, queries) for release in opened)
    used = _queries_used(terms, queries, new_held, candidate)
    documents = _documents_compared(catalog, live, candidate)
    old, new = (_Answers.of(release, queries) for release in opened)
    measured = {
        name: (metric(queries, old.results, k), metric(queries, new.results, k))
        for name, (metric, k) in _METRICS.items()
    }
    evidence = gate.Measured(
        verified=candidate.verify.passed,
        ann_recall_Q=new.ann_recall_Q,
        relevance={name: measured[name] for name in ("ndcg@10", "recall@10")},
        judged_present=used.judged_present,
        shared=_shared(old_held, new_held, documents),
    )
    verdict = gate.judge(terms.gate, evidence)
    margins = {rule.metric: rule.margin for rule in verdict.rules}
    return Comparison(
        **vars(verdict),
        alias=candidate.alias,
        live=live.summary(),
        candidate=candidate.summary(),
        candidate_index_sha256=candidate.index_sha256,
        queries=used,
        documents=documents,
        gate=terms.gate,
        planned_gate=terms.planned,
        gate_is_late=terms.late,
        changes=terms.changes,
        metrics={name: _change(*pair, margins.get(name)) for name, pair in measured.items()},
        ann_recall_at_10=Sides(float(old.ann_recall_Q.mean()), float(new.ann_recall_Q.mean())),
        overlap_at_10=float(metrics.overlap_at(old.results, new.results, 10).mean()),
        judged_at_10=Sides(
            float(metrics.judged_at(queries, old.results, 10).mean()),
            float(metrics.judged_at(queries, new.results, 10).mean()),
        ),
        latency=_latency(old, new),
        by=who(),
        at=now(),
    )


def _opened(catalog: Catalog, live: Release, candidate: Release) -> list[OpenRelease]:
    again = f"{Run(catalog.storage, candidate.id).rebuild}     # {live.id} stays live"
    replace = f"reembed promote {candidate.id} --force --reason 'live is damaged'"
    new = _whole(catalog, candidate, "candidate", again)
    return [_whole(catalog, live, "live release", replace), new]


def _whole(catalog: Catalog, release: Release, role: str, fix: str) -> OpenRelease:
    """Open the release; `fix` is the command that helps if it is damaged."""
    try:
        opened = OpenRelease.open(catalog.storage, release)
        provenance.require_files(catalog.storage, release)
    except (IntegrityError, FileNotFoundError) as error:
        what = f"{role} {release.id} is damaged"
        raise IntegrityError(what, str(error).partition("\n")[0], fix) from error
    return opened


@dataclass(frozen=True)
class _Held:
    """Ids of a release's documents."""

    hashes: npt.NDArray[np.int64]
    """Sorted hashes, one for each document; comparable only within this process."""
    named: frozenset[str]
    """Documents that the judged queries name."""
    relevant: frozenset[str]
    """Documents among these that are relevant."""
    example: str | None

    @classmethod
    def read(cls, opened: OpenRelease, queries: EvalSet) -> _Held:
        """Read the ids of every row."""
        relevant = {d for qrels in queries.qrels for d, grade in qrels.items() if grade > 0}
        asked = relevant.union(queries.query_ids)
        named: set[str] = set()
        hashes, example = [np.empty(0, np.int64)], None
        for batch in opened.table.scan(["doc_id"]):
            ids = [str(d) for d in batch.column("doc_id").to_pylist()]
            example = example or next(iter(ids), None)
            named |= asked.intersection(ids)
            hashes.append(np.fromiter(map(hash, ids), np.int64, len(ids)))
        every = np.unique(np.concatenate(hashes))
        return cls(every, frozenset(named), frozenset(named & relevant), example)


def _queries_used(terms: Terms, queries: EvalSet, held: _Held, release: Release) -> QueriesUsed:
    """Return how the judged queries fit the documents that a release holds.

    Raises:
        UsageError: no judged document is in the release: the ids are of different kinds.
    """
    pairs = [
        (query, document)
        for query, qrels in zip(queries.query_ids, queries.qrels, strict=True)
        for document, grade in qrels.items()
        if grade > 0
    ]
    if not held.relevant:
        raise UsageError(
            f"no judged document of {queries.source} is in release {release.id}",
            f"judgements name documents like {min(d for _, d in pairs)!r}, the table has ids like {held.example!r}",
            "reembed config     # source.id_column and gate.queries must use the same ids",
        )
    own = held.named.intersection(queries.query_ids)
    found = sum(document in held.named and document != query for query, document in pairs)
    return QueriesUsed(
        source=queries.source,
        place=terms.place,
        sha256=queries.sha256,
        count=len(queries.query_ids),
        dropped=queries.dropped,
        judged_present=found / len(pairs),
        own_documents=len(own),
        own_judged=sum(query == document and query in own for query, document in pairs),
        sets=queries.sets,
        same_text=queries.same_text,
        constant_slices=queries.constant_slices,
    )


def _documents_compared(catalog: Catalog, live: Release, candidate: Release) -> DocumentsCompared:
    """Compare the sources that both releases were last found to equal."""
    old, new = (caught_up(catalog, r).ref for r in (live, candidate))
    values = {k: (getattr(old, k), getattr(new, k)) for k in _CHOOSE_DOCUMENTS}
    words = {
        k: f"source.{k} is {a} in live, {b} in the candidate"
        for k, (a, b) in values.items()
        if a != b
    }
    behind = None
    if words.keys() == {"version"}:
        _, behind = min((old.version, live.id), (new.version, candidate.id))
    return DocumentsCompared(tuple(words.values()), behind)


def _shared(old: _Held, new: _Held, documents: DocumentsCompared) -> gate.Shared:
    either = len(old.relevant | new.relevant)
    both = len(np.intersect1d(old.hashes, new.hashes, assume_unique=True))
    return gate.Shared(
        judged=len(old.relevant & new.relevant) / either,
        all=both / (len(old.hashes) + len(new.hashes) - both),
        why=", ".join(documents.differ),
    )


@dataclass(frozen=True)
class _Answers:
    """What a release answers to the judged queries."""

    opened: OpenRelease
    vectors: npt.NDArray[np.float32]
    """[Q, dim]: the queries."""
    results: list[list[str]]
    ann_recall_Q: Floats
    """[Q]: recall of the index, not of the model: a query's own document counts as any other."""

    @classmethod
    def of(cls, opened: OpenRelease, queries: EvalSet) -> _Answers:
        vectors = opened.encode_queries(queries.texts)
        ids, scores = index_exact.exact_search(opened.table, vectors, 4 * ANN_K)
        # One more than is scored: the query's own document may be among them.
        found = zip(queries.query_ids, opened.search(vectors, DEPTH + 1), strict=True)
        results = [
            metrics.ranking([str(h.doc_id) for h in hits], [h.score for h in hits], query_id, DEPTH)
            for query_id, hits in found
        ]
        recalls = index_exact.ann_recall(opened.index, vectors, ids, scores, ANN_K)
        return cls(opened, vectors, results, recalls)


def _change(live_Q: Floats, candidate_Q: Floats, margin: float | None) -> MetricChange:
    deltas_Q = candidate_Q - live_Q
    return MetricChange(
        live=float(live_Q.mean()),
        candidate=float(candidate_Q.mean()),
        change=paired_interval(deltas_Q),
        worse=int((deltas_Q < 0).sum()),
        same=int((deltas_Q == 0).sum()),
        better=int((deltas_Q > 0).sum()),
        margin=margin,
    )


def _latency(old: _Answers, new: _Answers) -> Sides[Latency] | None:
    """Time one query at a time through each release, in turns; encoding is not timed."""
    timed: list[list[float]] = [[], []]
    for query in range(min(_TIMED_QUERIES, len(old.vectors))):
        for answers, seconds in zip((old, new), timed, strict=True):
            start = time.perf_counter()
            answers.opened.search(answers.vectors[query : query + 1], ANN_K)
            seconds.append(time.perf_counter() - start)
    live, candidate = (np.array(seconds[_WARM_UP:]) for seconds in timed)
    if not len(live):
        return None
    return Sides(metrics.latency(live), metrics.latency(candidate))

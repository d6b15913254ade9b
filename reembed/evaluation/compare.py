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
from reembed.config.settings import GateConfig
from reembed.errors import IntegrityError
from reembed.evaluation import gate, metrics
from reembed.evaluation.comparison import Compared, Comparison, MetricChange, QueriesUsed, Sides
from reembed.evaluation.documents import Coverage, Held, documents_compared, shared
from reembed.evaluation.metrics import Floats, Ints, Judgements, Latency
from reembed.evaluation.queries import EvalSet
from reembed.evaluation.terms import Asked, Terms, agree
from reembed.index import search as index_search
from reembed.serving.live import OpenRelease
from reembed.table import provenance

DEPTH = 100
ANN_K = 10
_TIMED_QUERIES = 200
_WARM_UP = 5
PLANNED = Asked()
"""Judge by the plan."""
_METRICS: dict[str, tuple[Callable[[Ints, Judgements, int], Floats], int]] = {
    "ndcg@10": (metrics.ndcg_at, 10),
    "recall@10": (metrics.recall_at, 10),
    "recall@100": (metrics.recall_at, DEPTH),
    "mrr@10": (metrics.mrr_at, 10),
}


def compare(
    catalog: Catalog,
    live: Release,
    candidate: Release,
    configured: GateConfig,
    asked: Asked = PLANNED,
) -> Comparison:
    """Run the candidate's judged queries on both releases and judge the difference.

    The gate and its queries are those fixed in the candidate's plan, before results existed. If the
    plan names no queries, those of the config at the first comparison count. Every change that is
    asked for is recorded with its reason.

    Raises:
        UsageError: no queries are named, or they are no longer those that were fixed.
        IntegrityError: one of the two releases is damaged.
    """
    terms, queries = agree(catalog, live, candidate, configured, asked)
    opened = _opened(catalog, live, candidate)
    old_held, new_held = (Held.read(release, queries) for release in opened)
    coverage = Coverage.of(new_held, candidate, queries)
    documents = documents_compared(catalog, live, candidate)
    old, new = (_Answers.of(release, queries) for release in opened)
    judgements, (old_QK, new_QK) = metrics.number_documents(queries, old.results, new.results)
    measured = {
        name: (metric(old_QK, judgements, k), metric(new_QK, judgements, k))
        for name, (metric, k) in _METRICS.items()
    }
    verdict = gate.judge(
        terms.gate,
        verified=candidate.verify.passed,
        ann_recall_Q=new.ann_recall_Q,
        relevance=gate.Relevance(*measured["ndcg@10"], *measured["recall@10"]),
        judged_present=coverage.present,
        shared=shared(old_held, new_held, documents),
    )
    return Comparison(
        **vars(verdict),
        alias=candidate.alias,
        live=Compared.of(live),
        candidate=Compared.of(candidate),
        candidate_index_sha256=candidate.index_sha256,
        queries=_queries_used(terms, queries, coverage),
        documents=documents,
        gate=terms.gate,
        planned_gate=terms.planned,
        gate_is_late=terms.late,
        changes=terms.changes,
        metrics={name: MetricChange.of(*pair) for name, pair in measured.items()},
        ann_recall_at_10=Sides(float(old.ann_recall_Q.mean()), float(new.ann_recall_Q.mean())),
        overlap_at_10=float(metrics.overlap_at(old_QK, new_QK, 10).mean()),
        judged_at_10=Sides(
            float(metrics.judged_at(old_QK, judgements, 10).mean()),
            float(metrics.judged_at(new_QK, judgements, 10).mean()),
        ),
        latency=_latency(old, new),
        by=who(),
        at=now(),
    )


def _queries_used(terms: Terms, queries: EvalSet, coverage: Coverage) -> QueriesUsed:
    return QueriesUsed(
        source=queries.source,
        place=terms.place,
        sha256=queries.sha256,
        count=len(queries.query_ids),
        dropped=queries.dropped,
        judged_present=coverage.present,
        own_documents=coverage.own,
        own_judged=coverage.own_judged,
    )


def _opened(catalog: Catalog, live: Release, candidate: Release) -> list[OpenRelease]:
    again = f"{Run(catalog.storage, candidate.run_id).rebuild}     # {live.id} stays live"
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
class _Answers:
    """What a release answers to the judged queries."""

    opened: OpenRelease
    vectors: npt.NDArray[np.float32]
    """[Q, dim]: the queries."""
    results: list[list[str]]
    ann_recall_Q: Floats
    """Of the index, not of the model: a query's own document counts as any other."""

    @classmethod
    def of(cls, opened: OpenRelease, queries: EvalSet) -> _Answers:
        vectors = opened.encode_queries(queries.texts)
        ids, scores = index_search.exact_search(opened.table, vectors, 4 * ANN_K)
        return cls(
            opened=opened,
            vectors=vectors,
            results=_results(opened, queries.query_ids, vectors),
            ann_recall_Q=index_search.ann_recall(opened.index, vectors, ids, scores, ANN_K),
        )


def _results(
    opened: OpenRelease, query_ids: list[str], vectors: npt.NDArray[np.float32]
) -> list[list[str]]:
    # One more than is scored: the query's own document may be among them.
    found = zip(query_ids, opened.search(vectors, DEPTH + 1), strict=True)
    return [
        metrics.ranking([str(h.doc_id) for h in hits], [h.score for h in hits], query_id, DEPTH)
        for query_id, hits in found
    ]


def _latency(old: _Answers, new: _Answers) -> Sides[Latency] | None:
    """Time one query at a time through each release, in turns; encoding is not timed."""
    timed: list[list[float]] = [[], []]
    for query in range(min(_TIMED_QUERIES, len(old.vectors))):
        for answers, seconds in zip((old, new), timed, strict=True):
            start = time.perf_counter()
            answers.opened.search(answers.vectors[query : query + 1], ANN_K)
            seconds.append(time.perf_counter() - start)
    live, candidate = (np.array(seconds[_WARM_UP:]) for seconds in timed)
    return Sides(Latency.of(live), Latency.of(candidate)) if len(live) else None

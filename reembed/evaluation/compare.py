"""The same queries on two releases: what changed, and whether the candidate may be promoted.

Both are opened beside whatever serves; nothing that is live is touched.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from reembed.catalog.releases import Catalog, Release
from reembed.catalog.runs import Run
from reembed.config.gate import GateConfig
from reembed.errors import IntegrityError, UsageError
from reembed.evaluation import gate
from reembed.evaluation.both import Both
from reembed.evaluation.comparisons import Comparison, Verdict
from reembed.evaluation.cutoffs import cut_offs
from reembed.evaluation.differences import change_of, found_by_neither, pairs_of
from reembed.evaluation.environment import environment
from reembed.evaluation.figures import (
    DocumentsCompared,
    LoggedQueries,
    MetricChange,
    QueriesUsed,
    Sides,
)
from reembed.evaluation.grouping import likely_groups
from reembed.evaluation.held import Held
from reembed.evaluation.known_items import known_items
from reembed.evaluation.logged import Sample, sample
from reembed.evaluation.metrics import Ranked
from reembed.evaluation.per_query import Pairs, PerQuery
from reembed.evaluation.queries import EvalSet
from reembed.evaluation.runs import read_runs
from reembed.evaluation.slices import slice_changes
from reembed.evaluation.terms import Asked, Terms, agree
from reembed.serving.live import OpenRelease
from reembed.source.lag import caught_up
from reembed.table import provenance

_CHOOSE_DOCUMENTS = ("uri", "id_column", "filter", "version")
"""Settings of a source that decide which documents there are."""


def compare(
    catalog: Catalog, live: Release, candidate: Release, configured: GateConfig, asked: Asked
) -> tuple[Comparison, PerQuery]:
    """Judge the difference between the answers of both; return the record, and the values of each query.

    The gate and its queries are those fixed in the candidate's plan, before results existed; without queries there,
    those of the config at the first comparison. Changes that `asked` makes are recorded with their reason.

    Raises:
        UsageError: no queries are named, they are no longer those that were fixed, or evidence cannot be used.
        IntegrityError: one of the two releases is damaged.
    """
    terms, judged = agree(catalog, live, candidate, configured, asked)
    logged = sample(configured, dict(catalog.query_options))
    runs = read_runs(asked.runs, dict(catalog.query_options)) if asked.runs else None
    both = Both.of(opened(catalog, live, candidate), judged, runs, logged)
    queries, lists, held = both.queries, both.lists, both.held
    pairs = pairs_of(queries, lists.live, lists.candidate, terms.gate.metrics)
    used = _with_clicks(_queries_used(terms, queries, held.candidate, candidate), queries, lists)
    documents = _documents_compared(catalog, live, candidate)
    answered = both.figures(catalog)
    items = known_items(both.opened, caught_up(catalog, candidate), held)
    relevance = {name: pairs[name] for name in terms.gate.metrics}
    measured = gate.Measured(
        verified=candidate.verify.passed,
        ann_recall_Q=both.of_index.candidate.ann_recall_Q,
        relevance=relevance,
        groups_Q=queries.groups_Q,
        judged_present=used.judged_present,
        shared=_shared(held.live, held.candidate, documents),
        slices=slice_changes(queries.slices, relevance, queries.groups_Q),
        looked=asked.looked,
        operation=both.operation(answered, items),
    )
    verdict = gate.judge(terms.gate, measured)
    rows, of_log = _per_query(both, pairs, logged)
    record = Comparison(
        **vars(verdict),
        **vars(answered),
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
        metrics=_changes(pairs, queries, verdict),
        slices=measured.slices,
        likely_groups=likely_groups(queries) if queries.groups is None else None,
        known_items=items.figures,
        runs=both.run_files(runs, judged) if runs else None,
        shadow=asked.looked,
        cutoffs=None if asked.cutoff is None else cut_offs(asked.cutoff, queries, lists),
        logged=of_log,
        environment=environment(),
    )
    return record, rows if asked.texts else rows.without_texts()


def _per_query(
    both: Both, pairs: Pairs, logged: Sample | None
) -> tuple[PerQuery, LoggedQueries | None]:
    """Return the values of each query, and what logged queries show."""
    rows = both.rows(pairs)
    if logged is None:
        return rows, None
    of_log, more = both.of_log(logged)
    return rows + more, of_log


def _changes(pairs: Pairs, queries: EvalSet, verdict: Verdict) -> dict[str, MetricChange]:
    margins = {rule.metric: rule.margin for rule in verdict.rules}
    return {
        name: change_of(*pair, queries.groups_Q, margins.get(name)) for name, pair in pairs.items()
    }


def opened(catalog: Catalog, live: Release, candidate: Release) -> Sides[OpenRelease]:
    """Return both releases, opened and whole.

    Raises:
        IntegrityError: one of the two is damaged.
    """
    again = f"{Run(catalog.storage, candidate.id).rebuild}     # {live.id} stays live"
    replace = f"reembed promote {candidate.id} --force --reason 'live is damaged'"
    new = _whole(catalog, candidate, "candidate", again)
    return Sides(_whole(catalog, live, "live release", replace), new)


def _whole(catalog: Catalog, release: Release, role: str, fix: str) -> OpenRelease:
    """Open the release; `fix` is the command that helps if it is damaged."""
    try:
        opened = OpenRelease.open(catalog.storage, release)
        provenance.require_files(catalog.storage, release)
    except (IntegrityError, FileNotFoundError) as error:
        what = f"{role} {release.id} is damaged"
        raise IntegrityError(what, str(error).partition("\n")[0], fix) from error
    return opened


def _queries_used(terms: Terms, queries: EvalSet, held: Held, release: Release) -> QueriesUsed:
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
        not_held=sum(document not in held.named for _, document in pairs),
    )


def _with_clicks(used: QueriesUsed, queries: EvalSet, lists: Sides[Ranked]) -> QueriesUsed:
    """Return it with how many clicks judge, and how many of them are outside all results."""
    logs = {found.name for found in queries.sets if found.evidence == "clicks"}
    rows = [at for at, name in enumerate(queries.set_names) if name in logs]
    of_logs = queries.take(rows)
    live, candidate = lists.live.take(rows), lists.candidate.take(rows)
    return replace(
        used,
        clicks=sum(map(len, of_logs.qrels)),
        clicks_outside=found_by_neither(of_logs, live, candidate),
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


def _shared(old: Held, new: Held, documents: DocumentsCompared) -> gate.Shared:
    either = len(old.relevant | new.relevant)
    both = len(np.intersect1d(old.hashes, new.hashes, assume_unique=True))
    return gate.Shared(
        judged=len(old.relevant & new.relevant) / either,
        all=both / (len(old.hashes) + len(new.hashes) - both),
        why=", ".join(documents.differ),
    )

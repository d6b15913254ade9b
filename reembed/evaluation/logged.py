"""Logged queries on two releases: how different the answers are, and what the clicks say if there are any.

Clicks are weaker evidence than judgements: only what live showed could be clicked, so they favour it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

from reembed.config.gate import GateConfig
from reembed.errors import UsageError
from reembed.evaluation.answers import lists_of
from reembed.evaluation.differences import (
    METRICS,
    change_of,
    found_by_neither,
    judged_of,
    likeness,
    means,
    pairs_of,
    zero_results,
)
from reembed.evaluation.figures import Clicked, LoggedQueries, QuerySet, Sides
from reembed.evaluation.judged import Kept, Log, Query, place_of_log, read_log
from reembed.evaluation.metrics import Ranked
from reembed.evaluation.per_query import Pairs, PerQuery
from reembed.evaluation.queries import EvalSet
from reembed.serving.live import OpenRelease


@dataclass(frozen=True)
class Sample:
    """Logged queries that are asked."""

    log: Log
    queries: EvalSet
    """Also those without clicks."""


def sample(gate: GateConfig, options: dict[str, str]) -> Sample | None:
    """Draw from the log that a gate names: the texts with the smallest digests; None if it names none.

    So the same texts give the same sample, in every order, and more rows change little of it.

    Raises:
        UsageError: the log cannot be read, or has no text.
    """
    if gate.logged is None:
        return None
    place, kept = place_of_log(gate.logged, options), Kept(gate.slices, gate.group)
    log = read_log(place, kept)
    if not log.queries:
        why = f"{log.rows} rows were read"
        raise UsageError(f"{place.uri}: no query has a text", why, place.fix)
    drawn = sorted(log.queries, key=_digest)[: gate.logged_sample]
    return Sample(log, _eval_set(place.uri, drawn, kept))


def _digest(query: Query) -> bytes:
    return hashlib.sha256(query.text.encode()).digest()


def _eval_set(place: str, drawn: list[Query], kept: Kept) -> EvalSet:
    lines = "\n".join(f"{q.query_id}\t{q.text}\t{sorted(q.qrels)}" for q in drawn)
    return EvalSet(
        query_ids=[q.query_id for q in drawn],
        texts=[q.text for q in drawn],
        qrels=[q.qrels for q in drawn],
        source=place,
        sha256=hashlib.sha256(lines.encode()).hexdigest(),
        dropped=0,
        sets=(QuerySet("logged", place, len(drawn), 0, "clicks"),),
        slices={name: tuple(q.slices[at] for q in drawn) for at, name in enumerate(kept.slices)},
        groups=tuple(q.group or f"(alone) {q.query_id}" for q in drawn) if kept.group else None,
        timestamps=tuple(q.timestamp for q in drawn),
    )


def measure(
    found: Sample, opened: Sides[OpenRelease], held: Collection[str]
) -> tuple[LoggedQueries, PerQuery]:
    """Ask both releases; return the figures, and the rows of the queries.

    `held`: those of the clicked documents that the candidate has.
    """
    queries, log = found.queries, found.log
    old, new = (lists_of(side, queries.texts) for side in (opened.live, opened.candidate))
    alike = likeness(old, new)
    clicked = [at for at, clicks in enumerate(queries.qrels) if clicks]
    rows = [at for at, clicks in enumerate(queries.qrels) if not clicks]
    lists = old.take(rows), new.take(rows)
    kept = PerQuery.of(
        "none", queries.take(rows), lists, {}, {n: v[rows] for n, v in alike.items()}
    )
    of_clicks = None
    if clicked:
        lists = old.take(clicked), new.take(clicked)
        of_clicks, pairs = _clicked(queries.take(clicked), *lists, held)
        both = {name: values_Q[clicked] for name, values_Q in alike.items()}
        kept += PerQuery.of("clicks", queries.take(clicked), lists, pairs, both)
    figures = LoggedQueries(
        source=queries.source,
        sha256=queries.sha256,
        rows=log.rows,
        empty=log.empty,
        distinct=len(log.queries),
        asked=len(queries.texts),
        overlap_at_10=float(alike["overlap@10"].mean()),
        rbo=float(alike["rbo"].mean()),
        zero_results=zero_results(old.ids, new.ids),
        clicked=of_clicks,
    )
    return figures, kept


def _clicked(
    queries: EvalSet, live: Ranked, candidate: Ranked, held: Collection[str]
) -> tuple[Clicked, Pairs]:
    pairs = pairs_of(queries, live, candidate)
    pairs["judged@10"] = judged_of(queries, live, candidate)
    clicks = [clicked.keys() for clicked in queries.qrels]
    return Clicked(
        queries=len(queries.texts),
        metrics={key: change_of(*pairs[key], queries.groups_Q) for key in METRICS},
        judged_at_10=means(pairs["judged@10"]),
        clicks=sum(map(len, clicks)),
        outside=found_by_neither(queries, live, candidate),
        unknown=len(set().union(*clicks).difference(held)),
    ), pairs

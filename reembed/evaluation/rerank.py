"""Would a migration gain anything? The first results of the live release, ranked again by the new model.

Nothing is stored and nothing that is live is touched: for each judged query the new model embeds the query and the
first 50 documents that live finds, and puts these into its own order. The gate's metrics of both orders are judged as
a comparison judges two releases: same margins, bounds, groups and slices.

What this predicts, and what it does not: both models are seen on documents that the old one chose. What only the new
model finds is not among them, and what it would wrongly prefer from the rest of the corpus is not, either. So a gain
and a loss are both usually smaller here than after a migration (docs/lazy.md has the figures), a metric that counts
nearly as many results as are ranked again says nothing, and documents that no judged query finds are not looked at.
A pass is a reason to start, not to promote: that takes `reembed compare` at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

from reembed import encoders
from reembed.catalog.alias import who
from reembed.catalog.lazies import Predicted
from reembed.catalog.releases import Catalog, Release
from reembed.catalog.reports import ReleaseSummary
from reembed.clock import now
from reembed.config.gate import GateConfig
from reembed.config.settings import Config
from reembed.engine.executor import HERE, Executor, Needs, Tasks
from reembed.errors import GateFailed, Inconclusive, UsageError
from reembed.evaluation import metrics
from reembed.evaluation import queries as evalset
from reembed.evaluation.candidates import DEPTH, Candidates, Documents, Reranked
from reembed.evaluation.comparisons import Rule, Verdict
from reembed.evaluation.differences import judged_of, means
from reembed.evaluation.figures import QuerySet, Sides
from reembed.evaluation.gate import (
    MIN_PRESENT,
    MIN_SHARED,
    change_rule,
    combine,
    share_rule,
    slice_rules,
)
from reembed.evaluation.operation import judged_rule
from reembed.evaluation.per_query import Pairs
from reembed.evaluation.queries import EvalSet
from reembed.evaluation.rescore import Asked, Scored, score
from reembed.evaluation.slices import slice_changes
from reembed.evaluation.statistics import paired_interval
from reembed.events import Listener, Working
from reembed.plural import counted
from reembed.serving.live import OpenRelease
from reembed.source.dataset import Source
from reembed.source.lag import caught_up
from reembed.store.paths import absolute, absolute_queries
from reembed.store.records import encode

T = TypeVar("T")
MOST_K = DEPTH // 2
"""Deepest K of a metric that is predicted: a new order of 50 documents does not change which 50 they are."""


@dataclass(frozen=True)
class Judged:
    """The judged queries of a prediction."""

    sets: tuple[QuerySet, ...]
    sha256: str
    count: int
    not_embedded: int
    """Queries that the new model cannot embed: it would find nothing."""


@dataclass(frozen=True, kw_only=True)
class Prediction(Verdict):
    """Whether a migration is worth its start, and on what grounds; inconclusive without judged queries."""

    alias: str
    live: ReleaseSummary
    model: str
    """The new one."""
    queries: Judged | None = None
    """None if nobody judged any."""
    depth: int = DEPTH
    """Results of a query that were ranked again."""
    metrics: tuple[Predicted, ...] = ()
    not_predicted: tuple[str, ...] = ()
    """Metrics of the gate that count too many results."""
    judged_at_10: Sides[float] | None = None
    documents: Documents = field(default_factory=Documents)
    tokens: int = 0
    """Of the documents that were embedded; 0 where the model does not say."""
    seconds: float = 0.0
    """Of embedding them, with loading the model."""
    reason: str | None = None
    """Why a migration may start without judged queries."""
    by: str
    at: str

    @property
    def allows(self) -> bool:
        """Whether a migration may start."""
        return self.verdict == "pass" or self.reason is not None

    def require(self) -> None:
        """Do nothing if a migration may start.

        Raises:
            GateFailed: the new model is worse.
            Inconclusive: too little is known to tell.
        """
        if self.allows:
            return
        kind = GateFailed if self.verdict == "fail" else Inconclusive
        against = [rule.detail for rule in self.rules if rule.verdict == self.verdict]
        raise kind(
            f"{self.model} is not shown to be as good as {self.live.model} of release {self.live.release}",
            "; ".join(against),
            "reembed config     # encoder names the model, gate.queries the judged queries that decide",
        )

    def to_json(self) -> dict[str, Any]:
        """Return the prediction for scripts."""
        return encode(self)


def predict(
    catalog: Catalog,
    live: Release,
    config: Config,
    emit: Listener,
    *,
    executor: Executor | None = None,
    without_evidence: str | None = None,
) -> Prediction:
    """Predict how the gate's metrics change when the config's model takes over from a release's.

    Args:
        catalog: of the alias.
        live: the release that serves.
        config: names the new model, the gate and the judged queries.
        emit: is told what takes a while.
        executor: embeds, in one task; None: this process does.
        without_evidence: the reason for the record, if there are no judged queries.

    Raises:
        UsageError: no queries are named and no reason is given; the config reads other texts than live
            did; or none of the gate's metrics can be predicted.
        GateFailed: a reason is given although there are judged queries.
        SourceError: the source cannot be read.
    """
    require_same_texts(config, live)
    gate = absolute_queries(config.gate)
    _require_evidence(gate, without_evidence)
    if not gate.queries:
        return Prediction(
            **vars(combine()),
            alias=live.alias,
            live=live.summary(),
            model=_model(config, live),
            reason=without_evidence,
            by=who(),
            at=now(),
        )
    _require_predictable(gate)
    queries = evalset.load(evalset.place_of(gate), dict(catalog.query_options))
    emit(Working(f"searching {live.id} for {counted(len(queries.texts), 'judged query')}"))
    opened = OpenRelease.open(catalog.storage, live)
    candidates = Candidates.of(opened, readable(catalog, live), queries)
    asked = candidates.asked(config)
    what = f"{counted(len(asked.rows), 'document')}, the first {DEPTH} of each query"
    emit(Working(f"embedding {what}, with {config.encoder.model}"))
    scored = on_executor(config, score, asked, executor)
    return _judged(config, live, candidates, scored, candidates.reranked(asked, scored))


def on_executor(
    config: Config, work: Callable[[Asked], T], asked: Asked, executor: Executor | None
) -> T:
    """Do what needs the model in one task of an executor; None: in this process."""
    where: AbstractContextManager[Tasks] = nullcontext(HERE)
    if executor is not None:
        where = executor.connected(config)
    with where as tasks:
        needs = Needs(config.embed.actor_cpus, config.embed.gpus_per_actor)
        return tasks.call(work, asked, needs=needs)


def _judged(
    config: Config, live: Release, found: Candidates, scored: Scored, again: Reranked
) -> Prediction:
    gate, queries = config.gate, found.queries
    predicted = {key: metrics.named(key) for key in gate.metrics if _is_predictable(key)}
    pairs: Pairs = {
        key: (metric.of(queries, found.old.ids), metric.of(queries, again.lists.ids))
        for key, metric in predicted.items()
    }
    changes = [change_rule(k, *pair, gate.margin, queries.groups_Q) for k, pair in pairs.items()]
    judged_at_10 = means(judged_of(queries, found.old, again.lists))
    held = f"relevant documents are in release {live.id}"
    same = f"first {DEPTH} results have the text that release {live.id} embedded"
    verdict = combine(
        share_rule("judged documents", held, found.judged, MIN_PRESENT),
        share_rule("same texts", same, again.share, MIN_SHARED, "the source has changed since"),
        *changes,
        *slice_rules(slice_changes(queries.slices, pairs, queries.groups_Q)),
        judged_rule(judged_at_10),
    )
    return Prediction(
        **vars(verdict),
        alias=live.alias,
        live=live.summary(),
        model=_model(config, live),
        queries=Judged(queries.sets, queries.sha256, len(queries.texts), again.not_embedded),
        metrics=tuple(_predicted(rule, pairs, queries) for rule in changes),
        not_predicted=tuple(key for key in gate.metrics if key not in predicted),
        judged_at_10=judged_at_10,
        documents=again.documents,
        tokens=scored.tokens,
        seconds=round(scored.seconds, 1),
        by=who(),
        at=now(),
    )


def _predicted(rule: Rule, pairs: Pairs, queries: EvalSet) -> Predicted:
    """Return a metric's change; where one group gives no interval, all that a change can be."""
    assert rule.metric is not None  # a rule about a change names its metric
    live_Q, again_Q = pairs[rule.metric]
    change = paired_interval(again_Q - live_Q, queries.groups_Q)
    low, high = (change.low, change.high)
    return Predicted(
        metric=rule.metric,
        queries=change.n,
        live=float(live_Q.mean()),
        change=change.mean,
        low=-1.0 if low is None else low,
        high=1.0 if high is None else high,
        verdict=rule.verdict,
    )


def readable(catalog: Catalog, live: Release) -> Source:
    """Return the source at the version that a release equals; at its newest, if that one was cleaned up."""
    source = caught_up(catalog, live)
    return source if source.is_as_planned(source.ref) else source.newest()


def _is_predictable(key: str) -> bool:
    return metrics.named(key).k <= MOST_K


def _require_predictable(gate: GateConfig) -> None:
    if not any(map(_is_predictable, gate.metrics)):
        raise UsageError(
            f"gate.metrics {', '.join(gate.metrics)}: none can be predicted",
            f"the first {DEPTH} results are ranked again, which says little of more than {MOST_K} of them",
            "reembed config     # add one such as ndcg@10 to gate.metrics",
        )


def _require_evidence(gate: GateConfig, reason: str | None) -> None:
    """Check that there are judged queries, or else a reason."""
    if gate.queries and reason is not None:
        raise GateFailed(
            f"{', '.join(gate.queries)}: there are judged queries, so nothing starts without evidence",
            "they say, before any document is migrated, whether the new model is better",
            "reembed config     # gate.queries",
        )
    if not gate.queries and reason is None:
        raise UsageError(
            "no judged queries are named: nothing shows that the new model is better",
            "gate.queries is empty",
            "set gate.queries to judged queries, or give a reason to start without evidence",
        )


def _model(config: Config, live: Release) -> str:
    """Return the new model's name, with the id of its space where live's model has the same name."""
    if config.encoder.model != live.space.model:
        return config.encoder.model
    return encoders.describe(config.encoder, live.space.vector_dtype).beside(live.space)


def require_same_texts(config: Config, live: Release) -> None:
    """Check that a config means the documents and texts that a release has."""
    mine = config.source.model_dump() | {"uri": absolute(config.source.uri)}
    for name in ("uri", "id_column", "text"):
        if mine[name] != (its := getattr(live.source, name)):
            raise UsageError(
                f"source.{name} is {mine[name]!r}, release {live.id} has {its!r}",
                "a migration while both models serve needs the same documents and texts; others need a rebuild",
                "reembed run",
            )

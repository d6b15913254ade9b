"""Simulate: what a lazy migration would do, by replaying a query log, before anyone commits to it.

the log's queries on live -> which documents turn up when -> coverage; judged queries on live and the new model ->
what they would answer at each moment. Nothing is stored, and nothing that is live is touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from reembed import encoders
from reembed.catalog.lazies import Fusion
from reembed.catalog.releases import Catalog, Release
from reembed.catalog.reports import ReleaseSummary
from reembed.config.settings import Config
from reembed.engine.executor import Executor
from reembed.errors import UsageError
from reembed.evaluation import queries as evalset
from reembed.evaluation.answers import encoded, lists_of
from reembed.evaluation.candidates import Candidates
from reembed.evaluation.fusable import Fusable
from reembed.evaluation.replay import NEVER, Asked, Documents, Int64, Replay, asked_of
from reembed.evaluation.rerank import on_executor, readable, require_same_texts
from reembed.evaluation.rescore import Float32, Vectors, embed
from reembed.events import Listener, Working
from reembed.plural import counted
from reembed.serving.live import OpenRelease
from reembed.store.paths import absolute_queries
from reembed.store.records import encode
from reembed.strategies.lazy_side import drawn

_MARKS = (0.0, 0.01, 0.03, 0.1, 0.25, 0.5, 0.75, 1.0)
"""Shares of the replayed queries after which it is told how far the migration is."""


@dataclass(frozen=True)
class Rate:
    """How fast a sweep is."""

    documents: int
    per: Literal["query", "hour", "day"]
    """Of the log."""

    def __str__(self) -> str:
        article = "an" if self.per == "hour" else "a"
        return f"{counted(self.documents, 'document')} {article} {self.per}"


@dataclass(frozen=True)
class Wanted:
    """What is to be simulated."""

    queries: int = 10_000
    """The last queries of the log, so many at most."""
    k: int = 10
    """Documents that an answer shows."""
    fusions: tuple[Fusion, ...] = ()
    """Rules of fusion; none: the config's."""
    sweep: Rate | None = None


@dataclass(frozen=True)
class Point:
    """How far the migration is after so many queries."""

    queries: int
    days: float | None
    documents: float
    """Share of the documents that are migrated."""
    answers: float
    """Share of the results of all replayed queries that are migrated."""
    quality: dict[Fusion, float]
    """The metric over the judged queries, by the rule of fusion; empty without them."""


@dataclass(frozen=True)
class Course:
    """A migration over time."""

    sweep: str | None
    """How fast a sweep is, in words; None without one."""
    points: tuple[Point, ...]
    complete: int | None
    """Queries after which every document is migrated; None if that takes more of them."""


@dataclass(frozen=True)
class Judged:
    """What quality was measured by."""

    metric: str
    queries: int
    live: float
    """Of live alone."""
    in_the_end: dict[Fusion, float]
    """With every document migrated that the new model embedded for this, by the rule of fusion."""
    embedded: int
    """Documents that the new model embedded for this."""
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Simulated:
    """What a lazy migration would do."""

    alias: str
    live: ReleaseSummary
    model: str
    logged: int
    """Queries of the log."""
    replayed: int
    texts: int
    """Different ones among them."""
    documents: int
    """Documents of live."""
    turned_up: int
    """Of those, the ones that the replayed queries show."""
    k: int
    depth: int
    fusions: tuple[Fusion, ...]
    judged: Judged | None
    no_quality: str | None
    """Why nothing is said of quality."""
    courses: tuple[Course, ...]
    """Without a sweep, and with one if that was asked for."""

    def to_json(self) -> dict[str, Any]:
        """Return what `reembed simulate --json` prints."""
        return encode(self)


def simulate(
    catalog: Catalog, config: Config, wanted: Wanted, emit: Listener, *, executor: Executor
) -> Simulated:
    """Replay the query log against a lazy migration from the live release to the config's model.

    Raises:
        UsageError: nothing is live, the model is the live one or of other texts, no log is named or it cannot be read,
            or the sweep is by time and the log has none.
    """
    live = _live(catalog, config)
    gate, options = absolute_queries(config.gate), dict(catalog.query_options)
    if gate.logged is None:
        raise UsageError(
            "no query log is named: nothing says which documents turn up",
            "gate.logged is empty",
            "reembed config     # gate.logged names a .jsonl, .parquet or .lance with the text of each query",
        )
    asked = asked_of(gate.logged, options, wanted.queries)
    per_query = _per_query(wanted.sweep, asked) if wanted.sweep else None
    emit(Working(f"searching {live.id} for {counted(len(asked.texts), 'logged query')}"))
    opened = OpenRelease.open(catalog.storage, live)
    at_hand = _Live(catalog, opened, documents := Documents.of(opened.table))
    replay = Replay.of(asked, documents, lists_of(opened, asked.texts, wanted.k), wanted.k)
    fusions = wanted.fusions or (config.lazy.fusion,)
    judged, fusable = None, None
    if gate.queries:
        fusable = at_hand.fusable(config, fusions, emit, executor)
        judged = _judged(fusable, gate.metrics[0], fusions, len(documents.ids))
    first = documents.find(map(str, drawn(catalog, live)["doc_id"].to_pylist()))
    courses = [_course(replay, first, None, None, fusable, judged)]
    if wanted.sweep:
        courses.append(_course(replay, first, per_query, str(wanted.sweep), fusable, judged))
    return Simulated(
        alias=catalog.alias,
        live=live.summary(),
        model=config.encoder.model,
        logged=asked.rows,
        replayed=len(asked.text),
        texts=len(asked.texts),
        documents=len(documents.ids),
        turned_up=int((replay.times > 0).sum()),
        k=wanted.k,
        depth=config.lazy.depth,
        fusions=fusions,
        judged=judged,
        no_quality=None if judged else "no judged queries: set gate.queries",
        courses=tuple(courses),
    )


def _live(catalog: Catalog, config: Config) -> Release:
    live = catalog.require_live().release
    if encoders.describe(config.encoder, config.table.dtype).id == live.space.id:
        raise UsageError(
            f"{live.id}, which is live, has this model already",
            None,
            "reembed config     # shows encoder; set it to the new model",
        )
    require_same_texts(config, live)
    return live


def _per_query(rate: Rate, asked: Asked) -> float:
    """Return how many documents a sweep migrates for each query of a log.

    Raises:
        UsageError: the rate is by time, and the log tells none.
    """
    if rate.per == "query":
        return float(rate.documents)
    if asked.days is None or not asked.days[-1]:
        raise UsageError(
            f"a sweep of {rate} cannot be simulated: queries of the log have no time",
            "each needs a timestamp, and they must differ",
            f"reembed simulate --sweep {rate.documents}/q     # documents for each query",
        )
    per_day = rate.documents * (24 if rate.per == "hour" else 1)
    return float(per_day * asked.days[-1] / len(asked.text))


@dataclass(frozen=True)
class _Live:
    """The live release, opened."""

    catalog: Catalog
    opened: OpenRelease
    documents: Documents

    def fusable(
        self, config: Config, fusions: tuple[Fusion, ...], emit: Listener, executor: Executor
    ) -> Fusable:
        """Search for the judged queries, and embed what is found with the new model."""
        place, options = evalset.place_of(absolute_queries(config.gate)), self.catalog.query_options
        queries, depth = evalset.load(place, dict(options)), config.lazy.depth
        emit(Working(f"searching for {counted(len(queries.texts), 'judged query')}"))
        background = self._background(queries.texts) if "zscore" in fusions else None
        also = background[2] if background else ()
        source = readable(self.catalog, self.opened.release)
        found = Candidates.of(self.opened, source, queries, depth, also)
        asked = found.asked(config)
        what = f"{counted(len(asked.rows), 'document')}, the first {depth} of each judged query"
        emit(Working(f"embedding {what}, with {config.encoder.model}"))
        new = on_executor(config, embed, asked, executor)
        return Fusable.of(found, self.documents, new, background)

    def _background(self, texts: list[str]) -> tuple[Float32, Float32, list[str]]:
        live = self.opened.release
        rows = drawn(self.catalog, live)
        vectors = np.stack([np.asarray(v, np.float32) for v in rows["vector"].to_pylist()])
        of_queries = encoded(self.opened.encoder, live.space.dim, texts)
        return of_queries, vectors, list(map(str, rows["doc_id"].to_pylist()))


def _judged(fusable: Fusable, metric: str, fusions: tuple[Fusion, ...], documents: int) -> Judged:
    none, every = np.zeros(documents, bool), np.ones(documents, bool)
    new: Vectors = fusable.new
    return Judged(
        metric=metric,
        queries=len(fusable.found.queries.texts),
        live=fusable.quality(metric, "slots", none),
        in_the_end={rule: fusable.quality(metric, rule, every) for rule in fusions},
        embedded=int(np.isfinite(new.documents).all(axis=1).sum()),
        tokens=new.tokens,
        seconds=round(new.seconds, 1),
    )


def _course(
    replay: Replay,
    first: Int64,
    per_query: float | None,
    sweep: str | None,
    fusable: Fusable | None,
    judged: Judged | None,
) -> Course:
    when, asked = replay.migrated(first, per_query), replay.asked
    marks = sorted({round(share * len(asked.text)) for share in _MARKS})
    points = []
    for queries in marks:
        migrated, days = np.asarray(when <= queries), None
        if asked.days is not None:
            days = round(float(asked.days[max(queries, 1) - 1]), 3)
        quality: dict[Fusion, float] = {}
        if fusable and judged:
            rules = judged.in_the_end
            quality = {rule: fusable.quality(judged.metric, rule, migrated) for rule in rules}
        answers = replay.answers(when, queries)
        points.append(Point(queries, days, float(migrated.mean()), answers, quality))
    last = int(when.max())
    return Course(sweep, tuple(points), None if last == NEVER else last)

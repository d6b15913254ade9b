"""Figures of a comparison, as its record keeps them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from reembed.catalog.reports import QueriesPlace

T = TypeVar("T")
U = TypeVar("U")
DEPTH = 100
"""Results of a query that are looked at."""
Kind = Literal["judgements", "clicks"]
"""What says which documents are relevant to a query."""


@dataclass(frozen=True)
class Needed:
    """About how many judged queries decide, 80 % of the time."""

    queries: int
    groups: int
    """Groups of queries in these, of the sizes seen; equal to `queries` where queries have no groups."""

    def __str__(self) -> str:
        if self.groups == self.queries:
            return f"{self.queries:,} queries"
        return f"{self.queries:,} queries in {self.groups:,} groups"


@dataclass(frozen=True)
class Sides(Generic[T]):
    """A figure of both releases."""

    live: T
    candidate: T

    def each(self, function: Callable[[T], U]) -> Sides[U]:
        """Return what a function makes of each."""
        return Sides(function(self.live), function(self.candidate))


@dataclass(frozen=True)
class QuerySet:
    """One of the sets that judged queries come from."""

    name: str
    source: str
    count: int
    dropped: int
    evidence: Kind = "judgements"
    """Clicks are weaker: only what live showed could be clicked."""


@dataclass(frozen=True)
class QueriesUsed:
    """The judged queries, and how they fit the documents of the candidate."""

    source: str
    place: QueriesPlace
    sha256: str
    count: int
    dropped: int
    """Queries without a relevant document, which are left out."""
    judged_present: float
    """Share of the judgements whose relevant document is in the candidate and may be found."""
    own_documents: int
    """Queries whose id is also a document's; that document is left out of their results."""
    own_judged: int
    """Queries among these that judge that document relevant: the ids may be equal by chance."""
    sets: tuple[QuerySet, ...] = ()
    """The same, of each set."""
    same_text: int = 0
    """Queries whose text another query has as well."""
    constant_slices: tuple[str, ...] = ()
    """Fields of `gate.slices` that are left out, since all queries have the same value."""
    clicks: int = 0
    """Distinct documents that were clicked, of each query of a log that judges."""
    clicks_outside: int = 0
    """Those of them that neither side has among its first 100 results."""
    not_held: int = 0
    """Judgements whose relevant document the candidate does not have: they count as not found."""


@dataclass(frozen=True)
class DocumentsCompared:
    """How the documents of the candidate and of live were chosen differently."""

    differ: tuple[str, ...]
    """What differs, in words."""
    behind: str | None
    """The release that a catch-up would bring to the documents of the other, if one would."""


@dataclass(frozen=True)
class Estimate:
    """The mean of n values and where the true mean lies; all but the mean are None when there is one group."""

    mean: float
    low: float | None
    """Lower end of the two-sided interval; `high` is the upper end."""
    high: float | None
    lower: float | None
    """One-sided lower bound: the true mean lies above it at the level."""
    upper: float | None
    """One-sided upper bound: the true mean lies below it at the level."""
    error: float | None
    """Standard error of the mean; of groups, cluster-robust."""
    df: float | None
    """Degrees of freedom of the bounds."""
    n: int
    independent: int
    """Groups of values that are independent of each other; n where each value is."""


@dataclass(frozen=True)
class MetricChange:
    """A metric's means, the change with its intervals, and how many queries changed."""

    live: float
    candidate: float
    change: Estimate
    worse: int
    same: int
    better: int
    margin: float | None = None
    """The loss that the gate allows, as it was applied; None where the gate does not use the metric."""


@dataclass(frozen=True)
class SliceChange:
    """How a metric changed over the queries that have one value in a field."""

    field: str
    value: str
    metric: str
    change: Estimate
    p: float | None
    """The chance of such a loss by luck if nothing got worse, adjusted for the number of tests; None if
    the slice is too small to be tested."""
    harmed: bool
    """Whether it is blocked for: a loss that is significant and larger than 0.03."""


@dataclass(frozen=True)
class LikelyGroups:
    """Queries that seem to belong together although no field of the gate says so."""

    how: str
    """What those of a group share, in words."""
    queries: int
    """Queries that share it with another."""
    example: str
    like: str
    """The id of a query that the example belongs with."""


@dataclass(frozen=True)
class KnownItems:
    """How well both releases find documents by their own first sentence."""

    asked: int
    """Documents that were looked for: drawn from those that both releases hold."""
    mrr_at_10: Sides[float] | None
    """None if nothing was asked."""
    why: str | None = None
    """Why nothing was asked."""


@dataclass(frozen=True)
class Latency:
    """Percentiles of latencies in milliseconds, each one that was measured."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    queries: int
    """Queries that were timed."""


@dataclass(frozen=True)
class IndexUsed:
    """An index, and what it takes."""

    factory: str
    """Its kind, as a factory string."""
    operating_point: dict[str, int]
    """Any of nprobe, ef_search and k_factor."""
    sha256: str
    """Digest of its manifest."""
    disk_bytes: int
    """All of its files."""
    memory_bytes: int | None
    """Files that a serving process reads into memory whole; None where Lance reads parts as it needs them."""


@dataclass(frozen=True)
class CurvePoint:
    """What an index finds at one value of its setting."""

    value: int
    ann_recall_at_10: float
    ms: float
    """Milliseconds a query, of a batch."""


@dataclass(frozen=True)
class Curve:
    """What an index finds the more it looks into."""

    setting: str
    """nprobe or ef_search."""
    value: int
    """What searches use."""
    queries: int
    """Judged queries that it was measured on."""
    points: tuple[CurvePoint, ...]
    """With ascending values; the one in use is among them."""


@dataclass(frozen=True)
class Quartiles:
    """The quarter, half and three quarters of some scores."""

    q25: float
    q50: float
    q75: float


@dataclass(frozen=True)
class Scores:
    """Scores of first results, counted between the edges."""

    relevant: tuple[int, ...]
    others: tuple[int, ...]
    """Of results that are judged not relevant, or not judged."""
    of_relevant: Quartiles | None
    """None without any."""
    of_others: Quartiles | None


@dataclass(frozen=True)
class ScoreDistributions:
    """How both releases score the first ten results of the judged queries."""

    edges: tuple[float, ...]
    """One more than there are counts; the same for both, each bin with its lower edge."""
    of: Sides[Scores]


@dataclass(frozen=True)
class Environment:
    """What a comparison ran on."""

    python: str
    packages: dict[str, str]
    """Versions."""
    platform: str
    cpus: int
    """That the process may use."""
    seeds: dict[str, int]
    """Of what is drawn at random. They are fixed."""


@dataclass(frozen=True)
class RunFile:
    """A run file in TREC format, and how it fits the judged queries and the documents."""

    place: str
    sha256: str
    queries: int
    """Judged queries that it has."""
    missing: int
    """Judged queries that it lacks."""
    unjudged: int
    """Queries that it has and nobody judged; not looked at."""
    unknown: int
    """Documents among its results that the release does not have; they count as not relevant unless judged."""


@dataclass(frozen=True)
class Clicked:
    """What clicks say: pseudo-judgements, which favour what live showed."""

    queries: int
    metrics: dict[str, MetricChange]
    judged_at_10: Sides[float]
    """Share of the first 10 results that were clicked."""
    clicks: int
    """Distinct documents that were clicked, of each query."""
    outside: int
    """Clicks on documents that neither release finds."""
    unknown: int
    """Clicks on documents that the candidate does not have."""


@dataclass(frozen=True)
class LoggedQueries:
    """What both releases answer to logged queries. Nothing is decided by it."""

    source: str
    sha256: str
    """Digest of the queries that were asked."""
    rows: int
    """Rows of the log."""
    empty: int
    """Rows without a text, which are left out."""
    distinct: int
    """Different texts; each counts once, however often it was asked."""
    asked: int
    """How many of them were drawn. The draw depends on the texts alone."""
    overlap_at_10: float
    rbo: float
    """Rank-biased overlap, extrapolated, p = 0.9."""
    zero_results: Sides[float]
    """Share of the queries without any result."""
    clicked: Clicked | None


@dataclass(frozen=True, kw_only=True)
class HowAnswered:
    """How both releases answer the judged queries, whatever the judgements are."""

    ann_recall_at_10: Sides[float]
    overlap_at_10: float
    rbo: float
    """Rank-biased overlap of the result lists, extrapolated, p = 0.9."""
    same_lists: int
    """Queries for which both have the same documents in the same order."""
    judged_at_10: Sides[float]
    zero_results: Sides[float]
    """Share of the queries without any result."""
    latency: Sides[Latency] | None
    """Latency of a search without encoding; None if too few queries were timed."""
    encoding: Sides[Latency] | None
    """Latency of encoding one query."""
    index: Sides[IndexUsed]
    curve: Sides[Curve | None]
    """None where the index looks at all vectors, and so has no setting."""
    scores: ScoreDistributions | None
    """None without results."""
    not_embedded: Sides[int]
    """Queries that the model cannot embed: a search finds nothing, and its index is not measured on them."""
    truncated: Sides[int | None]
    """Queries whose text is longer than the model reads; None where the provider tokenizes."""

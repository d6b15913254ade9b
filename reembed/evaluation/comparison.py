"""The record of a comparison and its parts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from reembed.catalog.releases import Release
from reembed.catalog.reports import (
    Change,
    ComparisonSummary,
    Evidence,
    GateMargin,
    JudgedQueries,
)
from reembed.config.settings import FrozenGate
from reembed.evaluation.gate import Verdict
from reembed.evaluation.metrics import Floats, Latency, paired_interval
from reembed.store.records import encode

T = TypeVar("T")
_PARTS: tuple[Literal["margin", "queries"], ...] = ("margin", "queries")


@dataclass(frozen=True)
class Sides(Generic[T]):
    """A figure of both releases."""

    live: T
    candidate: T


@dataclass(frozen=True)
class Compared:
    """A release that was compared."""

    release: str
    model: str
    space: str
    model_sha256: str
    dim: int
    rows: int
    documents: int
    dead_letters: int
    source_version: int
    created_at: str

    @classmethod
    def of(cls, release: Release) -> Compared:
        """Describe a release."""
        return cls(**release.summary())


@dataclass(frozen=True)
class Place:
    """Where judged queries were read from."""

    queries: str
    split: str


@dataclass(frozen=True)
class QueriesUsed:
    """The judged queries, and how they fit the documents of the candidate."""

    source: str
    place: Place
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


@dataclass(frozen=True)
class DocumentsCompared:
    """How the documents of the candidate and of live were chosen differently."""

    differ: tuple[str, ...]
    """What differs, in words."""
    behind: str | None
    """The release that a catch-up would bring to the documents of the other, if one would."""


@dataclass(frozen=True)
class Estimate:
    """The mean of n differences and its bounds; the bounds and sd are None when n is 1."""

    mean: float
    low: float | None
    high: float | None
    lower: float | None
    upper: float | None
    sd: float | None
    n: int

    @classmethod
    def of(cls, deltas_Q: Floats) -> Estimate:
        """Estimate the mean of differences, float64 [Q]."""
        found = paired_interval(deltas_Q)
        if found.n == 1:
            return cls(found.mean, None, None, None, None, None, 1)
        return cls(**vars(found))


@dataclass(frozen=True)
class MetricChange:
    """A metric's means, the change with its intervals, and how many queries changed."""

    live: float
    candidate: float
    change: Estimate
    worse: int
    same: int
    better: int

    @classmethod
    def of(cls, live_Q: Floats, candidate_Q: Floats) -> MetricChange:
        """Summarise a metric of both releases: float64 [Q] each, on the same queries."""
        deltas_Q = candidate_Q - live_Q
        return cls(
            live=float(live_Q.mean()),
            candidate=float(candidate_Q.mean()),
            change=Estimate.of(deltas_Q),
            worse=int((deltas_Q < 0).sum()),
            same=int((deltas_Q == 0).sum()),
            better=int((deltas_Q > 0).sum()),
        )


@dataclass(frozen=True, kw_only=True)
class Comparison(Verdict):
    """A verdict on a candidate and what it rests on: the record that `promote` asks for."""

    alias: str
    live: Compared
    candidate: Compared
    candidate_index_sha256: str
    queries: QueriesUsed
    documents: DocumentsCompared
    gate: FrozenGate
    """What was judged by: the planned gate with its changes."""
    planned_gate: FrozenGate
    gate_is_late: bool
    """Whether the plan named no queries, so that they are those of the first comparison."""
    changes: tuple[Change, ...]
    metrics: dict[str, MetricChange]
    ann_recall_at_10: Sides[float]
    overlap_at_10: float
    judged_at_10: Sides[float]
    latency: Sides[Latency] | None
    """Of a search without encoding; None where too few queries were timed."""
    by: str
    at: str
    number: int = 0
    """Its place among the comparisons of its pair, from 1; 0 before it is kept."""
    earlier: tuple[ComparisonSummary, ...] = ()
    """Comparisons before it of the same model, in this release or another, with the same live line."""
    report: str = ""
    """Its page: the path under the root."""

    def to_json(self) -> dict[str, Any]:
        """Return the comparison for scripts."""
        return encode(self)

    def summary(self) -> ComparisonSummary:
        """Return the comparison in short."""
        kinds = {"margin" if isinstance(c.after, GateMargin) else "queries" for c in self.changes}
        return ComparisonSummary(
            candidate=self.candidate.release,
            live=self.live.release,
            number=self.number,
            verdict=self.verdict,
            queries=JudgedQueries(self.queries.source, self.queries.sha256, self.queries.count),
            margin=self.gate.margin,
            changed=tuple(part for part in _PARTS if part in kinds),
            by=self.by,
            at=self.at,
        )

    def evidence(self) -> Evidence:
        """Return what the alias's log keeps of it when the candidate becomes live."""
        digest = hashlib.sha256(json.dumps(encode(self), sort_keys=True).encode()).hexdigest()
        return Evidence(
            **vars(self.summary()), sha256=digest, changes=self.changes, earlier=self.earlier
        )

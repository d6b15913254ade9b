"""What verifications and comparisons found, as a release and the alias's log keep it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from reembed.clock import now
from reembed.store.records import encode

FILES, IDS, ROWS, VECTORS = range(4)
"""Levels of a verification; each includes those below it."""

DifferenceKind = Literal[
    "missing",
    "extra",
    "duplicate",
    "stale",
    "carried",
    "mismatched",
    "corrupt",
    "unindexed",
    "misnamed",
    "misplaced",
    "damaged",
    "wrong_vector",
]
Outcome = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True)
class Difference:
    """One kind of difference: how many rows, documents or files have it, and the first few of them."""

    count: int
    examples: tuple[str | int, ...] = ()


Differences = dict[DifferenceKind, Difference]


@dataclass(frozen=True)
class VerifyReport:
    """What a verification compared, and what differs."""

    table: str
    table_version: int
    source_version: int
    level: int
    documents: int
    """Documents of the source; 0 below level 1, which does not read it."""
    rows: int
    """Rows of the table."""
    table_documents: int
    """Distinct documents of these rows; below level 1, the number of rows."""
    dead_letters: int
    """Documents without a vector."""
    differences: Differences
    """missing, extra, duplicate, stale (other text), carried (same text, other values or types of
    carried columns), mismatched (other space), corrupt (not finite, zero), unindexed, misnamed (the
    index gives another document id), misplaced (a search by its own vector does not find it),
    damaged (files whose sha256 is not the receipt's), and wrong_vector (re-embedded, another vector)."""
    behind: Differences | None
    """What differs from the newest version of the source; None if no newer version was read."""
    sampled: int
    """Rows re-embedded."""
    seed: int | None = None
    """The seed these rows were drawn with; None below level 3, which draws none."""
    why: str | None = None
    """Why the verification could not finish; None if it did."""
    new_rows: int | None = None
    """Rows that were compared; None if all were. The others are in files that a verified release of the
    line shares, and were compared when that one was verified."""
    at: str = field(default_factory=now)

    @property
    def passed(self) -> bool:
        """Whether the verification finished and nothing differs."""
        return self.why is None and not any(d.count for d in self.differences.values())

    @property
    def lacking(self) -> int | None:
        """Documents that differ from the newest version; None if it was not read, or only for its ids."""
        if self.behind is None or self.level < ROWS:
            return None
        kinds = ("missing", "extra", "stale", "carried")
        return sum(d.count for kind, d in self.behind.items() if kind in kinds)

    @property
    def confidence(self) -> str:
        """What the re-embedded sample shows, in words."""
        if self.level < ROWS:
            return "files and ids only" if self.level else "files only, by name and size"
        if not self.sampled:
            return "no vector was re-embedded"
        if wrong := self.differences["wrong_vector"].count:
            return f"{wrong:,} of {self.sampled:,} re-embedded have another vector"
        compared, new = (self.rows, "") if self.new_rows is None else (self.new_rows, "new ")
        if self.sampled >= compared:
            return f"every {new}vector was re-embedded"
        bound = -math.log(0.01) / self.sampled
        return f"{self.sampled} {new}re-embedded: with 99 % confidence under {bound:.1%} are wrong"

    def to_json(self) -> dict[str, Any]:
        """Return the report with what follows from it, for people and scripts."""
        return encode(self) | {"passed": self.passed, "confidence": self.confidence}


@dataclass(frozen=True)
class JudgedQueries:
    """Judged queries, by content."""

    source: str
    sha256: str
    count: int


@dataclass(frozen=True)
class GateMargin:
    """The part of a gate that says which loss may pass."""

    margin: float | None


@dataclass(frozen=True)
class QueriesPlace:
    """Where judged queries are read from, and which of their fields are kept."""

    queries: tuple[str, ...]
    split: str
    slices: tuple[str, ...] = ()
    group: str | None = None


@dataclass(frozen=True, kw_only=True)
class GateQueries(QueriesPlace):
    """The part of a gate that says which queries judge."""

    sha256: str
    count: int


@dataclass(frozen=True)
class GateSettings:
    """The part of a gate that says how queries are divided, what they measure, and how slow a search may be."""

    slices: tuple[str, ...]
    group: str | None
    metrics: tuple[str, ...]
    latency_ratio: float
    sha256: str
    """Digest of the queries with these fields."""


@dataclass(frozen=True)
class Change:
    """Gate settings that a comparison judged by instead of the planned ones, and why."""

    before: GateMargin | GateQueries | GateSettings
    after: GateMargin | GateQueries | GateSettings
    reason: str
    by: str
    at: str


@dataclass(frozen=True)
class CutOff:
    """A score of the candidate, with its 95 % interval."""

    score: float | None
    """None if it is not known."""
    low: float | None
    """None if some resamples of the queries reach it at no score, or at one that not enough results are known of."""
    high: float | None
    why: str = ""
    """Why the score is not known."""


@dataclass(frozen=True)
class CutOffs:
    """What corresponds to a cut-off of live's scores: only results with at least that score are shown."""

    cutoff: float
    live_recall: float
    """Mean share of the relevant documents that are shown."""
    live_results: float
    """Mean number of results that are shown."""
    same_recall: CutOff
    """Highest cut-off of the candidate with at least this recall; not known if more than a twentieth of the lists of
    either are full above its cut-off and lack a relevant document."""
    same_share: CutOff
    """Highest cut-off of the candidate with at least this number of results; not known if more than a twentieth
    of the lists of either are full above its cut-off."""
    full_lists: int
    """Queries of which live shows all results that were looked at; there may be more of them."""


@dataclass(frozen=True)
class MetricLook:
    """What a shadow's queries so far show of a metric's true change, however often one looks."""

    verdict: Outcome
    """pass: the loss is not larger than the margin; fail: it is."""
    margin: float
    """The allowed loss, absolute."""
    mean: float
    lower: float
    upper: float
    expected: int | None
    """About how many queries (or groups) decide if the true change is this one; None if it decided, or none would."""


@dataclass(frozen=True)
class ShadowLook:
    """A look of a shadow at all queries it has judged so far, before the cut-over or after it."""

    shadow: int
    look: int
    planned: int | None
    """The number of queries (or groups) of a group-sequential design; None: any number, an always-valid sequence."""
    guards: bool
    """Whether it looks for harm after the cut-over."""
    queries: int
    independent: int
    """Groups of queries among these; as many where queries have no groups."""
    metrics: dict[str, MetricLook]
    earlier: tuple[int, ...]
    """Earlier shadows of the same two lines."""

    @property
    def verdict(self) -> Outcome:
        """The worst verdict of its metrics: fail, else inconclusive, else pass."""
        found = {m.verdict for m in self.metrics.values()}
        worst_first: tuple[Outcome, ...] = ("fail", "inconclusive", "pass")
        return next((v for v in worst_first if v in found), "inconclusive")


@dataclass(frozen=True)
class ComparisonSummary:
    """A comparison in short."""

    candidate: str
    live: str
    number: int
    verdict: Outcome
    queries: JudgedQueries
    margin: float | None
    changed: tuple[Literal["margin", "queries", "settings"], ...]
    """Which of these differ from the plan."""
    runs: tuple[str, str] | None
    """The run files that were judged, of live and of the candidate; None if the releases were searched."""
    shadow: ShadowLook | None
    """The look that its verdict on the metrics is from; None if one sample of queries gave it."""
    by: str
    at: str


@dataclass(frozen=True)
class Evidence(ComparisonSummary):
    """The comparison behind a promotion, as the alias's log keeps it."""

    sha256: str
    """Digest of the comparison's record."""
    changes: tuple[Change, ...]
    earlier: tuple[ComparisonSummary, ...]
    """Comparisons of the same model with the same live line that were made before it."""
    cutoffs: CutOffs | None = None
    """The candidate's cut-offs that correspond to one of live, if one was given."""


@dataclass(frozen=True)
class ReleaseSummary:
    """A release in short."""

    release: str
    model: str
    """With a second one that embeds queries, both."""
    space: str
    """Of the documents' vectors."""
    query_space: str
    """Of queries: the same, unless another model embeds them."""
    model_sha256: str
    dim: int
    rows: int
    documents: int
    dead_letters: int
    source_version: int
    created_at: str


@dataclass(frozen=True)
class Grounds:
    """Why a promote or rollback was allowed."""

    reason: str | None = None
    """Why a gate was left out or overruled, or why it was rolled back, in the operator's words."""
    forced: bool = False
    without_evidence: bool = False
    """Whether it needed no comparison because nobody judged anything for it."""
    comparison: Evidence | None = None
    """The comparison that allowed it, or the last one that `forced` overruled; None without one."""
    unknown: tuple[str, ...] = ()
    """What was not known when the gate was left out or overruled, in words."""
    below_gate: str | None = None
    """What was known then, and was less than the gate needs, in words."""
    shadow: ShadowLook | None = None
    """The look after which `reembed shadow` made this step by itself; None if a person made it."""

"""Comparisons: what one found, and where they are kept. Every one is kept, and `promote` reads the newest.

comparisons/ALIAS/CANDIDATE/LIVE/00000001.json   create-only; CANDIDATE and LIVE are the rebuilds
                                                 that the two releases grew out of by catch-ups
comparisons/ALIAS/CANDIDATE/LIVE/00000001.html   its report
comparisons/ALIAS/CANDIDATE/LIVE/00000001.pass   or .fail, .inconclusive: empty, so that a listing
                                                 shows every verdict; nothing is decided by it
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar, get_args

from reembed.catalog.releases import Catalog, Release
from reembed.catalog.reports import (
    Change,
    ComparisonSummary,
    Evidence,
    GateMargin,
    JudgedQueries,
    Outcome,
    QueriesPlace,
    ReleaseSummary,
)
from reembed.config.gate import FrozenGate
from reembed.errors import IntegrityError
from reembed.space import sha256_of
from reembed.store.records import decode, encode

T = TypeVar("T")
_NAMES = {"ndcg": "nDCG", "mrr": "MRR"}
"""How people write a metric, where a record's key differs."""
_PARTS: tuple[Literal["margin", "queries"], ...] = ("margin", "queries")
_NUMBER = re.compile(r"([0-9]{8})\.json")


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
class Rule:
    """What one rule of the gate found. A number is None if nothing was measured."""

    name: str
    verdict: Outcome
    detail: str
    observed: float | None = None
    """The mean."""
    bound: float | None = None
    """The lower one-sided 95 % bound of the mean; None when one query gives none."""
    required: float | None = None
    """What the bound must reach."""
    margin: float | None = None
    """The allowed loss; only for a rule about a change."""
    if_unchanged: Needed | None = None
    """What would decide if the true change is 0; only when inconclusive, None if there are as many."""
    if_real: Needed | None = None
    """What would decide if the true value is the observed one; only when inconclusive."""
    metric: str | None = None
    """The key of the metric whose change it judges."""
    n: int = 0
    """Queries it was measured on."""
    independent: int = 0
    """Groups of queries among these; n where queries have no groups."""


@dataclass(frozen=True)
class Verdict:
    """The worst verdict of all rules: fail, else inconclusive, else pass."""

    verdict: Outcome
    rules: tuple[Rule, ...]
    if_unchanged: Needed | None
    """What would decide if nothing really changes: the most that a rule needs; None if not inconclusive."""
    if_real: Needed | None
    """What would decide if the observed values are the true ones."""
    margin_needed: float | None
    """The smallest margin, to three digits, with which it would pass; None where no margin would."""


@dataclass(frozen=True)
class Sides(Generic[T]):
    """A figure of both releases."""

    live: T
    candidate: T


@dataclass(frozen=True)
class QuerySet:
    """One of the sets that judged queries come from."""

    name: str
    source: str
    count: int
    dropped: int


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
class Latency:
    """Percentiles of latencies in milliseconds, each one that was measured."""

    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True, kw_only=True)
class Comparison(Verdict):
    """A verdict on a candidate, and its grounds: the record that `promote` requires."""

    alias: str
    live: ReleaseSummary
    candidate: ReleaseSummary
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
    """Latency of a search without encoding; None if too few queries were timed."""
    by: str
    at: str
    number: int = 0
    """Its place among the comparisons of its pair, from 1; 0 before it is kept."""
    earlier: tuple[ComparisonSummary, ...] = ()
    """Comparisons before it of the same model, in this release or another, with the same live line."""
    report: str = ""
    """Path of its report under the root."""

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
        digest = sha256_of(encode(self))
        return Evidence(
            **vars(self.summary()), sha256=digest, changes=self.changes, earlier=self.earlier
        )


def metric_name(key: str) -> str:
    """Return a metric's name as people write it: nDCG@10 for the key ndcg@10."""
    kind, at, depth = key.partition("@")
    return f"{_NAMES.get(kind, kind)}{at}{depth}"


def keep(catalog: Catalog, live: Release, candidate: Release, record: Comparison) -> Comparison:
    """Add a comparison to those of its pair; return it with its number, the earlier ones and its report."""
    pair = f"{folder(catalog, candidate)}/{live.origin}"
    while True:
        earlier = tuple(r.summary() for r in of_model(catalog, live, candidate))
        number = len(_numbers(catalog, pair)) + 1
        path = f"{pair}/{number:08d}"
        kept = replace(record, number=number, earlier=earlier, report=f"{path}.html")
        if catalog.storage.create(f"{path}.json", encode(kept)):
            catalog.storage.write_bytes(f"{path}.{kept.verdict}", b"")
            return kept


def read(catalog: Catalog, path: str) -> Comparison:
    """Return a comparison that was kept.

    Raises:
        IntegrityError: it has another form than `keep` gives it.
    """
    return decode(Comparison, catalog.storage.read(path))


def newest(catalog: Catalog, live: Release, candidate: Release) -> Comparison | None:
    """Return the last comparison of a candidate's line with live's; None if there is none.

    Raises:
        IntegrityError: comparisons were removed, or this one is of another pair.
    """
    pair = f"{folder(catalog, candidate)}/{live.origin}"
    numbers = _numbers(catalog, pair)
    if not numbers:
        return None
    path = f"{pair}/{numbers[-1]:08d}.json"
    record = read(catalog, path)
    compared = record.candidate.release, record.live.release
    origins = [catalog.release(r).origin for r in compared]
    if origins != [candidate.origin, live.origin] or record.number != numbers[-1]:
        raise IntegrityError(
            f"{path} is a comparison of other releases",
            "it compared {} with {}".format(*compared),
            f"reembed compare --candidate {candidate.id}",
        )
    return record


def last(catalog: Catalog, live: Release, candidate: Release) -> Evidence | None:
    """Return what the alias's log keeps of a pair's last comparison when the gate is overruled, if any."""
    paths = _paths(_listed(catalog)).get((candidate.origin, live.origin))
    if paths is None:
        return None
    return read(catalog, paths[-1]).evidence()


def compared_with(catalog: Catalog, candidate: Release) -> list[str]:
    """Return the lines that a candidate's line was compared with, by their first release."""
    return catalog.storage.folders(f"{folder(catalog, candidate)}/")


@dataclass(frozen=True)
class Newest:
    """The last comparison of a pair."""

    path: str
    named: Outcome | None
    """The verdict that a file beside it names; None if its writer was killed before that."""

    def verdict(self, catalog: Catalog) -> Outcome:
        """Return the verdict as named, or as the comparison says."""
        return self.named or read(catalog, self.path).verdict


Pairs = dict[tuple[str, str], Newest]
"""The newest comparison of each pair, by the lines of candidate and live."""


def pairs(catalog: Catalog) -> Pairs:
    """Return what was compared with what: one listing, no record is read."""
    listed = _listed(catalog)
    outcomes: tuple[Outcome, ...] = get_args(Outcome)

    def newest(path: str) -> Newest:
        stem = path.removesuffix(".json")
        return Newest(path, next((o for o in outcomes if f"{stem}.{o}" in listed), None))

    return {pair: newest(paths[-1]) for pair, paths in _paths(listed).items()}


def of_model(catalog: Catalog, live: Release, candidate: Release) -> list[Comparison]:
    """Return the comparisons of a candidate's weights with live's line, oldest first.

    Other settings (prompts, dtype, dimensions) do not count: a small change of one is not a new
    model, and another space costs only a run.
    """
    found = [
        read(catalog, path)
        for (_, line), paths in _paths(_listed(catalog)).items()
        if line == live.origin
        for path in paths
    ]
    weights = candidate.space.identity.model_sha256
    mine = [r for r in found if r.candidate.model_sha256 == weights]
    return sorted(mine, key=lambda r: (r.at, r.candidate.release, r.number))


def folder(catalog: Catalog, candidate: Release) -> str:
    """Return the folder of the comparisons of a candidate's line."""
    return f"comparisons/{catalog.alias}/{candidate.origin}"


def _listed(catalog: Catalog) -> dict[str, None]:
    """Return the paths of what is kept of an alias's comparisons, sorted."""
    return {path: None for path, _ in catalog.storage.objects(f"comparisons/{catalog.alias}/")}


def _paths(listed: Iterable[str]) -> dict[tuple[str, str], list[str]]:
    """Return the paths of the comparisons of each pair, oldest first."""
    paths: dict[tuple[str, str], list[str]] = {}
    for path in listed:
        place = path.split("/")[2:]
        if len(place) == 3 and _NUMBER.fullmatch(place[2]):
            paths.setdefault((place[0], place[1]), []).append(path)
    return paths


def _numbers(catalog: Catalog, pair: str) -> list[int]:
    names = map(_NUMBER.fullmatch, catalog.storage.names(f"{pair}/"))
    numbers = [int(m[1]) for m in names if m]
    if numbers != list(range(1, len(numbers) + 1)):
        raise IntegrityError(
            f"comparisons were removed from {pair}",
            f"there are numbers {', '.join(map(str, numbers))}",
            "reembed status     # and put the files back from a backup of the store",
        )
    return numbers

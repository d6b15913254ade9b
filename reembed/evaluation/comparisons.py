"""Comparisons: what one found, and where they are kept. Every one is kept, and `promote` reads the newest.

comparisons/ALIAS/CANDIDATE/LIVE/00000001.json   create-only; CANDIDATE and LIVE are the rebuilds
                                                 that the two releases grew out of by catch-ups
comparisons/ALIAS/CANDIDATE/LIVE/00000001.html   its report
comparisons/ALIAS/CANDIDATE/LIVE/SHA256.parquet  the values of each query, written before it; gc takes those that
                                                 no comparison names
comparisons/ALIAS/CANDIDATE/LIVE/00000001.pass   or .fail, .inconclusive: empty, so that a listing
                                                 shows what promote goes by; nothing is decided by it
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from reembed import faults
from reembed.catalog.alias import who
from reembed.catalog.numbered import NUMBER, numbers
from reembed.catalog.releases import Catalog, Release
from reembed.catalog.reports import (
    Change,
    ComparisonSummary,
    CutOffs,
    Evidence,
    GateMargin,
    GateQueries,
    GateSettings,
    JudgedQueries,
    Outcome,
    ReleaseSummary,
    ShadowLook,
)
from reembed.clock import now
from reembed.config.gate import FrozenGate
from reembed.errors import IntegrityError
from reembed.evaluation.figures import (
    DocumentsCompared,
    Environment,
    HowAnswered,
    KnownItems,
    LikelyGroups,
    LoggedQueries,
    MetricChange,
    Needed,
    QueriesUsed,
    RunFile,
    Sides,
    SliceChange,
)
from reembed.space import sha256_of
from reembed.store.paths import content_path
from reembed.store.records import decode, encode

_NAMES = {"ndcg": "nDCG", "mrr": "MRR"}
"""How people write a metric, where a record's key differs."""
_PARTS: tuple[tuple[type, Literal["margin", "queries", "settings"]], ...] = (
    (GateMargin, "margin"),
    (GateQueries, "queries"),
    (GateSettings, "settings"),
)


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


@dataclass(frozen=True, kw_only=True)
class Comparison(Verdict, HowAnswered):
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
    slices: tuple[SliceChange, ...]
    """The gate's metrics in each part of the queries; without a p-value where it is too small to be tested."""
    likely_groups: LikelyGroups | None
    """Queries that seem to belong together; looked for if the gate names no field for it."""
    known_items: KnownItems
    runs: Sides[RunFile] | None
    """The run files that the metrics come from; None if the releases were searched."""
    shadow: ShadowLook | None
    """The look that judged the metrics, over the queries as they arrived; None if this sample of queries did."""
    cutoffs: CutOffs | None
    logged: LoggedQueries | None
    environment: Environment
    by: str = field(default_factory=who)
    at: str = field(default_factory=now)
    number: int = 0
    """Its place among the comparisons of its pair, from 1; 0 before it is kept."""
    earlier: tuple[ComparisonSummary, ...] = ()
    """Comparisons before it of the same model, in this release or another, with the same live line."""
    per_query_sha256: str = ""
    """Digest, and name, of the file with the values of each query."""
    report: str = ""
    """Path of its report under the root."""

    def to_json(self) -> dict[str, Any]:
        """Return the comparison for scripts."""
        return encode(self)

    def summary(self) -> ComparisonSummary:
        """Return the comparison in short."""
        kinds = {type(change.after) for change in self.changes}
        return ComparisonSummary(
            candidate=self.candidate.release,
            live=self.live.release,
            number=self.number,
            verdict=self.verdict,
            queries=JudgedQueries(self.queries.source, self.queries.sha256, self.queries.count),
            margin=self.gate.margin,
            changed=tuple(name for kind, name in _PARTS if kind in kinds),
            runs=(self.runs.live.place, self.runs.candidate.place) if self.runs else None,
            shadow=self.shadow,
            by=self.by,
            at=self.at,
        )

    def evidence(self) -> Evidence:
        """Return what the alias's log keeps of it when the candidate becomes live."""
        digest = sha256_of(encode(self))
        return Evidence(
            **vars(self.summary()),
            sha256=digest,
            changes=self.changes,
            earlier=self.earlier,
            cutoffs=self.cutoffs,
        )


def not_passed_by_runs(found: Comparison) -> ComparisonSummary | None:
    """Return the last earlier comparison by run files if it did not pass and `found` is by searches.

    Run files come from the whole pipeline that users have. A search of the releases alone is less
    evidence and does not take the place of one that did not pass.
    """
    by_runs = [made for made in found.earlier if made.runs]
    if found.runs or not by_runs or by_runs[-1].verdict == "pass":
        return None
    return by_runs[-1]


def decisive(found: Comparison) -> ComparisonSummary:
    """Return what `promote` goes by if `found` is the newest: it, or the one by run files that it cannot replace."""
    return not_passed_by_runs(found) or found.summary()


def metric_name(key: str) -> str:
    """Return a metric's name as people write it: nDCG@10 for the key ndcg@10."""
    kind, at, depth = key.partition("@")
    return f"{_NAMES.get(kind, kind)}{at}{depth}"


def keep(
    catalog: Catalog, live: Release, candidate: Release, record: Comparison, values: bytes
) -> Comparison:
    """Add a comparison to those of its pair; return it with its number, the earlier ones and its report.

    `values` is the file with the values of each query.
    """
    pair = f"{folder(catalog, candidate)}/{live.origin}"
    sha256 = hashlib.sha256(values).hexdigest()
    record = replace(record, per_query_sha256=sha256)
    catalog.storage.write_bytes(content_path(pair, sha256, "parquet"), values)
    faults.point("compare.after_queries")
    while True:
        earlier = tuple(r.summary() for r in of_model(catalog, live, candidate))
        number = len(numbers(catalog.storage, pair)) + 1
        path = f"{pair}/{number:08d}"
        kept = replace(record, number=number, earlier=earlier, report=f"{path}.html")
        if catalog.storage.create(f"{path}.json", encode(kept)):
            catalog.storage.write_bytes(f"{path}.{decisive(kept).verdict}", b"")
            return kept


def read(catalog: Catalog, path: str) -> Comparison:
    """Return a comparison that was kept.

    Raises:
        IntegrityError: it has another form than `keep` gives it.
    """
    return decode(Comparison, catalog.storage.read(path))


def values_path(path: str, record: Comparison) -> str:
    """Return the path of the values of each query of the comparison that was kept at a path."""
    return content_path(path.rpartition("/")[0], record.per_query_sha256, "parquet")


def values_of_pair(catalog: Catalog, pair: str) -> set[str]:
    """Return the paths of the values of each query of all comparisons in a folder.

    Raises:
        IntegrityError: a comparison is damaged, or one was removed.
    """
    paths = [f"{pair}/{number:08d}.json" for number in numbers(catalog.storage, pair)]
    return {values_path(path, read(catalog, path)) for path in paths}


def newest(catalog: Catalog, live: Release, candidate: Release) -> Comparison | None:
    """Return the last comparison of a candidate's line with live's; None if there is none.

    Raises:
        IntegrityError: comparisons were removed, or this one is of another pair.
    """
    pair = f"{folder(catalog, candidate)}/{live.origin}"
    found = numbers(catalog.storage, pair)
    if not found:
        return None
    path = f"{pair}/{found[-1]:08d}.json"
    record = read(catalog, path)
    compared = record.candidate.release, record.live.release
    origins = [catalog.release(r).origin for r in compared]
    if origins != [candidate.origin, live.origin] or record.number != found[-1]:
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
    """The decisive verdict, as a file beside it names it; None if its writer was killed before that."""

    def verdict(self, catalog: Catalog) -> Outcome:
        """Return the decisive verdict as named, or as the comparison says."""
        return self.named or decisive(read(catalog, self.path)).verdict


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
    weights = candidate.model_sha256
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
        if len(place) == 3 and NUMBER.fullmatch(place[2]):
            paths.setdefault((place[0], place[1]), []).append(path)
    return paths

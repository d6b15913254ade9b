"""What a comparison judges by: the gate and the queries that were planned, or recorded changes of them.

comparisons/ALIAS/CANDIDATE/late-gate.json       create-only: the plan's gate with the queries of the
                                                 first comparison, where the plan named none
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from reembed.catalog.alias import who
from reembed.catalog.releases import Catalog, Release
from reembed.catalog.reports import (
    Change,
    GateMargin,
    GateQueries,
    GateSettings,
    QueriesPlace,
    ShadowLook,
)
from reembed.clock import now
from reembed.config.gate import FrozenGate, GateConfig
from reembed.errors import IntegrityError, UsageError
from reembed.evaluation import comparisons
from reembed.evaluation import queries as evalset
from reembed.evaluation.comparisons import Comparison
from reembed.evaluation.gate import require_verdict_of_rules
from reembed.evaluation.report import compare_again, to_compare
from reembed.store.records import decode, encode

_Part = GateMargin | GateQueries | GateSettings


@dataclass(frozen=True)
class Asked:
    """What a comparison does differently from the plan."""

    changed_queries: bool = False
    """Judge by the queries as they are now, or as the config names them now."""
    margin: float | None = None
    """Judge by this margin."""
    reason: str | None = None
    runs: tuple[str, str] | None = None
    """Judge these run files, of live and of the candidate, instead of searching."""
    cutoff: float | None = None
    """A cut-off of live's scores to find the candidate's for."""
    texts: bool = False
    """Keep the texts of the queries beside their values."""
    changed_gate: bool = False
    """Judge by the group, slices, metrics and latency ratio that the config names now."""
    looked: ShadowLook | None = None
    """Judge the metrics by this look of a shadow."""
    reports: tuple[str, ...] = ()
    """Local files to write the report to as well."""
    document_texts: bool = False
    """Show in the report how the documents' texts begin, too."""


@dataclass(frozen=True)
class Terms:
    """What a comparison judges by."""

    planned: FrozenGate
    late: bool
    """Whether the plan named no queries: they, their groups and slices, the metrics and the latency ratio are
    those of the first comparison; margin and ann_recall are as planned."""
    place: QueriesPlace
    """Where the queries were read from."""
    changes: tuple[Change, ...] = ()

    @classmethod
    def of(cls, record: Comparison) -> Terms:
        """Return the terms of a comparison that was made."""
        return cls(record.planned_gate, record.gate_is_late, record.queries.place, record.changes)

    @property
    def gate(self) -> FrozenGate:
        """The planned gate with the changes."""
        changed = {k: v for change in self.changes for k, v in asdict(change.after).items()}
        return decode(FrozenGate, self.planned.model_dump() | changed)


def agree(
    catalog: Catalog, live: Release, candidate: Release, configured: GateConfig, asked: Asked
) -> tuple[Terms, evalset.EvalSet]:
    """Return the terms of a comparison and its queries: as planned, or changed with a reason.

    Raises:
        UsageError: no queries are named, or they are no longer those that were planned.
    """
    options = dict(catalog.query_options)
    planned, late = _planned(catalog, live, candidate, configured)
    place, queries = _read_queries(planned, configured, asked, options)
    if queries.sha256 != planned.sha256 and not asked.changed_queries:
        raise _changed(candidate, planned, queries, asked)
    if asked.changed_gate:
        place = replace(place, slices=configured.slices, group=configured.group)
        queries = evalset.load(place, options)
    changes = _changes(planned, configured, place, queries, asked)
    return Terms(planned, late, place, tuple(changes)), queries


def _changes(
    planned: FrozenGate,
    configured: GateConfig,
    place: QueriesPlace,
    queries: evalset.EvalSet,
    asked: Asked,
) -> list[Change]:
    pairs: list[tuple[_Part, _Part]] = []
    if queries.sha256 != planned.sha256 and asked.changed_queries:
        count = len(queries.query_ids)
        after = GateQueries(**vars(place), sha256=queries.sha256, count=count)
        pairs.append((_queries_of(planned), after))
    if asked.margin not in (None, planned.margin):
        if not 0 < asked.margin < 1:
            what = f"margin is {asked.margin}, not between 0 and 1"
            raise UsageError(what, None, "compare(config, margin=0.02)")
        pairs.append((GateMargin(planned.margin), GateMargin(asked.margin)))
    settings = _settings_of(planned, str(planned.sha256))
    if asked.changed_gate and settings != (now_ := _settings_of(configured, queries.sha256)):
        pairs.append((settings, now_))
    reason = asked.reason or ""
    return [Change(before, after, reason, who(), now()) for before, after in pairs]


def _settings_of(gate: GateConfig, sha256: str) -> GateSettings:
    return GateSettings(gate.slices, gate.group, gate.metrics, gate.latency_ratio, sha256)


def _queries_of(gate: FrozenGate) -> GateQueries:
    assert gate.sha256 is not None  # a gate without queries judges nothing
    assert gate.count is not None
    return GateQueries(**vars(evalset.place_of(gate)), sha256=gate.sha256, count=gate.count)


def _read_queries(
    planned: FrozenGate, configured: GateConfig, asked: Asked, options: dict[str, str]
) -> tuple[QueriesPlace, evalset.EvalSet]:
    """Return the planned queries, wherever they are now, and their place; others if `asked` accepts those.

    If neither place has the planned ones: what is in the planned place, or else in the other.
    """
    places = [evalset.place_of(g) for g in (configured, planned) if g.queries]
    if asked.changed_queries:
        places = places[:1]
    elif asked.changed_gate:  # their fields are part of the digest
        places = [replace(p, slices=planned.slices, group=planned.group) for p in places]
    found: list[tuple[QueriesPlace, evalset.EvalSet]] = []
    for place in places:
        try:
            queries = evalset.load(place, options)
        except UsageError:
            if place is places[-1] and not found:
                raise
            continue
        found.append((place, queries))
        if queries.sha256 == planned.sha256:
            break
    return found[-1]


def _planned(
    catalog: Catalog, live: Release, candidate: Release, configured: GateConfig
) -> tuple[FrozenGate, bool]:
    """Return the gate fixed before results existed, and whether its queries were fixed only at the first comparison."""
    fixed, late = planned_gate(catalog, live, candidate)
    if fixed is not None:
        return fixed, late
    if not configured.queries:
        raise UsageError(
            f"release {candidate.id} was planned without judged queries: nothing shows that it is better",
            "no relevance evidence, only structural checks; a comparison can still name the queries",
            to_compare(candidate.id, judged=False),
        )
    named = evalset.freeze(configured, dict(catalog.query_options))
    settings = _settings_of(named, str(named.sha256))
    gate = FrozenGate(**candidate.gate.model_dump() | asdict(_queries_of(named)) | asdict(settings))
    catalog.storage.create(_late_path(catalog, candidate), encode(gate))
    return _planned(catalog, live, candidate, configured)


def has_queries(
    catalog: Catalog, live: Release, candidate: Release, configured: GateConfig
) -> bool:
    """Return whether a comparison has queries: those of the plan, of an earlier comparison, or of the config."""
    return bool(configured.queries) or planned_gate(catalog, live, candidate)[0] is not None


def planned_gate(
    catalog: Catalog, live: Release, candidate: Release
) -> tuple[FrozenGate | None, bool]:
    """Return the gate of the plan, and whether it is late; that of the model's first comparison if there is one.

    A plan made after results were seen fixes nothing, so an earlier comparison of the same model as
    another release decides.
    """
    for record in comparisons.of_model(catalog, live, candidate):
        if catalog.release(record.candidate.release).origin != candidate.origin:
            return record.planned_gate, record.gate_is_late
    if candidate.gate.queries:
        return candidate.gate, False
    kept = catalog.storage.read_if_there(_late_path(catalog, candidate))
    if kept is None:
        return None, True
    return decode(FrozenGate, kept), True


def _late_path(catalog: Catalog, candidate: Release) -> str:
    return f"{comparisons.folder(catalog, candidate)}/late-gate.json"


def _changed(
    candidate: Release, planned: FrozenGate, found: evalset.EvalSet, asked: Asked
) -> UsageError:
    whose = f"release {candidate.id} was planned with"
    if candidate.gate.queries and planned != candidate.gate:
        whose = f"the model of {candidate.id} was first compared by"
    return UsageError(
        f"{found.source}: the judged queries are not those that {whose}",
        f"planned: {planned.count} queries of sha256 {str(planned.sha256)[:12]}; there now: "
        f"{len(found.query_ids)} of {found.sha256[:12]}. Queries chosen after results were seen prove little",
        f"{compare_again(candidate.id, asked.runs)} --changed-queries --reason 'WHY'"
        "     # recorded; or put the planned queries back",
    )


def require_sound(catalog: Catalog, record: Comparison, compared: Release) -> None:
    """Check that a comparison is of this release, judged by its plan, with the verdict of its rules.

    Raises:
        IntegrityError: it is not.
    """
    require_verdict_of_rules(record)
    again = compare_again(compared.id, record.summary().runs)
    if record.candidate_index_sha256 != compared.index_sha256:
        raise IntegrityError(
            f"the comparison is of another index than that of release {compared.id}",
            f"sha256 {record.candidate_index_sha256[:12]} where the release records {compared.index_sha256[:12]}",
            again,
        )
    terms, live = Terms.of(record), catalog.release(record.live.release)
    judged_by_plan = (terms.planned, terms.late) == planned_gate(catalog, live, compared)
    if not judged_by_plan or terms.gate != record.gate:
        raise IntegrityError(
            f"the comparison judged release {compared.id} by another gate than was planned",
            "the gate is fixed before results exist; a change of it must be recorded with a reason",
            again,
        )

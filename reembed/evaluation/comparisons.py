"""Comparisons that were made: every one is kept, none is overwritten, and `promote` reads the newest.

comparisons/ALIAS/CANDIDATE/LIVE/00000001.json   create-only; CANDIDATE and LIVE are the rebuilds
                                                 that the two releases grew out of by catch-ups
comparisons/ALIAS/CANDIDATE/LIVE/00000001.html   its report
comparisons/ALIAS/CANDIDATE/LIVE/00000001.pass   or .fail, .inconclusive: empty, so that a listing
                                                 shows every verdict; nothing is decided by it
comparisons/ALIAS/CANDIDATE/late-gate.json       create-only: the plan's gate with the queries of the
                                                 first comparison, where the plan named none
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, get_args

from pydantic import TypeAdapter

from reembed.catalog.releases import Catalog, EvidenceRecord, Release, who
from reembed.clock import now
from reembed.config.settings import FrozenGate, GateConfig
from reembed.errors import IntegrityError, UsageError
from reembed.evaluation import queries as evalset
from reembed.evaluation.gate import Outcome, Verdict
from reembed.store.records import Record, checked, decode

_NUMBER = re.compile(r"([0-9]{8})\.json")


@dataclass(frozen=True)
class Asked:
    """What a comparison is asked to do otherwise than planned."""

    changed_queries: bool = False
    """Judge by the queries as they are now, or as the config names them now."""
    margin: float | None = None
    """Judge by this margin."""
    reason: str | None = None


@dataclass(frozen=True)
class Change:
    """Gate settings that a comparison was told to judge by otherwise than planned, and why."""

    before: dict[str, Any]
    after: dict[str, Any]
    reason: str
    by: str
    at: str


@dataclass(frozen=True)
class Judged:
    """Judged queries, by content."""

    source: str
    sha256: str
    count: int


@dataclass(frozen=True)
class Told:
    """A comparison in short."""

    candidate: str
    live: str
    number: int
    verdict: Outcome
    queries: Judged
    margin: float | None
    changed: list[str]
    """Which of queries and margin were not the planned ones."""
    by: str
    at: str


PLACE = {"queries", "split"}
"""Settings of a gate that say where its queries are."""
_OF_QUERIES = {*PLACE, "sha256", "count"}
_TOLD, _CHANGES = TypeAdapter(list[Told]), TypeAdapter(tuple[Change, ...])


@dataclass(frozen=True)
class Terms:
    """What a comparison judges by."""

    planned: FrozenGate
    late: bool
    """The plan named no queries: they are those of the first comparison, and all else is as planned."""
    place: GateConfig
    """Where the queries were read from."""
    changes: tuple[Change, ...] = ()

    @property
    def gate(self) -> FrozenGate:
        """The gate with its changes."""
        fields = self.planned.model_dump()
        for change in self.changes:
            fields |= change.after
        return FrozenGate(**fields)


def agree(
    catalog: Catalog, live: Release, candidate: Release, configured: GateConfig, asked: Asked
) -> tuple[Terms, evalset.EvalSet]:
    """The terms of a comparison and its queries: those that were planned, or changes with a reason.

    Raises:
        UsageError: no queries are named, or they are no longer those that were planned.
    """
    options = dict(catalog.query_options)
    planned, late = _planned(catalog, live, candidate, configured)
    named, queries = _read_queries(planned, configured, asked, options)
    found = {
        "queries": named.queries,
        "split": named.split,
        "sha256": queries.sha256,
        "count": len(queries.query_ids),
    }
    if queries.sha256 != planned.sha256 and not asked.changed_queries:
        raise _changed(candidate, planned, queries)
    after: list[dict[str, Any]] = []
    if queries.sha256 != planned.sha256:
        after.append(found)
    if asked.margin not in (None, planned.margin):
        after.append({"margin": asked.margin})
    fields, reason = planned.model_dump(), asked.reason or ""
    changes = [Change({k: fields[k] for k in a}, a, reason, who(), now()) for a in after]
    return Terms(planned, late, named, tuple(changes)), queries


def _read_queries(
    planned: FrozenGate, configured: GateConfig, asked: Asked, options: dict[str, str]
) -> tuple[GateConfig, evalset.EvalSet]:
    """The planned queries, wherever they are now, and where that is; others if those are asked for.

    Where neither place has the planned ones: what is in the planned place, or else in the other.
    """
    places: list[GateConfig] = [configured, planned] if configured.queries else [planned]
    if asked.changed_queries:
        return places[0], evalset.load_eval_set(str(places[0].queries), places[0].split, options)
    other: tuple[GateConfig, evalset.EvalSet] | None = None
    for place in places:
        try:
            queries = evalset.load_eval_set(str(place.queries), place.split, options)
        except UsageError:
            if place is places[-1] and other is None:
                raise
            continue
        other = (place, queries)
        if queries.sha256 == planned.sha256:
            break
    assert other is not None  # or the last place raised
    return other


def _planned(
    catalog: Catalog, live: Release, candidate: Release, configured: GateConfig
) -> tuple[FrozenGate, bool]:
    """The gate fixed before results existed, and whether its queries were only at the first comparison."""
    fixed, late = _fixed(catalog, live, candidate)
    if fixed is None and not configured.queries:
        raise UsageError(
            f"release {candidate.id} was planned without judged queries: nothing shows that it is better",
            "no relevance evidence, only structural checks",
            f"set gate.queries to judged queries, such as a BEIR folder, and compare {candidate.id} again",
        )
    if fixed is None:
        named = evalset.freeze(configured, dict(catalog.query_options))
        gate = candidate.gate.model_copy(update=named.model_dump(include=_OF_QUERIES))
        catalog.storage.create(_late_path(catalog, candidate), gate.model_dump())
        return _planned(catalog, live, candidate, configured)
    return fixed, late


def _fixed(catalog: Catalog, live: Release, candidate: Release) -> tuple[FrozenGate | None, bool]:
    """The gate of the plan, unless the same model was compared before as another release.

    Then that gate holds: a plan made after results were seen fixes nothing.
    """
    for record in _of_model(catalog, live, candidate):
        if catalog.release(record["candidate"]["release"]).origin != candidate.origin:
            return FrozenGate(**record["planned_gate"]), record["gate_is_late"]
    if candidate.gate.queries:
        return candidate.gate, False
    kept = catalog.storage.read_if_there(_late_path(catalog, candidate))
    return (decode(FrozenGate, kept) if kept is not None else None), True


def _late_path(catalog: Catalog, candidate: Release) -> str:
    return f"{_folder(catalog, candidate)}/late-gate.json"


def _changed(candidate: Release, planned: FrozenGate, found: evalset.EvalSet) -> UsageError:
    whose = f"release {candidate.id} was planned with"
    if candidate.gate.queries and planned != candidate.gate:
        whose = f"the model of {candidate.id} was first compared by"
    return UsageError(
        f"{found.source}: the judged queries are not those that {whose}",
        f"planned: {planned.count} queries of sha256 {str(planned.sha256)[:12]}; there now: "
        f"{len(found.query_ids)} of {found.sha256[:12]}. Queries chosen after results were seen prove little",
        f"reembed compare --candidate {candidate.id} --changed-queries --reason 'WHY'"
        "     # recorded; or put the planned queries back",
    )


def keep(
    catalog: Catalog, live: Release, candidate: Release, record: dict[str, Any]
) -> tuple[dict[str, Any], str]:
    """Add a comparison to those of its pair; the record with its number, and the path of its report.

    It names those before it of the same model, in this release or another, with the same live line.
    """
    folder = _folder(catalog, candidate, live)
    while True:
        earlier = _of_model(catalog, live, candidate)
        number = len(_numbers(catalog, folder)) + 1
        numbered = {**record, "number": number, "earlier": [told(r) for r in earlier]}
        if catalog.storage.create(f"{folder}/{number:08d}.json", numbered):
            catalog.storage.write_bytes(f"{folder}/{number:08d}.{record['verdict']}", b"")
            return numbered, f"{folder}/{number:08d}.html"


def newest(catalog: Catalog, live: Release, candidate: Release) -> dict[str, Any] | None:
    """The last comparison of a candidate's line with live's; None where there is none.

    Raises:
        IntegrityError: comparisons were removed, or this one is of another pair.
    """
    folder = _folder(catalog, candidate, live)
    numbers = _numbers(catalog, folder)
    if not numbers:
        return None
    record = read(catalog, f"{folder}/{numbers[-1]:08d}.json")
    origins = [catalog.release(record[r]["release"]).origin for r in ("candidate", "live")]
    if origins != [candidate.origin, live.origin] or record["number"] != numbers[-1]:
        raise IntegrityError(
            f"{folder}/{numbers[-1]:08d}.json is a comparison of other releases",
            f"it compared {record['candidate']['release']} with {record['live']['release']}",
            f"reembed compare --candidate {candidate.id}",
        )
    return record


def last(catalog: Catalog, live: Release, candidate: Release) -> dict[str, Any] | None:
    """What the alias's log keeps of a pair's last comparison when the gate is overruled, if any."""
    found = _with_live(catalog, live).get(candidate.origin)
    return evidence(found[-1]) if found else None


def compared_with(catalog: Catalog, candidate: Release) -> list[str]:
    """Lines that a candidate's line was compared with, by their first release."""
    folder = _folder(catalog, candidate)
    return catalog.storage.folders(f"{folder}/")


@dataclass(frozen=True)
class Newest:
    """The last comparison of a pair."""

    path: str
    named: Outcome | None
    """The verdict that a file beside it names; None where its writer was killed before that."""

    def verdict(self, catalog: Catalog) -> Outcome:
        """As named, or as the comparison says."""
        return self.named or read(catalog, self.path)["verdict"]


Pairs = dict[tuple[str, str], Newest]
"""By the lines of candidate and live."""


def pairs(catalog: Catalog) -> Pairs:
    """What was compared with what: one listing, no record is read."""
    listed = _listed(catalog)
    outcomes: tuple[Outcome, ...] = get_args(Outcome)

    def newest(path: str) -> Newest:
        stem = path.removesuffix(".json")
        return Newest(path, next((o for o in outcomes if f"{stem}.{o}" in listed), None))

    return {pair: newest(paths[-1]) for pair, paths in _paths(listed).items()}


def evidence(record: dict[str, Any]) -> dict[str, Any]:
    """What the alias's log keeps of the comparison before a release became live."""
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    changes = {"changes": record["changes"], "earlier": record["earlier"]}
    return {**told(record), "sha256": digest, **changes}


def told(record: dict[str, Any]) -> dict[str, Any]:
    """A comparison in short, as `Told`."""
    short = Told(
        candidate=record["candidate"]["release"],
        live=record["live"]["release"],
        number=record["number"],
        verdict=record["verdict"],
        queries=Judged(**{k: record["queries"][k] for k in ("source", "sha256", "count")}),
        margin=record["gate"]["margin"],
        changed=sorted({k for c in record["changes"] for k in c["after"]} & {"queries", "margin"}),
        by=record["by"],
        at=record["at"],
    )
    return asdict(short)


def require_sound(catalog: Catalog, record: dict[str, Any], compared: Release) -> None:
    """Check that a record is of this release, judged by its plan, and says what its rules say.

    Raises:
        IntegrityError: it is not.
    """
    again = f"reembed compare --candidate {compared.id}"
    Verdict.from_json(record)
    if record["candidate_index_sha256"] != compared.index_sha256:
        raise IntegrityError(
            f"the comparison is of another index than release {compared.id}'s", None, again
        )
    terms = _terms(record)
    live = catalog.release(record["live"]["release"])
    judged_by_plan = (terms.planned, terms.late) == _fixed(catalog, live, compared)
    if not judged_by_plan or terms.gate != FrozenGate(**record["gate"]):
        raise IntegrityError(
            f"the comparison judged release {compared.id} by another gate than was planned",
            "what counts is fixed before results exist; a change of it is recorded with its reason",
            again,
        )


def _of_model(catalog: Catalog, live: Release, candidate: Release) -> list[dict[str, Any]]:
    """Comparisons of a candidate's weights with live's line, oldest first.

    Their other settings (prompts, dtype, dimensions) do not count: a small change of one is not a
    new model, and another space costs only a run.
    """
    found = [r for records in _with_live(catalog, live, every=True).values() for r in records]
    weights = candidate.space.identity.model_sha256
    mine = [r for r in found if r["candidate"]["weights_sha256"] == weights]
    return sorted(mine, key=lambda r: (r["at"], r["candidate"]["release"], r["number"]))


def _with_live(
    catalog: Catalog, live: Release, *, every: bool = False
) -> dict[str, list[dict[str, Any]]]:
    """Comparisons with live's line by the candidate's line: the newest of each, or every one."""
    return {
        line: [read(catalog, p) for p in (found if every else found[-1:])]
        for (line, live_line), found in _paths(_listed(catalog)).items()
        if live_line == live.origin
    }


def _listed(catalog: Catalog) -> dict[str, None]:
    """Paths of what is kept of an alias's comparisons, sorted."""
    return {path: None for path, _ in catalog.storage.objects(f"comparisons/{catalog.alias}/")}


def _paths(listed: Iterable[str]) -> dict[tuple[str, str], list[str]]:
    """Paths of the comparisons of each pair, oldest first."""
    paths: dict[tuple[str, str], list[str]] = {}
    for path in listed:
        place = path.split("/")[2:]
        if len(place) == 3 and _NUMBER.fullmatch(place[2]):
            paths.setdefault((place[0], place[1]), []).append(path)
    return paths


def read(catalog: Catalog, path: str) -> dict[str, Any]:
    """A comparison that was kept.

    Raises:
        IntegrityError: it has another form than `keep` gives it.
    """
    record = catalog.storage.read(path)
    try:
        for short in ([told(record)], record["earlier"]):
            _TOLD.validate_json(json.dumps(short), strict=True)
        FrozenGate(**record["gate"])
        checked(EvidenceRecord, Record(evidence(record)))
        _terms(record).gate, record["candidate"]["weights_sha256"], record["candidate_index_sha256"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IntegrityError(
            f"{path} is not a comparison as reembed writes it",
            f"{type(error).__name__}: {str(error).splitlines()[0]}",
            "reembed status     # and put the file back from a backup of the store",
        ) from error
    return record


def _terms(record: dict[str, Any]) -> Terms:
    planned, late = FrozenGate(**record["planned_gate"]), record["gate_is_late"]
    place = GateConfig(**record["queries"]["place"])
    return Terms(planned, late, place, _CHANGES.validate_python(record["changes"]))


def _numbers(catalog: Catalog, folder: str) -> list[int]:
    names = map(_NUMBER.fullmatch, catalog.storage.names(f"{folder}/"))
    numbers = [int(m[1]) for m in names if m]
    if numbers != list(range(1, len(numbers) + 1)):
        raise IntegrityError(
            f"comparisons were removed from {folder}",
            f"there are numbers {', '.join(map(str, numbers))}",
            "reembed status     # and put the files back from a backup of the store",
        )
    return numbers


def _folder(catalog: Catalog, candidate: Release, live: Release | None = None) -> str:
    folder = f"comparisons/{catalog.alias}/{candidate.origin}"
    return f"{folder}/{live.origin}" if live else folder

"""Where an alias stands: live, previous, candidates, and unfinished runs.

Listings name all candidates with their verdicts and all open runs; only the newest of each are read.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from reembed.catalog import lazies
from reembed.catalog.journal import Figures, latest_figures
from reembed.catalog.lease import Lease, Worker, read_lease, workers
from reembed.catalog.lines import RunEntry
from reembed.catalog.releases import AliasRecord, Catalog, Release
from reembed.catalog.reports import CutOffs
from reembed.catalog.runs import Run, open_among, started_with
from reembed.config.gate import GateConfig
from reembed.errors import IntegrityError
from reembed.evaluation import comparisons
from reembed.evaluation.report import again
from reembed.lifecycle.candidates import candidates, newest_in, previous
from reembed.lifecycle.holdover import Shadow, last_shadow
from reembed.lifecycle.lazy_end import is_over
from reembed.lifecycle.lazy_status import LazyStatus, status_of

if TYPE_CHECKING:
    from reembed.source.lag import Lag

_CANDIDATES, _RUNS = 5, 2
"""Numbers of candidates and of runs that are read; the rest are named, candidates with their verdicts."""


@dataclass(frozen=True)
class Candidate:
    """A release that could be promoted."""

    release: Release
    verdict: str | None
    """Verdict of the comparison with what is live that `promote` goes by; None without one."""
    runs: tuple[str, str] | None
    """The run files, of live and of the candidate, that this comparison was by; None if it was by searches."""
    compared_with: tuple[str, ...]
    """Lines of the other releases that it was compared with."""
    again: str | None = None
    """The command that compares it again, if that comparison was inconclusive."""
    superseded: bool = False
    """Whether live has the same settings and was started later: this is an older build of the same model."""
    cutoffs: CutOffs | None = None
    """Its score cut-offs that correspond to one of live, as that comparison found them."""

    def to_json(self) -> dict[str, Any]:
        """Return the release's summary, the verdict, whether live supersedes it, and its cut-offs."""
        shown = {name: value for name, value in asdict(self).items() if name != "release"}
        return asdict(self.release.summary()) | shown


@dataclass(frozen=True)
class OlderCandidate:
    """A candidate of which no more than this is read: its id, and what listings say of it."""

    release: str
    origin: str
    """The first release of its line."""
    verdict: str | None
    again: str | None = None
    """As of `Candidate`."""
    superseded: bool = False


@dataclass(frozen=True)
class RolledBack:
    """What was rolled back from since the last promotion."""

    release: str
    origin: str
    """The first release of its line: a catch-up may have gone on with it."""
    at: str
    reason: str | None


@dataclass(frozen=True)
class OpenRun:
    """A run without a result."""

    run: str
    driven: bool | None
    """Whether a process drives it; None if only its own machine can tell at once."""
    host: str | None
    """Where it was driven last."""
    resume: str
    """The command that resumes it, with the settings it was started with."""
    units: int | None
    """Number of its units; None before it has a plan."""
    staged: int
    workers: tuple[Worker, ...]
    progress: Figures | None
    """Its latest figures."""
    waiting: str | None
    """Why it waits; None if it does not."""

    def to_json(self) -> dict[str, Any]:
        """Return all fields; of a worker its unit, its attempt and since when."""
        shown = [{"unit": w.unit, "attempt": w.attempt, "since": w.at} for w in self.workers]
        return asdict(self) | {"workers": shown}


@dataclass(frozen=True)
class Status:
    """Where an alias stands."""

    alias: str
    live: AliasRecord | None
    """The step that made the live release live."""
    lag: Lag | None
    """How far the live release is behind its source; None if nothing is live."""
    previous: Release | None
    """Where a rollback goes."""
    candidates: tuple[Candidate, ...]
    """The newest candidates, oldest first."""
    rolled_back: RolledBack | None
    older_candidates: tuple[OlderCandidate, ...]
    retired: tuple[str, ...]
    """Releases that gc removed."""
    runs: tuple[OpenRun, ...]
    """The newest unfinished runs, oldest first."""
    older_runs: tuple[str, ...]
    shadow: Shadow | None
    """The alias's last shadow, unless it has ended."""
    lazy: LazyStatus | None = None
    """The alias's lazy migration, unless it is over."""
    cutoffs: CutOffs | None = None
    """Of live: its score cut-offs that correspond to one of the release that it was compared with."""
    promoted: AliasRecord | None = None
    """The step that made live's line live, where another model embeds queries than embedded the documents."""

    @property
    def forced(self) -> bool:
        """Whether the live release was promoted with --force."""
        return self.live is not None and self.live.grounds.forced

    @property
    def without_evidence(self) -> bool:
        """Whether the live release was promoted with --without-evidence."""
        return self.live is not None and self.live.grounds.without_evidence

    @property
    def unknown(self) -> tuple[str, ...]:
        """What was not known when the live release was promoted, in words."""
        if self.live is None:
            return ()
        return self.live.grounds.unknown

    @property
    def below_gate(self) -> str | None:
        """What was known when the live release was promoted, and was less than its gate needs, in words."""
        return self.live.grounds.below_gate if self.live else None

    def to_json(self) -> dict[str, Any]:
        """Return what `reembed status --json` prints."""
        shown: dict[str, object] = {
            "alias": self.alias,
            "live": None,
            "generation": 0,
            "forced": self.forced,
            "without_evidence": self.without_evidence,
            "unknown": self.unknown,
            "below_gate": self.below_gate,
            "previous": None,
            "candidates": [c.to_json() for c in self.candidates],
            "rolled_back": None,
            "older_candidates": [asdict(c) for c in self.older_candidates],
            "retired": self.retired,
            "runs": [r.to_json() for r in self.runs],
            "older_runs": self.older_runs,
            "shadow": self.shadow.to_json() if self.shadow else None,
            "lazy": self.lazy.to_json() if self.lazy else None,
        }
        if self.live and self.lag:
            cutoffs = asdict(self.cutoffs) if self.cutoffs else None
            more: dict[str, object] = {"lag": self.lag.to_json(), "cutoffs": cutoffs}
            if self.promoted and (proof := self.promoted.grounds.comparison):
                more |= {"queries_proven_by": {"number": proof.number, "verdict": proof.verdict}}
            shown["live"] = asdict(self.live.release.summary()) | more
            shown["generation"] = self.live.generation
        if self.previous:
            shown["previous"] = asdict(self.previous.summary())
        if self.rolled_back:
            shown["rolled_back"] = asdict(self.rolled_back)
        return shown


def status(catalog: Catalog, gate: GateConfig | None = None) -> Status:
    """Return where the alias stands; also asks the source for its newest version.

    `gate` names the query log, which is read while a lazy migration is under way.

    Raises:
        IntegrityError: a record is damaged, or the alias's log has a gap.
    """
    live = catalog.live()
    known = catalog.entries()
    waiting, runs = candidates(catalog, live, known), open_among(catalog.storage, known)
    compared, superseded = comparisons.pairs(catalog), _superseded(known, live)
    shadow = last_shadow(catalog, live)
    newest, older = waiting[-_CANDIDATES:], waiting[:-_CANDIDATES]
    newest_runs = [_run(catalog, entry) for entry in runs[-_RUNS:]]
    stood, behind, undone = previous(catalog, live), None, None
    if live is not None:
        behind, undone = _lag(catalog, live), _rolled_back(catalog, live)
    return Status(
        alias=catalog.alias,
        live=live,
        lag=behind,
        previous=catalog.release(newest_in(catalog, stood, known)) if stood else None,
        candidates=tuple(_candidate(catalog, r, live, compared, superseded) for r in newest),
        rolled_back=undone,
        older_candidates=tuple(_older(catalog, r, live, compared, superseded) for r in older),
        retired=tuple(e.id for e in known if e.retired),
        # A run that was killed before it had a plan holds nothing.
        runs=tuple(r for r in newest_runs if r.units is not None or r.driven is not False),
        older_runs=tuple(run.id for run in runs[:-_RUNS]),
        shadow=shadow if shadow and shadow.is_open else None,
        lazy=_lazy(catalog, gate),
        cutoffs=_cut_offs(catalog, live, compared) if live else None,
        promoted=_promoted(catalog, live) if live and live.release.queries else None,
    )


def _lazy(catalog: Catalog, gate: GateConfig | None) -> LazyStatus | None:
    found = lazies.current(catalog)
    return None if found is None or is_over(found) else status_of(catalog, found, gate)


def _lag(catalog: Catalog, live: AliasRecord) -> Lag:
    from reembed.source.lag import lag  # loads Lance, which nothing else here needs

    return lag(catalog, live.release)


def _promoted(catalog: Catalog, live: AliasRecord) -> AliasRecord | None:
    """Return the last promotion of live's line; a catch-up or a rollback needs no comparison."""
    steps = (s for s in reversed(catalog.log()) if s.release.origin == live.release.origin)
    return next((s for s in steps if s.action == "promote"), None)


def _cut_offs(catalog: Catalog, live: AliasRecord, compared: comparisons.Pairs) -> CutOffs | None:
    """Return the cut-offs of the comparison that made it live, else of the newest ones of its line."""
    if (grounds := live.grounds.comparison) is not None:
        return grounds.cutoffs
    paths = [new.path for (line, _), new in compared.items() if line == live.release.origin]
    records = [comparisons.read(catalog, path) for path in paths]
    known = [record for record in records if record.cutoffs]
    return max(known, key=lambda record: record.at).cutoffs if known else None


def _rolled_back(catalog: Catalog, live: AliasRecord) -> RolledBack | None:
    if (found := catalog.rolled_back(live)) is None:
        return None
    step, undone = found
    return RolledBack(undone.release.id, undone.release.origin, step.at, step.grounds.reason)


def _superseded(known: list[RunEntry], live: AliasRecord | None) -> set[str]:
    """Return the lines that were started before live's, with the same settings: older builds of its model."""
    if live is None:
        return set()
    place = live.release.place
    started = [e.id for e in known if e.id == e.origin and e.place.settings == place.settings]
    if place.origin not in started:
        return set()
    return set(started[: started.index(place.origin)])


def _with_live(
    entry: RunEntry, live: AliasRecord | None, compared: comparisons.Pairs
) -> comparisons.Newest | None:
    """Return the newest comparison of a candidate's line with live's."""
    if live is None:
        return None
    return compared.get((entry.origin, live.release.origin))


def _older(
    catalog: Catalog,
    entry: RunEntry,
    live: AliasRecord | None,
    compared: comparisons.Pairs,
    superseded: set[str],
) -> OlderCandidate:
    found = _with_live(entry, live, compared)
    verdict = found.verdict(catalog) if found else None
    more = None
    if found and verdict == "inconclusive":
        more = again(comparisons.read(catalog, found.path))
    return OlderCandidate(entry.id, entry.origin, verdict, more, entry.origin in superseded)


def _candidate(
    catalog: Catalog,
    entry: RunEntry,
    live: AliasRecord | None,
    compared: comparisons.Pairs,
    superseded: set[str],
) -> Candidate:
    with_lines = sorted(other for line, other in compared if line == entry.origin)
    found = _with_live(entry, live, compared)
    record = comparisons.read(catalog, found.path) if found else None
    decisive, more = None, None
    if record:
        decisive = comparisons.decisive(record)
        more = again(record) if decisive.verdict == "inconclusive" else None
    return Candidate(
        release=catalog.release(entry.id),
        verdict=decisive.verdict if decisive else None,
        runs=decisive.runs if decisive else None,
        compared_with=tuple(with_lines),
        again=more,
        superseded=entry.origin in superseded,
        cutoffs=record.cutoffs if record else None,
    )


def _run(catalog: Catalog, entry: RunEntry) -> OpenRun:
    run = Run(catalog.storage, entry.id)
    plan, lease = run.plan(), read_lease(run)
    progress, waiting = _progress(run)
    units, resume = None, "reembed catch-up live"
    if plan is not None:
        units, resume = len(plan.units), plan.resume
    if entry.id == entry.origin:
        resume = started_with(run, *(plan.options if plan else ()))
    return OpenRun(
        run=run.id,
        driven=_driven(lease),
        host=lease.host if lease else None,
        resume=resume,
        units=units,
        staged=len(run.staged()),
        workers=tuple(workers(run)),
        progress=progress,
        waiting=waiting,
    )


def _driven(lease: Lease | None) -> bool | None:
    if lease is None or lease.released:
        return False
    return lease.process_lives if lease.on_this_machine else None


def _progress(run: Run) -> tuple[Figures | None, str | None]:
    """Return the latest figures and why it waits; nothing depends on them, so damage is only reported."""
    try:
        figures = latest_figures(run)
    except IntegrityError as error:
        return None, f"unknown: {error.what}"
    if figures is None:
        return None, None
    return figures, figures.waiting

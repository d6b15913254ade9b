"""Where a lazy migration stands: by its records, the query log, and which documents the source has now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from reembed.catalog.lazies import Lazy, LazyPlan
from reembed.catalog.lazy_batches import Batch, batches
from reembed.catalog.lazy_queue import Queue, age_s
from reembed.catalog.releases import Catalog
from reembed.config.gate import GateConfig
from reembed.errors import SourceError, UsageError
from reembed.evaluation.popularity import Popularity, popularity
from reembed.store.paths import absolute_queries
from reembed.store.records import encode

if TYPE_CHECKING:
    from reembed.source.dataset import Source

T = TypeVar("T")


@dataclass(frozen=True)
class OfLog:
    """What the query log says of a lazy migration."""

    queries: int
    only_clicks: bool
    """Whether the log has no list of what was shown."""
    days: float | None
    """From its first query to its last; None without times."""
    documents: int
    """Different documents that it showed, of those that the source has."""
    migrated: int
    """Those of them that are migrated."""
    answers: float
    """Share of the results of all queries that are migrated."""
    levels_off: float
    """Share of the documents that queries like these would migrate in the end, without a sweep."""
    gone: int
    """Different documents that it showed and the source does not have: they are counted nowhere else."""


@dataclass(frozen=True)
class LazyStatus:
    """A lazy migration, how far it is, and what it cost."""

    lazy: Lazy
    instead: str | None
    """Release that is live instead of the line of the start; None if that line is, as answers of both sides need."""
    migrated: int
    """Documents that the new side has: also those that could not be embedded."""
    documents: int
    """Documents that the source had when the migrated ones were brought to it last."""
    newer: int | None
    """Documents that the source has now, if it has a newer version since; None if not, or if it cannot be read."""
    of_log: OfLog | None
    no_log: str | None
    """Why nothing is known of answers."""
    queued: int
    """Documents that turned up and wait."""
    oldest_s: float | None
    """Seconds since the first of them was written down; None if none waits."""
    batches: int
    embedded: int
    """Documents that recorded batches added or replaced: not those of the start, or of batches that were killed."""
    tokens: int
    """Of those, as far as the model says how many; 0 if it does not."""
    model_s: float
    """Seconds that models computed for batches."""
    seconds: float
    """That batches took, together."""
    sweep_s: float | None
    """Seconds after which a sweep would have migrated the rest, at the rate of the batches so far. None if that is not
    known: before a batch, and where the source is newer and has no more documents than are migrated."""

    @property
    def known(self) -> int:
        """Documents of the source: those that it has now, if they are more than when it was looked at last."""
        return max(self.documents, self.newer or 0)

    @property
    def coverage(self) -> float:
        """Share of the documents that are migrated."""
        return min(1.0, self.migrated / max(1, self.known))

    @property
    def is_complete(self) -> bool:
        """Whether every document is migrated, as far as is known."""
        return self.migrated == self.documents and self.newer is None

    def to_json(self) -> dict[str, Any]:
        """Return what `reembed lazy --json` prints."""
        plan, step = self.lazy.plan, self.lazy.step
        figures = {name: value for name, value in asdict(self).items() if name != "lazy"}
        return {
            "alias": plan.alias,
            "number": plan.number,
            "state": step.state,
            "serves": self.lazy.serves and self.instead is None,
            "keep": step.keep,
            "reason": step.reason,
            "by": step.by,
            "at": step.at,
            "live": plan.live,
            "side": plan.side,
            "model": plan.space.model,
            "space": plan.space.id,
            "fusion": plan.fusion,
            "depth": plan.depth,
            "predicted": [encode(p) for p in plan.predicted],
            "coverage": self.coverage,
            **figures,
        }


def status_of(catalog: Catalog, lazy: Lazy, gate: GateConfig | None = None) -> LazyStatus:
    """Return where a lazy migration stands; `gate` names the query log."""
    plan = lazy.plan
    queue, made = Queue(catalog.storage, plan), batches(catalog.storage, plan)
    files, live = queue.files(), catalog.require_live().release
    migrated, documents, version = _counted(catalog, plan, made)
    source = _source(catalog, plan)
    newer = _newer(source, version)
    known = max(documents, newer or 0)
    of_log, no_log = _of_log(catalog, plan, gate, (migrated, known), source)
    return LazyStatus(
        lazy=lazy,
        instead=None if live.origin == plan.live else live.id,
        migrated=migrated,
        documents=documents,
        newer=newer,
        of_log=of_log,
        no_log=no_log,
        queued=len(queue.read(files)),
        oldest_s=round(age_s(files[0]), 1) if files else None,
        batches=len(made),
        embedded=sum(b.added + b.replaced for b in made),
        tokens=sum(b.tokens for b in made),
        model_s=round(sum(b.model_s for b in made), 3),
        seconds=round(sum(b.seconds for b in made), 3),
        sweep_s=None
        if newer is not None and migrated >= known
        else _sweep_s(made, known - migrated),
    )


def _sweep_s(made: list[Batch], documents: int) -> float | None:
    """Return how long a sweep of so many documents takes, at the rate of these batches."""
    added, seconds = sum(b.added for b in made), sum(b.seconds for b in made if b.added)
    return round(documents * seconds / added, 1) if added else None


def _counted(catalog: Catalog, plan: LazyPlan, made: list[Batch]) -> tuple[int, int, int]:
    """Return how many documents are migrated, of how many, and of which version of the source.

    Both as the last batch counted them, at one version: the live release may be behind it, and the source ahead.
    """
    side = Catalog(catalog.storage, plan.side).live()
    if side is None:
        return 0, plan.documents, plan.source.version
    if made:
        return made[-1].documents, made[-1].source_documents, made[-1].source_version
    migrated = side.release.documents + side.release.dead_letters
    return migrated, plan.documents, plan.source.version


def _source(catalog: Catalog, plan: LazyPlan) -> Source | None:
    """Return the source at its newest version; None if it cannot be read."""
    from reembed.source.dataset import Source  # loads Lance, which records do not need

    return _if_readable(Source(plan.source, catalog.source_options).newest)


def _if_readable(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except (SourceError, OSError, ValueError):  # `reembed status` says why beside the live release
        return None


def _newer(newest: Source | None, version: int) -> int | None:
    from reembed.source.members import count

    if newest is None or newest.version == version:
        return None
    return _if_readable(lambda: count(newest))


def _of_log(
    catalog: Catalog,
    plan: LazyPlan,
    gate: GateConfig | None,
    counts: tuple[int, int],
    source: Source | None,
) -> tuple[OfLog | None, str | None]:
    """Return what the log says; else why nothing is known."""
    if gate is None or gate.logged is None:
        return None, "no query log: set gate.logged"
    try:
        log = popularity(absolute_queries(gate), dict(catalog.query_options))
    except UsageError as error:
        return None, "; ".join(filter(None, (error.what, error.why, error.fix)))
    if log is None or not log.results:
        return None, f"{gate.logged} lists neither what was shown nor what was clicked"
    cold, gone = _cold(catalog, plan, log, source, any_held=counts[0] > 0)
    log = log.without(gone)
    if not log.results:
        return None, f"the source has none of the documents that {gate.logged} lists"
    return _answers(log, cold, len(gone), counts), None


def _cold(
    catalog: Catalog, plan: LazyPlan, log: Popularity, source: Source | None, *, any_held: bool
) -> tuple[list[str], list[str]]:
    """Return documents of a log that are not migrated, and those that the source does not have, as far as it is read.

    Without `any_held` nothing is migrated, and gc may have removed what held it.
    """
    from reembed.source.members import Members, not_in

    cold = list(log.times)
    if any_held:
        held = Members(catalog.storage, plan.members, plan.source).held()
        cold = list(map(str, held.without(cold)))
    found = _if_readable(lambda: not_in(source, cold)) if source else None
    gone = dict.fromkeys(map(str, found or ()))
    return [doc_id for doc_id in cold if doc_id not in gone], list(gone)


def _answers(log: Popularity, cold: list[str], gone: int, counts: tuple[int, int]) -> OfLog:
    migrated, documents = counts
    unseen = (log.ever - len(log.times)) * (1 - migrated / max(1, documents))
    in_the_end = migrated + len(cold) + unseen
    return OfLog(
        queries=log.queries,
        only_clicks=log.only_clicks,
        days=log.days,
        documents=len(log.times),
        gone=gone,
        migrated=len(log.times) - len(cold),
        answers=(sum(log.times.values()) - sum(log.times[d] for d in cold)) / log.results,
        levels_off=min(1.0, in_the_end / max(1, documents)),
    )

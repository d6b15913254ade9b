"""Where a lazy migration stands. Reads records alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from reembed.catalog.lazies import Lazy
from reembed.catalog.lazy_batches import batches
from reembed.catalog.lazy_queue import Queue, age_s
from reembed.catalog.releases import Catalog
from reembed.lifecycle.candidates import newest_of
from reembed.store.records import encode


@dataclass(frozen=True)
class LazyStatus:
    """A lazy migration, how far it is, and what it cost."""

    lazy: Lazy
    instead: str | None
    """Release that is live instead of the line of the start; None if that line is, as answers of both sides need."""
    migrated: int
    """Documents that the new side has: also those that could not be embedded."""
    documents: int
    """Documents of the release that it began from, as it was last caught up."""
    queued: int
    """Documents that turned up and wait."""
    oldest_s: float | None
    """Seconds since the first of them was written down; None if none waits."""
    batches: int
    embedded: int
    """Documents that batches added or replaced."""
    seconds: float
    """That batches took, together."""

    @property
    def coverage(self) -> float:
        """Share of the documents that are migrated."""
        return min(1.0, self.migrated / max(1, self.documents))

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


def status_of(catalog: Catalog, lazy: Lazy) -> LazyStatus:
    """Return where a lazy migration stands."""
    plan = lazy.plan
    side = Catalog(catalog.storage, plan.side).live()
    old = newest_of(catalog, catalog.release(plan.live))
    queue, made = Queue(catalog.storage, plan), batches(catalog.storage, plan)
    files, live = queue.files(), catalog.require_live().release
    return LazyStatus(
        lazy=lazy,
        instead=None if live.origin == plan.live else live.id,
        migrated=side.release.documents + side.release.dead_letters if side else 0,
        documents=old.documents + old.dead_letters,
        queued=len(queue.read(files)),
        oldest_s=round(age_s(files[0]), 1) if files else None,
        batches=len(made),
        embedded=sum(b.added + b.replaced for b in made),
        seconds=round(sum(b.seconds for b in made), 3),
    )

"""Documents without a vector: of a release, or of an unfinished run so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reembed.catalog.receipts import DeadLetter
from reembed.catalog.releases import Catalog
from reembed.catalog.runs import open_runs
from reembed.config.settings import Config
from reembed.lifecycle import candidates
from reembed.table import provenance


@dataclass(frozen=True)
class DeadLetters:
    """The dead letters of a release or of an unfinished run."""

    of: str
    """The release's or the run's id."""
    source_version: int
    dead_letters: tuple[DeadLetter, ...]
    finished: bool
    """False for a run that is not finished: more may follow."""

    def to_json(self) -> dict[str, Any]:
        """Return what `reembed dead-letters --json` prints."""
        return {
            "of": self.of,
            "source_version": self.source_version,
            "count": len(self.dead_letters),
            "dead_letters": [{"doc_id": d.doc_id, "reason": d.reason} for d in self.dead_letters],
            "finished": self.finished,
        }


def dead_letters(catalog: Catalog, config: Config, which: str | None) -> DeadLetters:
    """Return those of what `which` names, or by default of the newest unfinished run with any, or of a release.

    Raises:
        UsageError: no release and no run has that id, or nothing was built.
        IntegrityError: the record of the release's table is not the one it was made with.
    """
    if (unfinished := _of_unfinished(catalog, which)) is not None:
        return unfinished
    release = candidates.named(catalog, which) if which else candidates.by_default(catalog, config)
    dead = provenance.require_sealed(catalog.storage, release).dead_letters
    return DeadLetters(release.id, release.source.version, dead, finished=True)


def _of_unfinished(catalog: Catalog, which: str | None) -> DeadLetters | None:
    """Return those of an unfinished run: `which`, or the newest that has some; None without one."""
    for run in reversed(open_runs(catalog.storage, catalog.alias)):
        if which not in (None, run.id) or not (plan := run.plan()):
            continue
        found = [d for r in run.receipts() for d in r.dead_letters]
        if plan.base:
            found += plan.base.dead_letters
        if found or which:
            return DeadLetters(run.id, plan.source.version, tuple(found), finished=False)
    return None

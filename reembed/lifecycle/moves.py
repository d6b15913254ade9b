"""Steps of an alias as results: from which release to which, on what grounds, and what the new one lacks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from obstore.exceptions import BaseError

from reembed.catalog.releases import Action, AliasRecord, Catalog, Grounds, Release
from reembed.errors import ReembedError
from reembed.events import AliasMoved, Listener, ignore
from reembed.lifecycle.promote import rollback
from reembed.source.lag import Lag, lag


@dataclass(frozen=True)
class Moved:
    """A promotion or a rollback that was made."""

    alias: str
    action: Action
    generation: int
    """The number of the step in the alias's log."""
    before: str | None
    """The release that served before; None if nothing did."""
    release: Release
    """The release that serves now."""
    grounds: Grounds
    behind: Lag
    """How far the release is behind its source."""

    def to_json(self) -> dict[str, Any]:
        """Return what `reembed promote --json` and `reembed rollback --json` print."""
        return {
            "alias": self.alias,
            "action": self.action,
            "generation": self.generation,
            "from": self.before,
            "to": self.release.id,
            "model": self.release.space.model,
            **asdict(self.grounds),
            "behind": self.behind.to_json(),
        }


@dataclass(frozen=True)
class History:
    """Every step of an alias."""

    alias: str
    steps: tuple[AliasRecord, ...]
    """Steps, oldest first."""

    def to_json(self) -> dict[str, Any]:
        """Return what `reembed history --json` prints."""
        return {"alias": self.alias, "steps": [_step(r) for r in self.steps]}


def _step(record: AliasRecord) -> dict[str, Any]:
    shown = {name: getattr(record, name) for name in ("generation", "action", "at", "by", "token")}
    release = {"release": record.release.id, "model": record.release.space.model}
    return shown | asdict(record.grounds) | release


def moved(catalog: Catalog, before: AliasRecord | None, record: AliasRecord) -> Moved:
    """Return the step `record`, which followed `before`, as a result."""
    return Moved(
        alias=catalog.alias,
        action=record.action,
        generation=record.generation,
        before=before.release.id if before else None,
        release=record.release,
        grounds=record.grounds,
        behind=behind(catalog, record.release),
    )


def announce(before: AliasRecord | None, record: AliasRecord, emit: Listener) -> bool:
    """Emit `AliasMoved` if the alias moved from `before` to `record`; return whether it did."""
    if before is not None and before.token == record.token:
        return False
    served = before.release.id if before else None
    new = record.release
    emit(AliasMoved(new.alias, record.action, record.generation, served, new.id))
    return True


def roll_back(
    catalog: Catalog, to: str | None = None, reason: str | None = None, emit: Listener = ignore
) -> Moved:
    """Roll back as `lifecycle.promote.rollback`, and find out what the old release lacks."""
    steps = catalog.last_steps()
    record = rollback(catalog, to, reason=reason, steps=steps)
    announce(steps[0], record, emit)
    return moved(catalog, steps[0], record)


def behind(catalog: Catalog, release: Release) -> Lag:
    """Return how far the source has moved since the release was caught up with it.

    The alias has already moved, so a source that cannot be read is reported, not raised.
    """
    try:
        return lag(catalog, release)
    except (ReembedError, OSError, BaseError) as error:
        why = str(error).splitlines()[0]
        return Lag(release.source.version, None, None, None, why)

"""Steps of an alias as results: from which release to which, on what grounds, and what the new one lacks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from obstore.exceptions import BaseError

from reembed.catalog import lazies
from reembed.catalog.releases import Action, AliasRecord, Catalog, Release
from reembed.catalog.reports import Grounds
from reembed.errors import ReembedError
from reembed.events import AliasMoved, Event, Listener, ignore
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
    """The release that served before, `release` itself if it was live already; None if nothing served."""
    release: Release
    """The release that serves now."""
    grounds: Grounds
    behind: Lag
    """How far the release is behind its source."""
    lazy: int | None = None
    """Number of the lazy migration that served with `before` and does not with `release`; None without one."""

    def to_json(self) -> dict[str, Any]:
        """Return what `reembed promote --json` and `reembed rollback --json` print."""
        return {
            "alias": self.alias,
            "action": self.action,
            "generation": self.generation,
            "from": self.before,
            "to": self.release.id,
            "model": self.release.model,
            **asdict(self.grounds),
            "behind": self.behind.to_json(),
            "lazy": self.lazy,
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
    release = {"release": record.release.id, "model": record.release.model}
    return shown | asdict(record.grounds) | release


class Steps:
    """A listener that keeps the alias's step, if one is made, and hands every event on."""

    def __init__(self, emit: Listener) -> None:
        self.made: AliasMoved | None = None
        self._emit = emit

    def __call__(self, event: Event) -> None:
        if isinstance(event, AliasMoved):
            self.made = event
        self._emit(event)


def moved(catalog: Catalog, record: AliasRecord, made: AliasMoved | None) -> Moved:
    """Return what was asked for as a result: `record` is live, by the step `made` or since before it."""
    return Moved(
        alias=catalog.alias,
        action=record.action,
        generation=record.generation,
        before=made.before if made else record.release.id,
        release=record.release,
        grounds=record.grounds,
        behind=behind(catalog, record.release),
        lazy=_left(catalog, record, made),
    )


def _left(catalog: Catalog, record: AliasRecord, made: AliasMoved | None) -> int | None:
    """Return the lazy migration that a step leaves: it serves with the line it was started on, and no other."""
    found = lazies.current(catalog)
    if found is None or not found.serves or made is None or made.before is None:
        return None
    line = found.plan.live
    left = catalog.release(made.before).origin == line != record.release.origin
    return found.plan.number if left else None


def roll_back(
    catalog: Catalog, to: str | None = None, reason: str | None = None, emit: Listener = ignore
) -> Moved:
    """Roll back as `lifecycle.promote.rollback`, and find out what the old release lacks."""
    steps = Steps(emit)
    record = rollback(catalog, to, reason=reason, emit=steps)
    return moved(catalog, record, steps.made)


def behind(catalog: Catalog, release: Release) -> Lag:
    """Return how far the source has moved since the release was caught up with it.

    The alias has already moved, so a source that cannot be read is reported, not raised.
    """
    try:
        return lag(catalog, release)
    except (ReembedError, OSError, BaseError) as error:
        why = str(error).splitlines()[0]
        return Lag(release.source.version, None, None, None, why)

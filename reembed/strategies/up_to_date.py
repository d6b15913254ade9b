"""What `promote` and `catch-up` do: catch up with the source, then move the alias."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

from reembed.catalog.releases import AliasRecord, Catalog, Release
from reembed.config.settings import Config
from reembed.engine.executor import Executor
from reembed.errors import Conflict, SourceError
from reembed.events import Listener
from reembed.lifecycle.candidates import candidate, named, newest_of
from reembed.lifecycle.lazy_end import settled
from reembed.lifecycle.moves import Moved, Steps, behind, moved
from reembed.lifecycle.promote import Reasons, admissible, follow, promote
from reembed.source.lag import Lag
from reembed.strategies import catch_up as strategy


@dataclass(frozen=True)
class CaughtUp:
    """A release brought up to date with its source."""

    alias: str
    before: str
    """The release that was named."""
    release: Release
    """The release that has its model and the newest documents; the same one if nothing changed."""
    generation: int | None
    """The number of the alias's step to it; None if the alias did not move."""
    serves: bool
    """Whether the alias serves its model."""
    behind: Lag
    """How far the source has moved on meanwhile."""

    def to_json(self) -> dict[str, Any]:
        """Return what `reembed catch-up --json` prints."""
        return {
            "alias": self.alias,
            "from": self.before,
            "to": self.release.id,
            "rows": self.release.rows,
            "dead_letters": self.release.dead_letters,
            "generation": self.generation,
            "serves": self.serves,
            "behind": self.behind.to_json(),
        }


def promote_up_to_date(
    catalog: Catalog,
    config: Config,
    release_id: str | None,
    reasons: Reasons,
    emit: Listener,
    *,
    executor: Executor | None,
) -> Moved:
    """Catch up with the source, then make a release, or the config's own, live.

    The gate is asked first: a release that may not become live does not need a pass. Without an
    executor nothing is caught up. A lazy migration to its space ends.

    Raises:
        SourceError: the source cannot be read.
        GateFailed, Inconclusive, Conflict, IntegrityError, UsageError: as `lifecycle.promote.promote`.
    """
    settled(catalog)  # where a process died after its promotion
    before = catalog.live()
    asked = candidate(catalog, config, release_id)
    admissible(catalog, asked, before, reasons, config.gate)
    if executor is not None and config.source.version is None:
        try:
            asked = strategy.catch_up(config, newest_of(catalog, asked), emit, executor=executor)
        except SourceError as error:
            again = f"reembed promote {asked.id} --no-catch-up{reasons.flags}"
            fix = f"{again}     # documents changed since the build are missing"
            raise type(error)(error.what, error.why, fix) from error
    steps = Steps(emit)
    record = promote(
        catalog,
        asked.id,
        force_reason=reasons.force,
        initial_reason=reasons.initial,
        without_evidence_reason=reasons.without_evidence,
        shadow=reasons.shadow,
        decided_on=before,
        emit=steps,
    )
    settled(catalog)
    return moved(catalog, record, steps.made)


def catch_up_and_follow(
    catalog: Catalog,
    config: Config,
    which: str,
    emit: Listener,
    *,
    executor: Executor,
    retry_dead_letters: bool,
) -> CaughtUp:
    """Bring live, previous or a release by id up to date; live moves on to the result.

    Raises:
        Conflict: live was rolled back to older documents of its model, before or meanwhile, or another model
            went live meanwhile; what was built stays.
    """
    began, asked = catalog.live(), named(catalog, which)
    newest = newest_of(catalog, asked)
    if which == "live" and began is not None:
        _require_not_undone(catalog, began, newest)
    newest = strategy.catch_up(
        config, newest, emit, executor=executor, retry_dead_letters=retry_dead_letters
    )
    before, steps = catalog.live(), Steps(emit)
    serves = before is not None and before.release.origin == newest.origin
    if serves:
        newest = follow(catalog, newest, decided_on=began, emit=steps).release
    elif which == "live" and before is not None:
        raise Conflict(
            f"{catalog.alias} was moved to {before.release.id} meanwhile, which was not caught up",
            f"{newest.id} continues what was live before, and is kept",
            "reembed catch-up live",
        )
    return CaughtUp(
        alias=catalog.alias,
        before=asked.id,
        release=newest,
        generation=steps.made.generation if steps.made else None,
        serves=serves,
        behind=behind(catalog, newest),
    )


def _require_not_undone(catalog: Catalog, live: AliasRecord, newest: Release) -> None:
    """Raise Conflict after a rollback of live, if `newest`, of the same line, has newer documents."""
    if live.action != "rollback" or newest.id == live.release.id:
        return
    back = f"{catalog.alias} was rolled back to {live.release.id} at {live.at}"
    raise Conflict(
        ": ".join(filter(None, (back, live.grounds.reason))),
        f"{newest.id} has its model and newer documents, and a catch-up of live would go there",
        f"reembed catch-up {shlex.quote(live.release.id)}     # continues from it anyway",
    )

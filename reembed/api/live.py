"""What the alias names: promote, roll back, keep up to date, clean up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reembed.api.opened import catalog_of, ray_executor
from reembed.config.settings import Config
from reembed.events import Listener, ignore

if TYPE_CHECKING:
    from reembed.lifecycle.gc_plan import Collected
    from reembed.lifecycle.moves import History, Moved
    from reembed.lifecycle.status import Status
    from reembed.strategies.up_to_date import CaughtUp


def promote(  # noqa: PLR0913 - one parameter an option of the verb
    config: Config,
    release: str | None = None,
    *,
    initial: str | None = None,
    force: str | None = None,
    without_evidence: str | None = None,
    catch_up: bool = True,
    emit: Listener = ignore,
) -> Moved:
    """Catch up with the source, then make a release live.

    The gate is checked first: nothing is embedded for a release that may not become live.

    Args:
        release: an id; None: the one built with these settings.
        initial: the reason for the record, if nothing is live yet to compare with.
        force: the reason for the record, to overrule the gate.
        without_evidence: the reason for the record, if there are no judged queries to compare by.
        catch_up: embed first what changed in the source since the release was built.

    Raises:
        GateFailed, Inconclusive: the comparison is missing or does not pass.
        Conflict: something else became live since the comparison, or at this moment.
        SourceError: the source cannot be read; `catch_up=False` promotes without it.
        IntegrityError: the release is not verified, or its data is not there.
    """
    from reembed.lifecycle.promote import Reasons
    from reembed.strategies.up_to_date import promote_up_to_date

    catalog, reasons = catalog_of(config), Reasons(force, initial, without_evidence)
    executor = ray_executor() if catch_up else None
    return promote_up_to_date(catalog, config, release, reasons, emit, executor=executor)


def rollback(
    config: Config, to: str | None = None, reason: str | None = None, *, emit: Listener = ignore
) -> Moved:
    """Make the previous release, or `to`, live again.

    Raises:
        UsageError: no release was live before, or that one is gone.
        Conflict: another process moved the alias at this moment.
        IntegrityError: that release is not verified, or its data is not there.
    """
    from reembed.lifecycle.moves import roll_back

    return roll_back(catalog_of(config), to, reason, emit)


def catch_up(
    config: Config,
    which: str = "live",
    *,
    retry_dead_letters: bool = False,
    emit: Listener = ignore,
) -> CaughtUp:
    """Bring a release up to date with its source; what replaces the live release becomes live.

    Args:
        which: live, previous or the id of a release.
        retry_dead_letters: try documents without a vector again.

    Raises:
        Conflict: live was rolled back to older documents of its model, before or meanwhile, or another model
            went live meanwhile; what was built stays.
        SourceError: the source cannot be read.
        RunFailed: the pass stopped; the same call resumes it.
    """
    from reembed.strategies.up_to_date import catch_up_and_follow

    catalog, run = catalog_of(config), ray_executor()
    return catch_up_and_follow(
        catalog, config, which, emit, executor=run, retry_dead_letters=retry_dead_letters
    )


def status(config: Config) -> Status:
    """Return where the alias stands: live, previous, candidates, unfinished runs."""
    from reembed.lifecycle.status import status

    return status(catalog_of(config), config.gate)


def history(config: Config) -> History:
    """Return every promote, rollback and catch-up of the alias, oldest first.

    Raises:
        IntegrityError: the log has a gap.
    """
    from reembed.lifecycle.moves import History

    return History(config.alias, tuple(catalog_of(config).log()))


def gc(config: Config, *, delete: bool = False, drop_run: str | None = None) -> Collected:
    """List what no release needs; `storage.keep` says how many releases stay.

    Args:
        delete: delete it; without this, nothing is changed.
        drop_run: an unfinished run to give up as well.

    Raises:
        UsageError: no unfinished run has that id.
        Conflict: a process drives that run.
        IntegrityError: a record names what another run or release made; then nothing is deleted.
    """
    from reembed.lifecycle.collect import collect

    return collect(catalog_of(config), config.storage.keep, delete=delete, drop_run=drop_run)

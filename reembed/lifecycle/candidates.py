"""Which release is meant: a candidate, the newest of a line, or the one that a verb names."""

from __future__ import annotations

from itertools import islice

from reembed.catalog.lines import RunEntry
from reembed.catalog.releases import AliasRecord, Catalog, Release, Standing
from reembed.catalog.runs import Run, started_with
from reembed.config.settings import Config
from reembed.errors import UsageError
from reembed.store.paths import absolute, from_anywhere


def newest_of(catalog: Catalog, release: Release) -> Release:
    """Return the release of the same line that has the newest documents, and whose data is there."""
    newest = newest_by_line(catalog.entries()).get(release.origin)
    if newest is None or newest.id == release.id:
        return release
    return catalog.release(newest.id)


def newest_by_line(entries: list[RunEntry]) -> dict[str, RunEntry]:
    """Return the newest release of each line; the lines are in the order of their start."""
    newest: dict[str, RunEntry] = {}
    for entry in filter(lambda e: e.kept, entries):
        known = newest.setdefault(entry.origin, entry)
        newest[entry.origin] = max(known, entry, key=lambda e: e.place.reach)
    return newest


def candidates(
    catalog: Catalog, live: AliasRecord | None, entries: list[RunEntry] | None = None
) -> list[RunEntry]:
    """Return what could be promoted: the newest of every line that does not stand, oldest line first.

    What served before the live release is where a rollback goes, not a candidate. `entries` is the
    result of `Catalog.entries`, if the caller has it.
    """
    lines = {s.origin for s in catalog.standing(live)}
    newest = newest_by_line(catalog.entries() if entries is None else entries)
    return [entry for line, entry in newest.items() if line not in lines]


def release_of(catalog: Catalog, config: Config) -> Release | None:
    """Return the newest release built with a config's settings, as it was last caught up, if any."""
    settings, version = config.line_settings(absolute(config.source.uri)), config.source.version
    found = [e for e in catalog.entries() if e.place.settings == settings]
    versions = {e.origin: e.place.version for e in found if e.id == e.origin}
    mine = newest_by_line(found)
    meant = [e for line, e in mine.items() if version in (None, versions.get(line))]
    if not meant:
        return None
    return catalog.release(meant[-1].id)


def candidate(catalog: Catalog, config: Config, release_id: str | None = None) -> Release:
    """Return the release asked for, or the one that was built with the config's settings.

    Raises:
        UsageError: there is none, gc removed it, or it is live.
    """
    live, chosen = catalog.live(), named_or_own(catalog, config, release_id)
    require_kept(catalog, chosen)
    if live is not None and chosen.id == live.release.id:
        others = _named_candidates(catalog, live)
        why = f"candidates: {others}; name one" if others else "there is no other candidate"
        raise UsageError(f"release {chosen.id} is already live", why, "reembed status")
    return chosen


def none_built(catalog: Catalog, live: AliasRecord | None) -> UsageError:
    """Return the error for a config without a release of its own; it names the candidates of others."""
    what = f"{catalog.alias} has no release that was built with these settings"
    if others := _named_candidates(catalog, live):
        return UsageError(
            what, f"candidates of other settings: {others}; name one", "reembed status"
        )
    return UsageError(what, None, "reembed run")


def _named_candidates(catalog: Catalog, live: AliasRecord | None) -> str:
    return ", ".join(entry.id for entry in candidates(catalog, live))


def require_kept(catalog: Catalog, release: Release) -> None:
    """Refuse a release that gc marked.

    Raises:
        UsageError: its data is going or gone.
    """
    if catalog.is_retired(release):
        raise UsageError(
            f"release {release.id} was removed by gc",
            "its data is gone",
            started_with(Run(catalog.storage, release.origin), "--fresh"),
        )


def previous(catalog: Catalog, live: AliasRecord | None) -> Standing | None:
    """Return what stands below the live release; None if nothing does."""
    return next(islice(catalog.standing(live), 1, None), None)


def newest_in(catalog: Catalog, stood: Standing, entries: list[RunEntry] | None = None) -> str:
    """Return the id of the newest release of a standing one's line, or its own if none of the line is kept.

    A rollback goes there. `entries` is the result of `Catalog.entries`, if the caller has it.
    """
    newest = newest_by_line(catalog.entries() if entries is None else entries).get(stood.origin)
    return newest.id if newest else stood.release


def named_or_own(catalog: Catalog, config: Config, release_id: str | None) -> Release:
    """Return the release asked for, or the newest one built with the config's settings; it may be live.

    Raises:
        UsageError: there is none.
    """
    if release_id is not None:
        return catalog.release(release_id)
    own = release_of(catalog, config) or _with_queries_by(catalog, config)
    if own is None:
        raise none_built(catalog, catalog.live())
    return own


def _with_queries_by(catalog: Catalog, config: Config) -> Release | None:
    """Return the one candidate whose query model alone is the config's; None if there are none, or several."""
    encoder = from_anywhere(config.encoder)
    releases = (catalog.release(e.id) for e in candidates(catalog, catalog.live()))
    mine = [r for r in releases if r.queries is not None and r.queries.encoder == encoder]
    return mine[0] if len(mine) == 1 else None


def by_default(catalog: Catalog, config: Config) -> Release:
    """Return the config's own release if it never served; else what is live.

    Raises:
        UsageError: nothing was built with these settings, and nothing is live.
    """
    own, log = release_of(catalog, config), catalog.log()
    if own is not None and own.origin not in {step.release.origin for step in log}:
        return own
    if not log:
        raise none_built(catalog, None)
    return log[-1].release


def kept(catalog: Catalog, release_id: str) -> Release:
    """Return a release by id.

    Raises:
        UsageError: it does not exist, or gc removed it.
    """
    release = catalog.release(release_id)
    require_kept(catalog, release)
    return release


def named(catalog: Catalog, which: str) -> Release:
    """Return the release that `which` names: live, previous, or an id.

    Raises:
        UsageError: no such release exists, or gc removed it.
    """
    if which == "live":
        return catalog.require_live().release
    if which == "previous":
        stood = previous(catalog, catalog.require_live())
        if stood is None:
            raise UsageError(f"{catalog.alias} has no previous release", None, "reembed history")
        return catalog.release(newest_in(catalog, stood))
    return kept(catalog, which)

"""Which release a verb means."""

from __future__ import annotations

from reembed.catalog.releases import Catalog, Release
from reembed.config.settings import Config
from reembed.errors import UsageError
from reembed.lifecycle.promote import none_built, previous, release_of, require_kept


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
        return catalog.release(stood.release)
    return kept(catalog, which)

"""What `reembed gc` does: an alias's own releases, and what its lazy migrations left."""

from __future__ import annotations

import datetime as dt

from reembed import faults
from reembed.catalog import lazies
from reembed.catalog.lazies import Lazy
from reembed.catalog.lease import is_driven
from reembed.catalog.releases import Catalog
from reembed.catalog.runs import Run
from reembed.lifecycle import gc
from reembed.lifecycle.gc_plan import Collected, LazyLeft, files_below
from reembed.lifecycle.gc_reasons import is_copied
from reembed.lifecycle.lazy_end import is_over, left_by, remove, settled
from reembed.store.storage import Storage

_GIVEN_UP = dt.timedelta(days=1)
_NEVER = "abandoned before it started"


def collect(catalog: Catalog, keep: int, *, delete: bool, drop_run: str | None) -> Collected:
    """Return what gc would delete, or did; raise errors as `gc.droppable`, `gc.plan` and `gc.apply`."""
    if drop_run:
        dropped = gc.droppable(catalog, drop_run)
        if delete:
            dropped.abandon()
    if delete:
        settled(catalog)
    planned = gc.plan(catalog, keep, dropping=drop_run)
    removed = gc.apply(catalog, planned, keep) if delete else []
    left = _left(catalog, keep, delete=delete)
    return Collected(planned, tuple(r.release for r in removed), delete, drop_run, left)


def _left(catalog: Catalog, keep: int, *, delete: bool) -> tuple[LazyLeft, ...]:
    """Return what lazy migrations left and nothing needs; remove it if that is asked for."""
    found = []
    for lazy in lazies.every(catalog):
        side = Catalog(catalog.storage, lazy.plan.side)
        if not is_over(lazy):
            found.append(_older(side, lazy, keep, delete=delete))
        elif not is_driven(Run(catalog.storage, lazy.plan.side)):
            number, why = lazy.plan.number, lazy.step.state
            found.append(_whole(catalog, side, number, why, delete=delete))
    found.append(_unstarted(catalog, delete=delete))
    return tuple(left for left in found if left)


def _older(side: Catalog, lazy: Lazy, keep: int, *, delete: bool) -> LazyLeft | None:
    """Older releases of a new side, as of any alias."""
    planned = gc.plan(side, keep)
    releases = tuple(r.release for r in planned.remove)
    if not releases and not planned.bytes:
        return None
    if delete:
        gc.apply(side, planned, keep)
    return LazyLeft(lazy.plan.number, side.alias, lazy.step.state, False, releases, planned.bytes)


def _unstarted(catalog: Catalog, *, delete: bool) -> LazyLeft | None:
    """What a start left that was interrupted a day ago: until then the same command continues it."""
    plan = lazies.unstarted(catalog)
    number = plan.number if plan else lazies.next_number(catalog)
    side = Catalog(catalog.storage, lazies.side_alias(catalog.alias, number))
    written = catalog.storage.written(f"lazy/{catalog.alias}/{number}/")
    if not written or is_driven(Run(catalog.storage, side.alias)):
        return None
    if dt.datetime.now(dt.UTC) - max(written.values()) < _GIVEN_UP:
        return None
    if plan and delete:
        lazies.move(catalog, plan, None, "stopped", keep=False, reason=_NEVER)
    return _whole(catalog, side, number, _NEVER, delete=delete)


def _whole(
    catalog: Catalog, side: Catalog, number: int, why: str, *, delete: bool
) -> LazyLeft | None:
    """All of a lazy migration that is over, unless a run copies vectors from it.

    Its releases are marked first: a run that is planned at this moment looks for the marks after its plan is written.
    """
    places = left_by(catalog, number)
    size = sum(_size(catalog.storage, place) for place in places)
    if not size or is_copied(side):
        return None
    releases = tuple(side.ids())
    left = LazyLeft(number, side.alias, why, True, releases, size)
    if not delete:
        return left
    for release in releases:
        side.mark_retired(release)
    faults.point("lazy.after_mark")
    if is_copied(side):
        for release in releases:
            side.unmark_retired(release)
        return None
    for place in places:
        remove(catalog.storage, place)
        faults.point("lazy.after_removal")
    return left


def _size(storage: Storage, place: str) -> int:
    if place.endswith("/"):
        return sum(f.size for f in files_below(storage, place))
    return storage.size(place) or 0

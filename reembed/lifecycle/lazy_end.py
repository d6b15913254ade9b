"""How a lazy migration ends: by the promotion of a release of its space, and what of it gc may then remove."""

from __future__ import annotations

from reembed import faults
from reembed.catalog import lazies
from reembed.catalog.lazies import Lazy, side_alias
from reembed.catalog.lines import entries
from reembed.catalog.releases import Catalog
from reembed.catalog.runs import Run
from reembed.lifecycle.gc_reasons import planned_of
from reembed.store.paths import index_folder
from reembed.store.storage import Storage


def settled(catalog: Catalog) -> Lazy | None:
    """Return the alias's lazy migration, finished if a release of its space is live.

    The promotion is one record and the end is another: what a process that died in between left is done here.
    """
    found, live = lazies.current(catalog), catalog.live()
    if found is None or live is None or is_over(found):
        return found
    if live.release.space.id != found.plan.space.id:
        return found
    faults.point("lazy.before_finish")
    reason = f"{live.release.id}, of its space, is live"
    return Lazy(found.plan, lazies.move(catalog, found.plan, found.step, "finished", reason=reason))


def is_over(found: Lazy) -> bool:
    """Whether nothing of it is needed any more."""
    return found.step.state == "finished" or (found.step.state == "stopped" and not found.step.keep)


def left_by(catalog: Catalog, number: int) -> list[str]:
    """Return the files and folders of a lazy migration, except its plan and steps, which stay as a record."""
    side, folder = side_alias(catalog.alias, number), f"lazy/{catalog.alias}/{number}"
    folders = ("members.lance/", "looks/", "queue/", "batches/", "backgrounds/")
    names = (*folders, "draft.json", "background.arrow")
    own = [f"{folder}/{name}" for name in names]
    return [*left_by_side(catalog, side), *own, f"runs/{side}/"]


def left_by_side(catalog: Catalog, side: str) -> list[str]:
    """Return the files and folders of the alias of a new side: its log first, so that nothing opens it, and last
    what names its runs.
    """
    runs = [Run(catalog.storage, entry.id) for entry in entries(catalog.storage, side)]
    tables = {plan.table for _, plan in planned_of(runs) if plan.alias == side}
    return [
        f"aliases/{side}/",
        f"aliases/{side}.json",
        f"releases/{side}/",
        *(f"{table}/" for table in sorted(tables)),
        *(f"{index_folder(run.id)}/" for run in runs),
        *(f"results/{run.id}.json" for run in runs),
        *(run.path("") for run in runs),
        f"lines/{side}/",
    ]


def remove(storage: Storage, place: str) -> None:
    """Remove a file, or a folder, whose name ends in a slash."""
    if place.endswith("/"):
        storage.delete_tree(place)
    else:
        storage.remove(place)

"""promote and rollback: the only writers of the alias. Each is one create-only record."""

from __future__ import annotations

from typing import Any

from reembed import comparisons, faults, provenance
from reembed.catalog import Action, AliasRecord, Catalog, Release
from reembed.errors import Conflict, GateFailed, Inconclusive, IntegrityError, UsageError
from reembed.storage import content_path
from reembed.table_version import missing_files


def standing(log: list[AliasRecord]) -> list[Release]:
    """Releases from the first promoted to the live one; a rollback takes away what it went back over.

    A release that was caught up with its source stands where the one it grew out of stood.
    """
    stack: list[Release] = []
    for record in log:
        lines = [r.origin for r in stack]
        if record.action == "rollback" and record.release.origin in lines:
            stack = stack[: len(lines) - 1 - lines[::-1].index(record.release.origin)]
        elif record.action == "catch-up":
            stack = stack[:-1]
        stack.append(record.release)
    return stack


def newest_of(catalog: Catalog, release: Release) -> Release:
    """The release of the same line that was caught up last, and whose data is there."""
    line = [
        r for r in catalog.releases() if r.origin == release.origin and not catalog.is_retired(r.id)
    ]
    newest = release
    for later in sorted(line, key=lambda r: (r.number, r.created_at)):
        if not is_behind(catalog, later, newest):
            newest = later
    return newest


def is_behind(catalog: Catalog, release: Release, other: Release) -> bool:
    """Whether a release of the same line has older documents than another, and did not grow out of it.

    A catch-up that finishes late is registered after one that read a newer version of the source. A
    source that was made again counts its versions from 1: what grew out of a release is never behind it.
    """
    if _reach(catalog, release) >= _reach(catalog, other):
        return False
    ancestor = release
    while ancestor.base is not None and ancestor.id != other.id:
        ancestor = catalog.release(ancestor.base)
    return ancestor.id != other.id


def _reach(catalog: Catalog, release: Release) -> int:
    """The newest version of the source that a release is known to equal."""
    noted = catalog.storage.read_if_there(f"runs/{release.run_id}/caught_up.json")
    return int((noted or release.source)["version"])


def candidates(catalog: Catalog) -> list[Release]:
    """Releases that wait to be promoted, oldest first: built since what is live, or rolled back from.

    What served before the live release is what a rollback goes to, never a candidate by itself.
    """
    stack = standing(catalog.log())
    lines = {r.origin for r in stack}
    since = catalog.release(stack[-1].origin).number if stack else 0
    return [
        r
        for r in catalog.releases()
        if r.origin not in lines and r.number >= since and not catalog.is_retired(r.id)
    ]


def candidate(catalog: Catalog, release_id: str | None = None) -> Release:
    """The release asked for, or the newest that waits.

    Raises:
        UsageError: there is none, or gc removed it.
    """
    live = catalog.live()
    if release_id is not None:
        chosen = catalog.release(release_id)
    else:
        waiting = candidates(catalog)
        if not waiting:
            raise UsageError(
                f"{catalog.alias} has no candidate",
                f"{live.release.id} is live, and nothing was built since"
                if live
                else "nothing was built",
                "reembed run",
            )
        chosen = waiting[-1]
    if catalog.is_retired(chosen.id):
        raise UsageError(
            f"release {chosen.id} was removed by gc", "its data is gone", "reembed run --fresh"
        )
    if live is not None and chosen.id == live.release.id:
        raise UsageError(f"release {chosen.id} is live already", None, "reembed history")
    return chosen


def promote(
    catalog: Catalog, release_id: str | None = None, *, force_reason: str | None = None
) -> AliasRecord:
    """Move the alias to a candidate.

    The first release ever needs no comparison; any other needs a passing one of exactly this
    candidate against exactly what is live, or `force_reason`, which is recorded.

    Raises:
        GateFailed, Inconclusive: the comparison is missing or does not pass.
        Conflict: something else became live since the comparison, or at this moment.
        IntegrityError: the candidate is not verified, or its data is not there.
        UsageError: its line has a release with newer documents.
    """
    live = catalog.live()
    chosen = candidate(catalog, release_id)
    _require_newest(catalog, chosen)
    comparison = admissible(catalog, chosen, live, forced=force_reason is not None)
    faults.point("promote.before_swap")
    record = _swap(catalog, live, "promote", chosen, force_reason, comparison)
    faults.point("promote.after_swap")
    return record


def _require_newest(catalog: Catalog, chosen: Release) -> None:
    newest = newest_of(catalog, chosen)
    if is_behind(catalog, chosen, newest):
        raise UsageError(
            f"release {chosen.id} is behind {newest.id}, which has its model and newer documents",
            "documents that were added or changed between them would be missing",
            f"reembed promote {newest.id}",
        )


def admissible(
    catalog: Catalog, chosen: Release, live: AliasRecord | None, *, forced: bool
) -> dict[str, Any] | None:
    """The comparison that lets a release become live, or the last one where the gate is overruled.

    None where nothing is live yet, or where the gate is overruled without any comparison.

    Raises:
        GateFailed, Inconclusive, Conflict, IntegrityError: as `promote`.
    """
    _require_complete(catalog, chosen)
    if live is None:
        return None
    if forced:
        return comparisons.last(catalog, live.release, chosen)
    return _passing_comparison(catalog, chosen, live.release)


def rollback(catalog: Catalog, to: str | None = None, *, reason: str | None = None) -> AliasRecord:
    """Move the alias back: to the release that served before this one, or to `to`.

    Raises:
        UsageError: nothing served before, or that release is gone.
        Conflict: somebody else moved the alias at this moment.
    """
    log = catalog.log()
    live = catalog.require_live()
    stack = standing(log)
    if to is None and len(stack) < 2:
        raise UsageError(
            f"{catalog.alias} has nothing to roll back to",
            f"{live.release.id} is the first in line",
            "reembed history",
        )
    target = newest_of(catalog, stack[-2]) if to is None else _promoted_before(catalog, log, to)
    if target.id == live.release.id:
        raise UsageError(f"release {target.id} is live already", None, "reembed history")
    if catalog.is_retired(target.id):
        raise UsageError(
            f"release {target.id} was removed by gc", "its data is gone", "reembed run --fresh"
        )
    # Size only: going back must be quick however large the index is, and serving hashes it anyway.
    _require_complete(catalog, target, by_hash=False)
    return _swap(catalog, live, "rollback", target, reason, None)


def follow(catalog: Catalog, release: Release) -> AliasRecord:
    """Move the alias to what the live release grew into by a catch-up: same model, newer documents.

    It never moves to older ones: where live has newer documents than `release`, live stays.

    Raises:
        Conflict: another release went live meanwhile.
        IntegrityError: it is not verified, or its data is not there.
    """
    live = catalog.require_live()
    if live.release.origin != release.origin:
        raise Conflict(
            f"{catalog.alias} was moved to {live.release.id} meanwhile",
            f"{release.id} grew out of what served before",
            "reembed status",
        )
    if live.release.id == release.id or is_behind(catalog, release, live.release):
        return live
    _require_complete(catalog, release)
    faults.point("promote.before_follow")
    return _swap(catalog, live, "catch-up", release, None, None)


def _promoted_before(catalog: Catalog, log: list[AliasRecord], to: str) -> Release:
    for record in reversed(log):
        if record.release.id == to:
            return record.release
    known = ", ".join(dict.fromkeys(r.release.id for r in log))
    raise UsageError(
        f"release {to} never served {catalog.alias}", f"these did: {known}", "reembed history"
    )


def _swap(
    catalog: Catalog,
    live: AliasRecord | None,
    action: Action,
    release: Release,
    reason: str | None,
    comparison: dict[str, Any] | None,
) -> AliasRecord:
    """The compare-and-swap, and a second look: gc may have marked the release at the same moment.

    gc marks, then looks at the alias; we write the alias, then look for the mark. So at least one
    of the two sees the other, and the release that lost its data never stays live.
    """
    record = catalog.append(live, action, release, reason=reason, comparison=comparison)
    if catalog.is_retired(release.id) and live is not None:
        catalog.append(record, "rollback", live.release, reason=f"gc was removing {release.id}")
        raise Conflict(
            f"release {release.id} was being removed by gc",
            f"{live.release.id} serves on",
            "reembed status",
        )
    return record


def _index_is_whole(
    catalog: Catalog, release: Release, manifest: dict[str, Any], *, by_hash: bool
) -> bool:
    file = content_path(release.index, release.index_sha256, "faiss")
    if by_hash:
        return catalog.storage.digest(file) == (manifest["size_bytes"], manifest["sha256"])
    sizes = dict(catalog.storage.objects(f"{release.index}/"))
    return sizes.get(file) == int(manifest["size_bytes"])


def _require_complete(catalog: Catalog, release: Release, *, by_hash: bool = True) -> None:
    if not provenance.is_verified(catalog.storage, release):
        raise IntegrityError(f"release {release.id} is not verified", None, "reembed verify")
    described = content_path(release.index, release.index_sha256, "json")
    manifest = catalog.storage.read_if_there(described)
    if manifest is None:
        raise IntegrityError(
            f"release {release.id} has no index", f"{described} is gone", "reembed run --fresh"
        )
    provenance.require_index(release, manifest)
    if not _index_is_whole(catalog, release, manifest, by_hash=by_hash):
        raise IntegrityError(
            f"the index of release {release.id} is not whole",
            f"{content_path(release.index, release.index_sha256, 'faiss')} is gone, cut short or changed",
            "reembed run --fresh",
        )
    try:
        provenance.require_table(catalog.storage, release)
        missing = missing_files(catalog.storage, release.table, release.table_version)
    except FileNotFoundError as error:
        raise IntegrityError(
            f"release {release.id} has no table",
            f"{release.table} version {release.table_version} cannot be opened",
            "reembed run --fresh",
        ) from error
    if missing:
        raise IntegrityError(
            f"{len(missing)} files of the table of release {release.id} are gone or cut short",
            ", ".join(missing[:3]),
            "reembed run --fresh",
        )


def _passing_comparison(catalog: Catalog, chosen: Release, live: Release) -> dict[str, Any]:
    # What was caught up has the model of what was compared: the newest verdict on the line stands.
    record = comparisons.newest(catalog, live, chosen)
    again = f"reembed compare --candidate {chosen.id}"
    if record is None:
        if others := comparisons.compared_with(catalog, chosen):
            raise Conflict(
                f"release {chosen.id} was compared with {', '.join(others)}, but {live.id} is live now",
                "the comparison does not say whether it is better than what serves",
                again,
            )
        raise GateFailed(
            f"release {chosen.id} was never compared with {live.id}, which is live",
            "without a comparison nobody knows whether it is better",
            again,
        )
    compared = catalog.release(record["candidate"]["release"])
    comparisons.require_sound(catalog, record, compared)
    failing = "; ".join(str(r["detail"]) for r in record["rules"] if r["verdict"] != "pass")
    again = f"{again}     # says what can be done"
    if record["verdict"] == "fail":
        raise GateFailed(
            f"release {chosen.id} failed the comparison with {live.id}", failing, again
        )
    if record["verdict"] != "pass":
        raise Inconclusive(
            f"the comparison of {chosen.id} with {live.id} is inconclusive", failing, again
        )
    return comparisons.evidence(record)

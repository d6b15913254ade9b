"""Whether a release can serve: its index, its table and the record of its verification are whole."""

from __future__ import annotations

from reembed.catalog.index_manifest import AnyManifest, as_manifest
from reembed.catalog.releases import Catalog, Release
from reembed.catalog.runs import rebuild_of
from reembed.errors import GateFailed, IntegrityError
from reembed.store.paths import content_path
from reembed.store.storage import Storage
from reembed.table import provenance


def require_standing(catalog: Catalog, release: Release) -> Release:
    """Return the release if the sizes of its index and of its table's manifest are as recorded.

    A rollback must be quick at any size of the index, and serving hashes what it opens.

    Raises:
        IntegrityError: a file is missing or has another size, or the release is not verified.
    """
    provenance.require_verified(catalog.storage, release)
    storage, manifest = catalog.storage, release.table_manifest
    named = _described_index(catalog, release).stored(release.index)
    folders = {path.rpartition("/")[0] for path in named}
    there = dict(found for folder in folders for found in storage.objects(f"{folder}/"))
    for path, proof in named.items():
        if there.get(path) != proof.size_bytes:
            raise _index_not_whole(storage, release, path)
    if storage.size(f"{release.table}/_versions/{manifest.name}") != manifest.size_bytes:
        raise _no_table(storage, release)
    return release


def _index_not_whole(storage: Storage, release: Release, path: str) -> IntegrityError:
    return IntegrityError(
        f"the index of release {release.id} is incomplete",
        f"{path} is gone, cut short or changed",
        rebuild_of(storage, release.origin),
    )


def _no_table(storage: Storage, release: Release) -> IntegrityError:
    return IntegrityError(
        f"release {release.id} has no table",
        f"{release.table} version {release.table_version} cannot be opened",
        rebuild_of(storage, release.origin),
    )


def require_complete(
    catalog: Catalog, release: Release, *, grew_from: Release | None = None
) -> None:
    """Compare every file of the index with its sha256, and the table's files with those that are recorded.

    `grew_from`: a release that serves. Of index files that it has, too, only the size is looked at, as when it was
    opened.

    Raises:
        IntegrityError: a file is missing or changed, or the release is not verified.
    """
    storage = catalog.storage
    provenance.require_verified(storage, release)
    serving = _described_index(catalog, grew_from).stored(grew_from.index) if grew_from else {}
    known = set(serving.values())
    for path, proof in _described_index(catalog, release).stored(release.index).items():
        if proof in known:
            whole = storage.size(path) == proof.size_bytes
        else:
            whole = storage.digest(path) == (proof.size_bytes, proof.sha256)
        if not whole:
            raise _index_not_whole(storage, release, path)
    try:
        provenance.require_table(catalog.storage, release)
        provenance.require_files(catalog.storage, release)
    except FileNotFoundError as error:
        raise _no_table(catalog.storage, release) from error


def _described_index(catalog: Catalog, release: Release) -> AnyManifest:
    described = content_path(release.index, release.index_sha256, "json")
    record = catalog.storage.read_if_there(described)
    if record is None:
        raise IntegrityError(
            f"release {release.id} has no index",
            f"{described} is gone",
            rebuild_of(catalog.storage, release.origin),
        )
    manifest = as_manifest(record)
    provenance.require_index(release, manifest)
    return manifest


def recall_bound(catalog: Catalog, release: Release) -> float:
    """Return the lower 95 % bound of ann_recall@10, as measured when the index was built."""
    index = _described_index(catalog, release)
    if index.ann_recall_at_10 == 1:  # also of one query, which has no bound
        return 1.0
    return index.ann_recall_lower


def require_recall(catalog: Catalog, release: Release, required: float, fix: str) -> None:
    """Refuse an index whose measured ann_recall@10 may be lower than required.

    Raises:
        GateFailed: its lower bound is below `required`.
    """
    bound = recall_bound(catalog, release)
    if bound < required:
        raise GateFailed(
            f"the index of release {release.id}, which a catch-up built, has a lower ann_recall than its gate requires",
            f"lower bound of ann_recall@10: {bound:.4f}, at least {required:.4f} needed",
            fix,
        )

"""Check that an index and a table are those that a release was registered with.

Each `require_` function raises IntegrityError if they are not, FileNotFoundError if a table is gone.
"""

from __future__ import annotations

from reembed.catalog.index_manifest import AnyManifest
from reembed.catalog.releases import Release
from reembed.catalog.reports import VerifyReport
from reembed.catalog.runs import Run, rebuild_of
from reembed.errors import IntegrityError
from reembed.store.lance import tags_of
from reembed.store.storage import Storage
from reembed.table.read import manifest_proof, missing_files, open_table
from reembed.table.seal import Sealed, read_sealed

FIX = "reembed status     # and promote or roll back to a release that is whole"


def verification_path(run_id: str) -> str:
    """Return where the newest verification of a run's release is kept."""
    return f"runs/{run_id}/verify.json"


def is_verified(storage: Storage, release: Release) -> bool:
    """Return whether the release was registered as verified, and the newest verification passed too."""
    path = verification_path(release.id)
    newest = storage.decode_if_there(VerifyReport, path) or release.verify
    same = newest.table_version == release.table_version
    return release.verify.passed and newest.passed and same


def require_verified(storage: Storage, release: Release) -> None:
    """Check that a release is verified, so that it may serve or grow into one that does."""
    if not is_verified(storage, release):
        raise IntegrityError(
            f"release {release.id} is not verified",
            "its newest verification found differences, or was of another version of its table",
            f"reembed verify --release {release.id}",
        )


def require_index(release: Release, manifest: AnyManifest) -> None:
    """Check an index's manifest against the release that names it, before a byte of the index is read."""
    if manifest.sha256 != release.index_sha256:
        raise IntegrityError(
            f"the index of release {release.id} was replaced after the release was registered",
            f"sha256 {manifest.sha256[:12]} where the release records {release.index_sha256[:12]}",
            FIX,
        )
    registered = (release.table, release.table_version, release.space.id)
    found = (manifest.table, manifest.table_version, manifest.space)
    if found != registered:
        raise IntegrityError(
            f"release {release.id} names another table than its index was made from",
            "the index is of {} version {} in space {}, the release of {} version {} in space {}".format(
                *found, *registered
            ),
            FIX,
        )


def require_manifest(storage: Storage, release: Release) -> None:
    """Check the manifest of the table's version against its sha256, before Lance reads it.

    Lance has no checksum of it: a flipped bit is another table, or a panic.
    """
    found = manifest_proof(storage, release.table, release.table_version)
    if found != release.table_manifest:
        raise IntegrityError(
            f"version {release.table_version} of {release.table} is not what release {release.id} was registered with",
            f"its manifest is {'different' if found else 'gone'}",
            FIX,
        )


def require_sealed(storage: Storage, release: Release) -> Sealed:
    """Return the record of the table's files that the release was registered with."""
    found = read_sealed(Run(storage, release.id), release.table, release.table_version)
    if found.sha256 != release.sealed_sha256:
        raise IntegrityError(
            f"release {release.id} was registered with another record of its table's files",
            f"sha256 {found.sha256[:12]} where the release records {release.sealed_sha256[:12]}",
            FIX,
        )
    return found


def require_table(storage: Storage, release: Release) -> None:
    """Check the manifest of the release's version of its table, and the tag that sealing put on it."""
    require_manifest(storage, release)
    tag = release.table_tag
    tagged = tags_of(open_table(storage, release.table)).get(tag)
    if tagged != release.table_version:
        raise IntegrityError(
            f"version {release.table_version} of {release.table} was not sealed for release {release.id}",
            f"its tag {tag} names version {tagged}" if tagged else f"it has no tag {tag}",
            FIX,
        )


def require_files(storage: Storage, release: Release) -> None:
    """Check that the data files of the release's table are there, by name and size."""
    if missing := missing_files(storage, release.table, release.table_version):
        raise IntegrityError(
            f"{len(missing)} files of the table of release {release.id} are gone or cut short",
            ", ".join(missing[:3]),
            rebuild_of(storage, release.origin),
        )

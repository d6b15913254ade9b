"""Verify a registered release again: what is compared with what, and where the report goes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from obstore.exceptions import BaseError

from reembed.catalog.index_manifest import read_manifest
from reembed.catalog.releases import Catalog, Release
from reembed.catalog.reports import IDS, ROWS, VerifyReport
from reembed.catalog.runs import Run, rebuild_of
from reembed.clock import now
from reembed.engine.patience import Patience
from reembed.errors import IntegrityError, NotVerified, SourceError
from reembed.lifecycle import candidates, scratch, verify
from reembed.lifecycle.held import held_by
from reembed.lifecycle.scratch import JournalKey, Scratch
from reembed.source.dataset import Source
from reembed.source.lag import Lag, behind, caught_up, newest_of
from reembed.store.records import encode
from reembed.store.storage import Storage, is_of_storage
from reembed.table import provenance
from reembed.table.provenance import verification_path
from reembed.table.read import TableVersion


@dataclass(frozen=True)
class Verified:
    """A release compared with its source."""

    release: str
    report: VerifyReport
    """What was compared, and what differs."""
    lag: Lag
    """How far the release is behind the newest version of its source."""
    rebuild: str
    """The command that builds the release again."""
    larger: str | None
    """The command of a larger verification, if an earlier one that checked more failed."""
    fresh: bool = True
    """False if the release lacks a change of the source that is older than the limit asked for."""

    @property
    def passed(self) -> bool:
        """Whether the release equals the version of its source that it must equal."""
        return self.report.passed

    def is_fresh(self, within_s: float) -> bool:
        """Return whether the release lacks nothing that was written longer ago than this.

        Raises:
            NotVerified: the newest version of the source could not be read.
        """
        if self.lag.newest is None:
            raise NotVerified(
                f"how far release {self.release} is behind its source is not known",
                self.lag.why,
                "reembed verify --level 0     # without --fresh-within",
            )
        if self.lag.documents == 0:
            return True
        return self.lag.seconds is not None and self.lag.seconds < within_s

    def to_json(self) -> dict[str, Any]:
        """Return what `reembed verify --json` prints: the report's fields, and the rest."""
        own: dict[str, object] = {"lag": self.lag.to_json(), "rebuild": self.rebuild}
        own["larger"] = self.larger
        if not self.fresh:
            own["fresh"] = False
        return {"release": self.release, **self.report.to_json(), **own}


def verify_release(
    catalog: Catalog, release_id: str, *, level: int, sample: int, resume: bool, stall_s: float
) -> Verified:
    """Verify a registered release again; a full report is kept in its run's folder.

    `stall_s` is `embed.stall_s`, and limits how long the model's provider is waited for.

    Raises:
        IntegrityError: a record, the index or a version is gone or changed; its fix builds the release again.
        NotVerified: the store or the source could not be read.
        EncoderError: the model could not be loaded, or its provider did not answer.
    """
    release = candidates.kept(catalog, release_id)
    again = (
        f"reembed verify --release {release.id} --resume     # continues with what was not read yet"
    )
    patience = Patience(stall_s, again)
    try:
        return _verified(catalog, release, patience, level=level, sample=sample, resume=resume)
    except IntegrityError as error:
        unread = replace(release.verify, level=0, differences={}, behind=None, sampled=0, seed=None)
        failed = replace(unread, why=str(error), at=now())
        catalog.storage.write(verification_path(release.id), encode(failed))
        rebuild = rebuild_of(catalog.storage, release.origin)
        raise IntegrityError(error.what, error.why, rebuild) from error
    except (OSError, ValueError, BaseError, SourceError) as error:
        if not isinstance(error, SourceError) and not is_of_storage(error):
            raise
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise NotVerified(
            f"release {release.id} could not be verified",
            f"{type(error).__name__}: {first}",
            getattr(error, "fix", None) or again,
        ) from error


def _verified(
    catalog: Catalog, release: Release, patience: Patience, *, level: int, sample: int, resume: bool
) -> Verified:
    storage, run = catalog.storage, Run(catalog.storage, release.id)
    provenance.require_manifest(storage, release)
    manifest = read_manifest(storage, release.index, release.index_sha256)
    provenance.require_index(release, manifest)
    sealed = provenance.require_sealed(storage, release)
    source = _equalled(catalog, release, read=level >= IDS)
    newest, why = newest_of(source)
    moved_on = newest is not None and not newest.is_same(source)
    table = TableVersion(storage, release.table, release.table_version, release.space.dim)
    subject = verify.Subject(
        source,
        table,
        release.space,
        release.encoder,
        tuple(d.doc_id for d in sealed.dead_letters),
        held_by(table, release.index, manifest),
        sealed.files,
        release.table_manifest,
        newest if moved_on and level >= IDS else None,
        release.origin,
        release.golden_sha256,
        patience=patience,
    )
    newest_version = subject.newest.version if subject.newest else None
    key = JournalKey(release.table_version, source.version, newest_version, level, sample)
    older = scratch.folders(run)
    place = Scratch.resumed(run, key, resume=resume)
    failed = _failed_before(storage, run)
    # The rows that were found wrong are read again: others do not show whether these are right now.
    seed = failed.seed if failed else None
    found = verify.verify(subject, place, sample, seed, level=level)
    lag = behind(source, newest, found.lacking, why)
    scratch.remove(run, {*older, place.path})
    large = failed is None or (level >= failed.level and found.sampled >= failed.sampled)
    larger = None
    if not found.passed or (large and level >= ROWS):
        storage.write(verification_path(run.id), encode(found))
    elif failed is not None:
        level = max(failed.level, ROWS)
        larger = f"reembed verify --release {release.id} --level {level} --sample {failed.sampled}"
    return Verified(release.id, found, lag, rebuild_of(storage, release.origin), larger)


def _failed_before(storage: Storage, run: Run) -> VerifyReport | None:
    """Return the newest verification, if it failed; the next one replaces a damaged record of it."""
    try:
        found = storage.decode_if_there(VerifyReport, verification_path(run.id))
    except IntegrityError:
        return None
    if found is None or found.passed:
        return None
    return found


def _equalled(catalog: Catalog, release: Release, *, read: bool) -> Source:
    """Return the source version that the release must equal: the last it was caught up with.

    Raises:
        SourceError: it must be read, and neither it nor the version that the release was made from is there.
    """
    made_from = Source(release.source, catalog.source_options)
    noted = caught_up(catalog, release)
    if not read or noted.is_as_planned(noted.ref):
        return noted
    if made_from.is_as_planned(release.source):
        return made_from
    raise SourceError(
        f"version {made_from.version} of {made_from.uri} is gone, or another dataset took its place",
        "nothing is left that the release could be compared with",
        f"reembed catch-up {release.id}     # compares every row with what is there now",
    )

"""How far a release is behind its source: by versions and time, and by documents if that is cheap."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import asdict, dataclass
from typing import Any

from reembed.catalog.releases import Catalog, Release, SourceRef
from reembed.errors import SourceError
from reembed.source import versions
from reembed.source.dataset import Source
from reembed.source.opening import planned_dataset
from reembed.store.records import decode, encode
from reembed.store.storage import first_line

_NOTE = re.compile(r"[0-9]{8}-[0-9]{20}\.json")


@dataclass(frozen=True)
class Lag:
    """A release against the newest version of its source."""

    source_version: int
    """The newest version that the release is known to equal."""
    newest: int | None
    """The newest there is; None where the source could not be read: see `why`."""
    documents: int | None
    """At most how many were written or deleted since; None where counting is not cheap."""
    seconds: float | None
    """At most how long ago the first version after `source_version` was written; 0 if there is none,
    None if the versions that would tell were cleaned up."""
    why: str | None = None
    """Why something is not known."""

    @property
    def versions(self) -> int | None:
        """Number of versions after `source_version`."""
        if self.newest is None:
            return None
        return self.newest - self.source_version

    def to_json(self) -> dict[str, Any]:
        """Return all fields and `versions`."""
        return {**asdict(self), "versions": self.versions}


def caught_up(catalog: Catalog, release: Release) -> Source:
    """Return the source at the newest version that the release is known to equal."""
    noted = _noted(catalog, release)
    return Source(noted.source if noted else release.source, catalog.source_options)


def note(catalog: Catalog, release: Release, number: int, source: Source) -> None:
    """Record that the release equals this version of its source, as the catch-up of this number found.

    Create-only, one for each number and version: a late note replaces no other.
    """
    path = f"{_notes_of(release)}{number:08d}-{source.version:020d}.json"
    catalog.storage.create(path, encode(_Note(number, source.ref)))


def noted_place(catalog: Catalog, release: Release) -> tuple[int, int]:
    """Return number and source version of the newest note; zeros without one."""
    if noted := _noted(catalog, release):
        return noted.number, noted.source.version
    return 0, 0


def lag(catalog: Catalog, release: Release) -> Lag:
    """Return how far a release is behind; if its source cannot be read, `why` says so."""
    source = caught_up(catalog, release)
    newest, why = newest_of(source)
    return behind(source, newest, None, why)


def newest_of(source: Source) -> tuple[Source | None, str | None]:
    """Return the same documents at the newest version; None and why if they cannot be read there."""
    try:
        return source.newest(), None
    except (SourceError, OSError, ValueError) as error:
        return None, _unread(source, error)


def behind(source: Source, newest: Source | None, documents: int | None, why: str | None) -> Lag:
    """Return what a release that equals `source` lacks of the newest version.

    `documents` is their number if they were counted already; `why` says why `newest` is None.
    """
    if newest is None:
        return Lag(source.version, None, None, None, why)
    if newest.is_same(source):
        return Lag(source.version, newest.version, 0, 0.0)
    try:
        older = planned_dataset(source.ref, newest.options)
        if older is None:
            why, written = versions.gone(source), versions.written_after(newest, 0)
        else:
            written = versions.written_after(newest, source.version)
            if documents is None:
                documents = versions.documents_changed(source.ref, older, newest)
    except (SourceError, OSError, ValueError) as error:
        return Lag(source.version, None, None, None, _unread(source, error))
    age = None
    if written:
        age = round(max(0.0, (dt.datetime.now(dt.UTC) - written).total_seconds()), 1)
    return Lag(source.version, newest.version, documents, age, why)


def _unread(source: Source, error: Exception) -> str:
    """Return why a version could not be read: in our words, or in Lance's."""
    if isinstance(error, SourceError):
        return error.what
    return f"{source.uri} cannot be read: {first_line(error)}"


@dataclass(frozen=True)
class _Note:
    number: int
    source: SourceRef


def _noted(catalog: Catalog, release: Release) -> _Note | None:
    """Return the note of the highest number, and of those of the highest version."""
    folder = _notes_of(release)
    names = [n for n in catalog.storage.names(folder) if _NOTE.fullmatch(n)]
    if not names:
        return None
    return decode(_Note, catalog.storage.read(f"{folder}{names[-1]}"))


def _notes_of(release: Release) -> str:
    return f"runs/{release.id}/caught-up/"

"""How far a release is behind its source: by versions and time, and by documents where that is cheap."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import asdict, dataclass
from typing import Any

from reembed.catalog.releases import Catalog, Release, SourceRef
from reembed.errors import SourceError
from reembed.source.dataset import Source
from reembed.source.versions import later
from reembed.store.records import decode, encode

_NOTE = re.compile(r"[0-9]{8}-[0-9]{20}\.json")


@dataclass(frozen=True)
class Lag:
    """A release against the newest version of its source."""

    source_version: int
    """The newest version that the release is known to equal."""
    newest: int | None
    """The newest there is; None where the source could not be read: see `why`."""
    documents: int | None
    """At most how many were written or deleted since; None where finding out is not cheap."""
    seconds: float | None
    """At most how long ago the first version after `source_version` was written; 0 where there is none,
    None where the versions that would tell were cleaned up."""
    why: str | None = None
    """Why something is not known."""

    @property
    def versions(self) -> int | None:
        """Versions after `source_version`."""
        if self.newest is None:
            return None
        return self.newest - self.source_version

    def to_json(self) -> dict[str, Any]:
        """All fields, and `versions`."""
        return {**asdict(self), "versions": self.versions}


def caught_up(catalog: Catalog, release: Release) -> Source:
    """The source at the newest version that the release is known to equal."""
    noted = _noted(catalog, release)
    return Source(noted.source if noted else release.source, catalog.source_options)


def note(catalog: Catalog, release: Release, number: int, source: Source) -> None:
    """Keep that the release equals this version of its source, as the catch-up of this number found.

    Create-only, one for each number and version: who notes late takes nothing back.
    """
    path = f"{_notes_of(release)}{number:08d}-{source.version:020d}.json"
    catalog.storage.create(path, encode(_Note(number, source.ref)))


def noted_place(catalog: Catalog, release: Release) -> tuple[int, int]:
    """Number and source version of the note, as `catalog.place_in_line` has them; zeros without one."""
    if noted := _noted(catalog, release):
        return noted.number, noted.source.version
    return 0, 0


def lag(catalog: Catalog, release: Release) -> Lag:
    """How far a release is behind; a source that cannot be read is not an error, but said."""
    source = caught_up(catalog, release)
    newest, why = newest_of(source)
    return behind(source, newest, None, why)


def newest_of(source: Source) -> tuple[Source | None, str | None]:
    """The same documents at the newest version; None where they cannot be read there, and why."""
    try:
        return source.newest(), None
    except (SourceError, OSError, ValueError) as error:
        return None, _unread(source, error)


def behind(source: Source, newest: Source | None, documents: int | None, why: str | None) -> Lag:
    """What a release that equals `source` lacks of the newest version: `documents`, where they were
    counted already.
    """
    if newest is None:
        return Lag(source.version, None, None, None, why)
    if newest.is_same(source):
        return Lag(source.version, newest.version, 0, 0.0)
    try:
        found = later(source, newest, count=documents is None)
    except (SourceError, OSError, ValueError) as error:
        return Lag(source.version, None, None, None, _unread(source, error))
    counted = found.documents if documents is None else documents
    age = None
    if found.since:
        seconds = (dt.datetime.now(dt.UTC) - found.since).total_seconds()
        age = round(max(0.0, seconds), 1)
    return Lag(source.version, newest.version, counted, age, found.why)


def _unread(source: Source, error: Exception) -> str:
    """Why a version could not be read: in our words, or in Lance's, of files that are gone or damaged."""
    if isinstance(error, SourceError):
        return error.what
    return f"{source.uri} cannot be read: {(str(error) or type(error).__name__).splitlines()[0]}"


@dataclass(frozen=True)
class _Note:
    number: int
    source: SourceRef


def _noted(catalog: Catalog, release: Release) -> _Note | None:
    """The note of the highest number, and of those of the highest version."""
    folder = _notes_of(release)
    names = [n for n in catalog.storage.names(folder) if _NOTE.fullmatch(n)]
    if not names:
        return None
    return decode(_Note, catalog.storage.read(f"{folder}{names[-1]}"))


def _notes_of(release: Release) -> str:
    return f"runs/{release.run_id}/caught-up/"

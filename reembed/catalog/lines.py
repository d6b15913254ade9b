"""The lines of an alias: a rebuild and the catch-ups that grew out of it. Two listings show them all.

lines/ALIAS/SETTINGS/ORIGIN/STEP-VERSION/RUN.started-00000001   the run was started, the first of the alias
                                        /RUN.retired          gc's mark: the release's data is going or gone
releases/ALIAS/RELEASE.json                                   its release is registered

The marks are empty. A run's id says nothing: its place is in its plan, in its release and in this path.
Files of other names are ignored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import StringConstraints

from reembed.errors import IntegrityError, UsageError
from reembed.store.paths import NAME, release_path
from reembed.store.records import decode, where
from reembed.store.storage import Storage

_STEP = re.compile(r"([0-9]{8})-([0-9]{20})")
_MARK = re.compile(rf"({NAME})\.(started-[0-9]{{8}}|retired)")
_RELEASE = re.compile(rf"releases/({NAME})/({NAME})\.json")


Name = Annotated[str, StringConstraints(pattern=f"^{NAME}$")]
"""A text that may become part of a path."""


@dataclass(frozen=True)
class Place:
    """Where a run and its release stand: in which line, and after which others of it."""

    settings: Name
    """Digest of the settings that the line was started with."""
    origin: Name
    """Id of the rebuild that began the line."""
    step: int
    """0 for the rebuild. A catch-up takes its number before it reads the source: a later one has newer
    documents, also if the source was created again and its versions start at 1."""
    version: int
    """Version of the source; it orders catch-ups that ran at the same time with the same step."""

    @property
    def reach(self) -> tuple[int, int]:
        """How new its documents are among those of the line."""
        return self.step, self.version

    def mark(self, alias: str, run_id: str, name: str) -> str:
        """Return the path of one of a run's marks."""
        step = f"{self.step:08d}-{self.version:020d}"
        return f"lines/{alias}/{self.settings}/{self.origin}/{step}/{run_id}.{name}"


@dataclass(frozen=True)
class RunEntry:
    """A run, as the listing shows it; its release has the same id."""

    alias: str
    id: str
    place: Place
    number: int
    """Its place among the runs of the alias, in the order of their start."""
    released: bool
    retired: bool

    @property
    def origin(self) -> str:
        """The rebuild that began its line."""
        return self.place.origin

    @property
    def kept(self) -> bool:
        """Whether its release is registered, and gc has not marked it."""
        return self.released and not self.retired


def entries(storage: Storage, alias: str | None = None) -> list[RunEntry]:
    """Return the runs of an alias, or of all aliases, in the order of their start.

    A release whose marks are lost is found by its record, which says its place.
    """
    below = f"{alias}/" if alias else ""
    marks: dict[tuple[str, str, Place], set[str]] = {}
    for path, _ in storage.objects(f"lines/{below}"):
        if (key := _parsed(path)) is not None:
            marks.setdefault(key, set()).add(path.rpartition(".")[2])
    # Listed after the marks: a run that ended meanwhile has both.
    records = (_RELEASE.fullmatch(path) for path, _ in storage.objects(f"releases/{below}"))
    recorded = {(m[1], m[2]) for m in records if m}
    retired = {(of, run_id) for (of, run_id, _), names in marks.items() if "retired" in names}
    found = {
        (of, run_id): (place, _first(names))
        for (of, run_id, place), names in marks.items()
        if names != {"retired"}
    }
    for of, name in recorded - found.keys():
        if (place := _recorded_place(storage, of, name)) is not None:
            found[of, name] = (place, 0)
    listed = [
        RunEntry(*key, place, number, key in recorded, key in retired)
        for key, (place, number) in found.items()
    ]
    return sorted(listed, key=lambda e: (e.number, e.place.reach, e.id))


def begin(storage: Storage, alias: str, run_id: str, place: Place) -> None:
    """Mark a run as started, before any other file of it is written."""
    known = entries(storage, alias)
    if all(entry.id != run_id for entry in known):
        number = 1 + max((entry.number for entry in known), default=0)
        storage.write_bytes(place.mark(alias, run_id, f"started-{number:08d}"), b"")


def _recorded_place(storage: Storage, alias: str, name: str) -> Place | None:
    """Return the place that a release's record says; None if the file is not that record."""
    try:
        record = storage.read(release_path(alias, name))
        if (record["alias"], record["id"]) == (alias, name):
            return decode(Place, record["place"], where(record))
    except (IntegrityError, UsageError):
        pass
    return None


def _parsed(path: str) -> tuple[str, str, Place] | None:
    parts = path.split("/")
    if len(parts) != 6:
        return None
    _, alias, settings, origin, *rest = parts
    step, mark = _STEP.fullmatch(rest[0]), _MARK.fullmatch(rest[1])
    if step is None or mark is None:
        return None
    return alias, mark[1], Place(settings, origin, int(step[1]), int(step[2]))


def _first(names: set[str]) -> int:
    """Return the run's number; of two processes that began it at once, the lower one."""
    numbers = (int(n.removeprefix("started-")) for n in names if n.startswith("started-"))
    return min(numbers, default=0)

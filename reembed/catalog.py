"""Releases and aliases: what was built, and which of it is live.

releases/ALIAS/RELEASE.json      one immutable record per built release
aliases/ALIAS/00000001.json ...  the log: each promote or rollback is one record, created only if
                                 its number is free; the highest number is live; none is deleted
retired/ALIAS/RELEASE.json       gc's mark: this release's data is going or gone
"""

from __future__ import annotations

import datetime as dt
import getpass
import os
import platform
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from reembed.errors import Conflict, IntegrityError, UsageError
from reembed.spaces import Space
from reembed.storage import SCHEMA_VERSION, Storage, require_id

_READERS = 16
Action = Literal["promote", "rollback", "catch-up"]


def now() -> str:
    """The time, UTC, ISO 8601, to the second."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def who() -> str:
    """user@host of this process, for the record."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container whose user id has no name
        user = f"uid{os.getuid()}"
    return f"{user}@{platform.node()}"


@dataclass(frozen=True)
class Release:
    """A table version, its index and its space: they serve together or not at all."""

    id: str
    alias: str
    run_id: str
    space: Space
    encoder: dict[str, Any]
    """The encoder section that loads this space's model."""
    table: str
    """Path under the root."""
    table_version: int
    table_tag: str
    sealed_sha256: str
    """Of the record of the table's files, `sealed.json` of the run."""
    table_manifest: dict[str, Any]
    """Name, size and sha256 of the file that says what the table's version is."""
    index: str
    """Path under the root."""
    index_sha256: str
    rows: int
    dead_letters: int
    source: dict[str, Any]
    """uri, version and the settings that read it."""
    verify: dict[str, Any]
    """The receipt of the verification that admitted it."""
    gate: dict[str, Any]
    """The gate section, fixed before results existed."""
    origin: str
    """The rebuild it descends from by catch-ups: itself, if it is one."""
    base: str | None = None
    """The release it was caught up from; None for a rebuild."""
    number: int = 0
    """One more than of any release that was there before: their order, whatever clocks say."""
    created_at: str = field(default_factory=now)

    def to_json(self) -> dict[str, Any]:
        """The record as stored."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self), "space": self.space.to_json()}

    def summary(self) -> dict[str, Any]:
        """What tells releases apart, for reports."""
        return {
            "release": self.id,
            "model": self.space.model,
            "space": self.space.id,
            "dim": self.space.dim,
            "rows": self.rows,
            "dead_letters": self.dead_letters,
            "source_version": self.source["version"],
            "created_at": self.created_at,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Release:
        """The release a record describes."""
        fields = {k: v for k, v in record.items() if k != "schema_version"}
        return cls(**{**fields, "space": Space.from_json(fields["space"])})


@dataclass(frozen=True)
class AliasRecord:
    """One promote or rollback."""

    generation: int
    token: str
    previous_token: str | None
    action: Action
    release: Release
    reason: str | None
    """Why a gate was overruled or a rollback made, in the operator's words."""
    forced: bool
    comparison: dict[str, Any] | None
    """The comparison that allowed it, or the last one that `forced` overruled, in short, and those
    before it; None where there was none."""
    at: str
    by: str

    def to_json(self) -> dict[str, Any]:
        """The record as stored."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self), "release": self.release.to_json()}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> AliasRecord:
        """The step a record describes."""
        fields = {k: v for k, v in record.items() if k != "schema_version"}
        return cls(**{**fields, "release": Release.from_json(fields["release"])})


@dataclass(frozen=True)
class Catalog:
    """Releases and log of one alias."""

    storage: Storage
    alias: str

    def register(self, release: Release) -> Release:
        """Record a built release; registering the same run twice keeps the first."""
        self.storage.create(f"releases/{self.alias}/{release.id}.json", release.to_json())
        return self.release(release.id)

    def release(self, release_id: str) -> Release:
        """A release by id.

        Raises:
            UsageError: there is none.
        """
        require_id("release id", release_id)
        record = self.storage.read_if_there(f"releases/{self.alias}/{release_id}.json")
        if record is None:
            known = ", ".join(r.id for r in self.releases()) or "none"
            raise UsageError(
                f"{self.alias} has no release {release_id}", f"it has: {known}", "reembed status"
            )
        if (record["alias"], record["id"]) != (self.alias, release_id):
            raise IntegrityError(
                f"{release_id} is no release of {self.alias}: its record was copied"
            )
        return Release.from_json(record)

    def releases(self) -> list[Release]:
        """Every registered release, oldest first, gc'd ones included."""
        paths = [path for path, _ in self.storage.objects(f"releases/{self.alias}/")]
        return sorted(
            (Release.from_json(self.storage.read(p)) for p in paths),
            key=lambda r: (r.number, r.created_at, r.id),
        )

    def next_number(self) -> int:
        """Of a release that is registered now."""
        return max((r.number for r in self.releases()), default=0) + 1

    def log(self) -> list[AliasRecord]:
        """Every promote and rollback, oldest first."""
        paths = [path for path, _ in self.storage.objects(f"aliases/{self.alias}/")]
        with ThreadPoolExecutor(_READERS) as pool:  # a rollback reads them all, and must be quick
            records = [AliasRecord.from_json(r) for r in pool.map(self.storage.read, paths)]
        if [r.generation for r in records] != list(range(1, len(records) + 1)):
            raise IntegrityError(
                f"the log of {self.alias} has gaps: records were deleted or renamed"
            )
        return records

    def live(self) -> AliasRecord | None:
        """The newest step, whose release serves."""
        paths = [path for path, _ in self.storage.objects(f"aliases/{self.alias}/")]
        return AliasRecord.from_json(self.storage.read(paths[-1])) if paths else None

    def require_live(self) -> AliasRecord:
        """The newest step.

        Raises:
            UsageError: nothing was promoted yet.
        """
        record = self.live()
        if record is None:
            raise UsageError(
                f"{self.alias} serves nothing yet", "no release was promoted", "reembed promote"
            )
        return record

    def append(
        self,
        after: AliasRecord | None,
        action: Action,
        release: Release,
        *,
        reason: str | None = None,
        comparison: dict[str, Any] | None = None,
    ) -> AliasRecord:
        """The compare-and-swap: add the record that follows `after`, if nothing did.

        Raises:
            Conflict: another promote or rollback followed `after` first.
        """
        record = AliasRecord(
            generation=(after.generation if after else 0) + 1,
            token=uuid.uuid4().hex,
            previous_token=after.token if after else None,
            action=action,
            release=release,
            reason=reason,
            forced=action == "promote" and reason is not None,
            comparison=comparison,
            at=now(),
            by=who(),
        )
        if not self.storage.create(
            f"aliases/{self.alias}/{record.generation:08d}.json", record.to_json()
        ):
            winner = self.require_live()
            raise Conflict(
                f"{self.alias} was moved to {winner.release.id} by {winner.by} at {winner.at}",
                "it is no longer the state this step started from",
                "reembed status",
            )
        return record

    def mark_retired(self, release_id: str) -> None:
        """Say, before anything is deleted, that a release can no longer serve."""
        self.storage.create(f"retired/{self.alias}/{release_id}.json", {"release": release_id})

    def unmark_retired(self, release_id: str) -> None:
        """Take the mark back: the release went live meanwhile."""
        self.storage.remove(f"retired/{self.alias}/{release_id}.json")

    def is_retired(self, release_id: str) -> bool:
        """Whether gc marked it."""
        return self.storage.read_if_there(f"retired/{self.alias}/{release_id}.json") is not None

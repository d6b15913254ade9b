"""Releases and aliases: what was built, and which of it is live.

releases/ALIAS/RELEASE.json      one immutable record per built release
releases/ALIAS/RELEASE.retired   gc's mark beside it: this release's data is going or gone
aliases/ALIAS/00000001.json ...  the log: each promote or rollback is one record, created only if
                                 its number is free; the highest number is live; none is deleted
aliases/ALIAS.json               where to start listing the log; only a hint

Finding what is live takes two records, however long the log: the newest names the one before it, and
holds what rollback needs. Files of other names in these folders are ignored.
"""

from __future__ import annotations

import getpass
import os
import platform
import re
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import PlainSerializer, WrapValidator

from reembed.catalog.reports import Evidence
from reembed.clock import now
from reembed.config.options import Options, Stores
from reembed.config.settings import EncoderConfig, FrozenGate
from reembed.errors import Conflict, IntegrityError, UsageError
from reembed.space import Space, with_id
from reembed.store.records import decode, encode, holds
from reembed.store.storage import Storage, require_id

_READERS = 16
RUN_ID = re.compile(r"([a-z0-9-]+)-([0-9a-z]+)-v([0-9]+)-([0-9]+)(?:-u([0-9]+)-([0-9]+))?")
"""Of a run, and of its release: alias, settings, source version, counter; of a catch-up the last two again."""
_STEP = re.compile(r"([0-9]{8})\.json")
_RELEASE = re.compile(r"(.+)\.(json|retired)")
_CATCH_UP = re.compile(r"(.+)-u([0-9]+)-([0-9]+)")
_HINT_EVERY = 64
STANDING = 128
"""Releases that one record of the log holds; those below are in the record that it names."""
Action = Literal["promote", "rollback", "catch-up"]


def who() -> str:
    """user@host of this process, for the record; ? for what is not UTF-8."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container whose user id has no name
        user = f"uid{os.getuid()}"
    return f"{user}@{platform.node()}".encode(errors="replace").decode()


def line_of(release_id: str) -> str:
    """The rebuild that a release descends from by catch-ups: itself, if it is one."""
    found = _CATCH_UP.fullmatch(release_id)
    return found[1] if found else release_id


def place_in_line(release_id: str) -> tuple[int, int]:
    """Counter and source version of a catch-up: what orders the releases of one line.

    The counter is taken before the source is read, so that a later one has newer documents, also where
    the source was made again and its versions start at 1. Two of one counter ran at once.
    """
    found = _CATCH_UP.fullmatch(release_id)
    return (int(found[3]), int(found[2])) if found else (0, 0)


StoredSpace = Annotated[Space, WrapValidator(with_id), PlainSerializer(Space.to_json)]
"""A space within another record."""


@dataclass(frozen=True)
class SourceRef:
    """Everything that decides which documents are read, without the store's settings."""

    uri: str
    version: int
    fingerprint: str
    """Over the names of the version's data files: a dataset made again in the same place differs."""
    id_column: str
    text: str
    filter: str | None
    carry: tuple[str, ...]


@dataclass(frozen=True)
class ManifestRecord:
    """Of the file that says what a table's version is."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class VerifyRecord:
    """What is read of a verification; one that could not end says little more."""

    passed: bool
    table_version: int = 0
    level: int = 0
    sampled: int = 0
    seed: int | None = None


@dataclass(frozen=True)
class Release:
    """A table version, its index and its space: they serve together or not at all."""

    id: str
    alias: str
    run_id: str
    space: StoredSpace
    encoder: EncoderConfig
    """The encoder section that loads this space's model."""
    table: str
    """Path under the root."""
    table_version: int
    table_tag: str
    sealed_sha256: str
    """Of the record of the table's files, `sealed.json` of the run."""
    table_manifest: Annotated[dict[str, Any], holds(ManifestRecord)]
    """Name, size and sha256 of the file that says what the table's version is."""
    index: str
    """Path under the root."""
    index_sha256: str
    """Of the manifest, which names every file of the index by its sha256."""
    rows: int
    dead_letters: int
    source: SourceRef
    verify: Annotated[dict[str, Any], holds(VerifyRecord)]
    """The receipt of the verification that admitted it."""
    gate: FrozenGate
    """The gate section, fixed before results existed."""
    number: int = 0
    """One more than of any release that was there before: their order, whatever clocks say."""
    created_at: str = field(default_factory=now)

    @property
    def origin(self) -> str:
        """The rebuild it descends from by catch-ups: itself, if it is one."""
        return line_of(self.id)

    def summary(self) -> dict[str, Any]:
        """What tells releases apart, for reports."""
        return {
            "release": self.id,
            "model": self.space.model,
            "space": self.space.id,
            "model_sha256": self.space.identity.model_sha256,
            "dim": self.space.dim,
            "rows": self.rows,
            "dead_letters": self.dead_letters,
            "source_version": self.source.version,
            "created_at": self.created_at,
        }


@dataclass(frozen=True)
class Grounds:
    """What a promote or rollback rests on."""

    reason: str | None = None
    """Why a gate was left out or overruled or a rollback made, in the operator's words."""
    forced: bool = False
    comparison: Evidence | None = None
    """The comparison that allowed it, or the last one that `forced` overruled, in short, and those
    before it; None where there was none."""
    unknown: tuple[str, ...] = ()
    """What was not known when the gate was left out or overruled, in words."""


@dataclass(frozen=True)
class AliasRecord:
    """One promote or rollback."""

    generation: int
    token: str
    previous_token: str | None
    action: Action
    release: Release
    grounds: Grounds
    standing: tuple[str, ...]
    """Releases that rollback goes back over, the live one last; at most `STANDING` of them."""
    deeper: int | None
    """The record that holds the releases below those; None where there are none."""
    rolled_back: int | None
    """The last rollback since the last promotion: the generation of its record."""
    proven_at: str
    """`Storage.address` where it was written: there, create-only writes are known to work."""
    at: str
    by: str


_NONE = Grounds()


@dataclass(frozen=True)
class Catalog:
    """Releases and log of one alias."""

    storage: Storage
    alias: str
    stores: Stores | None = field(default=None, repr=False)
    """How sources and judged queries are reached; None: as the root's store."""

    @property
    def source_options(self) -> Options:
        """How the stores of the releases' sources are reached."""
        return self.stores.source if self.stores else self.storage.options

    @property
    def query_options(self) -> Options:
        """How the stores of judged queries are reached."""
        return self.stores.queries if self.stores else self.storage.options

    def register(self, release: Release) -> Release:
        """Record a built release; registering the same run twice keeps the first."""
        self.storage.create(f"releases/{self.alias}/{release.id}.json", encode(release))
        return self.release(release.id)

    def release(self, release_id: str) -> Release:
        """A release by id.

        Raises:
            UsageError: there is none.
        """
        require_id("release id", release_id)
        record = self.storage.read_if_there(f"releases/{self.alias}/{release_id}.json")
        if record is None:
            known = ", ".join(self.ids()) or "none"
            raise UsageError(
                f"{self.alias} has no release {release_id}", f"it has: {known}", "reembed status"
            )
        if (record["alias"], record["id"]) != (self.alias, release_id):
            raise IntegrityError(
                f"{release_id} is not a release of {self.alias}: its record was copied"
            )
        return decode(Release, record)

    def ids(self) -> list[str]:
        """Ids of the registered releases that gc has not marked: one listing, no record is read."""
        names = self._names_of_releases()
        gone = {name for name, kind in names if kind == "retired"}
        return [name for name, kind in names if kind == "json" and name not in gone]

    def releases(self) -> list[Release]:
        """Every registered release, oldest first, gc'd ones included."""
        found = [self.release(name) for name, kind in self._names_of_releases() if kind == "json"]
        return sorted(found, key=lambda r: (r.number, r.created_at, r.id))

    def retired(self) -> list[str]:
        """Ids of the releases that gc marked."""
        return [name for name, kind in self._names_of_releases() if kind == "retired"]

    def _names_of_releases(self) -> list[tuple[str, str]]:
        names = map(_RELEASE.fullmatch, self.storage.names(f"releases/{self.alias}/"))
        return [(m[1], m[2]) for m in names if m and self._is_own(m[1])]

    def _is_own(self, release_id: str) -> bool:
        """Whether a run of this alias can have this id; files of other names are not ours."""
        found = RUN_ID.fullmatch(release_id)
        return found is not None and found[1] == self.alias

    def next_number(self) -> int:
        """Of a release that is registered now."""
        return max((r.number for r in self.releases()), default=0) + 1

    def log(self) -> list[AliasRecord]:
        """Every promote and rollback, oldest first.

        Raises:
            IntegrityError: a record is gone, or is not one that followed the one before it.
        """
        generations = self._generations(0)
        with ThreadPoolExecutor(_READERS) as pool:
            records = list(pool.map(self._step, generations))
        for before, record in zip([None, *records], records, strict=False):
            self._require_chain(before, record)
        return records

    def last_steps(self) -> tuple[AliasRecord | None, AliasRecord | None]:
        """The newest step and the one before it, as far as there are any.

        Raises:
            IntegrityError: the newest does not follow the one before it, or a record is gone after
                the hint.
        """
        # The hint may be old or wrong: what is listed after it is the log all the same.
        generations = self._generations(self._hint()) or self._generations(0)
        if not generations:
            return None, None
        newest = self._step(generations[-1])
        before = self._step(generations[-1] - 1) if generations[-1] > 1 else None
        self._require_chain(before, newest)
        return newest, before

    def live(self) -> AliasRecord | None:
        """The newest step, whose release serves."""
        return self.last_steps()[0]

    def require_live(self) -> AliasRecord:
        """The newest step.

        Raises:
            UsageError: nothing was promoted yet.
        """
        record = self.live()
        if record is None:
            raise UsageError(
                f"{self.alias} serves nothing yet", "no release was promoted", "reembed status"
            )
        return record

    def standing(self, record: AliasRecord) -> Iterator[str]:
        """Ids of the releases that stand at a step, from the live one down to the first promoted."""
        for part in self._parts(record):
            yield from reversed(part.standing)

    def rolled_back(self, record: AliasRecord) -> tuple[AliasRecord, AliasRecord] | None:
        """The last rollback since the last promotion, as of a step, and the step that it undid."""
        if record.rolled_back is None:
            return None
        if not 1 < record.rolled_back <= record.generation:
            raise self._broken(record.generation, "it names a rollback that cannot be one")
        return self._step(record.rolled_back), self._step(record.rolled_back - 1)

    def append(
        self,
        after: AliasRecord | None,
        action: Action,
        release: Release,
        grounds: Grounds = _NONE,
        *,
        back_to: AliasRecord | None = None,
    ) -> AliasRecord:
        """The compare-and-swap: add the record that follows `after`, if nothing did.

        `back_to` is a step that this one undoes everything since: what stood then stands again.

        Raises:
            Conflict: another promote or rollback followed `after` first.
        """
        standing, deeper = self._stack(after, action, release)
        if back_to is not None:
            standing, deeper = back_to.standing, back_to.deeper
        generation = (after.generation if after else 0) + 1
        rollbacks = {"rollback": generation, "catch-up": after.rolled_back if after else None}
        record = AliasRecord(
            generation=generation,
            token=uuid.uuid4().hex,
            previous_token=after.token if after else None,
            action=action,
            release=release,
            grounds=grounds,
            standing=standing,
            deeper=deeper,
            rolled_back=rollbacks.get(action),
            proven_at=self.storage.address,
            at=now(),
            by=who(),
        )
        path, proven_at = self._path(record.generation), after.proven_at if after else None
        if not self.storage.create(path, encode(record), proven_at=proven_at):
            winner = self.require_live()
            raise Conflict(
                f"{self.alias} was moved to {winner.release.id} by {winner.by} at {winner.at}",
                "this step started from an older state",
                "reembed status",
            )
        if action != "rollback" and record.generation % _HINT_EVERY <= 1:  # a rollback is quick
            self.storage.write(self._hint_path, {"after": record.generation - 1})
        return record

    def _stack(
        self, after: AliasRecord | None, action: Action, release: Release
    ) -> tuple[tuple[str, ...], int | None]:
        """`standing` and `deeper` of the record that follows `after`."""
        if after is None:
            return (release.id,), None
        if action == "catch-up":
            return (*after.standing[:-1], release.id), after.deeper
        for part in self._parts(after) if action == "rollback" else ():
            lines = [line_of(r) for r in part.standing]
            if release.origin in lines:
                place = len(lines) - 1 - lines[::-1].index(release.origin)
                return (*part.standing[:place], release.id), part.deeper
        if len(after.standing) == STANDING:
            return (release.id,), after.generation
        return (*after.standing, release.id), after.deeper

    def _parts(self, record: AliasRecord) -> Iterator[AliasRecord]:
        """The step and those that hold what stands below it."""
        yield record
        while record.deeper is not None:
            if record.deeper >= record.generation:
                raise self._broken(record.generation, "it names a later record as an earlier one")
            record = self._step(record.deeper)
            yield record

    def _path(self, generation: int) -> str:
        return f"aliases/{self.alias}/{generation:08d}.json"

    @property
    def _hint_path(self) -> str:
        return f"aliases/{self.alias}.json"

    def _hint(self) -> int:
        try:
            found = self.storage.read_if_there(self._hint_path)
        except IntegrityError:
            return 0
        after = found.get("after") if found else None
        return max(after, 0) if isinstance(after, int) else 0

    def _generations(self, after: int) -> range:
        """Numbers of the log's records above `after`.

        Raises:
            IntegrityError: there is a gap in them.
        """
        names = self.storage.names(f"aliases/{self.alias}/", after=f"{after:08d}.json")
        listed = {int(m[1]) for m in map(_STEP.fullmatch, names) if m}
        generations = range(after + 1, max(listed, default=after) + 1)
        for generation in generations:
            if generation not in listed:
                self._step(generation)  # gone, or written while the folder was being listed
        return generations

    def _step(self, generation: int) -> AliasRecord:
        record = self.storage.read_if_there(self._path(generation))
        if record is None or record["generation"] != generation:
            why = (
                "is another record" if record else "is gone, or those after it are not of this log"
            )
            raise self._broken(generation, f"it {why}")
        return decode(AliasRecord, record)

    def _require_chain(self, before: AliasRecord | None, record: AliasRecord) -> None:
        expected = (before.generation + 1, before.token) if before else (1, None)
        if (record.generation, record.previous_token) != expected:
            raise self._broken(record.generation, "it does not follow the record before it")

    def _broken(self, generation: int, why: str) -> IntegrityError:
        return IntegrityError(
            f"the log of {self.alias} has a gap at {self.storage.uri(self._path(generation))}",
            why,
            "reembed config     # and put the log's records back from a backup of storage.root",
        )

    def mark_retired(self, release_id: str) -> None:
        """Say, before anything is deleted, that a release can no longer serve."""
        self.storage.create(f"releases/{self.alias}/{release_id}.retired", {"release": release_id})

    def unmark_retired(self, release_id: str) -> None:
        """Take the mark back: the release went live meanwhile."""
        self.storage.remove(f"releases/{self.alias}/{release_id}.retired")

    def is_retired(self, release_id: str) -> bool:
        """Whether gc marked it."""
        return self.storage.read_if_there(f"releases/{self.alias}/{release_id}.retired") is not None

"""Releases, and which of them is live.

releases/ALIAS/RELEASE.json      one immutable record per built release
aliases/ALIAS/00000001.json ...  the log: each promote or rollback is one record; the newest is live

Finding what is live takes two records, however long the log: the newest holds what rollback needs.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from reembed.catalog.alias import AliasFiles, who
from reembed.catalog.lines import Place, RunEntry, entries
from reembed.catalog.query_model import QueryModel, StoredSpace
from reembed.catalog.reports import Grounds, ReleaseSummary, VerifyReport
from reembed.clock import now
from reembed.config.gate import FrozenGate
from reembed.config.options import Options, Stores
from reembed.config.settings import EncoderConfig
from reembed.errors import Conflict, IntegrityError, UsageError
from reembed.space import sha256_of
from reembed.store.at_once import at_once
from reembed.store.paths import release_path, require_id
from reembed.store.records import decode, encode
from reembed.store.storage import Storage

if TYPE_CHECKING:
    from reembed.catalog.runs import Run

STANDING = 128
"""Releases that one record of the log holds; those below are in the record that it names."""
Action = Literal["promote", "rollback", "catch-up"]


@dataclass(frozen=True)
class SourceRef:
    """Everything that decides which documents are read, without the store's settings."""

    uri: str
    version: int
    fingerprint: str
    """Digest of the version's schema, data files and deletion files: a dataset recreated at this URI has another."""
    id_column: str
    text: str
    filter: str | None
    carry: tuple[str, ...]


@dataclass(frozen=True)
class ManifestProof:
    """What the manifest file of a table version must be, byte for byte."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Release:
    """A table version, its index and its space: they serve together or not at all."""

    id: str
    """Also of the run that built it."""
    alias: str
    place: Place
    space: StoredSpace
    encoder: EncoderConfig
    """The encoder section that loads this space's model."""
    table: str
    """Path under the root."""
    table_version: int
    table_tag: str
    sealed_sha256: str
    """Digest of the run's `sealed.json`, which records the table's files."""
    table_manifest: ManifestProof
    index: str
    """Path under the root."""
    index_sha256: str
    """Digest of the manifest, which names every file of the index by its sha256."""
    golden_sha256: str
    """Digest of the line's golden vectors, which the model must produce wherever it is loaded."""
    rows: int
    """Rows of the table."""
    documents: int
    """Documents that have a vector."""
    dead_letters: int
    """Documents that have no vector."""
    source: SourceRef
    verify: VerifyReport
    """The verification that admitted it."""
    gate: FrozenGate
    """The gate section, fixed before results existed."""
    created_at: str = field(default_factory=now)
    queries: QueryModel | None = None
    """The model that embeds queries, if it is another one than made the vectors of the documents."""

    @property
    def origin(self) -> str:
        """The rebuild that began its line."""
        return self.place.origin

    @property
    def query_model(self) -> QueryModel:
        """The model that embeds queries; usually that of the documents."""
        return self.queries or QueryModel(self.space, self.encoder, self.golden_sha256)

    @property
    def model(self) -> str:
        """Return its models for people: one, or that of the documents and that of the queries."""
        if self.queries is None:
            return self.space.model
        documents = self.space.beside(self.queries.space)
        return f"{documents}, queries by {self.queries.beside(self.space)}"

    @property
    def model_sha256(self) -> str:
        """Digest of the weights that answer; with two models of both, whatever the bridge between them."""
        weights = [m.identity.model_sha256 for m in (self.space, self.query_model.space)]
        return weights[0] if self.queries is None else sha256_of({"weights": weights})

    def summary(self) -> ReleaseSummary:
        """Return what tells releases apart, for reports."""
        return ReleaseSummary(
            release=self.id,
            model=self.model,
            space=self.space.id,
            query_space=self.query_model.id,
            model_sha256=self.model_sha256,
            dim=self.space.dim,
            rows=self.rows,
            documents=self.documents,
            dead_letters=self.dead_letters,
            source_version=self.source.version,
            created_at=self.created_at,
        )


@dataclass(frozen=True)
class Standing:
    """A release in the rollback stack."""

    release: str
    origin: str


@dataclass(frozen=True)
class AliasRecord:
    """One promote or rollback."""

    generation: int
    token: str
    previous_token: str | None
    action: Action
    release: Release
    grounds: Grounds
    standing: tuple[Standing, ...]
    """The rollback stack, the live release last; at most `STANDING` of them."""
    deeper: int | None
    """The record that holds the releases below those; None if there are none."""
    rolled_back: int | None
    """The last rollback since the last promotion: the generation of its record."""
    proven_at: str
    """`Storage.address` where it was written: create-only writes are proven there."""
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
        """Record a built release and return the record; the first registration of a run counts."""
        self.storage.create(release_path(self.alias, release.id), encode(release))
        return self.release(release.id)

    def registered(self, run: Run) -> Release | None:
        """Return the release of a run if it is registered. Ends the run if its process died before that."""
        if self.storage.size(release_path(self.alias, run.id)) is None:
            return None
        run.finish(run.id)
        return self.release(run.id)

    def release(self, release_id: str) -> Release:
        """Return a release by id.

        Raises:
            UsageError: the alias has no release of this id.
        """
        require_id("release id", release_id)
        record = self.storage.read_if_there(release_path(self.alias, release_id))
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

    def entries(self) -> list[RunEntry]:
        """Return the runs of the alias in the order of their start, by two listings."""
        return entries(self.storage, self.alias)

    def ids(self) -> list[str]:
        """Return the ids of the registered releases that gc has not marked, oldest first."""
        return [e.id for e in self.entries() if e.kept]

    def retired(self) -> list[str]:
        """Return the ids of the releases that gc marked."""
        return [e.id for e in self.entries() if e.released and e.retired]

    def releases(self) -> list[Release]:
        """Return every registered release, oldest first, also those whose data gc removed."""
        return at_once(self.release, [e.id for e in self.entries() if e.released])

    def mark_retired(self, release_id: str) -> None:
        """Record that a release can no longer serve, before anything of it is deleted."""
        self.storage.write_bytes(self._mark(self.release(release_id), "retired"), b"")

    def unmark_retired(self, release_id: str) -> None:
        """Remove the mark: the release went live meanwhile."""
        self.storage.remove(self._mark(self.release(release_id), "retired"))

    def is_retired(self, release: Release) -> bool:
        """Return whether gc marked it."""
        return self.storage.size(self._mark(release, "retired")) is not None

    def _mark(self, release: Release, name: str) -> str:
        return release.place.mark(self.alias, release.id, name)

    def log(self) -> list[AliasRecord]:
        """Return every promote and rollback, oldest first.

        Raises:
            IntegrityError: a record is gone, or does not follow the one before it.
        """
        records = at_once(self._step, self._files.numbers())
        for before, record in zip([None, *records], records, strict=False):
            self._require_chain(before, record)
        return records

    def last_steps(self) -> tuple[AliasRecord | None, AliasRecord | None]:
        """Return the newest step and the one before it, as far as there are any.

        Raises:
            IntegrityError: the newest does not follow the one before it, or a record is gone.
        """
        number = self._files.newest()
        if number is None:
            return None, None
        newest = self._step(number)
        before = self._step(number - 1) if number > 1 else None
        self._require_chain(before, newest)
        return newest, before

    def live(self) -> AliasRecord | None:
        """Return the newest step, whose release serves."""
        return self.last_steps()[0]

    def require_live(self) -> AliasRecord:
        """Return the newest step.

        Raises:
            UsageError: nothing was promoted yet.
        """
        record = self.live()
        if record is None:
            raise UsageError(
                f"{self.alias} serves nothing yet", "no release was promoted", "reembed status"
            )
        return record

    def standing(self, record: AliasRecord | None) -> Iterator[Standing]:
        """Yield the releases that stand at a step, from the live one down; none before the first step."""
        for part in self._parts(record):
            yield from reversed(part.standing)

    def rolled_back(self, record: AliasRecord) -> tuple[AliasRecord, AliasRecord] | None:
        """Return the last rollback since the last promotion, as of a step, and the step it undid."""
        if record.rolled_back is None:
            return None
        if not 1 < record.rolled_back <= record.generation:
            why = f"it names generation {record.rolled_back} as a rollback, expected 2 to {record.generation}"
            raise self._files.broken(record.generation, why)
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
        """Add the record that follows `after`, if nothing did: the compare-and-swap.

        With `back_to`, everything since that step is undone: what stood then stands again.

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
        proven_at = after.proven_at if after else None
        if not self._files.create(generation, encode(record), proven_at):
            winner = self.require_live()
            raise Conflict(
                f"{self.alias} was moved to {winner.release.id} by {winner.by} at {winner.at}",
                "this step started from an older state",
                "reembed status",
            )
        if action != "rollback":  # a rollback is quick
            self._files.hint(generation)
        return record

    def _stack(
        self, after: AliasRecord | None, action: Action, release: Release
    ) -> tuple[tuple[Standing, ...], int | None]:
        """Return `standing` and `deeper` of the record that follows `after`."""
        top = Standing(release.id, release.origin)
        if after is None:
            return (top,), None
        if action == "catch-up":
            return (*after.standing[:-1], top), after.deeper
        for part in self._parts(after) if action == "rollback" else ():
            lines = [s.origin for s in part.standing]
            if release.origin in lines:
                place = len(lines) - 1 - lines[::-1].index(release.origin)
                return (*part.standing[:place], top), part.deeper
        if len(after.standing) == STANDING:
            return (top,), after.generation
        return (*after.standing, top), after.deeper

    def _parts(self, record: AliasRecord | None) -> Iterator[AliasRecord]:
        """Yield the step and those that hold what stands below it."""
        while record is not None:
            yield record
            if record.deeper is None:
                return
            if record.deeper >= record.generation:
                why = f"it names generation {record.deeper} as an earlier one, expected less than {record.generation}"
                raise self._files.broken(record.generation, why)
            record = self._step(record.deeper)

    @property
    def _files(self) -> AliasFiles:
        return AliasFiles(self.storage, self.alias)

    def _step(self, generation: int) -> AliasRecord:
        return decode(AliasRecord, self._files.read(generation))

    def _require_chain(self, before: AliasRecord | None, record: AliasRecord) -> None:
        expected = (before.generation + 1, before.token) if before else (1, None)
        if (record.generation, record.previous_token) != expected:
            raise self._files.broken(record.generation, "it does not follow the record before it")

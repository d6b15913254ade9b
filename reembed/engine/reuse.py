"""Vectors that this root already holds: each text is embedded once per space, whichever run asks.

A donor is a verified release of the same space, of any alias. A document takes the vector of a donor's
row if the 128-bit digests of both texts are equal. Donors are fixed in the run's plan, so that every
attempt copies from the same rows, and gc keeps them while the run is open.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from reembed import digests
from reembed.catalog.plan import Donor
from reembed.catalog.receipts import FileProof
from reembed.catalog.releases import Catalog
from reembed.catalog.runs import Run
from reembed.digests import Digests
from reembed.errors import IntegrityError, ReembedError
from reembed.events import Listener, Notice
from reembed.store.storage import Storage
from reembed.table import provenance
from reembed.table.read import TableVersion, as_vectors

Int64 = npt.NDArray[np.int64]


def find_donors(catalog: Catalog, space_id: str, emit: Listener) -> tuple[Donor, ...]:
    """Return the newest verified release of each table of a space, over all aliases of the root.

    A `Notice` names releases of other aliases that cannot be read, and lines that give no vectors.

    Raises:
        IntegrityError: a record of this alias is damaged.
    """
    storage, found, kept = catalog.storage, [], set()
    for alias in storage.folders("releases/"):
        other = Catalog(storage, alias)
        ids = other.ids()
        kept |= {(alias, name) for name in ids}
        # A release that failed puts its line in doubt also after gc has retired it.
        for name in (*ids, *other.retired()):
            try:
                release = other.release(name)
                if release.space.id == space_id:
                    found.append((release, provenance.is_verified(storage, release)))
            except ReembedError as error:
                if alias == catalog.alias:
                    raise
                emit(Notice(f"no vectors are copied from {name} of {alias}: {error.what}"))
    failed = {r.origin: f"{r.id} failed verification" for r, verified in found if not verified}
    doubted = _doubted(storage, failed, {r.origin for r, _ in found})
    there = [r for r, _ in found if (r.alias, r.id) in kept]
    for line in sorted(doubted.keys() & {r.origin for r in there}):
        emit(Notice(f"no vectors are copied from line {line}: {doubted[line]}"))
    whole = [r for r in there if r.origin not in doubted]
    several = [r.id for r in whole if r.rows != r.documents]
    if several:
        emit(Notice(f"no vectors are copied from {', '.join(several)}: a text has several there"))
    newest = {r.table: r for r in whole if r.id not in several}  # oldest first
    return tuple(
        Donor(r.id, r.alias, r.origin, r.table, r.table_version, r.rows)
        for _, r in sorted(newest.items())
    )


def _doubted(storage: Storage, failed: dict[str, str], lines: set[str]) -> dict[str, str]:
    """Return the lines that give no vectors, and why: a release of theirs `failed`, or they copied from such a
    line. Releases of a line share files, and a copy of a wrong vector is as wrong.
    """
    doubted, copied = dict(failed), dict[str, set[str]]()
    for line in lines - failed.keys() if failed else ():
        try:
            plan = Run(storage, line).plan()
        except IntegrityError as error:
            doubted[line] = error.what
        else:
            copied[line] = {d.origin for d in (plan and plan.donors) or ()}
    while new := {
        line: f"it copied from {origin}"
        for line, origins in copied.items()
        for origin in origins & doubted.keys()
        if line not in doubted
    }:
        doubted |= new
    return doubted


def proofs(storage: Storage, donor: Donor) -> dict[str, FileProof]:
    """Return the proof of each data file of a donor, by name; raise IntegrityError if its records changed."""
    registered = Catalog(storage, donor.alias).release(donor.release)
    # The vectors are read from the table that the plan names: it must be the release's.
    release = replace(registered, table=donor.table, table_version=donor.table_version)
    provenance.require_manifest(storage, release)
    return provenance.require_sealed(storage, release).files


@dataclass(frozen=True)
class Known:
    """Texts that have a vector: digests, sorted and distinct, and where each vector is."""

    tables: tuple[TableVersion, ...]
    texts: Digests
    table_of: npt.NDArray[np.int32]
    row_ids: Int64

    @classmethod
    def read(cls, tables: tuple[TableVersion, ...]) -> Known:
        """Scan the text digests of these tables: 28 bytes a row stay in memory."""
        texts, table_of = [np.empty(0, f"V{digests.BYTES}")], [np.empty(0, np.int32)]
        row_ids = [np.empty(0, np.int64)]
        for number, table in enumerate(tables):
            for batch in table.scan(["text_hash"]):
                texts.append(digests.stored(batch.column("text_hash")))
                row_ids.append(batch.column("_rowid").to_numpy().astype(np.int64))
                table_of.append(np.full(batch.num_rows, number, np.int32))
        distinct, first = np.unique(np.concatenate(texts), return_index=True)
        return cls(
            tables, distinct, np.concatenate(table_of)[first], np.concatenate(row_ids)[first]
        )

    def find(self, texts: Digests) -> Int64:
        """Return int64 [N]: the place of each digest among the known texts, -1 if it is not known."""
        return digests.find(self.texts, texts)

    def vectors(self, places: Int64) -> npt.NDArray[np.float32]:
        """Return float32 [N, dim]: the vectors at these places of the known texts."""
        out = np.empty((len(places), self.tables[0].dim), np.float32)
        for number, table in enumerate(self.tables):
            rows = np.flatnonzero(self.table_of[places] == number)
            if len(rows):
                taken = table.take(self.row_ids[places[rows]], ["vector"])
                out[rows] = as_vectors(taken["vector"])
        return out


@functools.lru_cache(maxsize=1)
def known(storage: Storage, donors: tuple[Donor, ...], dim: int) -> Known:
    """Return the texts of a run's donors, read once per process."""
    return Known.read(tuple(TableVersion(storage, d.table, d.table_version, dim) for d in donors))

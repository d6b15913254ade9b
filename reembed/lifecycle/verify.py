"""Compare a table version with its source row by row, its index with it, and its vectors with the model's.

Tasks read the table, the source and the index in pieces (reading.py), others compare what was read by
partitions of the ids (differences.py). None holds more than a piece or a partition.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from reembed import digests, encoders
from reembed.catalog.receipts import FileProof
from reembed.catalog.releases import ManifestProof
from reembed.catalog.reports import IDS, ROWS, VECTORS, Difference, Differences, VerifyReport
from reembed.config.settings import EncoderConfig
from reembed.encoders import golden
from reembed.encoders.base import Vectors
from reembed.engine.documents import texts_of
from reembed.engine.executor import HERE, Tasks
from reembed.engine.patience import Patience
from reembed.index.held import Held
from reembed.lifecycle import differences as compared
from reembed.lifecycle import reading
from reembed.lifecycle.differences import Compared, Sides
from reembed.lifecycle.reading import (
    EXAMPLES,
    IndexPiece,
    IndexRead,
    Reading,
    SourceRead,
    TableRead,
    entries_of,
    links_of,
)
from reembed.lifecycle.scratch import Scratch
from reembed.source.dataset import Source
from reembed.space import Space
from reembed.table.documents import documents_in
from reembed.table.read import TableVersion, as_vectors, files_of, manifest_proof, missing_files

SAMPLE = 459
"""Rows that, none wrong, show with 99 % confidence that under 1 % are: ceil(ln .01 / ln .99)."""
SAME_VECTOR = 0.999
"""Cosine that a re-embedded row reaches over dtypes and batch compositions."""
FULL = VECTORS
PARTITION_ROWS = 131_072
"""Rows, or documents, that a task compares at once, about; more of them only above MOST_PARTS."""
MOST_PARTS = 2_048


@dataclass(frozen=True)
class Subject:
    """What is verified: a table version, where it came from, and its index. Picklable."""

    source: Source
    table: TableVersion
    space: Space
    encoder: EncoderConfig
    dead_letters: tuple[str | int, ...]
    index: Held | None = None
    """What its index answers with; None: not compared."""
    proofs: dict[str, FileProof] = field(default_factory=dict)
    """What each data file must be, byte for byte, by name."""
    manifest: ManifestProof | None = None
    """What the file that describes the version must be; None if no release recorded it."""
    newest: Source | None = None
    """A newer version of the source, to find out how far the table is behind it."""
    origin: str | None = None
    """The run that began the line, whose golden vectors the model must give; None: not checked."""
    golden_sha256: str | None = None
    """Digest of these vectors, as a release of the line records it; None before the first."""
    patience: Patience = field(kw_only=True)
    """How long a model's provider that is busy is waited for."""


@dataclass(frozen=True)
class RowsCompared:
    """What the comparison of the rows with the source found."""

    differences: Differences
    behind: Differences | None
    documents: int
    """Documents of the source."""
    table_documents: int
    """Distinct documents of the table's rows."""
    sampled: int
    seed: int | None
    """The seed of the sample."""


def verify(
    subject: Subject,
    scratch: Scratch,
    sample: int = SAMPLE,
    seed: int | None = None,
    *,
    level: int = FULL,
    tasks: Tasks = HERE,
) -> VerifyReport:
    """Compare a table version with its source, as thoroughly as `level` says.

    0 files: every file of the version is proven by a receipt, is there, and has its size.
    1 ids: every document of the source has exactly one row, and no other row is there.
    2 rows: every row has the right text, carried values and space and a usable vector; the index
      holds these rows; every file has the sha256 of its receipt.
    3 vectors: `sample` random rows are embedded again. Each verification draws other rows unless
      `seed` is given, so that verifying every night sees more of the table every night.

    Rows are not compared if files are damaged: their content shows nothing. Pieces whose results are in
    `scratch` are not read again; the caller removes it.

    Raises:
        SpaceMismatch: the model found now is not the one of the line; no row is at fault.
    """
    rows = subject.table.rows
    found = RowsCompared({}, None, 0, documents_in(rows), 0, None)
    verification = _Verification(subject, _reading(subject, scratch, level), tasks)
    damaged = verification.described()
    read: list[TableRead] = []
    if level >= ROWS or not damaged:
        read = verification.read_table(rows=not damaged)
        damaged += sorted(name for piece in read for name in piece.damaged)
    if level >= IDS and not damaged:
        drawn = secrets.randbits(32) if seed is None else seed
        found = verification.compare(read, sample, drawn)
    return VerifyReport(
        table=subject.table.path,
        table_version=subject.table.version,
        source_version=subject.source.version,
        level=level,
        documents=found.documents,
        rows=rows,
        table_documents=found.table_documents,
        dead_letters=len(subject.dead_letters),
        differences={
            **found.differences,
            "damaged": Difference(len(damaged), tuple(damaged[:EXAMPLES])),
        },
        behind=found.behind,
        sampled=found.sampled,
        seed=found.seed,
    )


def _reading(subject: Subject, scratch: Scratch, level: int) -> Reading:
    most = subject.table.rows
    if level >= IDS:
        sources = [subject.source, *([subject.newest] if subject.newest else [])]
        most = max(most, *(s.count_rows() for s in sources))
    carry = tuple(subject.source.ref.carry)
    return Reading(scratch, level, parts_of(most), subject.space.id, carry)


def parts_of(rows: int) -> int:
    """Return into how many partitions this many rows, or documents, are compared."""
    return min(1 + rows // PARTITION_ROWS, MOST_PARTS)


@dataclass(frozen=True)
class _Verification:
    """One verification: what is compared, how it is read, and where the tasks run."""

    subject: Subject
    reading: Reading
    tasks: Tasks

    def described(self) -> list[str]:
        """Return files that no receipt vouches for, and what is not as its description says."""
        table, proofs, manifest = self.subject.table, self.subject.proofs, self.subject.manifest
        at = (table.storage, table.path, table.version)
        damaged: list[str] = []
        if proofs:
            damaged += sorted(files_of(table.dataset()) - proofs.keys())
        if self.reading.level < ROWS:
            damaged += missing_files(*at)
        elif manifest and manifest != manifest_proof(*at):
            damaged.append(manifest.name)
        return damaged

    def read_table(self, *, rows: bool) -> list[TableRead]:
        """Hash the files of the table from level 2, and read its `rows`, from level 1, in the same pass."""
        table, level = self.subject.table, self.reading.level
        if level < IDS:
            return []
        proofs = self.subject.proofs if level >= ROWS else {}
        pieces = reading.table_pieces(table, proofs, only_files=not rows)
        work = ((self.reading, table, piece) for piece in pieces)
        return self.tasks.each(reading.read_table, work)

    def compare(self, read: list[TableRead], sample: int, seed: int) -> RowsCompared:
        """Compare the rows, which were read, with the source and the index."""
        subject, level = self.subject, self.reading.level
        places = np.empty(0, np.int64)
        if level >= VECTORS:
            rows = sum(piece.rows for piece in read)
            places = np.random.default_rng(seed).choice(rows, min(sample, rows), replace=False)
        names = subject.table.at(places, ["doc_id"])["doc_id"]
        chosen = digests.stack(digests.of_column(names))
        documents = self._read_source(subject.source, "source")
        index = self._read_index()
        found = self._by_partition(read, documents, index, chosen)
        differences = self._named(found.ids, subject.source, found)
        if level >= ROWS:
            differences["mismatched"] = reading.together(piece.mismatched for piece in read)
            differences["corrupt"] = reading.together(piece.corrupt for piece in read)
        if level >= ROWS and subject.index is not None:
            misnamed = subject.index.doc_ids([at for _, at in found.misnamed.first])
            rows_of = tuple(row for _, row in found.unindexed.first)
            differences["unindexed"] = Difference(found.unindexed.count, rows_of)
            differences["misnamed"] = Difference(found.misnamed.count, tuple(misnamed))
            differences["misplaced"] = reading.together(piece.misplaced for piece in index)
        sampled, drawn = 0, None
        if level >= VECTORS:
            row_of = dict(found.asked)
            sampled, differences["wrong_vector"] = embed_sample(
                subject, places, chosen, row_of, self.tasks
            )
            drawn = seed
        behind = None
        if found.behind is not None and subject.newest is not None:
            behind = self._named(found.behind, subject.newest, found)
        in_source = sum(piece.documents for piece in documents)
        return RowsCompared(differences, behind, in_source, found.table_documents, sampled, drawn)

    def _read_index(self) -> list[IndexRead]:
        subject = self.subject
        if subject.index is None or self.reading.level < ROWS:
            return []
        pieces = [IndexPiece(f"index-{n:06d}", n) for n in range(subject.index.segments)]
        work = ((self.reading, subject.table, subject.index, piece) for piece in pieces)
        return self.tasks.each(reading.read_index, work)

    def _by_partition(
        self,
        read: list[TableRead],
        documents: list[SourceRead],
        index: list[IndexRead],
        chosen: digests.Digests,
    ) -> Compared:
        """Compare what was read; the source's documents of the `chosen` ids are named."""
        subject, newest, held = self.subject, None, None
        if subject.newest is not None:
            newest = entries_of(self._read_source(subject.newest, "newest"))
        if subject.index is not None and self.reading.level >= ROWS:
            held = links_of(index)
        sides = Sides(entries_of(read), entries_of(documents), newest, links_of(read), held)
        parts = compared.cut(sides, self.reading.parts, subject.dead_letters, chosen)
        return Compared.sum(
            self.tasks.each(compared.compare, ((self.reading, part) for part in parts))
        )

    def _read_source(self, source: Source, name: str) -> list[SourceRead]:
        pieces = reading.source_pieces(source, None, name)
        work = ((self.reading, source, piece) for piece in pieces)
        return self.tasks.each(reading.read_source, work)

    def _named(self, ids: compared.IdKinds, source: Source, found: Compared) -> Differences:
        """Return differences of ids, with examples; a column of another type is one of every document."""
        table = self.subject.table
        differences = compared.named(ids, table, source, self.subject.dead_letters)
        retyped = source.retyped(table.dataset().schema)
        if self.reading.level >= ROWS and found.table_documents and retyped:
            differences["carried"] = Difference(found.table_documents, tuple(retyped))
        return differences


def embed_sample(
    subject: Subject,
    places: npt.NDArray[np.int64],
    chosen: digests.Digests,
    row_of: Mapping[bytes, int],
    tasks: Tasks,
) -> tuple[int, Difference]:
    """Embed the texts of chosen rows again, except of those whose id the source does not have."""
    known = [n for n, digest in enumerate(chosen.tolist()) if digest in row_of]
    if not known:
        return 0, Difference(0)
    rows = [row_of[digest] for digest in chosen[known].tolist()]
    small = replace(subject, dead_letters=(), proofs={})
    return len(known), tasks.call(embed_again, small, places[known], rows)


def embed_again(
    subject: Subject, places: npt.NDArray[np.int64], source_rows: list[int]
) -> Difference:
    """Return which rows of the table, whose documents these rows of the source are, get another vector.

    A row of another model has cosine .2 to .7.
    """
    stored = as_vectors(subject.table.at(places, ["vector"])["vector"])
    documents = subject.source.take(source_rows)
    texts = texts_of(documents)
    encoder = encoders.load_encoder(subject.encoder)

    def embed() -> Vectors:
        if subject.origin is not None:
            golden.require(subject.table.storage, subject.origin, encoder, subject.golden_sha256)
        return encoder.embed_documents(texts).vectors

    again = subject.patience.through(embed)
    lengths = np.linalg.norm(again, axis=1) * np.linalg.norm(stored, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = (again * stored).sum(axis=1) / lengths
    wrong = [documents["doc_id"][i].as_py() for i in np.flatnonzero(~(cosines >= SAME_VECTOR))]
    return Difference(len(wrong), tuple(wrong[:EXAMPLES]))

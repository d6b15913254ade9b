"""Compare a table version with its source row by row, its index with it, and its vectors with the model's."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from reembed import encoders
from reembed.catalog.receipts import FileProof
from reembed.catalog.releases import ManifestProof
from reembed.catalog.reports import IDS, ROWS, VECTORS, Difference, Differences, VerifyReport
from reembed.catalog.runs import Run
from reembed.config.settings import EncoderConfig
from reembed.encoders import golden
from reembed.encoders.base import Vectors
from reembed.engine.patience import Patience
from reembed.lifecycle.differences import (
    EXAMPLES,
    Documents,
    Rows,
    compare_ids,
    compare_index,
    scan_source,
    scan_table,
)
from reembed.source.dataset import Source
from reembed.space import Space
from reembed.store.records import encode
from reembed.table.documents import documents_in
from reembed.table.read import (
    TableVersion,
    as_vectors,
    damaged_files,
    files_of,
    manifest_proof,
    missing_files,
)

SAMPLE = 459
"""Rows that, none wrong, show with 99 % confidence that under 1 % are: ceil(ln .01 / ln .99)."""
SAME_VECTOR = 0.999
"""Cosine that a re-embedded row reaches over dtypes and batch compositions."""
FULL = VECTORS
_FILES_A_STEP = 64
_JOURNAL = "verifying.json"
"""Record of an interrupted verification, in its run's folder: written after each step, removed at the end."""


@dataclass(frozen=True)
class Subject:
    """What is verified: a table version, where it came from, and the ids its index holds."""

    source: Source
    table: TableVersion
    space: Space
    encoder: EncoderConfig
    dead_letters: tuple[str | int, ...]
    index_ids: pa.Table | None = None
    """row_id and doc_id of every row that the index finds; None if there is no index yet."""
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
    rows: int
    """Rows of the table."""
    table_documents: int
    """Distinct documents of these rows."""
    sampled: int
    seed: int | None
    """The seed of the sample, so that a resumed verification names that of the rows it took over."""


@dataclass(frozen=True)
class Done:
    """Results of the steps that are done."""

    damaged: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Damaged files of each group of files, by the first file of the group."""
    rows: RowsCompared | None = None


@dataclass(frozen=True)
class JournalKey:
    """What a verification reads; a journal is resumed only by one that reads the same."""

    table_version: int
    source_version: int
    newest_version: int | None
    """Newest version of the source; None if the table is compared with none that is newer."""
    level: int
    sample: int


@dataclass(frozen=True)
class JournalRecord:
    """A journal as it is stored."""

    key: JournalKey
    done: Done


class VerifyJournal:
    """Makes each step once: the result is the one kept before, or made now and kept."""

    def __init__(self, done: Done | None = None, keep: Callable[[Done], None] | None = None):
        self.done = done or Done()
        self._keep = keep

    @classmethod
    def open(cls, run: Run, key: JournalKey, *, resume: bool) -> VerifyJournal:
        """Return the journal of a run's verification; with `resume`, with the steps done before.

        Raises:
            IntegrityError: the stored journal is damaged.
        """

        def keep(done: Done) -> None:
            run.storage.write(run.path(_JOURNAL), encode(JournalRecord(key, done)))

        kept = run.storage.decode_if_there(JournalRecord, run.path(_JOURNAL)) if resume else None
        if kept is not None and kept.key == key:
            return cls(kept.done, keep)
        return cls(keep=keep)

    def damaged(self, group: str, look: Callable[[], list[str]]) -> tuple[str, ...]:
        """Return the damaged files of a group, which is named by its first file."""
        if group not in self.done.damaged:
            self._add(replace(self.done, damaged={**self.done.damaged, group: tuple(look())}))
        return self.done.damaged[group]

    def rows(self, compare: Callable[[], RowsCompared]) -> RowsCompared:
        """Return what was found in the rows."""
        rows = self.done.rows
        if rows is None:
            rows = compare()
            self._add(replace(self.done, rows=rows))
        return rows

    def _add(self, done: Done) -> None:
        self.done = done
        if self._keep is not None:
            self._keep(done)


def remove_journal(run: Run) -> None:
    """Remove the journal of a verification that ended."""
    run.storage.remove(run.path(_JOURNAL))


def verify(
    subject: Subject,
    sample: int = SAMPLE,
    seed: int | None = None,
    *,
    level: int = FULL,
    journal: VerifyJournal | None = None,
) -> VerifyReport:
    """Compare a table version with its source, as thoroughly as `level` says.

    0 files: every file of the version is proven by a receipt, is there, and has its size.
    1 ids: every document of the source has exactly one row, and no other row is there.
    2 rows: every row has the right text, carried values and space and a usable vector; the index
      holds these rows; every file has the sha256 of its receipt.
    3 vectors: `sample` random rows are embedded again. Each verification draws other rows unless
      `seed` is given, so that verifying every night sees more of the table every night.

    Rows are not read if files are damaged: their content shows nothing. With a journal, steps that an
    interrupted verification finished are not repeated.

    Raises:
        SpaceMismatch: the model found now is not the one of the line; no row is at fault.
    """
    journal = journal or VerifyJournal()
    rows = subject.table.rows
    found = RowsCompared({}, None, 0, rows, documents_in(rows), 0, None)
    # First: Lance has no checksums, and fails or panics on a damaged file as often as it misreads it.
    damaged = [*_unproven(subject), *_damaged(subject, journal, whole=level >= ROWS)]
    if level >= IDS and not damaged:
        drawn = secrets.randbits(32) if seed is None else seed
        found = journal.rows(lambda: _compare(subject, sample, drawn, level))
    return VerifyReport(
        table=subject.table.path,
        table_version=subject.table.version,
        source_version=subject.source.version,
        level=level,
        documents=found.documents,
        rows=found.rows,
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


def _unproven(subject: Subject) -> list[str]:
    """Return the files of the version that no receipt vouches for."""
    if not subject.proofs:
        return []
    return sorted(files_of(subject.table.dataset()) - subject.proofs.keys())


def _damaged(subject: Subject, journal: VerifyJournal, *, whole: bool) -> list[str]:
    """Return the files that are gone or of another size; with `whole`, also those of another sha256."""
    table, proofs = subject.table, subject.proofs
    if not whole:
        return missing_files(table.storage, table.path, table.version)
    names, manifest = sorted(proofs), subject.manifest
    damaged: list[str] = []
    if manifest and manifest != manifest_proof(table.storage, table.path, table.version):
        damaged.append(manifest.name)
    for start in range(0, len(names), _FILES_A_STEP):
        some = {n: proofs[n] for n in names[start : start + _FILES_A_STEP]}
        look = functools.partial(damaged_files, table.storage, table.path, some)
        damaged += journal.damaged(names[start], look)
    return damaged


def _compare(subject: Subject, sample: int, seed: int, level: int) -> RowsCompared:
    """Compare the ids and, from level 2, the rest of the rows."""
    source, table, dead = subject.source, subject.table, subject.dead_letters
    rows = scan_table(table, subject.space.id, source.ref.carry, level)
    chosen = np.empty(0, np.int64)
    if level >= VECTORS:
        count = len(rows.ids)
        chosen = np.random.default_rng(seed).choice(count, min(sample, count), replace=False)
    documents = scan_source(source, level, rows.ids[chosen])
    differences = compare_ids(table, source, dead, rows, documents)
    if level >= ROWS:
        differences |= {"mismatched": rows.mismatched, "corrupt": rows.corrupt}
        if subject.index_ids is not None:
            differences |= compare_index(rows, subject.index_ids)
    sampled, drawn = 0, None
    if level >= VECTORS:
        sampled, differences["wrong_vector"] = _reembed(subject, rows, chosen, documents)
        drawn = seed
    behind = None
    if subject.newest is not None:
        newest = scan_source(subject.newest, level)
        behind = compare_ids(table, subject.newest, dead, rows, newest)
    in_source, in_table = len(documents.ids), len(rows.documents.ids)
    return RowsCompared(differences, behind, in_source, len(rows.ids), in_table, sampled, drawn)


def _reembed(
    subject: Subject, rows: Rows, chosen: npt.NDArray[np.int64], documents: Documents
) -> tuple[int, Difference]:
    """Embed the texts of chosen rows again; return how many, and which have another vector.

    A row of another model has cosine .2 to .7.
    """
    texts = documents.texts_of
    chosen = np.array([r for r in chosen if rows.ids[r].tobytes() in texts], np.int64)
    if not len(chosen):
        return 0, Difference(0)
    named = [texts[rows.ids[r].tobytes()] for r in chosen]
    stored = as_vectors(subject.table.take(rows.row_ids[chosen], ["vector"])["vector"])
    encoder = encoders.load_encoder(subject.encoder)

    def embed() -> Vectors:
        if subject.origin is not None:
            golden.require(subject.table.storage, subject.origin, encoder, subject.golden_sha256)
        return encoder.embed_documents([text for _, text in named]).vectors

    again = subject.patience.through(embed)
    lengths = np.linalg.norm(again, axis=1) * np.linalg.norm(stored, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = (again * stored).sum(axis=1) / lengths
    wrong = [named[i][0] for i in np.flatnonzero(~(cosines >= SAME_VECTOR)).tolist()]
    return len(chosen), Difference(len(wrong), tuple(wrong[:EXAMPLES]))

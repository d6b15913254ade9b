"""Row-exact check of a table version against its source, its index against it, and of its vectors.

Every id and every text is compared by a 128-bit digest (BLAKE2b): 32 bytes per document and side,
about three times that while they are sorted.
"""

from __future__ import annotations

import functools
import itertools
import math
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from reembed import digests, encoders
from reembed.clock import now
from reembed.config.settings import EncoderConfig
from reembed.digests import Digests
from reembed.encoders import golden
from reembed.source.dataset import TEXT, Source
from reembed.space import Space
from reembed.store.records import SCHEMA_VERSION, holds
from reembed.table.read import (
    Proof,
    TableVersion,
    as_vectors,
    damaged_files,
    manifest_proof,
    missing_files,
)

SAMPLE = 459
"""Rows that, none wrong, show with 99 % confidence that under 1 % are: ceil(ln .01 / ln .99)."""
SAME_VECTOR = 0.999
"""Cosine that a re-embedded row reaches over dtypes and batch compositions."""
FILES, IDS, ROWS, VECTORS = range(4)
FULL = VECTORS
_EXAMPLES = 5
_FILES_A_STEP = 64


@dataclass(frozen=True)
class Difference:
    """Rows of one kind of difference: how many, and the first few ids."""

    count: int
    examples: tuple[str | int, ...] = ()


@dataclass(frozen=True)
class Verification:
    """The receipt: what was compared, and what differed."""

    table: str
    table_version: int
    source_version: int
    level: int
    documents: int
    """Of the source; 0 below level 1, which does not read it."""
    rows: int
    dead_letters: int
    differences: dict[str, Difference]
    """missing, extra, duplicate, stale (other text), carried (same text, other values or types of
    carried columns), mismatched (other space), corrupt (not finite, zero), unindexed, misnamed (the index gives
    another document id), damaged (files whose sha256 is not the receipt's), and wrong_vector
    (re-embedded, another vector)."""
    behind: dict[str, Difference] | None
    """What differs from the newest version of the source only because that moved on; None where no
    newer version was looked at."""
    sampled: int
    """Rows re-embedded."""
    seed: int | None = None
    """That these rows were drawn with; None below level 3, which draws none."""
    at: str = field(default_factory=now)

    @property
    def passed(self) -> bool:
        """Whether nothing differs."""
        return not any(d.count for d in self.differences.values())

    @property
    def lacking(self) -> int | None:
        """Documents that differ from the newest version; None where that was not looked at, or where
        only ids were compared.
        """
        kinds = ("missing", "extra", "stale", "carried")
        if self.behind is None or self.level < ROWS:
            return None
        return sum(d.count for k, d in self.behind.items() if k in kinds)

    @property
    def confidence(self) -> str:
        """What the re-embedded sample shows, in words."""
        if self.level < ROWS:
            return "files and ids only" if self.level else "files only, by name and size"
        if not self.sampled:
            return "no vector was re-embedded"
        wrong = self.differences["wrong_vector"].count
        if wrong:
            return f"{wrong:,} of {self.sampled:,} re-embedded have another vector"
        if self.sampled >= self.rows:
            return "every vector was re-embedded"
        return f"{self.sampled} re-embedded: with 99 % confidence under {-math.log(0.01) / self.sampled:.1%} are wrong"

    def to_json(self) -> dict[str, Any]:
        """The receipt as stored."""
        return {
            "schema_version": SCHEMA_VERSION,
            **asdict(self),
            "passed": self.passed,
            "confidence": self.confidence,
        }


@dataclass(frozen=True)
class _Figures:
    documents: int
    rows: int
    sampled: int
    seed: int | None


_Examples = dict[str, tuple[int, list[str | int]]]


@dataclass(frozen=True)
class _Rows:
    differences: _Examples
    behind: _Examples
    figures: _Figures


@dataclass(frozen=True)
class _Done:
    rows: _Rows | None = None


@dataclass(frozen=True)
class JournalRecord:
    """What is read of a journal: what was found in the rows, and in each step over files."""

    key: dict[str, Any]
    done: Annotated[dict[str, list[str] | dict[str, Any]], holds(_Done)]


@dataclass(frozen=True)
class Journal:
    """Steps of a verification that are done, so that an interrupted one goes on where it was."""

    done: dict[str, Any]
    keep: Callable[[dict[str, Any]], None] = lambda done: None
    """Stores `done` after each step."""

    def step(self, name: str, work: Callable[[], Any]) -> Any:
        """The step's result, JSON: from the journal, or made now."""
        if name not in self.done:
            self.done[name] = work()
            self.keep(self.done)
        return self.done[name]


@dataclass(frozen=True)
class Subject:
    """What is verified: a table version, where it came from, and the ids its index holds."""

    source: Source
    table: TableVersion
    space: Space
    encoder: EncoderConfig
    dead_letters: tuple[str | int, ...]
    index_ids: pa.Table | None = None
    """row_id and doc_id of every row that the index finds; None when there is no index yet."""
    proofs: dict[str, Proof] = field(default_factory=dict)
    """What each data file must be, byte for byte, by name."""
    manifest: Proof | None = None
    """What the file must be that says what the version is; None where no release recorded it."""
    newest: Source | None = None
    """A newer version of the source, to say how far the table is behind it."""
    origin: str | None = None
    """The run that began the line, whose golden vectors the model must give; None: not looked at."""


def verify(
    subject: Subject,
    sample: int = SAMPLE,
    seed: int | None = None,
    *,
    level: int = FULL,
    journal: Journal | None = None,
) -> Verification:
    """Compare a table version with its source, as thoroughly as `level` says.

    0 files: every file of the version is proven by a receipt, is there, and has its size.
    1 ids: every document of the source has exactly one row, and no other row is there.
    2 rows: every row has the right text, carried values and space and a usable vector; the index
      holds these rows; every file has the sha256 of its receipt.
    3 vectors: `sample` random rows are embedded again, others each time unless `seed` is given: so
      verifying every night sees more of the table every night.

    Rows are not read where files are damaged: what they hold says nothing. With a journal, steps that
    an interrupted verification finished are not done again.
    """
    journal = journal or Journal({})
    differences: dict[str, Difference] = {}
    behind: dict[str, Difference] | None = None
    figures: dict[str, Any] = {
        "documents": 0,
        "rows": subject.table.rows,
        "sampled": 0,
        "seed": None,
    }
    # First: Lance has no checksums, and fails or panics on a damaged file as often as it lies.
    damaged = [*_unproven(subject), *_damaged(subject, journal, whole=level >= ROWS)]
    if level >= IDS and not damaged:
        drawn = secrets.randbits(32) if seed is None else seed
        found = journal.step("rows", lambda: _compare(subject, sample, drawn, level))
        differences = _from_json(found["differences"])
        behind = _from_json(found["behind"]) if subject.newest else None
        figures |= found["figures"]
    differences["damaged"] = Difference(len(damaged), tuple(damaged[:_EXAMPLES]))
    return Verification(
        table=subject.table.path,
        table_version=subject.table.version,
        source_version=subject.source.version,
        level=level,
        documents=figures["documents"],
        rows=figures["rows"],
        dead_letters=len(subject.dead_letters),
        differences=differences,
        behind=behind,
        sampled=figures["sampled"],
        seed=figures["seed"],
    )


def _compare(subject: Subject, sample: int, seed: int, level: int) -> dict[str, Any]:
    """Differences of ids and, from level 2, of all else in the rows; as JSON."""
    found = _scan_table(subject, level)
    chosen = _choose(found, sample, seed) if level >= VECTORS else np.empty(0, np.int64)
    there = _scan_source(subject.source, level, found.ids[chosen])
    differences = _differences(subject, subject.source, found, there)
    sampled = 0
    if level >= ROWS:
        differences["mismatched"], differences["corrupt"] = found.mismatched, found.corrupt
        if subject.index_ids is not None:
            differences |= _index_differences(found, subject.index_ids)
    if level >= VECTORS:
        sampled, differences["wrong_vector"] = _reembed(subject, found, chosen, there.texts_of)
    behind = {}
    if subject.newest is not None:
        later = _scan_source(subject.newest, level)
        behind = _differences(subject, subject.newest, found, later)
    return {
        "differences": _as_json(differences),
        "behind": _as_json(behind),
        "figures": {
            "documents": len(there.ids),
            "rows": len(found.ids),
            "sampled": sampled,
            # Kept by the journal, so that a resumed verification names the seed of what it took over.
            "seed": seed if level >= VECTORS else None,
        },
    }


def _as_json(differences: dict[str, Difference]) -> dict[str, Any]:
    return {k: [d.count, list(d.examples)] for k, d in differences.items()}


def _from_json(record: dict[str, Any]) -> dict[str, Difference]:
    return {k: Difference(count, tuple(examples)) for k, (count, examples) in record.items()}


def _differences(
    subject: Subject, source: Source, found: _Table, there: _Documents
) -> dict[str, Difference]:
    """What differs between the rows of the table and the documents of one version of the source."""
    dead = digests.of_ids(subject.dead_letters)
    documents, at_document = np.unique(there.ids, return_index=True)
    rows, at_row, counts = np.unique(found.ids, return_index=True, return_counts=True)
    common, document, row = np.intersect1d(documents, rows, assume_unique=True, return_indices=True)
    lacking, more = np.delete(documents, document), np.delete(rows, row)
    named = {
        "missing": np.setdiff1d(lacking, dead),
        "extra": functools.reduce(
            np.union1d, (more, np.setdiff1d(dead, documents), np.intersect1d(common, dead))
        ),
        "duplicate": rows[counts > 1],
    }
    document, row = at_document[document], at_row[row]
    if len(found.texts):
        named["stale"] = common[there.texts[document] != found.texts[row]]
        carried = there.carried[document] != found.carried[row]
        named["carried"] = np.setdiff1d(common[carried], named["stale"])
    names = _names(subject, source, named)
    differences = {
        k: Difference(len(v), tuple(names[d] for d in v[:_EXAMPLES].tolist()))
        for k, v in named.items()
    }
    if len(found.texts) and (retyped := source.retyped(subject.table.dataset().schema)):
        differences["carried"] = Difference(len(rows), tuple(retyped))
    return differences


def _index_differences(found: _Table, held: pa.Table) -> dict[str, Difference]:
    """What differs between the rows of the table and the ids that the index answers with."""
    row_ids = held["row_id"].to_numpy()
    gap = np.setxor1d(found.row_ids, row_ids)
    if repeated := len(row_ids) - len(np.unique(row_ids)):
        gap = np.append(gap, np.full(repeated, -1))
    batches = held.to_batches(max_chunksize=65_536)
    names = digests.stack(b"".join(digests.of_column(b.column("doc_id")) for b in batches))
    _, row, at = np.intersect1d(found.row_ids, row_ids, return_indices=True)
    wrong = at[found.ids[row] != names[at]]
    examples = held["doc_id"].take(pa.array(np.sort(wrong)[:_EXAMPLES])).to_pylist()
    return {
        "unindexed": Difference(len(gap), tuple(gap[:_EXAMPLES].tolist())),
        "misnamed": Difference(len(wrong), tuple(examples)),
    }


def _unproven(subject: Subject) -> list[str]:
    """Files of the version that no receipt vouches for."""
    fragments = subject.table.dataset().get_fragments()
    files = {f.path for m in fragments for f in m.data_files()}
    return sorted(files - subject.proofs.keys()) if subject.proofs else []


def _damaged(subject: Subject, journal: Journal, *, whole: bool) -> list[str]:
    """Files that are gone or of another size; `whole`: or whose bytes are not their receipt's."""
    table, proofs = subject.table, subject.proofs
    if not whole:
        return missing_files(table.storage, table.path, table.version)
    names = sorted(proofs)
    damaged: list[str] = []
    if subject.manifest and subject.manifest != manifest_proof(
        table.storage, table.path, table.version
    ):
        damaged.append(str(subject.manifest["name"]))
    for start in range(0, len(names), _FILES_A_STEP):
        some = {n: proofs[n] for n in names[start : start + _FILES_A_STEP]}
        damaged += journal.step(
            f"files-{start}",
            functools.partial(damaged_files, table.storage, table.path, some),
        )
    return damaged


@dataclass(frozen=True)
class _Table:
    """Rows of the table, in its order."""

    ids: Digests
    texts: Digests
    """Empty below level 2, as `carried`."""
    carried: Digests
    row_ids: npt.NDArray[np.int64]
    mismatched: Difference
    corrupt: Difference


def _scan_table(subject: Subject, level: int) -> _Table:
    carry = list(subject.source.ref.carry)
    columns = ["doc_id", *(["text_hash", "space", "vector", *carry] if level >= ROWS else [])]
    ids, texts, carried = bytearray(), bytearray(), bytearray()
    row_ids: list[npt.NDArray[np.int64]] = [np.empty(0, np.int64)]
    mismatched, corrupt = _Few(), _Few()
    space = subject.space.id
    for batch in subject.table.scan(columns):
        names = batch.column("doc_id")
        ids += digests.of_column(names)
        row_ids.append(batch.column("_rowid").to_numpy().astype(np.int64))
        if level < ROWS:
            continue
        texts += b"".join(batch.column("text_hash").fill_null(bytes(digests.BYTES)).to_pylist())
        carried += digests.of_rows([batch.column(c) for c in carry], batch.num_rows)
        same = pc.equal(batch.column("space"), space).fill_null(False)
        mismatched.add(names.filter(pc.invert(same)))
        norms = np.linalg.norm(as_vectors(batch.column("vector")), axis=1)
        corrupt.add(names.filter(pa.array(~(np.isfinite(norms) & (norms > 0)))))
    return _Table(
        digests.stack(ids),
        digests.stack(texts),
        digests.stack(carried),
        np.concatenate(row_ids),
        mismatched.found(),
        corrupt.found(),
    )


class _Few:
    """Counts ids, and keeps the first few."""

    def __init__(self) -> None:
        self._count = 0
        self._first: list[Any] = []

    def add(self, ids: pa.Array) -> None:
        self._count += len(ids)
        self._first += ids[: _EXAMPLES - len(self._first)].to_pylist()

    def found(self) -> Difference:
        return Difference(self._count, tuple(self._first))


def _choose(found: _Table, sample: int, seed: int) -> npt.NDArray[np.int64]:
    rows = len(found.ids)
    return np.random.default_rng(seed).choice(rows, min(sample, rows), replace=False)


@dataclass(frozen=True)
class _Documents:
    """Documents of one version of the source, in its order."""

    ids: Digests
    texts: Digests
    carried: Digests
    texts_of: dict[bytes, tuple[Any, str]]
    """Id and text of those that were asked for, by digest of the id."""


def _scan_source(source: Source, level: int, chosen: Digests | None = None) -> _Documents:
    ids, texts, carried = bytearray(), bytearray(), bytearray()
    kept: dict[bytes, tuple[Any, str]] = {}
    for part in source.scan():
        found = digests.of_column(part["doc_id"])
        ids += found
        if level < ROWS:
            continue
        texts += digests.of_column(part[TEXT])
        carried += digests.of_rows([part[c] for c in source.ref.carry], part.num_rows)
        if chosen is not None and len(chosen):
            for row in np.flatnonzero(np.isin(digests.stack(found), chosen)).tolist():
                text = part[TEXT][row].as_py() or b""
                name = part["doc_id"][row].as_py()
                kept[digests.of_id(name)] = (name, text.decode("utf-8", "replace"))
    return _Documents(digests.stack(ids), digests.stack(texts), digests.stack(carried), kept)


def _names(subject: Subject, source: Source, named: dict[str, Digests]) -> dict[bytes, str | int]:
    """Ids of the first digests of each kind; a second look, only when something differs."""
    wanted = np.concatenate([group[:_EXAMPLES] for group in named.values()])
    if not len(wanted):
        return {}
    # A dead letter that was deleted from the source is in neither of the two.
    names = {digests.of_id(d): d for d in subject.dead_letters}
    columns = itertools.chain(
        (part["doc_id"] for part in source.scan()),
        (batch.column("doc_id") for batch in subject.table.scan(["doc_id"])),
    )
    for column in columns:
        hit = np.isin(digests.stack(digests.of_column(column)), wanted)
        names |= {digests.of_id(d): d for d in column.filter(pa.array(hit)).to_pylist()}
    return names


def _reembed(
    subject: Subject,
    found: _Table,
    chosen: npt.NDArray[np.int64],
    texts: dict[bytes, tuple[Any, str]],
) -> tuple[int, Difference]:
    """Make the chosen rows' vectors again and compare: a row of another model has cosine .2 to .7.

    Raises:
        SpaceMismatch: the model found now is not the one of the line; that is not the rows' fault.
    """
    chosen = np.array([r for r in chosen if found.ids[r].tobytes() in texts], np.int64)
    if not len(chosen):
        return 0, Difference(0)
    named = [texts[found.ids[r].tobytes()] for r in chosen]
    stored = as_vectors(subject.table.take(found.row_ids[chosen], ["vector"])["vector"])
    encoder = encoders.load_encoder(subject.encoder)
    if subject.origin is not None:
        golden.require(subject.table.storage, subject.origin, encoder)
    again = encoder.embed_documents([text for _, text in named]).vectors
    lengths = np.linalg.norm(again, axis=1) * np.linalg.norm(stored, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = (again * stored).sum(axis=1) / lengths
    wrong = [named[i][0] for i in np.flatnonzero(~(cosines >= SAME_VECTOR)).tolist()]
    return len(chosen), Difference(len(wrong), tuple(wrong[:_EXAMPLES]))

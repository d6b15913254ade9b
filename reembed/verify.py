"""Row-exact check of a table version against its source, its index against it, and of its vectors.

Every id and every text is compared by a 128-bit digest (BLAKE2b): 32 bytes per document and side,
about three times that while they are sorted.
"""

from __future__ import annotations

import functools
import math
import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from reembed import digests, encoders
from reembed.catalog import now
from reembed.config import EncoderConfig
from reembed.digests import Digests
from reembed.source import TEXT, Source
from reembed.spaces import Space
from reembed.storage import SCHEMA_VERSION
from reembed.table_version import (
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
    """missing, extra, duplicate, stale (other text), mismatched (other space), corrupt (not finite,
    zero), unindexed, damaged (files whose sha256 is not the receipt's), and wrong_vector
    (re-embedded, another vector)."""
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
    index_ids: npt.NDArray[np.int64] | None = None
    """Sorted row ids in the index; None when there is no index yet."""
    proofs: dict[str, Proof] = field(default_factory=dict)
    """What each data file must be, byte for byte, by name."""
    manifest: Proof | None = None
    """What the file must be that says what the version is; None where no release recorded it."""


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
    2 rows: every row has the right text and space and a usable vector; the index holds these rows;
      every file has the sha256 of its receipt.
    3 vectors: `sample` random rows are embedded again, others each time unless `seed` is given: so
      verifying every night sees more of the table every night.

    Rows are not read where files are damaged: what they hold says nothing. With a journal, steps that
    an interrupted verification finished are not done again.
    """
    journal = journal or Journal({})
    differences: dict[str, Difference] = {}
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
        differences = {k: Difference(d[0], tuple(d[1])) for k, d in found["differences"].items()}
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
        sampled=figures["sampled"],
        seed=figures["seed"],
    )


def _compare(subject: Subject, sample: int, seed: int, level: int) -> dict[str, Any]:
    """Differences of ids and, from level 2, of all else in the rows; as JSON."""
    found = _scan_table(subject)
    chosen = _choose(found, sample, seed) if level >= VECTORS else []
    source_ids, source_texts, texts = _scan_source(subject.source, set(chosen))
    dead = digests.of_ids(subject.dead_letters)
    unique, first, counts = np.unique(found.ids, return_index=True, return_counts=True)
    common, at_source, at_table = np.intersect1d(source_ids, unique, return_indices=True)
    named = {
        "missing": np.setdiff1d(np.setdiff1d(source_ids, unique), dead),
        "extra": functools.reduce(
            np.union1d,
            (
                np.setdiff1d(unique, source_ids),
                np.setdiff1d(dead, source_ids),
                np.intersect1d(unique, dead),
            ),
        ),
        "duplicate": unique[counts > 1],
    }
    if level >= ROWS:
        named["stale"] = common[source_texts[at_source] != found.texts[first[at_table]]]
    names = _names(subject, named)
    differences = {
        k: Difference(len(v), tuple(names[d] for d in v[:_EXAMPLES].tolist()))
        for k, v in named.items()
    }
    sampled = 0
    if level >= ROWS:
        differences["mismatched"], differences["corrupt"] = found.mismatched, found.corrupt
        if subject.index_ids is not None:
            gap = np.setxor1d(found.row_ids, subject.index_ids)
            differences["unindexed"] = Difference(len(gap), tuple(gap[:_EXAMPLES].tolist()))
    if level >= VECTORS:
        sampled, differences["wrong_vector"] = _reembed(subject, chosen, texts)
    return {
        "differences": {k: [d.count, list(d.examples)] for k, d in differences.items()},
        "figures": {
            "documents": len(source_ids),
            "rows": len(found.ids),
            "sampled": sampled,
            # Kept by the journal, so that a resumed verification names the seed of what it took over.
            "seed": seed if level >= VECTORS else None,
        },
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
    ids: Digests
    texts: Digests
    row_ids: npt.NDArray[np.int64]
    mismatched: Difference
    corrupt: Difference


def _scan_table(subject: Subject) -> _Table:
    ids, texts = bytearray(), bytearray()
    row_ids: list[npt.NDArray[np.int64]] = [np.empty(0, np.int64)]
    mismatched: list[Any] = []
    corrupt: list[Any] = []
    for batch in subject.table.scan(["doc_id", "text_hash", "space", "vector"]):
        names = batch.column("doc_id").to_pylist()
        ids += b"".join(digests.of_id(d) for d in names)
        hashes = batch.column("text_hash").to_pylist()
        texts += b"".join(h or bytes(digests.BYTES) for h in hashes)
        row_ids.append(batch.column("_rowid").to_numpy().astype(np.int64))
        spaces = batch.column("space").to_pylist()
        mismatched += [d for d, s in zip(names, spaces, strict=True) if s != subject.space.id]
        norms = np.linalg.norm(as_vectors(batch.column("vector")), axis=1)
        corrupt += [names[i] for i in np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))]
    return _Table(
        digests.stack(ids),
        digests.stack(texts),
        np.sort(np.concatenate(row_ids)),
        Difference(len(mismatched), tuple(mismatched[:_EXAMPLES])),
        Difference(len(corrupt), tuple(corrupt[:_EXAMPLES])),
    )


def _choose(found: _Table, sample: int, seed: int) -> list[bytes]:
    rows = np.random.default_rng(seed).choice(
        len(found.ids), min(sample, len(found.ids)), replace=False
    )
    return [found.ids[r].tobytes() for r in rows]


def _scan_source(
    source: Source, chosen: set[bytes]
) -> tuple[Digests, Digests, dict[bytes, tuple[Any, str]]]:
    ids, texts = bytearray(), bytearray()
    kept: dict[bytes, tuple[Any, str]] = {}
    for name, text in _documents(source):
        digest = digests.of_id(name)
        ids += digest
        texts += digests.digest(text)
        if digest in chosen:
            kept[digest] = (name, text.decode("utf-8", "replace"))
    return digests.stack(ids), digests.stack(texts), kept


def _documents(source: Source) -> Iterator[tuple[str | int, bytes]]:
    for table in source.scan():
        for name, text in zip(table["doc_id"].to_pylist(), table[TEXT].to_pylist(), strict=True):
            yield name, text or b""


def _names(subject: Subject, named: dict[str, Digests]) -> dict[Any, str | int]:
    """Ids of the first digests of each kind; a second look, only when something differs."""
    wanted = {d for group in named.values() for d in group[:_EXAMPLES].tolist()}
    names: dict[Any, str | int] = {}
    if wanted:
        for name, _ in _documents(subject.source):
            names[digests.of_id(name)] = name
        for batch in subject.table.scan(["doc_id"]):
            names |= {digests.of_id(d): d for d in batch.column("doc_id").to_pylist()}
    return {d: names[d] for d in wanted}


def _reembed(
    subject: Subject, chosen: list[bytes], texts: dict[bytes, tuple[Any, str]]
) -> tuple[int, Difference]:
    """Make the chosen rows' vectors again and compare: a row of another model has cosine .2 to .7."""
    chosen = [d for d in chosen if d in texts]
    if not chosen:
        return 0, Difference(0)
    stored = _stored(subject.table, {texts[d][0] for d in chosen})
    encoder = encoders.load_encoder(subject.encoder)
    again = encoder.embed(encoder.tokenize([texts[d][1] for d in chosen], "document"))
    wrong = []
    for digest, vector in zip(chosen, again, strict=True):
        name = texts[digest][0]
        cosine = float(
            vector @ stored[name] / (np.linalg.norm(vector) * np.linalg.norm(stored[name]))
        )
        if not cosine >= SAME_VECTOR:
            wrong.append(name)
    return len(chosen), Difference(len(wrong), tuple(wrong[:_EXAMPLES]))


def _stored(table: TableVersion, names: set[Any]) -> dict[Any, npt.NDArray[np.float32]]:
    vectors: dict[Any, npt.NDArray[np.float32]] = {}
    for batch in table.scan(["doc_id", "vector"]):
        ids = batch.column("doc_id").to_pylist()
        rows = [i for i, d in enumerate(ids) if d in names]
        if rows:
            found = as_vectors(batch.column("vector").take(pa.array(rows)))
            vectors |= {ids[i]: v for i, v in zip(rows, found, strict=True)}
    return vectors

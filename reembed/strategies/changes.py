"""How a vector table differs from a newer version of its source: rows of new files, or all, compared.

Rows are compared by digests of id and text: a row whose text is what its vector was made from keeps
its vector, whatever else happened to the row (an update that changed nothing, A-B-A, deleted and
inserted again, compaction). If new files show no difference, all rows are compared to confirm it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from reembed import digests
from reembed.catalog.receipts import DeadLetter
from reembed.digests import Digests
from reembed.lifecycle.scratch import Entries
from reembed.source import versions
from reembed.source.dataset import TEXT, Source
from reembed.source.documents import documents_in as source_documents
from reembed.strategies.differing import Comparing, Differing, differing
from reembed.strategies.unique_ids import check_ids
from reembed.table.documents import by_document, row_of, rows_of_each
from reembed.table.documents import documents_in as table_documents
from reembed.table.read import TableVersion

Int64 = npt.NDArray[np.int64]
_NO_TEXT = digests.stack(digests.NULL)[0]


@dataclass(frozen=True)
class Changes:
    """Rows to embed, to refresh and to drop."""

    how: str
    """How they were found, for people: by files, or compare and why."""
    embed: Int64
    """Source rows whose text is new or changed, by row id."""
    without_text: int
    """Documents of `embed` whose text is null; they will be dead letters."""
    refresh: Int64
    """Source rows with the same text and changed carried values, by row id; once for each row of the table."""
    refreshed: Int64
    """Table rows that hold the vectors of `refresh`, in the same order."""
    refreshed_fragments: Int64
    """Fragments of `refreshed`, in the same order."""
    copied: int
    """New documents of `refresh`, whose text another document of the table has."""
    removed: int
    """Documents that are no longer in the source."""
    dropped: dict[int, Int64]
    """Table rows that do not stay where they are, by fragment."""
    dead_letters: tuple[DeadLetter, ...]
    """Documents without a vector that are not tried again."""
    forgotten: int
    """Documents without a vector that are no longer in the source."""

    @property
    def to_embed(self) -> int:
        """Documents whose text is new or changed."""
        return source_documents(len(self.embed))

    @property
    def to_refresh(self) -> int:
        """Documents with the same text and changed carried values."""
        return source_documents(len(np.unique(self.refresh))) - self.copied

    @property
    def documents(self) -> int:
        return self.to_embed + self.to_refresh + self.copied + self.removed + self.forgotten


def find_changes(
    before: Source,
    after: Source,
    table: TableVersion,
    dead_letters: Sequence[DeadLetter],
    *,
    retry: bool,
    comparing: Comparing,
) -> Changes:
    """Return how `table`, which equals version `before` of its source, differs from version `after`.

    Args:
        before: the version that the table equals.
        after: a newer version.
        table: the vectors.
        dead_letters: documents without a vector.
        retry: whether these are tried again even if their text is the same.
        comparing: how every row is compared, if that is needed; the caller removes its scratch.

    Raises:
        SourceError: ids of version `after` are null or repeated, or it has no documents.
    """
    retyped = after.retyped(table.dataset().schema)
    why = None
    if retyped:
        why = f"{', '.join(retyped)}: every row is written again"
    elif retry and dead_letters:
        why = "dead letters are tried again"
    elif not after.is_as_planned(before.ref):
        why = versions.gone(before)
    if why is None:
        changes = _by_files(before, after, table, dead_letters)
        if changes.documents:
            return replace(changes, how="delta: rows of files that are new")
        why = "new files hold no other document"
    check_ids(after, comparing)
    if retyped:
        held, found = _Rows.of_table(table, list(after.ref.carry)), _Rows.of_source(after.rows())
        changes = _compare(held, found, None, dead_letters, retry=retry, rewrite=True)
    else:
        ids = [d.doc_id for d in dead_letters]
        differ = differing(after, table, ids, comparing)
        changes = _of_differing(after, table, differ, dead_letters, retry=retry)
    return replace(changes, how=f"compare: {why}")


def _of_differing(
    after: Source,
    table: TableVersion,
    differ: Differing,
    dead_letters: Sequence[DeadLetter],
    *,
    retry: bool,
) -> Changes:
    """Return what differs by the documents that do, and the rows of the table with their ids or texts."""
    found, rows = _Rows.of_entries(differ.documents), _Rows.of_entries(differ.rows)
    texts = np.union1d(found.texts, rows.texts)
    held = _Rows.among(table, list(after.ref.carry), [], texts)
    return _compare(held, found, differ.left, dead_letters, retry=retry, rewrite=False)


def _by_files(
    before: Source, after: Source, table: TableVersion, dead_letters: Sequence[DeadLetter]
) -> Changes:
    """Return what differs by the rows of new files, and the rows of the table with their ids or texts.

    Raises SourceError as `find_changes`: rows of files that both versions have were checked before.
    """
    older = before.dataset()
    delta = versions.delta(older, after)
    after.check_documents(delta)
    names: list[pa.ChunkedArray] = [versions.ids_left(before.ref, older, delta)]
    left = digests.stack(digests.of_column(names[0]))

    def noted() -> Iterator[pa.Table]:
        for part in after.rows(delta):
            names.append(part["doc_id"])
            yield part

    found = _Rows.of_source(noted())
    held = _Rows.among(table, list(after.ref.carry), names, found.texts)
    failed = digests.of_ids([d.doc_id for d in dead_letters])
    known = np.union1d(held.ids, failed)
    if len(np.setdiff1d(np.intersect1d(found.ids, known), left)) or len(left) >= table_documents(
        table.rows
    ):
        after.check_documents()  # a new row has the id of one that did not leave; or nothing is left
    return _compare(held, found, left, dead_letters, retry=False, rewrite=False)


def _compare(
    held: _Rows,
    found: _Rows,
    left: Digests | None,
    dead_letters: Sequence[DeadLetter],
    *,
    retry: bool,
    rewrite: bool,
) -> Changes:
    """Return what differs between the table and the rows of its source that were read.

    `left` are ids of rows that are gone or changed; None if all rows of the source were read. `rewrite`:
    no row of the table may stay as it is.
    """
    everything = left is None
    left = np.setdiff1d(held.ids if left is None else left, found.ids)
    failed = digests.of_ids([d.doc_id for d in dead_letters])
    gone = np.setdiff1d(failed, found.ids) if everything else np.intersect1d(failed, left)
    row = row_of(held.ids, found.ids)  # one of each: all rows of a document are of one text
    there = row >= 0
    same = there & (_at(held.texts, row) == found.texts)
    moved = same & (rewrite | (_at(held.carried, row) != found.carried))
    dead = _among(found, [] if retry else dead_letters)
    # A null text has no vector to copy.
    twin = np.where(found.texts == _NO_TEXT, -1, digests.position(held.texts, found.texts))
    copied = ~same & ~dead & (twin >= 0)
    embed = ~same & ~dead & ~copied
    moved |= copied
    document, rows = rows_of_each(held.ids, held.ids[np.where(copied, twin, row)[moved]])
    leaving = np.isin(held.ids, left)
    removed = len(by_document(held.ids[leaving]).ids)
    leaving |= np.isin(held.ids, found.ids[there & (embed | moved)])
    return Changes(
        how="",
        embed=found.row_ids[embed],
        without_text=source_documents(int((found.texts[embed] == _NO_TEXT).sum())),
        refresh=found.row_ids[moved][document],
        refreshed=held.row_ids[rows],
        refreshed_fragments=held.fragments[rows],
        copied=source_documents(int(copied.sum())),
        removed=removed,
        dropped=_by_fragment(held.row_ids[leaving], held.fragments[leaving]),
        dead_letters=_remaining(dead_letters, found, dead, gone, everything=everything),
        forgotten=len(gone),
    )


def _at(values: Digests, places: Int64) -> Digests:
    """Return the values at these places; zeros at -1."""
    return np.concatenate([values, np.zeros(1, values.dtype)])[places]


def _by_fragment(row_ids: Int64, fragments: Int64) -> dict[int, Int64]:
    order = np.argsort(fragments, kind="stable")
    found, first = np.unique(fragments[order], return_index=True)
    edges = [*first.tolist(), len(order)]
    of = [row_ids[order[start:stop]] for start, stop in pairwise(edges)]
    return dict(zip(found.tolist(), of, strict=True))


@dataclass(frozen=True)
class _Rows:
    """Rows of the table, in table order, or of the source, as far as they were read."""

    ids: Digests
    texts: Digests
    carried: Digests
    row_ids: Int64
    fragments: Int64
    """Fragment ids of the table; for the source, the number of the part in which a row was read."""

    @classmethod
    def of_table(cls, table: TableVersion, carry: list[str]) -> _Rows:
        parts = table.scan_fragments(["doc_id", "text_hash", *carry])
        return cls._read(parts, "text_hash", lambda hashes: b"".join(hashes.to_pylist()))

    @classmethod
    def among(
        cls, table: TableVersion, carry: list[str], names: list[pa.ChunkedArray], texts: Digests
    ) -> _Rows:
        """Read the rows of the table that are of these ids, or were made from one of these texts."""
        hashes = pa.array(texts[texts != _NO_TEXT].tolist(), pa.binary(digests.BYTES))
        wanted: dict[str, pa.Array] = {"text_hash": hashes}
        if names:
            kind = table.dataset().schema.field("doc_id").type
            ids = pa.chunked_array([c for name in names for c in name.cast(kind).chunks], kind)
            wanted["doc_id"] = ids.combine_chunks()
        rows = table.matching(wanted, ["doc_id", "text_hash"])
        of_fragment = (rows["_rowaddr"].to_numpy() >> 32).astype(np.int64)
        rows = rows.drop_columns(["_rowaddr"])
        if carry:
            held = table.take(rows["_rowid"].to_numpy().astype(np.int64), carry)
            for name in carry:
                rows = rows.append_column(name, held[name])
        read = cls._read([(0, rows)], "text_hash", lambda hashes: b"".join(hashes.to_pylist()))
        return replace(read, fragments=of_fragment)

    @classmethod
    def of_source(cls, parts: Iterator[pa.Table]) -> _Rows:
        return cls._read(enumerate(parts), TEXT, digests.of_column)

    @classmethod
    def of_entries(cls, entries: Entries) -> _Rows:
        """Take what a comparison of every row found, whose fragments are not known."""
        ids, texts, carried = (
            np.ascontiguousarray(entries[column]) for column in ("id", "text", "carried")
        )
        return cls(ids, texts, carried, entries["row"].copy(), np.full(len(ids), -1, np.int64))

    @classmethod
    def _read(
        cls,
        parts: Iterable[tuple[int, pa.Table]],
        text: str,
        digests_of: Callable[[pa.ChunkedArray], bytes],
    ) -> _Rows:
        ids, texts, carried = bytearray(), bytearray(), bytearray()
        rows, fragments = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for fragment, part in parts:
            carry = [c for c in part.column_names if c not in ("doc_id", text, "_rowid")]
            ids += digests.of_column(part["doc_id"])
            texts += digests_of(part[text])
            carried += digests.of_rows([part[c] for c in carry], part.num_rows)
            rows.append(part["_rowid"].to_numpy().astype(np.int64))
            fragments.append(np.full(part.num_rows, fragment, np.int64))
        return cls(
            digests.stack(ids),
            digests.stack(texts),
            digests.stack(carried),
            np.concatenate(rows),
            np.concatenate(fragments),
        )


def _among(found: _Rows, dead_letters: Sequence[DeadLetter]) -> npt.NDArray[np.bool_]:
    """Return which rows are dead letters whose text has not changed since it failed."""
    if not dead_letters:
        return np.zeros(len(found.ids), bool)
    known = {digests.of_id(d.doc_id) + bytes.fromhex(d.text_hash) for d in dead_letters}
    pairs = zip(found.ids, found.texts, strict=True)
    return np.array([i.tobytes() + t.tobytes() in known for i, t in pairs], bool)


def _remaining(
    dead_letters: Sequence[DeadLetter],
    found: _Rows,
    dead: npt.NDArray[np.bool_],
    gone: Digests,
    *,
    everything: bool,
) -> tuple[DeadLetter, ...]:
    """Return the dead letters that stay: read with the same text, or not read because only changes were."""
    stay = {i.tobytes() for i in found.ids[dead]}
    if not everything:
        met = {i.tobytes() for i in (*found.ids, *gone)}
        stay |= {digests.of_id(d.doc_id) for d in dead_letters} - met
    return tuple(d for d in dead_letters if digests.of_id(d.doc_id) in stay)

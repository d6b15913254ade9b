"""The migrated documents of a lazy migration, as a source of their own: a Lance dataset under the root.

It has the columns of the real source that documents are made of, and no others. Rows are replaced by their ids in
one commit, so that no document is ever there twice, or gone in between.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from reembed import digests
from reembed.catalog.releases import SourceRef
from reembed.digests import Digests
from reembed.errors import IntegrityError, SourceError
from reembed.source import documents, versions
from reembed.source.dataset import Source
from reembed.source.delta import Delta, fragments_of
from reembed.store.by_size import to_merge
from reembed.store.lance import open_dataset, tags_of
from reembed.store.storage import Storage

Int64 = npt.NDArray[np.int64]
_BATCH_ROWS = 4_096
KEPT = dt.timedelta(hours=1)
"""How long versions stay that nothing names."""
_LARGE_ROWS = 131_072
"""Rows of a file that is not merged any more."""


@dataclass(frozen=True)
class Held:
    """Which documents a version of the members has: 24 bytes each in memory."""

    version: lance.LanceDataset
    columns: list[str]
    ids: Digests
    """Sorted."""
    row_ids: Int64
    """Of the version, in the order of the ids."""

    @classmethod
    def read(cls, version: lance.LanceDataset, ref: SourceRef) -> Held:
        """Read the ids of a version."""
        ids, rows = bytearray(), [np.empty(0, np.int64)]
        scanner = version.scanner(columns=[ref.id_column], with_row_id=True)
        for batch in scanner.to_batches():
            ids += digests.of_column(batch.column(ref.id_column))
            rows.append(batch.column("_rowid").to_numpy().astype(np.int64))
        known, row_ids = digests.stack(ids), np.concatenate(rows)
        order = np.argsort(known)
        return cls(version, documents.columns_of(ref), known[order], row_ids[order])

    def find(self, ids: Digests) -> Int64:
        """Return the place of each document, -1 if it is not there."""
        return digests.find(self.ids, ids)

    def without(self, doc_ids: Sequence[str | int]) -> list[str | int]:
        """Return those of some documents that are not there, in their order."""
        there = self.find(digests.of_ids(doc_ids)) >= 0
        return [doc_id for doc_id, is_there in zip(doc_ids, there, strict=True) if not is_there]

    def at(self, places: Int64) -> pa.Table:
        """Return the rows at these places, in the order asked."""
        return self.version._take_rows(self.row_ids[places].tolist(), columns=self.columns)


@dataclass(frozen=True)
class Members:
    """The dataset of migrated documents."""

    storage: Storage
    path: str
    """Under the root."""
    ref: SourceRef
    """The real source: its id column and text are those of the members."""

    @property
    def uri(self) -> str:
        return self.storage.uri(self.path)

    def ensure(self, source: Source) -> None:
        """Make the dataset, empty, if there is none.

        Raises:
            SourceError: the source's columns have other types than when it was made.
        """
        schema = plain_rows(_scanner(source, limit=0).to_table()).schema
        try:
            found = self.dataset().schema
        except FileNotFoundError:
            lance.write_dataset(
                schema.empty_table(),
                self.uri,
                mode="create",
                enable_stable_row_ids=True,
                storage_options=self.storage.lance_options,
            )
            return
        changed = [f.name for f in schema if found.field(f.name).type != f.type]
        if changed:
            raise SourceError(
                f"{', '.join(changed)} of {source.uri} has another type than when the lazy migration started",
                "the documents that were migrated are kept with the types of then",
                "reembed lazy stop --drop --reason 'the source has other types'     # then: reembed lazy start",
            )

    def dataset(self) -> lance.LanceDataset:
        """Return the newest version; FileNotFoundError without one."""
        return open_dataset(self.uri, None, self.storage.lance_options)

    def held(self) -> Held:
        """Return which documents are there."""
        return Held.read(self.dataset(), self.ref)

    def repair(self) -> bool:
        """Restore the newest version whose files are whole, if that of now is not; return whether that was so.

        Lance reports success on a file whose last write found the disk full.

        Raises:
            IntegrityError: files of every version are cut short or gone.
        """
        sizes = dict(self.storage.objects(f"{self.path}/data/"))
        now = self.dataset()
        for version in sorted((v["version"] for v in now.version_refs()), reverse=True):
            found = open_dataset(self.uri, version, self.storage.lance_options)
            files = [f for fragment in found.get_fragments() for f in fragment.metadata.files]
            there = [(f.file_size_bytes, sizes.get(f"{self.path}/data/{f.path}")) for f in files]
            if all(size is not None and written in (None, size) for written, size in there):
                if version < now.version:
                    found.restore()
                return version < now.version
        raise IntegrityError(
            f"files of {self.uri} are cut short or gone",
            "the documents that were migrated cannot be read",
            "reembed lazy stop --drop --reason 'its documents are damaged'     # then: reembed lazy start",
        )

    def fence(self) -> None:
        """Refuse commits of whoever opened the dataset before: Lance lets none pass a restored version."""
        self.dataset().restore()

    def replace(self, opened: lance.LanceDataset, rows: pa.Table) -> None:
        """Put rows in the place of those with their ids, or add them: one commit.

        Raises:
            OSError: `fence` was called since it was opened.
        """
        merge = opened.merge_insert(self.ref.id_column)
        merge.when_matched_update_all().when_not_matched_insert_all().execute(rows)

    def remove(self, opened: lance.LanceDataset, row_ids: Int64) -> None:
        """Remove rows: a commit for some thousand. Raises errors as `replace`."""
        for start in range(0, len(row_ids), _BATCH_ROWS):
            leaving = row_ids[start : start + _BATCH_ROWS].tolist()
            opened.delete(f"_rowid IN ({', '.join(map(str, leaving))})")

    def merge(self, *, erase: bool) -> None:
        """Merge files of about the same size, which every batch adds; row ids stay.

        `erase`: files that hold rows that left are written again without them.
        """
        dataset = self.dataset()
        held = {f.fragment_id: f.metadata for f in dataset.get_fragments()}
        chosen = set(to_merge({i: m.num_rows for i, m in held.items()}, _LARGE_ROWS))
        if erase:
            chosen |= {i for i, m in held.items() if m.num_deletions}
        if chosen:
            dataset.optimize.compact_files(
                target_rows_per_fragment=8 * _LARGE_ROWS,
                materialize_deletions_threshold=0.0,
                excluded_fragment_ids=list(held.keys() - chosen),
            )

    def forget(self, version: int, *, erase: bool) -> None:
        """Let go of the versions before this one: an hour later they are removed, with the files that only they have.

        Not at once: Lance compares a commit with the versions that are there, so that `fence` holds while its own is.
        `erase`: the first call after that hour removes them; otherwise one an hour does.
        """
        dataset = self.dataset()
        for tag, named in tags_of(dataset).items():
            if named < version:
                dataset.tags.delete(tag)
        first = dataset.checkout_version(min(v["version"] for v in dataset.version_refs()))
        age = dt.datetime.now(dt.UTC) - first.get_version()["timestamp"].astimezone(dt.UTC)  # type: ignore[union-attr]
        if first.version < version and age > (KEPT if erase else 2 * KEPT):
            self.storage.require_own(self.path)
            dataset.cleanup_old_versions(
                older_than=max(KEPT, dt.timedelta(microseconds=1)),  # zero means "two weeks"
                delete_unverified=False,
                error_if_tagged_old_versions=False,
            )


def rows_of(source: Source, delta: Delta | None) -> Iterator[tuple[Digests, pa.Table]]:
    """Yield the documents of a source by batches: digests of ids, and rows as members hold them.

    With a delta, only rows that it says were written.
    """
    chosen = fragments_of(source.dataset(), delta.written) if delta else None
    if chosen == []:
        return
    with documents.readable(source.ref):
        for batch in _scanner(source, fragments=chosen, batch_size=_BATCH_ROWS).to_batches():
            rows = plain_rows(pa.Table.from_batches([batch]))
            yield _digests(rows[source.ref.id_column]), rows


def rows_by_id(source: Source, row_ids: Int64) -> Iterator[pa.Table]:
    """Yield rows of a source by batches, as members hold them."""
    columns = documents.columns_of(source.ref)
    with documents.readable(source.ref):
        for start in range(0, len(row_ids), _BATCH_ROWS):
            some = row_ids[start : start + _BATCH_ROWS].tolist()
            yield plain_rows(source.dataset()._take_rows(some, columns=columns))


def ids_of(source: Source) -> Iterator[tuple[pa.Array, Digests, Int64]]:
    """Yield ids, their digests and row ids of a source's documents, in its order."""
    for ids, row_ids in documents.ids(source.dataset(), source.ref, None):
        yield ids, _digests(ids), row_ids


def row_ids_of(source: Source, doc_ids: Sequence[str | int]) -> tuple[Digests, Int64]:
    """Return digests of ids and row ids of those of some documents that a source has, in its order.

    Ids alone are read, and only those that are found are hashed.
    """
    names = (str(d) for d in doc_ids)
    wanted = pa.array(list({n for n in names if _is_text(n)}), pa.large_string())
    hashes, row_ids = [np.empty(0, f"V{digests.BYTES}")], [np.empty(0, np.int64)]
    for ids, rows in documents.ids(source.dataset(), source.ref, None):
        asked = pc.is_in(ids.cast(pa.large_string()), wanted)
        hashes.append(_digests(ids.filter(asked)))
        row_ids.append(rows[asked.to_numpy(False)])
    return np.concatenate(hashes), np.concatenate(row_ids)


def not_in(source: Source, doc_ids: Sequence[str | int]) -> list[str | int]:
    """Return those of some documents that a source does not have, in their order."""
    if not doc_ids:
        return []
    found, _ = row_ids_of(source, doc_ids)
    there = digests.find(np.sort(found), digests.of_ids(doc_ids)) >= 0
    return [doc_id for doc_id, is_there in zip(doc_ids, there, strict=True) if not is_there]


def _is_text(name: str) -> bool:
    """Return whether it can be stored: half a character cannot."""
    return name.isascii() or name.encode("utf-8", "replace").decode() == name


def ids_left(source: Source, older: lance.LanceDataset, delta: Delta) -> Digests:
    """Return digests of ids whose rows are gone or changed since an older version."""
    return _digests(versions.ids_left(source.ref, older, delta))


def count(source: Source) -> int:
    """Return the number of documents."""
    return int(source.dataset().count_rows(source.ref.filter))


def as_ids(doc_ids: Sequence[str | int]) -> Digests:
    """Return distinct digests of ids, sorted."""
    return np.unique(digests.of_ids(doc_ids))


def plain_rows(rows: pa.Table) -> pa.Table:
    """Return rows with the values of dictionary columns in their place."""
    for place, field in enumerate(rows.schema):
        if pa.types.is_dictionary(field.type):
            values = rows[field.name].cast(field.type.value_type)
            rows = rows.set_column(place, pa.field(field.name, field.type.value_type), values)
    return rows


def _digests(ids: pa.Array | pa.ChunkedArray) -> Digests:
    if pa.types.is_dictionary(ids.type):
        ids = ids.cast(ids.type.value_type)
    return digests.stack(digests.of_column(ids))


def _scanner(source: Source, **how: object) -> lance.LanceScanner:
    columns, condition = documents.columns_of(source.ref), source.ref.filter
    return source.dataset().scanner(columns=columns, filter=condition, **how)  # type: ignore[arg-type]

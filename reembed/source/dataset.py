"""A Lance dataset at a pinned version, read in units: each attempt at a unit reads the same rows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from reembed.catalog.plan import EmbedRange
from reembed.catalog.releases import SourceRef
from reembed.config.options import Options
from reembed.config.settings import Config
from reembed.errors import SourceError
from reembed.source.columns import check_columns, plain, template_columns
from reembed.source.delta import Delta, fingerprint, fragments_of
from reembed.source.documents import (
    TEXT,
    check_ids,
    columns_of,
    documents,
    ids,
    readable,
    require_ids,
)
from reembed.source.filter import check_filter, require_condition
from reembed.source.opening import open_pinned, open_source, planned_dataset
from reembed.source.units import cut, sizes
from reembed.store.at_once import at_once
from reembed.store.lance import tags_of
from reembed.store.paths import absolute

__all__ = ["TEXT", "Source"]

_SCAN_ROWS = 4_096
_SAMPLED_FRAGMENTS, _SAMPLED_ROWS = 16, 64


@dataclass(frozen=True)
class Source:
    """Documents of one dataset version: live rows that pass the filter. Picklable."""

    ref: SourceRef
    """The documents, as records name them."""
    options: Options = field(repr=False)
    """How the store is reached; secrets as references to the environment."""

    @classmethod
    def open(cls, config: Config) -> Source:
        """Return the configured dataset at the configured version, or at its newest.

        Raises:
            SourceError: the dataset, the version or a column is missing or has the wrong type.
        """
        section, options = config.source, config.stores.source
        uri = absolute(section.uri)
        dataset = open_source(uri, section.version, options)
        ref = SourceRef(
            uri=uri,
            version=dataset.version,
            fingerprint=fingerprint(dataset),
            id_column=section.id_column,
            text=section.text,
            filter=section.filter,
            carry=config.table.carry,
        )
        check_columns(dataset, ref)
        if ref.filter is not None:
            check_filter(dataset, uri, ref.filter)
        return cls(ref, options)

    @property
    def uri(self) -> str:
        return self.ref.uri

    @property
    def version(self) -> int:
        return self.ref.version

    def dataset(self) -> lance.LanceDataset:
        """Return the dataset at the pinned version, which each process opens once."""
        return open_pinned(self.uri, self.version, self.ref.fingerprint, self.options)

    def newest(self) -> Source:
        """Return the same documents at the dataset's version now.

        Raises:
            SourceError: a column is gone or has another type, or the filter names one that is gone.
        """
        dataset = open_source(self.uri, None, self.options)
        ref = replace(self.ref, version=int(dataset.version), fingerprint=fingerprint(dataset))
        check_columns(dataset, ref)
        if ref.filter is not None:
            require_condition(dataset, f"{ref.uri} version {ref.version}", ref.filter)
        return replace(self, ref=ref)

    def is_same(self, other: Source) -> bool:
        """Return whether both are one version of one dataset; another made in its place is not."""
        mine, its = self.ref, other.ref
        return (mine.version, mine.fingerprint) == (its.version, its.fingerprint)

    def is_as_planned(self, planned: SourceRef) -> bool:
        """Return whether the version that a plan pinned is still there, and still the same files."""
        return planned.uri == self.uri and planned_dataset(planned, self.options) is not None

    def pin(self, tag: str) -> bool:
        """Tag the version, so that cleanup cannot take it; False when the source is read-only."""
        dataset = self.dataset()
        if tag not in tags_of(dataset):
            with suppress(ValueError, OSError):  # another process was first, or it is read-only
                dataset.tags.create(tag, self.version)
        return tag in tags_of(dataset)

    def unpin(self, tag: str) -> None:
        """Remove a tag; the version that it was of may be gone."""
        dataset = open_source(self.uri, None, self.options)
        if tag in tags_of(dataset):
            dataset.tags.delete(tag)

    def schema(self) -> tuple[pa.DataType, list[pa.Field]]:
        """Return the type of doc_id, and the carried fields.

        All fields may be null: a column that only became nullable has not changed its type.
        """
        schema = self.dataset().schema
        carried = [schema.field(c).with_nullable(True) for c in self.ref.carry]
        return plain(schema.field(self.ref.id_column).type), carried

    def retyped(self, table: pa.Schema) -> list[str]:
        """Return, in words, which columns of a vector table have another type in this version."""
        id_type, carried = self.schema()
        types = {"doc_id": id_type, **{f.name: f.type for f in carried}}
        return [
            f"{name} is {held} in the table and {kind} in the source"
            for name, kind in types.items()
            if (held := table.field(name).type) != kind
        ]

    def count_rows(self) -> int:
        """Return the number of rows, also of those that the filter leaves out."""
        return int(self.dataset().count_rows())

    def check_documents(self, delta: Delta | None = None) -> int:
        """Return the number of documents, after checking that every id is present and unique.

        With a delta, only rows that it says were written are counted and checked among themselves.

        Raises:
            SourceError: there is no document, or ids are null or repeated (with examples).
        """
        return check_ids(self.dataset(), self.ref, self._written(delta))

    def ids_in(self, fragments: Sequence[int]) -> Iterator[tuple[pa.Array, npt.NDArray[np.int64]]]:
        """Yield the ids of these fragments' documents, as `documents.ids`."""
        yield from ids(self.dataset(), self.ref, fragments_of(self.dataset(), fragments))

    def rows_of(self, doc_ids: Iterable[str]) -> dict[str, int]:
        """Return the row id of each of these documents that is there; reads ids alone, and holds those found."""
        wanted = pa.array(doc_ids, pa.large_string())
        rows: dict[str, int] = {}
        for found, row_ids in ids(self.dataset(), self.ref, None):
            names = found.cast(pa.large_string())
            asked = pc.is_in(names, wanted)
            rows |= zip(
                names.filter(asked).to_pylist(),
                row_ids[asked.to_numpy(False)].tolist(),
                strict=True,
            )
        return rows

    def require_ids(self, documents: int, nulls: int, repeated: Sequence[tuple[int, int]]) -> None:
        """Check that there are documents and that each has an id of its own.

        `repeated`: a row of each id that several rows have, and how many have it.

        Raises:
            SourceError: as `check_documents`.
        """
        examples: list[str] = []
        if repeated and not nulls:
            names = self.take([row for row, _ in repeated])["doc_id"].to_pylist()
            examples = [
                f"{name!r} ({rows} rows)" for name, (_, rows) in zip(names, repeated, strict=True)
            ]
        require_ids(self.ref, documents, nulls, examples)

    def null_texts(self, fragments: Sequence[int] | None = None) -> int:
        """Return how many documents, of these fragments or all, have null as text; in a template null counts as empty.

        This reads every text: Lance does for a filter IS NULL and for a projection, too.
        """
        dataset, ref = self.dataset(), self.ref
        if template_columns(ref.text) or not dataset.schema.field(ref.text).nullable:
            return 0
        chosen = None if fragments is None else fragments_of(dataset, fragments)
        scanner = dataset.scanner(
            columns=[ref.text], filter=ref.filter, batch_size=_SCAN_ROWS, fragments=chosen
        )
        with readable(ref):
            return sum(batch.column(0).null_count for batch in scanner.to_batches())

    def units(self, size: int, actors: int = 1) -> list[EmbedRange]:
        """Cut the rows into units of at most `size`, as `units.cut`; the last ones as `units.sizes` says."""
        fragments = self._fragments()
        return list(cut(fragments, sizes(sum(rows for _, rows in fragments), size, actors)))

    def text_bytes(self) -> float:
        """Return the mean length of a text in bytes, by the first rows of fragments all over the source."""
        fragments = self.dataset().get_fragments()
        chosen = fragments[:: max(1, len(fragments) // _SAMPLED_FRAGMENTS)]

        def first_rows(fragment: lance.LanceFragment) -> pa.Table:
            return self._scanner(fragments=[fragment], limit=_SAMPLED_ROWS).to_table()

        with readable(self.ref):
            parts = at_once(first_rows, chosen)
        lengths = [pc.binary_length(documents(self.ref, part)[TEXT]) for part in parts]
        return float(pc.mean(pa.chunked_array(lengths, pa.int64())).as_py() or 0)

    def read(self, unit: EmbedRange) -> pa.Table:
        """Return the documents of one unit, as `documents.documents`, in row order.

        Raises:
            SourceError: the fragment no longer holds the unit's rows, or holds text that is not UTF-8.
        """
        window = {"offset": unit.offset, "limit": unit.rows, "scan_in_order": True}
        fragments = [self._fragment(number) for number in unit.fragments]
        with readable(self.ref):
            rows = self._scanner(fragments=fragments, **window).to_table()
        if rows.num_rows != unit.rows:
            raise SourceError(
                f"unit {unit.id} has {rows.num_rows} rows where the plan counted {unit.rows}",
                "the pinned source version returned other rows than before",
            )
        return documents(self.ref, rows)

    def scan(self) -> Iterator[pa.Table]:
        """Yield all documents, as `read` gives them, in bounded batches."""
        for batch in self._batches():
            yield documents(self.ref, batch)

    def fragments(self) -> dict[int, int]:
        """Return the number of rows of each fragment, also of those that the filter leaves out."""
        return {f.fragment_id: f.count_rows() for f in self.dataset().get_fragments()}

    def rows(self, delta: Delta | None = None) -> Iterator[pa.Table]:
        """Yield `_rowid` beside what `scan` gives; only rows that a delta says were written."""
        yield from self._rows(self._written(delta))

    def rows_in(self, fragments: Sequence[int]) -> Iterator[pa.Table]:
        """Yield `_rowid` beside what `scan` gives, of these fragments."""
        yield from self._rows(fragments_of(self.dataset(), fragments))

    def _rows(self, fragments: list[lance.LanceFragment] | None) -> Iterator[pa.Table]:
        for batch in self._batches(fragments=fragments, with_row_id=True):
            yield documents(self.ref, batch).append_column("_rowid", batch["_rowid"])

    def _written(self, delta: Delta | None) -> list[lance.LanceFragment] | None:
        return fragments_of(self.dataset(), delta.written) if delta else None

    def take(self, row_ids: Sequence[int]) -> pa.Table:
        """Return rows by id, as `read` gives them, in the order asked.

        Raises:
            SourceError: an id names no row (Lance itself would leave it out silently), or a row holds
                text that is not UTF-8.
        """
        with readable(self.ref):
            rows = self.dataset()._take_rows(list(row_ids), columns=columns_of(self.ref))
        if rows.num_rows != len(row_ids):
            raise SourceError(
                f"{self.uri} version {self.version} has {rows.num_rows} of {len(row_ids)} rows by id"
            )
        return documents(self.ref, rows)

    def texts(self, doc_ids: Collection[str]) -> dict[str, str]:
        """Return the texts of documents by their ids as text; those that it does not have are left out.

        This reads every id.
        """
        wanted, found = pa.array(doc_ids, pa.string()), []
        for some, rows in ids(self.dataset(), self.ref, None):
            found += rows[np.asarray(pc.is_in(some.cast(pa.string()), wanted))].tolist()
        taken = self.take(found)
        texts = [(text or b"").decode() for text in taken[TEXT].to_pylist()]
        return dict(zip(map(str, taken["doc_id"].to_pylist()), texts, strict=True))

    def sample(self, count: int, seed: int) -> list[tuple[str, str]]:
        """Return id and text of random rows, the same for a seed; also of rows that the filter leaves out."""
        dataset = self.dataset()
        rows = dataset.count_rows()
        drawn = np.random.default_rng(seed).choice(rows, min(count, rows), replace=False)
        with readable(self.ref):
            found = dataset.take(drawn.tolist(), columns=columns_of(self.ref))
        taken = documents(self.ref, found)
        texts = [(text or b"").decode("utf-8", "replace") for text in taken[TEXT].to_pylist()]
        return list(zip(map(str, taken["doc_id"].to_pylist()), texts, strict=True))

    def _batches(self, **how: Any) -> Iterator[pa.Table]:
        with readable(self.ref):
            for batch in self._scanner(batch_size=_SCAN_ROWS, **how).to_batches():
                yield pa.Table.from_batches([batch])

    def _fragments(self) -> list[tuple[int, int]]:
        """Return the fragments with their rows that pass the filter; many are counted at once."""
        found = self.dataset().get_fragments()
        counts = at_once(lambda f: f.count_rows(self.ref.filter), found)
        return [(f.fragment_id, count) for f, count in zip(found, counts, strict=True)]

    def _fragment(self, number: int) -> lance.LanceFragment:
        fragment = self.dataset().get_fragment(number)
        if fragment is None:
            raise SourceError(f"{self.uri} version {self.version} has lost fragment {number}")
        return fragment

    def _scanner(self, **how: Any) -> lance.LanceScanner:
        columns, condition = columns_of(self.ref), self.ref.filter
        return self.dataset().scanner(columns=columns, filter=condition, **how)

"""A Lance dataset at a pinned version -> documents, in units that every attempt reads alike."""

from __future__ import annotations

import datetime as dt
import json
import shlex
import string
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from obstore.exceptions import BaseError

from reembed.catalog.plan import EmbedRange, EmbedRows, EmbedUnit
from reembed.catalog.releases import SourceRef
from reembed.config.settings import Config
from reembed.errors import ReembedError, SourceError
from reembed.source import delta as source_delta
from reembed.source.columns import IDS, TEXTS, nearest, plain, require, set_to, template_columns
from reembed.source.delta import Delta, fragments_of
from reembed.source.filter import check_filter, require_condition
from reembed.source.ids import check_ids
from reembed.store.lance import open_dataset, tags_of
from reembed.store.storage import Storage, absolute, is_remote

TEXT = "reembed.text"
"""Name of the text among a unit's columns. Lance allows no dot in the name of a column, so that no
carried column can be called so."""
_SCAN_ROWS = 4_096
_MANY_UNITS = 4
_COUNTED_ROWS = 100_000


@dataclass(frozen=True)
class Later:
    """What a version of the source has that an earlier one lacks."""

    why: str | None
    """Why the versions cannot be told apart by their files."""
    documents: int | None
    """At most how many were written or deleted; None where that was not counted."""
    since: dt.datetime | None
    """When the first version after the earlier one was written, UTC; None where that is not known."""


@dataclass(frozen=True)
class Source(SourceRef):
    """Documents of one dataset version: live rows that pass the filter. Picklable."""

    options: tuple[tuple[str, str], ...] = field(repr=False)

    @classmethod
    def open(cls, config: Config) -> Source:
        """The configured dataset at the configured version, or at its newest.

        Raises:
            SourceError: the dataset, the version or a column is missing or has the wrong type.
        """
        section, options = config.source, tuple(sorted(config.storage.options.items()))
        uri = absolute(section.uri)
        dataset = _open(uri, section.version, options)
        source = cls(
            uri,
            dataset.version,
            source_delta.fingerprint(dataset),
            section.id_column,
            section.text,
            section.filter,
            config.table.carry,
            options,
        )
        source._check_columns(dataset)
        if source.filter is not None:
            check_filter(dataset, uri, source.filter)
        return source

    @classmethod
    def of(cls, ref: SourceRef, options: tuple[tuple[str, str], ...]) -> Source:
        """The source of a plan or release."""
        return cls(**vars(ref), options=options)

    @property
    def ref(self) -> SourceRef:
        """The source as a plan keeps it."""
        return SourceRef(**{f.name: getattr(self, f.name) for f in fields(SourceRef)})

    def dataset(self) -> lance.LanceDataset:
        """The dataset at the pinned version."""
        return _open(self.uri, self.version, self.options)

    def newest_version(self) -> int:
        """The dataset's version now."""
        return int(_open(self.uri, None, self.options).version)

    def newest(self) -> Source:
        """The same documents at the dataset's version now.

        Raises:
            SourceError: a column is gone or has another type, or the filter names one that is gone.
        """
        dataset = _open(self.uri, None, self.options)
        source = replace(
            self, version=int(dataset.version), fingerprint=source_delta.fingerprint(dataset)
        )
        source._check_columns(dataset)
        if source.filter is not None:
            require_condition(dataset, f"{self.uri} version {source.version}", source.filter)
        return source

    def is_same(self, other: Source) -> bool:
        """Whether both are one version of one dataset; another made in its place is not."""
        return (self.version, self.fingerprint) == (other.version, other.fingerprint)

    def later(self, since: Source, *, count: bool) -> Later:
        """What this version has that an earlier one of its dataset lacks; opens each version once.

        Raises:
            SourceError, OSError, ValueError: a version cannot be read.
        """
        older, newer = self._planned(since), self.dataset()
        if older is None:
            return Later(_gone(since), None, self._written_after(newer, 0))
        documents = self._documents_changed(since, older, newer) if count else None
        return Later(None, documents, self._written_after(newer, since.version))

    def _written_after(self, newest: lance.LanceDataset, version: int) -> dt.datetime | None:
        """When the first version after `version` was written, UTC.

        Where that one was cleaned up: when `version` was, which is earlier. None where neither is there.
        """
        versions = [v["version"] for v in newest.version_refs()]
        known = next((v for v in (version + 1, version) if v in versions), None)
        if known is None:
            return None
        dataset = newest if known == newest.version else _open(self.uri, known, self.options)
        return dataset.get_version()["timestamp"].astimezone(dt.UTC)  # type: ignore[union-attr]

    def pin(self, tag: str) -> bool:
        """Tag the version, so that cleanup cannot take it; False when the source is read-only."""
        dataset = self.dataset()
        if tag in tags_of(dataset):
            return True
        try:
            dataset.tags.create(tag, self.version)
        except ValueError:
            return tag in tags_of(dataset)  # another process of this run was first
        except OSError:
            return False
        return True

    def unpin(self, tag: str) -> None:
        """Take the tag away again."""
        dataset = self.dataset()
        if tag in tags_of(dataset):
            dataset.tags.delete(tag)

    @property
    def text_columns(self) -> list[str]:
        """Columns the text is made of."""
        return template_columns(self.text) or [self.text]

    def schema(self) -> tuple[pa.DataType, list[pa.Field]]:
        """Type of doc_id, and the carried fields; all may be null, so that this is no change of type."""
        schema = self.dataset().schema
        carried = [schema.field(c).with_nullable(True) for c in self.carry]
        return plain(schema.field(self.id_column).type), carried

    def retyped(self, table: pa.Schema) -> list[str]:
        """Columns of a vector table that have another type than in this version, in words."""
        id_type, carried = self.schema()
        types = {"doc_id": id_type, **{f.name: f.type for f in carried}}
        found = {name: table.field(name).type for name in types}
        return [
            f"{name} is {found[name]} in the table and {types[name]} in the source"
            for name in types
            if found[name] != types[name]
        ]

    def count_rows(self) -> int:
        """Number of rows, with those that the filter leaves out."""
        return int(self.dataset().count_rows())

    def check_documents(self) -> int:
        """Number of documents; every id present and unique.

        Raises:
            SourceError: there is no document, or ids are null or repeated (with examples).
        """
        where = f"{self.uri} version {self.version}"
        return check_ids(self.dataset(), where, self.id_column, self.filter)

    def null_texts(self) -> int:
        """Number of documents whose text is null; in a template null counts as empty."""
        dataset = self.dataset()
        if template_columns(self.text) or not dataset.schema.field(self.text).nullable:
            return 0
        scanner = dataset.scanner(columns=[self.text], filter=self.filter, batch_size=_SCAN_ROWS)
        with self._readable():
            return sum(batch.column(0).null_count for batch in scanner.to_batches())

    def is_as_planned(self, planned: SourceRef) -> bool:
        """Whether the version a plan pinned is still there, and still the same files."""
        return self._planned(planned) is not None

    def _planned(self, planned: SourceRef) -> lance.LanceDataset | None:
        """The version that a plan names; None where it is gone, or made of other files."""
        if planned.uri != self.uri:
            return None
        try:
            dataset = open_dataset(self.uri, planned.version, dict(self.options))
        except FileNotFoundError:
            return None
        return dataset if planned.fingerprint == source_delta.fingerprint(dataset) else None

    def units(self, size: int, actors: int = 1) -> list[EmbedRange]:
        """The documents cut into units of at most `size`, with ids every attempt agrees on.

        Largest first. Where several actors share many units, the last ones are quarters: the one
        that begins the last unit keeps the others waiting for a quarter of a unit's time at most.
        """
        units = [
            unit
            for fragment in self.dataset().get_fragments()
            for unit in _cut(fragment.fragment_id, 0, fragment.count_rows(self.filter), size)
        ]
        units.sort(key=lambda unit: -unit.rows)
        if actors == 1 or len(units) < _MANY_UNITS * actors:
            return units
        whole, last = units[:-actors], units[-actors:]
        quarter = max(1, size // 4)
        return [*whole, *(p for u in last for p in _cut(u.fragment, u.offset, u.rows, quarter))]

    def read(self, unit: EmbedUnit) -> pa.Table:
        """doc_id, TEXT (binary: UTF-8 as stored) and carried columns of one unit, in row order.

        Raises:
            SourceError: the fragment no longer holds the unit's rows, or holds text that is not UTF-8.
        """
        with self._readable():
            return self._read(unit)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Name what cannot be read: Lance reads no text that is not UTF-8."""
        try:
            yield
        except (OSError, pa.ArrowInvalid) as error:  # the first of its `take`
            if "UTF" not in str(error).upper():
                raise
            raise SourceError(
                f"{', '.join(self._columns())} of {self.uri} version {self.version} cannot be read",
                str(error).split(", /home/")[0].splitlines()[0],
                "reembed import --help     # write the dataset again; import names the rows that are not UTF-8",
            ) from error

    def _read(self, unit: EmbedUnit) -> pa.Table:
        if isinstance(unit, EmbedRows):
            return self.take(unit.row_ids)
        dataset = self.dataset()
        fragment = dataset.get_fragment(unit.fragment)
        if fragment is None:
            raise SourceError(
                f"{self.uri} version {self.version} has lost fragment {unit.fragment}"
            )
        table = dataset.scanner(
            columns=self._columns(),
            filter=self.filter,
            fragments=[fragment],
            offset=unit.offset,
            limit=unit.rows,
            scan_in_order=True,
        ).to_table()
        if table.num_rows != unit.rows:
            raise SourceError(
                f"unit {unit.id} has {table.num_rows} rows where the plan counted {unit.rows}",
                "the pinned source version gave another answer than before",
            )
        return self._documents(table)

    def scan(self) -> Iterator[pa.Table]:
        """All documents as `read` gives them, in bounded batches.

        Raises:
            SourceError: a row holds text that is not UTF-8.
        """
        for batch in self._batches(self.dataset()):
            yield self._documents(batch)

    def _batches(self, dataset: lance.LanceDataset, **how: Any) -> Iterator[pa.Table]:
        scanner = dataset.scanner(
            columns=self._columns(), filter=self.filter, batch_size=_SCAN_ROWS, **how
        )
        with self._readable():
            for batch in scanner.to_batches():
                yield pa.Table.from_batches([batch])

    def take(self, row_ids: Sequence[int]) -> pa.Table:
        """Rows by id, as `read` gives them, in the order asked.

        Raises:
            SourceError: an id names no row (Lance itself would leave it out silently), or a row holds
                text that is not UTF-8.
        """
        with self._readable():
            table = self.dataset()._take_rows(list(row_ids), columns=self._columns())
        if table.num_rows != len(row_ids):
            raise SourceError(
                f"{self.uri} version {self.version} has {table.num_rows} of {len(row_ids)} rows by id"
            )
        return self._documents(table)

    def rows(self, delta: Delta | None = None) -> Iterator[pa.Table]:
        """`_rowid` beside what `scan` gives; only rows that a delta says were written."""
        dataset = self.dataset()
        fragments = fragments_of(dataset, delta.written) if delta else None
        for batch in self._batches(dataset, fragments=fragments, with_row_id=True):
            yield self._documents(batch).append_column("_rowid", batch["_rowid"])

    def why_no_delta(self, since: Source) -> str | None:
        """Why an earlier version cannot be told from this one by its files; None if it can."""
        return None if self.is_as_planned(since) else _gone(since)

    def delta(self, since: Source) -> Delta:
        """Where rows may differ from an earlier version of this dataset.

        With a filter every column counts, as it may name any.
        """
        return self._delta(since.dataset(), self.dataset())

    def _delta(self, older: lance.LanceDataset, newer: lance.LanceDataset) -> Delta:
        return source_delta.delta(older, newer, None if self.filter else self._columns())

    def ids_left(self, delta: Delta) -> pa.ChunkedArray:
        """Ids of rows of this version that a delta to a later one says are gone or changed."""
        return self._ids_left(self.dataset(), delta)

    def _ids_left(self, dataset: lance.LanceDataset, delta: Delta) -> pa.ChunkedArray:
        gone = [self._ids(dataset, delta.left)]
        for fragment, addresses in delta.thinned.items():
            rows = self._ids(dataset, [fragment])
            gone.append(rows.filter(pa.array(np.isin(rows["_rowaddr"].to_numpy(), addresses))))
        return pa.concat_tables(gone)["doc_id"]

    def _documents_changed(
        self, since: Source, older: lance.LanceDataset, newer: lance.LanceDataset
    ) -> int | None:
        """At most how many were written or deleted after an earlier version; None where finding out
        means reading many rows.
        """
        delta = self._delta(older, newer)
        new = fragments_of(newer, delta.written)
        old = fragments_of(older, (*delta.left, *delta.thinned))
        if sum(f.count_rows() for f in (*new, *old)) > _COUNTED_ROWS:
            return None
        written = self._ids(newer, delta.written)["doc_id"].to_pylist()
        return len({*written, *since._ids_left(older, delta).to_pylist()})

    def _ids(self, dataset: lance.LanceDataset, fragments: Sequence[int]) -> pa.Table:
        """doc_id and `_rowaddr` of the documents in these fragments."""
        scanner = dataset.scanner(
            columns=[self.id_column],
            filter=self.filter,
            fragments=fragments_of(dataset, fragments),
            with_row_address=True,
        )
        table = scanner.to_table() if fragments else scanner.projected_schema.empty_table()
        return pa.table({"doc_id": self._doc_ids(table), "_rowaddr": table["_rowaddr"]})

    def _doc_ids(self, table: pa.Table) -> pa.ChunkedArray:
        return table[self.id_column].cast(plain(table[self.id_column].type))

    def _columns(self) -> list[str]:
        return list(dict.fromkeys([self.id_column, *self.text_columns, *self.carry]))

    def _documents(self, table: pa.Table) -> pa.Table:
        columns = {
            "doc_id": self._doc_ids(table),
            TEXT: self._text(table),
        }
        return pa.table(columns | {c: table[c] for c in self.carry})

    def _text(self, table: pa.Table) -> pa.ChunkedArray | pa.Array:
        if not template_columns(self.text):
            return table[self.text].cast(pa.large_string()).cast(pa.large_binary())
        columns = {
            c: table[c].cast(pa.large_string()).cast(pa.large_binary()).to_pylist()
            for c in self.text_columns
        }
        parts = [(lit.encode(), name) for lit, name, _, _ in string.Formatter().parse(self.text)]
        texts = (
            b"".join(lit + ((columns[name][row] or b"") if name else b"") for lit, name in parts)
            for row in range(table.num_rows)
        )
        return pa.array(texts, pa.large_binary())

    def _check_columns(self, dataset: lance.LanceDataset) -> None:
        schema, where = dataset.schema, f"{self.uri} version {self.version}"
        for column in self._columns():
            if column not in schema.names:
                raise SourceError(
                    f"{where} has no column {column!r}",
                    f"it has: {', '.join(schema.names)}",
                    self._fix_of_column(column, schema),
                )
        if quoted := [c for c in (self.id_column, *self.text_columns) if "`" in c]:
            raise SourceError(
                f"{self.uri}: the column {quoted[0]!r} has a backtick in its name",
                "Lance reads no such column",
                "give the column another name, or name another one",
            )
        for column in self.text_columns:
            require(schema, where, column, TEXTS, taken=(self.id_column,))
        require(schema, where, self.id_column, IDS, taken=self.text_columns)
        for column in self.carry:
            self._check_carried(dataset, column)

    def _check_carried(self, dataset: lance.LanceDataset, column: str) -> None:
        """A scan must return what the schema says: of a blob it returns only where it is."""
        stored = dataset.schema.field(column).type
        try:
            read = dataset.scanner(columns=[column]).projected_schema.field(column).type
            pa.schema([(column, read)]).empty_table()  # pyarrow cannot make some tensors
        except (ValueError, OSError, NotImplementedError) as error:
            why = str(error).split(", /home/")[0].splitlines()[0]
        else:
            why = "" if read == stored else f"reading it gives {read}"
        if why:
            raise SourceError(
                f"column {column!r} cannot be carried",
                f"it is {stored}: {why}",
                f"reembed run --set table.carry={shlex.quote(self._carry_without(column))}",
            )

    def _carry_without(self, column: str) -> str:
        return f"[{', '.join(json.dumps(c) for c in self.carry if c != column)}]"

    def _fix_of_column(self, column: str, schema: pa.Schema) -> str:
        if column not in (self.id_column, *self.text_columns):
            return f"reembed run --set table.carry={shlex.quote(self._carry_without(column))}"
        if column == self.id_column:
            role, usable = IDS, IDS.usable(schema, self.text_columns)
        else:
            role, usable = TEXTS, TEXTS.usable(schema, [self.id_column])
        return f"reembed run {set_to(role.setting, nearest(column, usable or schema.names))}"


def _gone(source: Source) -> str:
    return f"version {source.version} of the source is gone, or another dataset took its place"


def _cut(fragment: int, first: int, rows: int, size: int) -> Iterator[EmbedRange]:
    for offset in range(first, first + rows, size):
        left = first + rows - offset
        yield EmbedRange(f"{fragment:06d}-{offset:09d}", fragment, offset, min(size, left))


def _open(
    uri: str, version: int | None, options: tuple[tuple[str, str], ...]
) -> lance.LanceDataset:
    try:
        return open_dataset(uri, version, dict(options))
    except OSError as error:
        if tables := _tables_in(uri, options):
            raise SourceError(
                f"{uri} is a folder of {len(tables)} tables, as LanceDB keeps them",
                f"source.uri must name one: {', '.join(tables)}",
                f"reembed run --set {shlex.quote(f'source.uri={tables[0]}')}",
            ) from error
        at = f" version {version}" if version else ""
        refused = any(w in str(error).lower() for w in ("privileges", "denied", "credential"))
        keys = "reembed config     # source.uri, storage.options, and the keys in the environment"
        raise SourceError(
            f"cannot open the dataset {uri}{at}",
            str(error),
            keys if refused else _newest_instead(uri, version, options) or _how_to_make(uri),
        ) from error


def _newest_instead(
    uri: str, version: int | None, options: tuple[tuple[str, str], ...]
) -> str | None:
    """The run of the newest version, where only the one asked for is not there."""
    if version is None:
        return None
    try:
        newest = open_dataset(uri, None, dict(options)).version
    except OSError:
        return None
    return f"reembed run --set source.version={newest}     # the newest version there is"


def _tables_in(uri: str, options: tuple[tuple[str, str], ...]) -> list[str]:
    """Datasets in a folder or below a prefix, as LanceDB keeps its tables; none where it cannot be listed."""
    if not is_remote(uri) and not Path(uri).is_dir():
        return []
    try:
        folders = Storage(uri.rstrip("/"), options).folders("")
    except (OSError, BaseError, ReembedError):
        return []
    return [f"{uri.rstrip('/')}/{name}" for name in folders if name.endswith(".lance")]


def _how_to_make(uri: str) -> str:
    """The import that would make this dataset; of the file itself, where the URI names one."""
    stem, _, ending = uri.rpartition(".")
    if stem and ending.lower() in ("jsonl", "json", "csv", "parquet"):
        return f"reembed import {shlex.quote(uri)} --to {shlex.quote(stem + '.lance')}"
    return f"reembed import documents.jsonl --to {shlex.quote(uri)}"

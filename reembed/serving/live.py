"""`OpenRelease`: a release's table version, index and query model, opened and checked as one; its hits."""

from __future__ import annotations

import functools
import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, repeat
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from reembed import digests, encoders
from reembed.catalog.index_manifest import AnyManifest, LanceManifest, read_manifest
from reembed.catalog.releases import Release
from reembed.config.settings import RESERVED_COLUMNS
from reembed.encoders import bridge, golden
from reembed.encoders.base import Encoder
from reembed.errors import IntegrityError, SpaceMismatch, UsageError, texts_of
from reembed.index import files as index_store
from reembed.index.queries import checked_queries, require_k
from reembed.index.segments import SegmentedIndex
from reembed.index.types import Answer, Float32, Int64
from reembed.index.wider import is_full
from reembed.serving.answers import OpenIndex, Rows
from reembed.serving.filters import Filters
from reembed.serving.lance_index import LanceIndex
from reembed.store.storage import Storage
from reembed.table import provenance
from reembed.table.documents import best_of_each
from reembed.table.lancedb_table import open_lancedb
from reembed.table.read import TableVersion

if TYPE_CHECKING:
    from lancedb.table import Table


class Hit(NamedTuple):
    """One result: document id, inner product with the query, carried columns asked for, release that answered.

    While a lazy migration serves, the score is what its fusion says; by default that of the place in the old
    release's list. The release is the live one of the alias, whose list it is and whose columns are returned.

    A tuple, because a batch makes thousands of them and a frozen dataclass takes five times as long.
    """

    doc_id: str | int
    score: float
    columns: Mapping[str, Any]
    release: str
    """Its id."""


@dataclass(frozen=True)
class EncodedQueries:
    """Query vectors with the space that they are of, which a search compares with its release."""

    vectors: Float32
    """[Q, dim]."""
    space: str
    """Id of the model that made them, as a release's `query_model.id`: of its space, and of a bridge if it has one."""
    newer: EncodedQueries | None = None
    """The same queries by the new model, where a lazy migration served when they were encoded."""

    def of(self, space: str) -> Float32 | None:
        """Return the vectors of a space; None if they are of others."""
        if self.space == space:
            return self.vectors
        return None if self.newer is None else self.newer.of(space)


_NO_COLUMNS: Mapping[str, Any] = MappingProxyType({})
_HIT = partial(tuple.__new__, Hit)
"""Makes a Hit of an iterable of its fields, without running Python code for each."""


@dataclass(frozen=True)
class OpenRelease:
    """A release ready to answer; opening it checked that its parts are of one space."""

    release: Release
    table: TableVersion
    index: OpenIndex
    encoder: Encoder

    @classmethod
    def open(
        cls, storage: Storage, release: Release, before: OpenRelease | None = None
    ) -> OpenRelease:
        """Open the index and the query encoder of a release.

        Parts of the index that `before` has are shared, and its encoder if it is of the same model.

        Raises:
            IntegrityError: the index or the table is not the one that the release was registered with.
            SpaceMismatch: the model found now is not the one that made the vectors, or embeds the
                golden texts differently.
        """
        # Everything is opened before it is checked: what answers later is what was checked.
        table = TableVersion(storage, release.table, release.table_version, release.space.dim)
        table.dataset()
        given = before.encoder if before and _same_queries(before.release, release) else None
        encoder = given or bridge.load(storage, release.query_model)
        manifest = read_manifest(storage, release.index, release.index_sha256)
        provenance.require_index(release, manifest)
        held = before.index if before else None
        index = _open_index(storage, release, manifest, table, held)
        provenance.require_manifest(storage, release)
        if (
            encoder is not given
        ):  # of the one in memory, the golden vectors say more than its files do
            _require_space(storage, release, encoder)
        sha256, apart = release.query_model.golden_sha256, release.queries is not None
        golden.require(storage, release.origin, encoder, sha256, queries=apart)
        return cls(release, table, index, encoder)

    def encode_queries(self, texts: Any) -> npt.NDArray[np.float32]:
        """Return float32 [Q, dim] in this release's space; `texts` is any ordered iterable of texts.

        Raises:
            UsageError: it is not one, or the model knows no word of a text.
        """
        named = "a list of texts or an array of vectors"
        found = texts_of("queries", texts, 'search(["how do vaccines work"])', named)
        if not found:
            return np.empty((0, self.release.space.dim), np.float32)
        vectors = self.encoder.embed_queries(found)
        if not math.isfinite(np.vdot(vectors, vectors)):
            self._require_vectors(found, vectors)
        return vectors

    def encoded(self, texts: Any) -> EncodedQueries:
        """Return the vectors of query texts with their space, and raise errors, as `encode_queries`."""
        return EncodedQueries(self.encode_queries(texts), self.release.query_model.id)

    def _require_vectors(self, texts: list[str], vectors: Float32) -> None:
        without = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(without):
            first = int(without[0])
            raise UsageError(
                f"query {first + 1} of {len(texts)} has no vector: {texts[first]!r:.80}",
                f"{self.release.query_model.label} knows no word in it",
                "reembed search 'some words'     # leave queries without words out",
            )

    def search(
        self,
        queries: Sequence[str] | Float32 | EncodedQueries,
        k: int = 10,
        columns: Sequence[str] = (),
        filter: str | None = None,
    ) -> list[list[Hit]]:
        """Return the k best documents of each query, best first, and raise errors, as `Index.search`.

        The table is read only for columns, and for a filter that was not asked for before.
        """
        require_k(k)
        columns = self.carried(columns)
        return self.hits(self.nearest(queries, k, filter), columns)

    def carried(self, columns: Sequence[str]) -> Sequence[str]:
        """Return columns to ask for; UsageError where the release does not carry one."""
        if isinstance(columns, tuple) and not columns:
            return columns
        return require_carried(self.release, columns)

    def nearest(
        self, queries: Sequence[str] | Float32 | EncodedQueries, k: int, filter: str | None
    ) -> Answer:
        """Return each query's k best documents by their best row, -1 where they ran out; errors as `Index.search`."""
        among = self.index if filter is None else self.filters.among(filter)
        vectors = self.vectors(queries)
        if among is None:
            return _no_answer(len(checked_queries(vectors, self.index.dim, k)))
        return self._nearest(among, vectors, k)

    def hits(self, answer: Answer, columns: Sequence[str]) -> list[list[Hit]]:
        """Return the hits of each query; `columns` are those of `carried`."""
        positions, scores = answer.positions.ravel(), answer.scores.ravel()
        whole = is_full(positions)
        if not whole:
            there = positions >= 0
            positions, scores = positions[there], scores[there]
        names, values = answer.doc_ids(positions), self._columns(answer, positions, columns)
        hits = map(_HIT, zip(names, scores.tolist(), values, repeat(self.release.id)))
        if whole:  # the usual case, and three times as fast
            found, k = list(hits), max(1, answer.positions.shape[1])
            if len(found) == k:
                return [found]
            return [found[start : start + k] for start in range(0, len(found), k)]
        return [list(islice(hits, n)) for n in (answer.positions >= 0).sum(axis=1).tolist()]

    def lancedb(self) -> Table:
        """Return the release's table as LanceDB's, and raise errors, as `Index.lancedb`."""
        storage = self.table.storage
        opened = open_lancedb(self.table)
        # Afterwards, so that what is handed out was checked.
        provenance.require_manifest(storage, self.release)
        return opened

    @functools.cached_property
    def filters(self) -> Filters:
        """The filters that were asked for, resolved."""
        return Filters(self.release, self.table, self.index)

    def vectors(self, queries: Sequence[str] | Float32 | EncodedQueries) -> Any:
        """Return the vectors of queries, as they were given or encoded now; errors as `Index.search`."""
        if isinstance(queries, np.ndarray) and queries.dtype.kind in "fiu":
            return queries
        if not isinstance(queries, EncodedQueries):
            return self.encode_queries(queries)
        asks = self.release.query_model
        vectors = queries.of(asks.id)
        if vectors is None:
            needed = f"release {self.release.id} is of space {asks.id}"
            why = "another model is live than the one that made them"
            if self.release.queries is not None:
                needed = f"queries of release {self.release.id} are by {asks.label}, {asks.id}"
                why = "its query_model.id is compared, not its space.id, which is that of its documents"
            raise SpaceMismatch(
                f"the query vectors are of space {queries.space}, {needed}",
                why,
                "index.search(index.encode_queries(texts))     # with the same texts",
            )
        return vectors

    def _nearest(self, among: Rows, vectors: Any, k: int) -> Answer:
        """Return each query's k best documents of some rows, by their best row; -1 else."""
        # FAISS makes room for k results, however few vectors there are.
        most = max(1, among.rows)
        ask = min(k, most)
        while True:
            found = among.answer(vectors, ask)
            if self.release.rows == self.release.documents:
                return found
            positions = found.positions
            there = positions >= 0
            names = found.doc_ids(positions[there])
            best = best_of_each(names, np.nonzero(there)[0], k)
            positions[there] = np.where(best, positions[there], -1)
            done = ~there[:, -1] | ((positions >= 0).sum(axis=1) == k)
            if ask == most or done.all():
                return found
            ask = min(2 * ask, most)

    def _columns(
        self, answer: Answer, positions: Int64, columns: Sequence[str]
    ) -> Iterable[Mapping[str, Any]]:
        """Yield the values of these columns at each of positions [R] of an answer."""
        if not columns:
            return repeat(_NO_COLUMNS, len(positions))
        known, place = np.unique(answer.row_ids(positions), return_inverse=True)
        try:
            rows = self.table.take(known, list(dict.fromkeys(columns)))
        except (OSError, ValueError) as error:
            raise IntegrityError(
                f"the table of release {self.release.id} cannot be read any more",
                str(error).splitlines()[0],
                "reembed status     # if gc removed it, open the live release",
            ) from error
        values = {name: [_value(v) for v in rows[name]] for name in rows.column_names}
        return ({c: values[c][at] for c in columns} for at in place.tolist())


def _no_answer(queries: int) -> Answer:
    nowhere = np.full((queries, 1), -1, np.int64)
    return Answer(nowhere, np.full((queries, 1), -np.inf, np.float32), lambda _: [], lambda at: at)


def _same_queries(before: Release, release: Release) -> bool:
    """Return whether both releases' queries are embedded by the same model, over the same bridge."""
    one, other = before.query_model, release.query_model
    return (one.space, one.bridge) == (other.space, other.bridge)


def _require_space(storage: Storage, release: Release, encoder: Encoder) -> None:
    """Refuse a model whose files or settings are not those of the release, and say how its vectors differ."""
    asks, apart = release.query_model, release.queries is not None
    here = encoders.describe(asks.encoder, asks.space.vector_dtype)
    try:
        asks.space.require(here, f"the query model of release {release.id}")
    except SpaceMismatch as error:
        why = f"{error.why}; {golden.measured(storage, release.origin, encoder, queries=apart)}"
        raise SpaceMismatch(error.what, why, error.fix) from error


def _open_index(
    storage: Storage,
    release: Release,
    manifest: AnyManifest,
    table: TableVersion,
    held: OpenIndex | None,
) -> OpenIndex:
    """Open an index of either kind; of FAISS's, parts that `held` has are shared."""
    if isinstance(manifest, LanceManifest):
        return LanceIndex.open(table, release.index, manifest)
    same = held if isinstance(held, SegmentedIndex) else None
    return index_store.load(storage, release.index, manifest, same)


@dataclass(frozen=True)
class SearchResult:
    """The hits of each query, all of one release, or of both sides of a lazy migration."""

    release: Release
    queries: tuple[str, ...]
    hits: tuple[tuple[Hit, ...], ...]
    """Hits of each query, best first."""
    side: str | None = None
    """Alias of the new side of the lazy migration that serves; None if none does."""
    alone: str | None = None
    """Why the release answered without that side; None if it did not."""

    def to_json(self) -> dict[str, Any]:
        """Return what `reembed search --json` prints: null for numbers that JSON does not have."""
        pairs = zip(self.queries, self.hits, strict=True)
        return {
            "release": self.release.id,
            "model": self.release.model,
            "space": self.release.query_model.id,
            "side": self.side,
            "alone": self.alone,
            "results": [{"query": q, "hits": [shown(h) for h in hits]} for q, hits in pairs],
        }


def _value(scalar: pa.Scalar) -> Any:
    """Return a Python object; times outside `datetime`'s range as text, or as integers in a list."""
    try:
        return scalar.as_py()
    except (OverflowError, ValueError):
        pass
    try:
        return scalar.cast(pa.string()).as_py()
    except pa.ArrowException:
        return scalar.cast(digests.without_times(scalar.type)).as_py()


def shown(hit: Hit) -> dict[str, Any]:
    """Return a hit for JSON: null for numbers that it does not have."""
    return {"doc_id": hit.doc_id, "score": round(hit.score, 6), "columns": _finite(hit.columns)}


def _finite(value: Any) -> Any:
    """Return the value with None for each number that JSON does not have, at every depth."""
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def require_carried(release: Release, columns: Any) -> list[str]:
    """Return columns as a list of names that the release carries.

    Raises:
        UsageError: it is not a list of names, or it names others.
    """
    carried = release.source.carry
    names = texts_of("columns", columns, f"columns={list(carried)!r}", "a list of names")
    unknown = [c for c in names if c not in carried]
    if own := [c for c in unknown if c in RESERVED_COLUMNS]:
        raise UsageError(
            f"{', '.join(own)} is not a carried column",
            "each hit has its doc_id; other columns of reembed itself are not returned",
            f"columns={list(carried)!r}",
        )
    if unknown:
        wanted = shlex.quote(f"table.carry={json.dumps(list(dict.fromkeys([*carried, *unknown])))}")
        raise UsageError(
            f"{', '.join(unknown)} is not carried in release {release.id}",
            f"carried: {', '.join(carried) or 'nothing'}",
            f"reembed run --set {wanted}",
        )
    return names

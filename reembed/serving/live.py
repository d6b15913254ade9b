"""`OpenRelease`: a release's table version, index and query model, opened and checked as one."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from reembed import digests, encoders
from reembed.catalog.releases import Release
from reembed.config.settings import RESERVED_COLUMNS
from reembed.encoders import golden
from reembed.encoders.base import Encoder
from reembed.errors import IntegrityError, UsageError
from reembed.index import files as index_store
from reembed.index.search import SearchIndex, require_k
from reembed.store.storage import Storage
from reembed.table import provenance
from reembed.table.read import TableVersion


@dataclass(frozen=True)
class Hit:
    """One result: its id, its inner product with the query, and the carried columns asked for."""

    doc_id: str | int
    score: float
    columns: dict[str, Any]


@dataclass(frozen=True)
class OpenRelease:
    """A release ready to answer. Its parts are of one space, checked on opening."""

    release: Release
    table: TableVersion
    index: SearchIndex
    encoder: Encoder

    @classmethod
    def open(cls, storage: Storage, release: Release) -> OpenRelease:
        """Load the index and the query encoder of a release.

        Raises:
            IntegrityError: the index is not the one the release was registered with, or of another table.
            SpaceMismatch: the model found now is not the one the vectors were made with, or makes
                other vectors of the golden texts.
        """
        # Everything is opened first: what is checked is what answers, whatever is put in its place later.
        table = TableVersion(storage, release.table, release.table_version, release.space.dim)
        table.dataset()
        section = release.encoder
        encoder = encoders.load_encoder(section)
        manifest = index_store.read_manifest(storage.store, release.index, release.index_sha256)
        index = index_store.load(storage.store, release.index, manifest)
        provenance.require_index(release, manifest)
        provenance.require_manifest(storage, release)
        release.space.require(
            encoders.describe(section, release.space.vector_dtype),
            f"the query model of release {release.id}",
        )
        golden.require(storage, release.origin, encoder)
        return cls(release, table, index, encoder)

    def encode_queries(self, texts: Any) -> npt.NDArray[np.float32]:
        """float32 [Q, dim] in this release's space; `texts` is anything that yields texts in an order.

        Raises:
            UsageError: it is not a list of texts.
        """
        if isinstance(texts, Iterable) and not isinstance(texts, str | bytes | dict | set):
            texts = list(texts)
        if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
            raise UsageError(
                f"queries must be a list of texts, not {texts!r:.80}",
                "a text by itself would be searched letter by letter",
                'search(["how do vaccines work"])',
            )
        if not texts:
            return np.empty((0, self.release.space.dim), np.float32)
        return self.encoder.embed_queries(texts)

    def doc_ids(self, row_ids: npt.NDArray[np.int64]) -> list[list[str | int]]:
        """Document ids of row ids [Q, K], without the places that hold no result (-1)."""
        known = np.unique(row_ids[row_ids >= 0])
        names = dict(
            zip(
                known.tolist(),
                self._take(known, ["doc_id"])["doc_id"].to_pylist(),
                strict=True,
            )
        )
        return [[names[r] for r in row if r >= 0] for row in row_ids.tolist()]

    def search(
        self, texts: Sequence[str], k: int = 10, columns: Sequence[str] = ()
    ) -> list[list[Hit]]:
        """The k best documents of each query, best first; fewer where the release holds fewer.

        Raises:
            UsageError: k, the texts or the columns are not as they must be.
            IntegrityError: the table was removed after the release was opened: refresh, or open again.
        """
        columns = _names(columns)
        require_carried(self.release, columns)
        require_k(k)
        # FAISS makes room for k results, however few vectors there are.
        most = min(k, max(1, self.index.rows))
        row_ids, scores = self.index.search(self.encode_queries(texts), most)
        known = np.unique(row_ids[row_ids >= 0])
        rows = self._take(known, list(dict.fromkeys(["doc_id", *columns])))
        values = {name: [_value(v) for v in rows[name]] for name in rows.column_names}
        places = {row_id: at for at, row_id in enumerate(known.tolist())}
        return [
            [
                Hit(
                    values["doc_id"][places[r]],
                    float(s),
                    {c: values[c][places[r]] for c in columns},
                )
                for r, s in zip(ids, row, strict=True)
                if r >= 0
            ]
            for ids, row in zip(row_ids.tolist(), scores, strict=True)
        ]

    def _take(self, row_ids: npt.NDArray[np.int64], columns: list[str]) -> pa.Table:
        try:
            return self.table.take(row_ids, columns)
        except (OSError, ValueError) as error:
            raise IntegrityError(
                f"the table of release {self.release.id} cannot be read any more",
                str(error).splitlines()[0],
                "reembed status     # where gc removed it: open what is live now",
            ) from error


def _value(scalar: pa.Scalar) -> Any:
    """As a Python object; a time that `datetime` does not hold as text, or in a list as an integer."""
    try:
        return scalar.as_py()
    except (OverflowError, ValueError):
        pass
    try:
        return scalar.cast(pa.string()).as_py()
    except pa.ArrowException:
        return scalar.cast(digests.without_times(scalar.type)).as_py()


def _names(columns: Any) -> Sequence[str]:
    """Columns as a list of names; a str is left to `require_carried`.

    Raises:
        UsageError: it is not a list of names.
    """
    named = columns
    if isinstance(columns, Iterable) and not isinstance(columns, str | bytes | dict):
        named = list(columns)
    if isinstance(named, str):
        return named
    if not isinstance(named, list) or not all(isinstance(c, str) for c in named):
        raise UsageError(
            f"columns must be a list of names, not {named!r:.80}", None, 'columns=["title"]'
        )
    if "doc_id" in named:
        raise UsageError("doc_id is not a carried column", "each hit has it", "hit.doc_id")
    return named


def require_carried(release: Release, columns: Sequence[str]) -> None:
    """Refuse columns that a release does not carry.

    Raises:
        UsageError: naming them, and those that are carried.
    """
    carried = release.source.carry
    named = [columns] if isinstance(columns, str) else list(columns)
    if unknown := [str(c) for c in named if c not in carried]:
        if own := [c for c in unknown if c in RESERVED_COLUMNS]:
            raise UsageError(
                f"{', '.join(own)} is not a carried column",
                "it is a column of reembed's own, which search does not show",
                f"columns={carried!r}",
            )
        wanted = shlex.quote(f"table.carry={json.dumps(list(dict.fromkeys([*carried, *unknown])))}")
        raise UsageError(
            f"{', '.join(unknown)} is not carried in release {release.id}",
            f"carried: {', '.join(carried) or 'nothing'}",
            f"reembed run --set {wanted}",
        )
    if isinstance(columns, str):
        raise UsageError(
            f"columns must be a list of names, not {columns!r}", None, f"columns=[{columns!r}]"
        )

"""What a serving process uses: an alias opened as one unit of table version, index and query model."""

from __future__ import annotations

import json
import shlex
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from reembed import encoders, golden, index_store, provenance
from reembed.catalog import Catalog, Release
from reembed.config import EncoderConfig
from reembed.encoders.base import Encoder
from reembed.errors import IntegrityError, UsageError
from reembed.index_search import SearchIndex, require_k
from reembed.storage import Storage
from reembed.table_version import TableVersion


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
        section = EncoderConfig(**release.encoder)
        encoder = encoders.load_encoder(section)
        manifest = index_store.read_manifest(storage.store, release.index, release.index_sha256)
        index = index_store.load(storage.store, release.index, manifest)
        provenance.require_index(release, manifest.to_json())
        provenance.require_manifest(storage, release)
        release.space.require(
            encoders.describe(section, release.space.vector_dtype),
            f"the query model of release {release.id}",
        )
        golden.require(storage, release.origin, encoder)
        return cls(release, table, index, encoder)

    def encode_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """float32 [Q, dim] in this release's space.

        Raises:
            UsageError: it is not a list of texts.
        """
        if isinstance(texts, str) or not all(isinstance(t, str) for t in texts):
            raise UsageError(
                f"queries must be a list of texts, not {texts!r:.80}",
                "a text by itself would be searched letter by letter",
                'search(["how do vaccines work"])',
            )
        if not texts:
            return np.empty((0, self.release.space.dim), np.float32)
        return self.encoder.embed(self.encoder.tokenize(texts, "query"))

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
        require_carried(self.release, columns)
        require_k(k)
        # FAISS makes room for k results, however few vectors there are.
        most = min(k, max(1, self.index.rows))
        row_ids, scores = self.index.search(self.encode_queries(texts), most)
        known = np.unique(row_ids[row_ids >= 0])
        rows = self._take(known, ["doc_id", *columns]).to_pylist()
        found = dict(zip(known.tolist(), rows, strict=True))
        return [
            [
                Hit(found[r]["doc_id"], float(s), {c: found[r][c] for c in columns})
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


def require_carried(release: Release, columns: Sequence[str]) -> None:
    """Refuse columns that a release does not carry.

    Raises:
        UsageError: naming them, and those that are carried.
    """
    carried = release.source["carry"]
    named = [columns] if isinstance(columns, str) else list(columns)
    if unknown := [str(c) for c in named if c not in carried]:
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


class LiveAlias:
    """The release an alias names, reopened by `refresh` when a promote or rollback moved it."""

    def __init__(self, catalog: Catalog) -> None:
        """Open what is live now.

        Raises:
            UsageError: nothing was promoted yet.
        """
        self._catalog = catalog
        self._loading = threading.Lock()
        record = catalog.require_live()
        self.token = record.token
        self.current = OpenRelease.open(catalog.storage, record.release)

    def refresh(self) -> bool:
        """Follow the alias; True when it moved. A reader sees the old release or the new one whole.

        One thread loads at a time: a call during a load returns False at once, and searches go on in
        the old release. Its memory is freed when the last search that began in it ends.
        """
        if not self._loading.acquire(blocking=False):
            return False
        try:
            record = self._catalog.require_live()
            if record.token == self.token:
                return False
            opened = OpenRelease.open(self._catalog.storage, record.release)
            self.token, self.current = record.token, opened
            return True
        finally:
            self._loading.release()

    def search(
        self, texts: Sequence[str], k: int = 10, columns: Sequence[str] = ()
    ) -> list[list[Hit]]:
        """Search what was live at the last refresh."""
        return self.current.search(texts, k, columns)

"""What a serving process uses: an alias opened as one unit of table version, index and query model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from reembed import encoders, index_store, provenance
from reembed.catalog import Catalog, Release
from reembed.config import EncoderConfig
from reembed.encoders.base import Encoder
from reembed.index_search import SearchIndex
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
            SpaceMismatch: the model found now is not the one the vectors were made with.
        """
        manifest = index_store.read_manifest(storage.store, release.index)
        provenance.require_index(release, manifest.to_json())
        provenance.require_manifest(storage, release)
        index = index_store.load(storage.store, release.index, manifest)
        section = EncoderConfig(**release.encoder)
        release.space.require(
            encoders.describe(section, release.space.vector_dtype),
            f"the query model of release {release.id}",
        )
        table = TableVersion(storage, release.table, release.table_version, release.space.dim)
        return cls(release, table, index, encoders.load_encoder(section))

    def encode_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """float32 [Q, dim] in this release's space."""
        return self.encoder.embed(self.encoder.tokenize(texts, "query"))

    def doc_ids(self, row_ids: npt.NDArray[np.int64]) -> list[list[str | int]]:
        """Document ids of row ids [Q, K], without the places that hold no result (-1)."""
        known = np.unique(row_ids[row_ids >= 0])
        names = dict(
            zip(
                known.tolist(),
                self.table.take(known, ["doc_id"])["doc_id"].to_pylist(),
                strict=True,
            )
        )
        return [[names[r] for r in row if r >= 0] for row in row_ids.tolist()]

    def search(
        self, texts: Sequence[str], k: int = 10, columns: Sequence[str] = ()
    ) -> list[list[Hit]]:
        """The k best documents of each query, best first."""
        row_ids, scores = self.index.search(self.encode_queries(texts), k)
        known = np.unique(row_ids[row_ids >= 0])
        rows = self.table.take(known, ["doc_id", *columns]).to_pylist()
        found = dict(zip(known.tolist(), rows, strict=True))
        return [
            [
                Hit(found[r]["doc_id"], float(s), {c: found[r][c] for c in columns})
                for r, s in zip(ids, row, strict=True)
                if r >= 0
            ]
            for ids, row in zip(row_ids.tolist(), scores, strict=True)
        ]


class LiveAlias:
    """The release an alias names, reopened by `refresh` when a promote or rollback moved it."""

    def __init__(self, catalog: Catalog) -> None:
        """Open what is live now.

        Raises:
            UsageError: nothing was promoted yet.
        """
        self._catalog = catalog
        record = catalog.require_live()
        self.token = record.token
        self.current = OpenRelease.open(catalog.storage, record.release)

    def refresh(self) -> bool:
        """Follow the alias; True when it moved. A reader sees the old release or the new one whole."""
        record = self._catalog.require_live()
        if record.token == self.token:
            return False
        opened = OpenRelease.open(self._catalog.storage, record.release)
        self.token, self.current = record.token, opened
        return True

    def search(
        self, texts: Sequence[str], k: int = 10, columns: Sequence[str] = ()
    ) -> list[list[Hit]]:
        """Search what was live at the last refresh."""
        return self.current.search(texts, k, columns)

"""A lazy migration whose records and sides are made by hand, one step at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
from inline import Inline, Silent
from releases import promoted

from reembed.catalog import lazies, lazy_background
from reembed.catalog.lazies import Fusion, LazyPlan, LazyStep, State
from reembed.catalog.lazy_queue import Queue
from reembed.catalog.releases import Catalog, Release
from reembed.config.settings import Config
from reembed.encoders import describe, load_encoder
from reembed.lifecycle.promote import promote
from reembed.store.storage import Storage
from reembed.strategies.catch_up import catch_up
from reembed.table.read import from_vectors

OLD, NEW = "hashing:64", "hashing:32"


class LazyState:
    """A corpus with a live release, and a new side that holds the documents that `migrate` was given."""

    def __init__(
        self,
        uri: str,
        make_config: Callable[..., Config],
        fusion: Fusion = "slots",
        carry: Iterable[str] = ("title",),
    ) -> None:
        self.uri, self._make = uri, make_config
        shared: dict[str, Any] = {"table": {"carry": list(carry)}, "index": {"device": "cpu"}}
        self.config = make_config(uri, encoder={"model": OLD}, **shared)
        self.old, self.catalog = promoted(self.config)
        self.storage: Storage = self.catalog.storage
        self.members = str(Path(uri).with_name("members.lance"))
        name = "passages-lazy-1"
        self.side_config = make_config(
            self.members, name="side.yaml", alias=name, encoder={"model": NEW}, **shared
        )
        self.side = Catalog(self.storage, name)
        self.new: Release | None = None
        self.plan = LazyPlan(
            number=1,
            alias=self.config.alias,
            live=self.old.origin,
            side=name,
            space=describe(self.side_config.encoder, "float32"),
            encoder=self.side_config.encoder,
            source=self.old.source,
            documents=self.old.documents,
            fusion=fusion,
            depth=100,
            predicted=(),
            background_sha256="0" * 64,
            reason=None,
            by="me@here",
            at="2026-11-27T20:00:00+00:00",
        )
        self.step: LazyStep | None = None

    @property
    def queue(self) -> Queue:
        return Queue(self.storage, self.plan)

    def start(self) -> None:
        """Begin it; nothing is migrated yet."""
        found = self._background()
        sha256 = lazy_background.write(self.storage, self.plan.background, found)
        self.plan = replace(self.plan, background_sha256=sha256)
        lazies.begin(self.catalog, self.plan)
        self.move("running")

    def move(self, state: State) -> None:
        self.step = lazies.move(self.catalog, self.plan, self.step, state)

    def _background(self) -> pa.Table:
        rows = list(self.rows().values())[::7]
        columns = {"doc_id": pa.array([r["doc_id"] for r in rows])}
        for name, encoder in (("old", self.config.encoder), ("new", self.side_config.encoder)):
            vectors = load_encoder(encoder).embed_documents([r["text"] for r in rows]).vectors
            columns[name] = from_vectors(vectors, pa.float32())
        return pa.table(columns)

    def rows(self) -> dict[str, dict[str, str]]:
        """The documents of the source, by id."""
        return {r["doc_id"]: r for r in lance.dataset(self.uri).to_table().to_pylist()}

    def migrate(self, doc_ids: Iterable[str]) -> Release:
        """Bring documents to the new side as the source has them now."""
        rows = self.rows()
        wanted = pa.Table.from_pylist([rows[d] for d in doc_ids])
        if self.new is None:
            lance.write_dataset(wanted, self.members, enable_stable_row_ids=True)
            self.new, _ = promoted(self.side_config)
            return self.new
        lance.write_dataset(wanted, self.members, mode="append")
        return self.follow_members()

    def follow_members(self) -> Release:
        """A batch: the new side takes over what its members are."""
        assert self.new is not None
        self.new = catch_up(self.side_config, self.new, Silent(), executor=Inline())
        promote(self.side, self.new.id, force_reason="a batch")
        return self.new

    def catch_up(self) -> Release:
        """The old side takes over what the source is."""
        self.old = catch_up(self.config, self.old, Silent(), executor=Inline())
        promote(self.catalog, self.old.id, force_reason="a test")
        return self.old

    def rewrite(self, doc_id: str, text: str, uri: str | None = None) -> None:
        """Change a document's text in the source, or in another dataset."""
        row = pa.Table.from_pylist([{**self.rows()[doc_id], "text": text}])
        lance.dataset(uri or self.uri).merge_insert("doc_id").when_matched_update_all().execute(row)

    def delete(self, doc_id: str, uri: str | None = None) -> None:
        """Remove a document from the source, or from another dataset."""
        lance.dataset(uri or self.uri).delete(f"doc_id = '{doc_id}'")

"""The new side of a lazy migration: an ordinary line over the documents that turned up, under an alias of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from reembed import faults
from reembed.catalog import lazy_background
from reembed.catalog.lazies import LazyPlan, side_alias
from reembed.catalog.lazy_background import DOCUMENTS
from reembed.catalog.releases import Catalog, Release, SourceRef
from reembed.config.settings import Config, EncoderConfig, SourceConfig
from reembed.engine.executor import Executor
from reembed.errors import ReembedError, SourceError, UsageError
from reembed.events import AliasMoved, Behind, Candidate, Event, Listener
from reembed.lifecycle.promote import promote
from reembed.source.lag import caught_up
from reembed.source.members import Members
from reembed.strategies.full_rebuild import full_rebuild
from reembed.strategies.up_to_date import catch_up_and_follow
from reembed.table.read import TableVersion

_OWN = re.compile(r"^reembed (?:run|catch-up \S+)")
_TEXT = ("doc_id", "text_hash")
_LEAST_BACKGROUND = 0.5
"""Share of the documents drawn whose texts must be those of the live release."""


@dataclass(frozen=True)
class Side:
    """The alias of the new side, and the documents that it holds."""

    catalog: Catalog
    """Of the side's alias."""
    config: Config
    """What its line is built with."""
    members: Members

    @classmethod
    def of(
        cls,
        catalog: Catalog,
        config: Config,
        number: int,
        source: SourceRef,
        encoder: EncoderConfig,
    ) -> Side:
        """Return the side of the lazy migration of this number; `catalog` and `config` are of the alias itself."""
        alias = side_alias(catalog.alias, number)
        members = Members(catalog.storage, f"lazy/{catalog.alias}/{number}/members.lance", source)
        own = config.model_copy(
            update={
                "alias": alias,
                "source": SourceConfig(
                    uri=members.uri, id_column=source.id_column, text=source.text
                ),
                "encoder": encoder,
                "table": config.table.model_copy(update={"carry": source.carry}),
                # It starts with few documents, on which no given number of lists could be trained.
                "index": config.index.model_copy(update={"factory": "auto"}),
                "strategy": "full_rebuild",
            }
        )
        return cls(Catalog(catalog.storage, alias, own.stores), own, members)

    def build(self, emit: Listener, *, executor: Executor) -> Release:
        """Bring the side to its documents, and serve them under its alias; the first time it is built."""
        emit = _of_the_side(emit)
        with _resumed_by(self.catalog.alias, "reembed lazy start"):
            if self.catalog.live() is None:
                release = full_rebuild(self.config, emit, executor=executor)
                reason = "the first documents of a lazy migration"
                promote(self.catalog, release.id, initial_reason=reason, emit=emit)
            return self._caught_up(emit, executor)

    def catch_up(self, emit: Listener, *, executor: Executor) -> Release:
        """Bring the side to its documents, and serve them under its alias.

        Raises SourceError if none is left.
        """
        if not self.members.dataset().count_rows():
            raise SourceError(
                f"none of the documents that were migrated is in {self.members.ref.uri} any more",
                "a new side without documents cannot be served; what waits in the queue is kept",
                "reembed lazy stop --drop --reason 'its documents were deleted'     # then: reembed lazy start",
            )
        with _resumed_by(self.catalog.alias, "reembed sweep"):
            return self._caught_up(_of_the_side(emit), executor)

    def _caught_up(self, emit: Listener, executor: Executor) -> Release:
        erase = self.config.storage.erase_deleted
        self.members.merge(erase=erase)
        self.members.repair()  # without the merged files, if they were cut short
        faults.point("lazy.after_merge")
        found = catch_up_and_follow(
            self.catalog, self.config, "live", emit, executor=executor, retry_dead_letters=False
        )
        self.members.forget(caught_up(self.catalog, found.release).version, erase=erase)
        return found.release

    def erase(self, plan: LazyPlan) -> None:
        """Remove documents from the background that left the side, or have another text there now."""
        storage, held = self.catalog.storage, lazy_background.read(self.catalog.storage, plan)
        _, at = self._with_same_text(held)
        same = np.array(at) >= 0
        if not same.all():
            lazy_background.replace(storage, plan, held.filter(pa.array(same)))
        lazy_background.remove_replaced(storage, plan)

    def _with_same_text(self, old: pa.Table, *columns: str) -> tuple[pa.Table, list[int]]:
        """Return rows of the side, and which of them has id and text of each of these documents; -1 if none has."""
        release = self.catalog.require_live().release
        wanted = {"doc_id": old["doc_id"].combine_chunks()}
        new = _table(self.catalog, release).matching(wanted, [*_TEXT, *columns])
        places = {pair: n for n, pair in enumerate(_pairs(new))}
        return new, [places.get(pair, -1) for pair in _pairs(old)]

    def background(self, live: Release) -> pa.Table:
        """Return the documents drawn from the live release whose texts the side has too, with both vectors.

        Raises:
            UsageError: most texts are others: the live release is behind its source.
        """
        old = drawn(self.catalog, live)
        new, at = self._with_same_text(old, "vector")
        same = np.array(at) >= 0
        if same.sum() < max(1, _LEAST_BACKGROUND * len(same)):
            raise UsageError(
                f"of {len(same)} documents drawn from {live.id}, {int(same.sum())} have their text in the source",
                "answers of both models can be fused only for documents with the same text",
                "reembed catch-up live     # then the same command again",
            )
        kept = old.filter(pa.array(same))
        vectors = new["vector"].take([n for n in at if n >= 0])
        return pa.table(
            {
                "doc_id": kept["doc_id"],
                "text_hash": kept["text_hash"],
                "old": _single(kept["vector"]),
                "new": _single(vectors),
            }
        )


def drawn(catalog: Catalog, live: Release) -> pa.Table:
    """Return doc_id, text_hash and vector of random rows of a release, the same ones each time."""
    table = _table(catalog, live)
    count = min(DOCUMENTS, table.rows)
    places = np.sort(np.random.default_rng(0).choice(table.rows, count, replace=False))
    return table.at(places, ["doc_id", "text_hash", "vector"])


def _table(catalog: Catalog, release: Release) -> TableVersion:
    dim = release.space.dim
    return TableVersion(catalog.storage, release.table, release.table_version, dim)


def _pairs(rows: pa.Table) -> Iterator[tuple[str | int, bytes]]:
    return zip(*(rows[name].to_pylist() for name in _TEXT), strict=True)


def _single(vectors: pa.ChunkedArray) -> pa.ChunkedArray:
    return vectors.cast(pa.list_(pa.float32(), vectors.type.list_size))


def _of_the_side(emit: Listener) -> Listener:
    """Leave out what would read as if the alias that users name had moved."""

    def told(event: Event) -> None:
        if not isinstance(event, AliasMoved | Behind | Candidate):
            emit(event)

    return told


@contextmanager
def _resumed_by(alias: str, command: str) -> Iterator[None]:
    """Name the command that continues, where an error names the side's own, which users never give."""
    try:
        yield
    except ReembedError as error:
        if error.fix:
            fix = _OWN.sub(command, error.fix)
            error.fix = f"{command}     # continues" if alias in fix else fix
        raise

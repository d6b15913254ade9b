"""One small migration, told twice: once through faults, then once more without; and what must hold.

    rebuild, promote, change the source, catch up and follow,
    rebuild with another model, promote, roll back

or without the second model, where requests are slow: then it rolls back to what the catch-up
replaced. Each command is given only while it is still to be done, as somebody would who looks at
the log first.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import lance
import pyarrow as pa
from inline import Inline, Silent

from reembed.catalog.releases import AliasRecord, Catalog, Release
from reembed.config.settings import Config
from reembed.digests import digest
from reembed.errors import ReembedError
from reembed.lifecycle import verification, verify
from reembed.lifecycle.candidates import newest_of
from reembed.lifecycle.promote import follow, promote, rollback
from reembed.serving.index import Index
from reembed.store.storage import Storage, storage_errors
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild

OLD, NEW = "hashing:16", "hashing:24"
_CHANGED = ("d003", "d017")
_REMOVED = ("d005", "d029")
_BORN = "born"


@dataclass(frozen=True)
class Place:
    """Where one migration keeps its documents and all else; picklable, and JSON by `vars`."""

    source: str
    root: str
    options: dict[str, str] = field(default_factory=dict)
    documents: int = 60
    unit: int = 20
    models: int = 2
    lazily: bool = False
    """Whether the documents are migrated as they turn up: crash/lazy_migration.py."""

    def config(self, model: str) -> Config:
        """Settings of a run with this model."""
        return Config.model_validate(
            {
                "alias": "passages",
                "source": {"uri": self.source},
                "encoder": {"model": model},
                "embed": {"unit_documents": self.unit},
                "storage": {"root": self.root, "options": self.options},
            }
        )

    def catalog(self) -> Catalog:
        """As every verb opens it."""
        return Catalog(Storage.open(self.root, self.options), "passages")

    def texts(self, version: int | None = None) -> dict[str, str]:
        """The documents of the source by id, at a version or now."""
        options = self.options or None
        table = lance.dataset(self.source, version=version, storage_options=options).to_table()
        return dict(zip(table["doc_id"].to_pylist(), table["text"].to_pylist(), strict=True))

    def rows(self, release: Release) -> pa.Table:
        """The table of a release."""
        uri, options = self.catalog().storage.uri(release.table), self.options or None
        return lance.dataset(uri, version=release.table_version, storage_options=options).to_table()

    def write_source(self) -> None:
        """The documents, in several fragments."""
        numbers = range(self.documents)
        texts = [f"text {i} of it, {i * i}" for i in numbers]
        table = pa.table({"doc_id": [f"d{i:03d}" for i in numbers], "text": texts})
        lance.write_dataset(
            table,
            self.source,
            enable_stable_row_ids=True,
            max_rows_per_file=2 * self.unit,
            storage_options=self.options or None,
        )

    def change_source(self) -> None:
        """Documents that are changed, new, and gone; once."""
        if _BORN in self.texts():
            return
        dataset = lance.dataset(self.source, storage_options=self.options or None)
        dataset.delete(f"doc_id in {_REMOVED}")
        rows = [{"doc_id": d, "text": f"{d} has another text"} for d in (*_CHANGED, _BORN)]
        merge = dataset.merge_insert("doc_id")
        merge.when_matched_update_all().when_not_matched_insert_all()
        merge.execute(pa.Table.from_pylist(rows))


Acknowledge = Callable[[str, dict[str, Any]], None]
"""Hears of each command that ended well, before the next begins."""


def migrate(
    place: Place,
    acknowledge: Acknowledge = lambda command, said: None,
    unharmed: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """Do what is still to be done. Others change the source, so that is `unharmed` by faults.

    Raises:
        ReembedError: as every verb does; anything else is a fault of the program.
    """

    def done(command: str, release: Release, record: AliasRecord | None = None) -> None:
        said = {"release": release.id, "rows": release.rows}
        moved = {"generation": record.generation, "token": record.token} if record else {}
        acknowledge(command, said | moved)

    old, new = place.config(OLD), place.config(NEW)
    with storage_errors():
        catalog = place.catalog()
        moves = [r.action for r in catalog.log()]
        if not moves:
            first = full_rebuild(old, Silent(), executor=Inline())
            done("run", first)
            done("promote", first, promote(catalog, first.id, initial_reason="the first"))
        with unharmed():
            place.change_source()
        if len(moves) < 2:
            live = catalog.require_live().release
            newest = catch_up(old, newest_of(catalog, live), Silent(), executor=Inline())
            done("catch-up", newest)
            done("follow", newest, follow(catalog, newest))
        if place.models == 2 and len(moves) < 3:
            second = full_rebuild(new, Silent(), executor=Inline())
            done("run", second)
            done("promote", second, promote(catalog, second.id, force_reason="another model"))
        if "rollback" not in moves:
            first = catalog.log()[0].release
            record = rollback(catalog, None if place.models == 2 else first.id)
            done("rollback", record.release, record)


def violations(place: Place, acknowledged: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """What does not hold after a migration that was finished without faults; in words."""
    if place.lazily:
        found: list[str] = lazy_migration().violations(place, acknowledged)
        return found
    catalog = place.catalog()
    log, releases = catalog.log(), catalog.releases()
    return [
        *_of_the_log(place, log),
        *(w for r in releases for w in of_a_release(place, catalog, r)),
        *_of_serving(place, catalog),
        *_of_promises(log, releases, acknowledged),
    ]


def _of_the_log(place: Place, log: list[AliasRecord]) -> Iterator[str]:
    """Each command once, each record after the one before."""
    again = ["promote"] * (place.models - 1)
    if [r.action for r in log] != ["promote", "catch-up", *again, "rollback"]:
        yield f"the log says {[r.action for r in log]}"
    if [r.previous_token for r in log] != [None, *(r.token for r in log[:-1])]:
        yield "a record of the log does not follow the one before it"


def of_a_release(place: Place, catalog: Catalog, release: Release) -> Iterator[str]:
    """Its rows are its source's, by ids and texts; it passes the strictest verification."""
    texts = place.texts(release.source.version)
    expected = sorted((d, digest(t.encode())) for d, t in texts.items())
    rows = place.rows(release)
    found = sorted(zip(rows["doc_id"].to_pylist(), rows["text_hash"].to_pylist(), strict=True))
    if found != expected:
        yield f"{release.id}: {len(found)} rows are not the {len(expected)} documents of its source"
    try:
        report = verification.verify_release(
            catalog, release.id, level=verify.FULL, sample=len(expected), resume=False, stall_s=60
        )
    except ReembedError as error:
        yield f"{release.id} does not verify: {error}"
        return
    if not report.passed or report.report.sampled != len(expected):
        yield f"{release.id} does not verify: {report.report.differences}"


def _of_serving(place: Place, catalog: Catalog) -> Iterator[str]:
    """What is live opens, has the rows it should, and finds documents by their own texts."""
    alias = Index(catalog)
    release = alias.current.release
    newest = lance.dataset(place.source, storage_options=place.options or None).version
    version = newest if place.models == 2 else catalog.log()[0].release.source.version
    if (release.space.model, release.source.version) != (OLD, version):
        yield f"{release.id} is live after the rollback"
    texts = place.texts(version)
    if alias.current.table.rows != len(texts):
        yield f"{alias.current.table.rows} rows are live, not {len(texts)}"
    for name in {_BORN, _CHANGED[0], "d010"} & texts.keys():
        (hits,) = alias.search([texts[name]], k=3)
        if name not in [h.doc_id for h in hits]:
            yield f"{name} is not found by its own text"


def _of_promises(
    log: list[AliasRecord],
    releases: list[Release],
    acknowledged: list[tuple[str, dict[str, Any]]],
) -> Iterator[str]:
    """What a command that ended well said is still so."""
    rows = {r.id: r.rows for r in releases}
    moves = {(r.generation, r.token, r.release.id) for r in log}
    for command, said in acknowledged:
        if rows.get(said["release"]) != said["rows"]:
            yield f"{command} made {said['release']} of {said['rows']} rows, which is not there"
        if "token" in said:
            move = (said["generation"], said["token"], said["release"])
            if move not in moves:
                yield f"{command} was acknowledged as step {said['generation']}, and is lost"


def lazy_migration() -> Any:
    """The module of that name, which imports this one."""
    return importlib.import_module("crash.lazy_migration")


def prepared(place: Place) -> None:
    """Make what is there before the faults begin."""
    place.write_source()
    if place.lazily:
        lazy_migration().start(place)


def told(place: Place, acknowledge: Acknowledge, unharmed: Any = nullcontext) -> str | None:
    """`migrate`; how it failed as a command may fail, in words, or None.

    Raises:
        Exception: it failed as no command may.
    """
    work = lazy_migration().migrate if place.lazily else migrate
    try:
        with storage_errors():
            work(place, acknowledge, unharmed)
    except ReembedError as error:
        return f"{type(error).__name__}: {error}"
    return None

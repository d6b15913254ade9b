"""Histories: operators, a writer of documents and a reader at once, with deaths; then what must hold.

The model is a dict: what the source held at each of its versions, and which promotions were
acknowledged. Everything is checked against it by code of its own, not by `verify`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import lance
import numpy as np
import pyarrow as pa
from inline import Inline, Silent
from lance.file import LanceFileWriter
from lance.fragment import DataFile

from reembed import api as check
from reembed import digests, encoders
from reembed.catalog.index_manifest import IndexManifest, read_manifest
from reembed.catalog.releases import AliasRecord, Catalog, Release
from reembed.catalog.runs import find_runs
from reembed.config.settings import Config
from reembed.encoders.hashing import HashingEncoder
from reembed.errors import ReembedError
from reembed.index import grow
from reembed.lifecycle import gc
from reembed.lifecycle.candidates import candidate, candidates, newest_of
from reembed.lifecycle.promote import follow, promote, rollback
from reembed.serving.index import Index
from reembed.store.storage import Storage
from reembed.strategies import catch_up_plan, indexing
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild
from sim.engine import Crash, World, attempt

MIXED = {"die": 0.014, "fail": 0.004, "lose": 0.008, "switch": 0.05, "presume": 0.3}
RIVALS = {**MIXED, "die": 0.006, "switch": 0.12, "presume": 1.0}
CONTEST = {**MIXED, "die": 0.004, "lose": 0.02, "switch": 0.3}
CALM = dict.fromkeys(MIXED, 0.0)
"""No fault, and no process that waits for another: one after the other, each to its end."""
OUTLIVED = {**CALM, "switch": 0.1}
LATE = {**CALM, "die": 0.001, "switch": 0.02, "presume": 0.3}
POINTS = ("run.before_register", "run.after_register", "promote.before_follow")
"""Where a catch-up is held up until it is late."""
UNENDED = {**CALM, "die": 0.001, "switch": 0.05, "presume": 1.0}
GROWING = {**MIXED, "die": 0.003}
KINDS = {
    "mixed": MIXED,
    "rivals": RIVALS,
    "contest": CONTEST,
    "columns": MIXED,
    "judged": MIXED,
    "outlived": OUTLIVED,
    "late": LATE,
    "registered": UNENDED,
    "growing": GROWING,
}
"""mixed: everything at once; rivals: drivers of one run, each believed dead, one of them for long;
contest: promotions;
columns: jobs that write whole columns of the source, while what is live catches up; judged: the gate
decides, while its queries change; outlived: a reader asks after gc and a rebuild took its release;
late: catch-ups of one release over several versions of the source end in any order; registered: a
process stops between registering a release and ending its run, and others start over and drop runs;
then one with all its units staged, and another one collects; growing: catch-ups of small changes, one
after the other, whose index gets deltas and tombstones, and whose deltas are merged."""
VERBS = {
    "run": 5,
    "promote": 4,
    "catch-up": 4,
    "rollback": 2,
    "gc": 2,
    "run --fresh": 1,
    "gc --drop-run": 1,
}
"""What an operator does, and how often."""
MODELS = ("hashing:16", "hashing:24")
THIRD = "hashing:20"
FACTORIES = ("Flat", "IDMap2,Flat", "SQ8")
"""No part of a run's identity: two drivers of one run may be set to two of them."""
SMALL = ("insert", "update", "update", "update", "delete", "again")
"""Changes of a few rows."""
YEARS = (pa.int64(), pa.int32(), pa.float64())
_RUN = "reembed.run"
"""What a commit says it is of."""
BROKEN = "nanword"
"""A text that the model makes NaN of."""
_WORDS = ("wing", "flutter", "heat", "shock", "wave", "boundary", "layer", "slip", "flow", "plate")


@dataclass
class Model:
    """What is known without asking the code."""

    versions: dict[int, dict[str, str | None]] = field(default_factory=dict)
    years: dict[int, tuple[pa.DataType, dict[str, Any]]] = field(default_factory=dict)
    """The carried column of each version: its type, and its values."""
    acknowledged: list[tuple[int, str]] = field(default_factory=list)
    judged: int = 20
    """Queries in the judged set: each change adds one, so that their number tells which set it was."""
    planned: dict[str, int] = field(default_factory=dict)
    """Their number when a line of releases was planned."""
    violations: list[str] = field(default_factory=list)


class History:
    """One seed's world, its processes and its checks."""

    kinds: ClassVar[dict[str, dict[str, float]]] = KINDS

    def __init__(
        self, seed: int, place: str = "history", rates: dict[str, float] | None = None
    ) -> None:
        """`rates`: of faults, in place of those of the history's kind."""
        self.kind, turn = sorted(self.kinds)[seed % len(self.kinds)], seed // len(self.kinds)
        self.world = World(seed, self.kinds[self.kind] if rates is None else rates, place)
        self.rng = self.world.rng
        grows = self.kind == "growing"
        # Fragments have four rows: so that half of the histories write deletion files.
        catch_up_plan._DELETED = 0.7 if grows else (0.1, 0.7)[turn % 2]
        # A table has so few rows that each change is above a tenth: so that half of their indexes grow.
        grow.FOLD_ABOVE, grow.DELTAS = (1.0 if grows else (0.1, 1.0)[turn // 2 % 2]), 2
        # An index grows only by the factory that it was built by.
        self.factories = FACTORIES[turn % 3 :][:1] if grows else FACTORIES
        self.shard_rows = (8, 16)[turn // 3 % 2] if grows else 8
        self.model = Model()
        self.source = str(self.world.folder / "source.lance")
        self.root = str(self.world.folder / "root")
        self._next = 0
        self._cache: dict[tuple[str, str], bytes] = {}
        self._write(
            lambda: lance.write_dataset(
                self._rows({self._new_id(): self._text() for _ in range(36 if grows else 18)}),
                self.source,
                enable_stable_row_ids=self.rng.random() < 0.7,
                max_rows_per_file=8,
            )
        )

    def config(self, model: str, factory: str | None = None) -> Config:
        return Config(
            alias="docs",
            source={"uri": self.source},
            encoder={"model": model},
            table={"carry": ["year"]},
            embed={"unit_documents": 4, "max_dead_letters": 20},
            index={
                "factory": factory or self.rng.choice(self.factories),
                "ann_recall": 0.01,  # one byte per dimension misses more of so few vectors
                "shard_rows": self.shard_rows,
            },
            gate=self._gate() if self.kind == "judged" else {},
            storage={"root": self.root, "keep": 2},
        )

    @property
    def catalog(self) -> Catalog:
        return Catalog(Storage.open(self.root), "docs")

    # --- what processes do ---

    def operator(self, verbs: int) -> Callable[[], None]:
        chosen = self.rng.choices(tuple(VERBS), tuple(VERBS.values()), k=verbs)

        def work() -> None:
            for verb in chosen:
                self.verb(verb)

        return work

    def verb(self, verb: str, model: str | None = None) -> Any:
        """One command, as the command line would run it; of any model, if none is given."""
        config = self.config(model or self.rng.choice(MODELS))
        done = {
            "run": lambda: full_rebuild(config, Silent(), executor=Inline()),
            "promote": lambda: self._acknowledge(self._promote(config)),
            "catch-up": lambda: self._acknowledge(self._catch_up(config)),
            "rollback": lambda: self._acknowledge(rollback(self.catalog)),
            "gc": lambda: gc.apply(self.catalog, gc.plan(self.catalog, 2), 2),
            "run --fresh": lambda: full_rebuild(config, Silent(), executor=Inline(), fresh=True),
            "gc --drop-run": lambda: self._drop_run(config),
        }[verb]
        result = attempt(done)
        return self._tell(verb, result)

    def _tell(self, verb: str, result: Any) -> Any:
        self.world.trace.append(f"{verb}: {_said(result)}")
        return result

    def _promote(self, config: Config) -> AliasRecord:
        before = self.catalog.live()
        chosen = newest_of(self.catalog, candidate(self.catalog, config))
        newest = catch_up(config, chosen, Silent(), executor=Inline())
        record = promote(self.catalog, newest.id, **_reason(before), decided_on=before)
        if (found := record.release.encoder.model) != (asked := config.encoder.model):
            self.model.violations.append(f"promote: of {asked} was asked, {found} went live")
        return record

    def _catch_up(self, config: Config) -> AliasRecord:
        live = self.catalog.require_live().release
        newest = catch_up(config, newest_of(self.catalog, live), Silent(), executor=Inline())
        return follow(self.catalog, newest)

    def _drop_run(self, config: Config) -> None:
        """Give up a run without a result, as an operator who took it for dead."""
        runs = [r.id for r in find_runs(self.catalog.storage, "docs") if r.result() is None]
        if runs:
            check.gc(config, delete=True, drop_run=self.rng.choice(runs))

    def _acknowledge(self, record: AliasRecord) -> AliasRecord:
        self.model.acknowledged.append((record.generation, record.token))
        return record

    def writer(self, changes: int) -> Callable[[], None]:
        def work() -> None:
            for _ in range(changes):
                self.world.step("writer")
                self.change()

        return work

    def change(self) -> None:
        """One change of the source, as an application or a job makes it."""
        kinds: tuple[str, ...] = (
            "insert", "update", "update", "same", "delete", "again", "compact",
        )  # fmt: skip
        kind = self.rng.choice(tuple(COLUMN_CHANGES) if self.rng.random() < 0.35 else kinds)
        some = self._some()
        if kind in COLUMN_CHANGES:
            self._write(partial(COLUMN_CHANGES[kind], self, some))
        else:
            self._change_rows(kind, some)

    def _change_rows(self, kind: str, some: list[str]) -> None:
        now = dict(self.model.versions[max(self.model.versions)])
        if kind == "compact":
            self._write(lambda: lance.dataset(self.source).optimize.compact_files(), now)
            return
        if kind in ("delete", "again") and len(now) > 6:
            for doc_id in some:
                now.pop(doc_id)
            listed = ", ".join(f"'{d}'" for d in some)
            self._write(lambda: lance.dataset(self.source).delete(f"doc_id in ({listed})"), now)
            if kind == "delete":
                return
        rows = {d: now.get(d, self._text()) if kind == "same" else self._text() for d in some}
        if kind == "insert":
            rows = {self._new_id(): self._text() for _ in range(3)}
        merge = lance.dataset(self.source).merge_insert("doc_id")
        merge = merge.when_matched_update_all().when_not_matched_insert_all()
        columns = lance.dataset(self.source).schema
        self._write(lambda: merge.execute(self._rows(rows, columns)), now | rows)

    def reader(self, looks: int) -> Callable[[], None]:
        """A serving process: what it found is of one release, whatever moves meanwhile."""

        def work() -> None:
            for _ in range(looks):
                self.world.step("reader")
                try:
                    served = Index(self.catalog)
                except (ReembedError, OSError, ValueError) as error:
                    self._reader_failed(error)
                    continue
                self.world.step("reader opened")
                self._ask(served)

        return work

    def _ask(self, served: Index) -> None:
        """One document by its own text: it must be found with the score of this text, and all with their year.

        Only a search that asks for a column reads the table.
        """
        release, encoder = served.current.release, served.current.encoder
        texts = self._expected(release)
        doc_id = self.rng.choice(sorted(texts))
        query = encoder.embed_queries([texts[doc_id]])
        own = encoder.embed_documents([texts[doc_id]]).vectors
        hits = served.search([texts[doc_id]], k=len(texts), columns=["year"])[0]
        scores = [h.score for h in hits if h.doc_id == doc_id]
        if not served.current.index.scores_are_exact:
            own = _coded(served.current.index, own)
        if not np.allclose(scores or np.nan, query @ own.T, atol=1e-4):
            self.model.violations.append(f"reader: {doc_id} is not found in {release.id}")
        _, years = self._years(release)
        if wrong := [h.doc_id for h in hits if h.columns["year"] != years[str(h.doc_id)]]:
            self.model.violations.append(f"reader: {wrong} carry another year in {release.id}")

    def _reader_failed(self, error: BaseException) -> None:
        """Between resolving and opening gc may take a release; what is live now must open."""
        if isinstance(error, ReembedError) and "serves nothing yet" in error.what:
            return
        if "injected" in str(error) or "Slow Down" in str(error) or "Internal" in str(error):
            return
        with_lock = self.world.quiet
        self.world.quiet = True
        try:
            self._check_serves()
        finally:
            self.world.quiet = with_lock

    # --- documents ---

    def _new_id(self) -> str:
        self._next += 1
        return f"d{self._next:04d}"

    def _text(self) -> str | None:
        """Words; rarely NULL, which is a dead letter."""
        if self.rng.random() < 0.05:
            return self.rng.choice((None, BROKEN))
        return " ".join(self.rng.choices(_WORDS, k=self.rng.randint(2, 6)))

    def _rows(self, documents: dict[str, str | None], columns: pa.Schema | None = None) -> pa.Table:
        """Documents, a second text beside theirs, and a year to be carried."""
        made = {
            "doc_id": list(documents),
            "text": list(documents.values()),
            "body": [" ".join(self.rng.choices(_WORDS, k=3)) for _ in documents],
            "year": [self.rng.choice((None, *range(2000, 2030))) for _ in documents],
        }
        columns = columns or pa.schema(
            [
                ("doc_id", pa.string()),
                ("text", pa.string()),
                ("body", pa.string()),
                ("year", YEARS[0]),
            ]
        )
        return pa.table([pa.array(made[f.name], f.type) for f in columns], columns)

    def _write(
        self, work: Callable[[], Any], documents: dict[str, str | None] | None = None
    ) -> None:
        """Do it; `documents` is what the source then holds, read back where a change is by column."""
        before = max(self.model.versions, default=0)
        work()
        for version in range(before + 1, lance.dataset(self.source).version + 1):
            rows = lance.dataset(self.source, version=version).to_table()
            ids = rows["doc_id"].to_pylist()
            texts = rows["text"].to_pylist() if "text" in rows.column_names else [None] * len(ids)
            read = dict(zip(ids, texts, strict=True))
            self.model.versions[version] = read if documents is None else documents
            if "year" in rows.column_names:
                years = dict(zip(ids, rows["year"].to_pylist(), strict=True))
                self.model.years[version] = (rows.schema.field("year").type, years)

    # --- what must hold ---

    def _expected(self, release: Release) -> dict[str, str]:
        texts = self.model.versions[release.source.version]
        return _usable(texts)

    def _years(self, release: Release) -> tuple[pa.DataType, dict[str, Any]]:
        return self.model.years[release.source.version]

    def check(self) -> list[str]:
        """Everything that must hold at rest; the violations."""
        self.world.quiet = True
        try:
            self._check_log()
            self._check_gate()
            self._check_commits()
            self._check_serves()
            for release in self.catalog.releases():
                if not self.catalog.is_retired(release):
                    self._check_release(release)
            self._check_source()
        except (ReembedError, OSError, ValueError, KeyError, AssertionError, RuntimeError) as error:
            self.model.violations.append(f"check: {type(error).__name__}: {error}")
        return self.model.violations

    def _check_log(self) -> None:
        log = self.catalog.log()
        previous = None
        for record in log:
            if record.previous_token != previous:
                self.model.violations.append(f"log: generation {record.generation} follows another")
            previous = record.token
        for before, record in pairwise(log):
            versions = [r.release.source.version for r in (before, record)]
            if record.action == "catch-up" and versions[1] < versions[0]:
                self.model.violations.append(
                    f"log: generation {record.generation} moved live back to version {versions[1]}"
                )
        kept = {(r.generation, r.token) for r in log}
        lost = [a for a in self.model.acknowledged if a not in kept]
        if lost:
            self.model.violations.append(f"log: acknowledged and lost: {lost}")

    def _check_gate(self) -> None:
        """What went live by a comparison was judged by the queries that it was planned with."""
        for record in self.catalog.log():
            compared, planned = record.grounds.comparison, self.model.planned
            if compared is None or record.grounds.forced or compared.changed:
                continue
            count, expected = compared.queries.count, planned.get(record.release.origin)
            if expected not in (None, count):
                self.model.violations.append(
                    f"gate: {record.release.id} was judged by {count} queries, not by {expected}"
                )

    def _check_commits(self) -> None:
        """A run's vectors enter its table in one commit, however often it is resumed.

        Unless it was given up: a driver that did not notice may commit to a table that gc removed.
        """
        runs = find_runs(self.catalog.storage)
        given_up = {r.id for r in runs if (ended := r.result()) and ended.release is None}
        for path in {p.table for r in runs if (p := r.plan())}:
            try:
                table = lance.dataset(f"{self.root}/{path}")
            except ValueError:  # not made yet, or removed by gc
                continue
            found = (table.read_transaction(v["version"]) for v in table.versions())
            times = Counter((t.transaction_properties or {}).get(_RUN) for t in found if t)
            for run in times.keys() - {None} - given_up:
                if times[run] > 1:
                    self.model.violations.append(f"{path}: {run} was committed {times[run]} times")

    def _unnamed_index_files(self) -> list[str]:
        """Files below indexes/ that belong to no release, half written ones too."""
        storage, named = self.catalog.storage, set[str]()
        for release in self.catalog.releases():
            with suppress(ReembedError):  # gc took it
                manifest = read_manifest(storage, release.index, release.index_sha256)
                named |= manifest.stored(release.index).keys()
                named.add(f"{release.index}/{release.index_sha256}.json")
        there = (*storage.objects("indexes/"), *storage.torn("indexes/"))
        return [path for path, _ in there if path not in named]

    def _check_serves(self) -> None:
        """Live and what a rollback goes to are whole, whatever gc did."""
        live = self.catalog.live()
        top = islice(self.catalog.standing(live), 2) if live else ()
        for release in (self.catalog.release(s.release) for s in top):
            if self.catalog.is_retired(release) and newest_of(self.catalog, release) is release:
                self.model.violations.append(f"gc: {release.id} may still be served")
                return
            self._check_release(newest_of(self.catalog, release))
        if live:
            Index(self.catalog)

    def _check_release(self, release: Release) -> None:
        expected = self._expected(release)
        path = f"{self.root}/{release.table}"
        table = lance.dataset(path, version=release.table_version).to_table(with_row_id=True)
        rows = {r["doc_id"]: r for r in table.drop_columns(["vector"]).to_pylist()}
        name = release.id
        if len(rows) != table.num_rows:
            self.model.violations.append(f"{name}: {table.num_rows - len(rows)} rows twice")
        if rows.keys() != expected.keys():
            lack, more = expected.keys() - rows.keys(), rows.keys() - expected.keys()
            self.model.violations.append(
                f"{name}: lacks {sorted(lack)[:3]}, has {sorted(more)[:3]}"
            )
            return
        kind, years = self._years(release)
        if table.schema.field("year").type != kind:
            self.model.violations.append(f"{name}: its year is of another type than the source's")
        vectors = np.stack(table["vector"].to_numpy(zero_copy_only=False))
        for doc_id, vector in zip(table["doc_id"].to_pylist(), vectors, strict=True):
            row = rows[doc_id]
            if row["text_hash"] != digests.digest(expected[doc_id].encode()):
                self.model.violations.append(f"{name}: {doc_id} is of another text")
            elif row["space"] != release.space.id:
                self.model.violations.append(f"{name}: {doc_id} is of another space")
            elif row["year"] != years[doc_id]:
                self.model.violations.append(f"{name}: {doc_id} carries another year")
            elif not np.allclose(vector, self._vector(release, expected[doc_id]), atol=1e-6):
                self.model.violations.append(f"{name}: {doc_id} has another vector")
        names = zip(table["_rowid"].to_pylist(), table["doc_id"].to_pylist(), strict=True)
        self._check_index(release, dict(names))

    def _check_index(self, release: Release, names: dict[int, str]) -> None:
        from reembed.index import files as index_store

        storage = self.catalog.storage
        manifest = read_manifest(storage, release.index, release.index_sha256)
        assert isinstance(manifest, IndexManifest)
        ids = index_store.load(storage, release.index, manifest).ids()
        held = dict(zip(ids["row_id"].to_pylist(), ids["doc_id"].to_pylist(), strict=True))
        if held != names or len(held) != len(ids) or manifest.sha256 != release.index_sha256:
            self.model.violations.append(f"{release.id}: its index is of other rows")

    def _vector(self, release: Release, text: str) -> np.ndarray:
        key = (release.space.model, text)
        if key not in self._cache:
            encoder = encoders.load_encoder(release.encoder)
            self._cache[key] = encoder.embed_documents([text]).vectors[0].tobytes()
        return np.frombuffer(self._cache[key], np.float32)

    def _check_source(self) -> None:
        """We only ever read it: its rows are the writer's, its tags ours."""
        dataset = lance.dataset(self.source)
        rows = {r["doc_id"]: r["text"] for r in dataset.to_table().to_pylist()}
        years = {r["doc_id"]: r["year"] for r in dataset.to_table().to_pylist()}
        if years != self.model.years[max(self.model.years)][1]:
            self.model.violations.append("source: its years were changed")
        if rows != self.model.versions[max(self.model.versions)]:
            self.model.violations.append("source: it was changed by something else than its writer")
        if any(not tag.startswith("reembed-") for tag in dataset.tags.list()):
            self.model.violations.append("source: a tag that is not ours")

    # --- a history ---

    def play(self) -> list[str]:
        """Processes at once, with deaths; then one that finishes everything; the violations."""
        with self.world.installed(), _broken_model(), self._seams():
            for scene in self._scenes()[self.kind]:
                scene()
                self.world.run_all()
                if self.check():
                    return self.model.violations
                self.world.quiet = False
            self._finish()
        return self.check()

    def _scenes(self) -> dict[str, tuple[Callable[[], None], ...]]:
        """What each kind of history consists of."""
        return {
            "mixed": (self._mixed, self._mixed),
            "rivals": (self._rivals, self._paused, self._rivals),
            "contest": (self._contest,),
            "columns": (self._columns, self._caught_up, self._columns, self._caught_up),
            "judged": (self._judged,),
            "late": (self._late, self._late),
            "outlived": (self._outlived, self._asked_late),
            "registered": (self._registered, self._staged),
            "growing": (self._growing, self._growing, self._stopped_growing),
        }

    def _mixed(self) -> None:
        self.world.spawn("one", self.operator(3))
        self.world.spawn("two", self.operator(2))
        self.world.spawn("writer", self.writer(3))
        self.world.spawn("reader", self.reader(2))

    def _rivals(self) -> None:
        """Three drivers of one run: each takes the others, paused or not, for dead."""
        model = self.rng.choice(MODELS)
        for name in ("one", "two", "three"):
            config = self.config(model)  # of one run, whatever index each is set to
            self.world.spawn(name, partial(self._drive, config))
        self.world.spawn("writer", self.writer(1))

    def _paused(self) -> None:
        """A driver is held up before its index, while another one builds another and promotes it."""
        paused, other = self.rng.sample(FACTORIES, 2)
        self.world.held["one"] = "index.before_save"
        self.world.spawn("one", partial(self._drive, self.config(THIRD, paused)))

        def work() -> None:
            done = attempt(partial(self._run, THIRD, other))
            self._tell("run", done)
            if isinstance(done, Release):
                attempt(partial(self._promote_one, done.id))

        self.world.spawn("two", work, later=True)
        self.world.spawn("reader", self.reader(1), later=True)

    def _gate(self) -> dict[str, Any]:
        """A gate that anything passes: which queries it asks is what matters here."""
        return {
            "queries": str(self.world.folder / "judged.jsonl"),
            "margin": 0.99,
            "ann_recall": 0.01,
        }

    def _judge(self) -> None:
        """Write the judged queries: texts of documents, each for its own document."""
        texts = sorted(_usable(self.model.versions[min(self.model.versions)]).items())
        pairs = (texts[n % len(texts)] for n in range(self.model.judged))
        lines = [
            json.dumps({"query_id": f"q{n}", "text": text, "doc_ids": [doc_id]})
            for n, (doc_id, text) in enumerate(pairs)
        ]
        Path(self._gate()["queries"]).write_text("\n".join(lines))

    def _judged(self) -> None:
        """Two releases, one live; the gate decides about the other, while its queries change."""
        self.world.quiet = True
        self._judge()
        for model in MODELS:
            self.model.planned[self._run(model).id] = self.model.judged
        self._promote_one(next(iter(self.model.planned)))
        self.world.quiet = False
        for name in ("one", "two"):
            self.world.spawn(name, self._decide)
        self.world.spawn("editor", self._edit)
        self.world.spawn("writer", self.writer(1))

    def _decide(self) -> None:
        for model in reversed(MODELS):
            config = self.config(model)
            asked = partial(check.compare, config, emit=Silent())
            self._tell("compare", attempt(asked))
            chosen = attempt(partial(candidate, self.catalog, config))
            if isinstance(chosen, Release):
                self._tell("promote", attempt(partial(self._promote_by_gate, chosen.id)))

    def _promote_by_gate(self, release: str) -> AliasRecord:
        return self._acknowledge(promote(self.catalog, release))

    def _edit(self) -> None:
        for _ in range(2):
            self.world.step("editor")
            self.model.judged += 1
            self._judge()

    def _outlived(self) -> None:
        """A reader opens what is live; three promotions later gc takes it, and it is built again."""
        self.world.quiet = True
        self._promote_one(self._run(MODELS[0]).id)
        self._held = Index(self.catalog)
        self.world.quiet = False

        def work() -> None:
            for model in (MODELS[1], THIRD):
                release = attempt(partial(self._run, model))
                if isinstance(release, Release):
                    attempt(partial(self._promote_one, release.id))
            self.verb("gc")
            for _ in range(2):
                self.change()
            attempt(partial(self._run, MODELS[0]))

        self.world.spawn("one", work)
        self.world.spawn("two", lambda: self.verb("catch-up"))
        self.world.spawn("reader", self.reader(1))

    def _asked_late(self) -> None:
        """The first question to a reader whose release may be gone: an answer out of it, or none."""
        asked = attempt(partial(self._ask, self._held))
        if isinstance(asked, ReembedError) and not self.catalog.is_retired(
            self._held.current.release
        ):
            self.model.violations.append(f"reader: {asked}")

    def _columns(self) -> None:
        """Columns change, and nothing else does."""
        self._begin()
        self._write(partial(self.rng.choice(tuple(COLUMN_CHANGES.values())), self, self._some()))
        self.world.spawn("one", lambda: self.verb("catch-up"))

    def _begin(self) -> None:
        """Something is live."""
        if self.catalog.live() is None:
            self.world.quiet = True
            attempt(lambda: self._promote_one(self._run(MODELS[0]).id))
            self.world.quiet = False

    def _late(self) -> None:
        """A catch-up is held up, while the source and another one move on."""
        self._begin()
        self.change()
        self.world.held["one"] = self.rng.choice(POINTS)
        self.world.spawn("one", lambda: self.verb("catch-up"))

        def work() -> None:
            for _ in range(2):
                self.world.step("writer")
                self.change()
                self.verb("catch-up")

        self.world.spawn("two", work, later=True)
        self.world.spawn("reader", self.reader(1), later=True)

    def _stop(self, point: str) -> None:
        """Process one dies at a point of the code, or is held up there."""
        self.rng.choice((self.world.held, self.world.doomed))["one"] = point

    def _registered(self) -> None:
        """A process stops once its release is registered; others promote it, start over and drop runs."""
        self._stop("run.after_register")
        builds, model = self.rng.choice(("run", "catch-up")), self.rng.choice(MODELS)
        goes_live = "promote" if builds == "run" else builds
        if builds == "catch-up":
            self._begin()
            self.change()
        self.world.spawn("one", partial(self.verb, builds, model))

        def work() -> None:
            after = self.rng.sample(("run --fresh", "gc --drop-run", goes_live), 3)
            for verb in (goes_live, *after, "gc"):
                self.verb(verb, model)

        self.world.spawn("two", work, later=True)
        self.world.spawn("reader", self.reader(1), later=True)

    def _staged(self) -> None:
        """A process stops with all units staged, while another one collects."""
        self.change()
        self._stop("table.before_commit")
        self.world.spawn("one", lambda: self.verb("run"))
        self.world.spawn("two", lambda: self.verb("gc"), later=True)

    def _caught_up(self) -> None:
        """Two processes catch up at once, while a column changes under them."""
        self.world.spawn("one", lambda: self.verb("catch-up"))
        self.world.spawn("two", lambda: self.verb("catch-up"))
        self.world.spawn("writer", self.writer(1))
        self.world.spawn("reader", self.reader(1))

    def _growing(self) -> None:
        """Every change is caught up with, and changes hit what is in a delta, too; another one catches up as well."""
        self._begin()

        def work() -> None:
            for kind in self.rng.choices(SMALL, k=4):
                self.world.step("writer")
                newest = sorted(self.model.versions[max(self.model.versions)])[-8:]
                self._change_rows(kind, self.rng.sample(newest, 2))
                self.verb("catch-up")

        self.world.spawn("one", work)
        self.world.spawn("two", lambda: self.verb("catch-up"))
        self.world.spawn("reader", self.reader(3))

    def _stopped_growing(self) -> None:
        self._stop(self.rng.choice(("index.before_delta", "index.before_grown")))
        self._growing()

    @contextmanager
    def _seams(self) -> Iterator[None]:
        """Count what becomes of the indexes that are to grow."""
        honest = vars(indexing)["grow"]

        def counted(build: Any, older: Any, change: Any, **more: Any) -> Any:
            manifest, counts = honest(build, older, change, **more), self.world.counts
            if manifest is None:
                counts["rebuilt"] += 1
                return None
            counts["grown"] += 1
            counts["merged"] += any(s not in manifest.segments for s in older.manifest.segments)
            counts["tombstones"] += manifest.buried
            return manifest

        with mock.patch.object(indexing, "grow", counted):
            yield

    def _some(self) -> list[str]:
        now = self.model.versions[max(self.model.versions)]
        return self.rng.sample(sorted(now), min(3, len(now)))

    def _drive(self, config: Config) -> None:
        run = partial(full_rebuild, config, Silent(), executor=Inline())
        self._tell("run", attempt(run))

    def _contest(self) -> None:
        """Two releases, and three operators who each want another one live."""
        self.world.quiet = True
        for model in MODELS:
            attempt(partial(self._run, model))
        self.world.quiet = False
        releases = [r.id for r in self.catalog.releases()]
        for name in ("one", "two", "three"):
            wanted = self.rng.choices(releases, k=6)
            self.world.spawn(name, partial(self._want, wanted))
        self.world.spawn("reader", self.reader(3))

    def _run(self, model: str, factory: str | None = None) -> Release:
        return full_rebuild(self.config(model, factory), Silent(), executor=Inline())

    def _promote_one(self, release: str) -> AliasRecord:
        reason = _reason(self.catalog.live())
        return self._acknowledge(promote(self.catalog, release, **reason))

    def _want(self, releases: list[str]) -> None:
        for release in releases:
            attempt(partial(self._promote_one, release))

    def _finish(self) -> None:
        """The same commands once more, without faults: everything comes to its end."""
        self.world.quiet = True

        def work() -> None:
            for model in MODELS:
                release = attempt(partial(self._run, model))
                if isinstance(release, ReembedError):
                    self.model.violations.append(f"it does not come to an end: {release}")
            for verb in ("promote", "catch-up", "gc", "gc"):
                result = self.verb(verb)
                if isinstance(result, ReembedError) and result.exit_code == 1:
                    self.model.violations.append(f"{verb} does not come to an end: {result}")
            live = self.catalog.live()
            newest = self.model.versions[max(self.model.versions)]
            if live is not None and self._expected(live.release) != _usable(newest):
                self.model.violations.append("live has not caught up with the source")
            planned = gc.plan(self.catalog, 2)
            served = {record.release.origin for record in self.catalog.log()}
            waiting = {c.id for c in candidates(self.catalog, live)}
            waiting -= {newest_of(self.catalog, self.catalog.release(o)).id for o in served}
            if lost := waiting & {r.release for r in planned.remove}:
                self.model.violations.append(f"gc would take what waits to be promoted: {lost}")
            if all(r.result() is not None for r in find_runs(self.catalog.storage, "docs")):
                left = [*(o.path for o in planned.orphans), *planned.tables, *planned.trim]
                if left := left + self._unnamed_index_files():
                    self.model.violations.append(f"gc left {len(left)} behind: {left[0]}")

        self.world.spawn("last", work)
        self.world.run_all()


# --- what jobs do to whole columns: Lance lists no row of some of these as changed ---


def _coded(index: Any, vectors: Any) -> Any:
    """Vectors as the index scores them: SQ8 moves what lies beyond the few that it learned from to their edge."""
    (first, *_) = index.segments
    (shard, *_) = getattr(first, "shards", (first,))
    return shard.faiss_index.sa_decode(shard.faiss_index.sa_encode(vectors))


def _alter(history: History, *changes: Any) -> None:
    lance.dataset(history.source).alter_columns(*changes)


def _rename_another_to_text(history: History, some: list[str]) -> None:
    _alter(history, {"path": "text", "name": "was"}, {"path": "body", "name": "text"})
    _alter(history, {"path": "was", "name": "body"})


def _drop_text_and_add_it_again(history: History, some: list[str]) -> None:
    lance.dataset(history.source).drop_columns(["text"])
    lance.dataset(history.source).add_columns({"text": "concat(body, ' again')"})


def _update_columns(history: History, some: list[str]) -> None:
    """As a distributed job writes a column of some rows: `Update`, of which Lance lists no row."""
    dataset = lance.dataset(history.source)
    fragment = history.rng.choice(dataset.get_fragments())
    ids = fragment.to_table(columns=["doc_id"])["doc_id"].to_pylist()[:4]
    rows = pa.table({"doc_id": ids, "text": [history._text() for _ in ids]}, _PAIR)
    changed, fields = fragment.update_columns(rows, "doc_id", "doc_id")
    operation = lance.LanceOperation.Update(updated_fragments=[changed], fields_modified=fields)
    lance.LanceDataset.commit(history.source, operation, read_version=dataset.version)


def _replace_a_file(history: History, some: list[str]) -> None:
    """The texts of one fragment by another data file: `DataReplacement`."""
    lance.dataset(history.source).drop_columns(["text"])
    lance.dataset(history.source).add_columns({"text": "concat(body, ' apart')"})
    dataset = lance.dataset(history.source)
    fragment = history.rng.choice(dataset.get_fragments())
    name = f"replaced-{dataset.version}.lance"
    path = Path(history.source) / "data" / name
    with LanceFileWriter(str(path)) as writer:
        texts = [history._text() for _ in range(fragment.physical_rows)]
        writer.write_batch(pa.table({"text": pa.array(texts, pa.string())}))
    field = dataset.lance_schema.field("text")
    assert field is not None
    file = DataFile(name, [field.id()], [0], 2, 0, path.stat().st_size)
    group = lance.LanceOperation.DataReplacementGroup(fragment.fragment_id, file)
    operation = lance.LanceOperation.DataReplacement([group])
    lance.LanceDataset.commit(history.source, operation, read_version=dataset.version)


def _update_the_carried(history: History, some: list[str]) -> None:
    listed = ", ".join(f"'{d}'" for d in some)
    lance.dataset(history.source).update({"year": "year + 1"}, where=f"doc_id in ({listed})")


def _retype_the_carried(history: History, some: list[str]) -> None:
    """In place where Lance can, else by writing everything again."""
    kind = history.rng.choice(YEARS)
    dataset = lance.dataset(history.source)
    now = dataset.schema.field("year").type
    if pa.types.is_floating(now) != pa.types.is_floating(kind):
        rows = dataset.to_table()
        rows = rows.set_column(rows.column_names.index("year"), "year", rows["year"].cast(kind))
        lance.write_dataset(rows, history.source, mode="overwrite", max_rows_per_file=8)
    elif now != kind:
        _alter(history, {"path": "year", "data_type": kind})


_PAIR = pa.schema([("doc_id", pa.string()), ("text", pa.string())])
COLUMN_CHANGES: dict[str, Callable[[History, list[str]], None]] = {
    "rename": _rename_another_to_text,
    "add": _drop_text_and_add_it_again,
    "columns": _update_columns,
    "replace": _replace_a_file,
    "carry": _update_the_carried,
    "retype": _retype_the_carried,
}


def _reason(live: AliasRecord | None) -> dict[str, Any]:
    """What a promotion without a comparison asks for."""
    return {"initial_reason" if live is None else "force_reason": "simulated"}


def _usable(texts: dict[str, str | None]) -> dict[str, str]:
    """Documents that have a vector: neither NULL nor too much for the model."""
    return {d: t for d, t in texts.items() if t not in (None, BROKEN)}


@contextmanager
def _broken_model() -> Iterator[None]:
    """A model that makes NaN of one text."""
    honest = HashingEncoder.embed

    def embed(self: HashingEncoder, tokens: Any) -> Any:
        vectors = honest(self, tokens)
        bad = self.tokenize([BROKEN], "document").ids
        for i in range(len(tokens)):
            ids = tokens.ids[tokens.offsets[i] : tokens.offsets[i + 1]]
            if len(ids) == len(bad) and (ids == bad).all():
                vectors[i] = np.nan
        return vectors

    setattr(HashingEncoder, "embed", embed)  # noqa: B010 - mypy lets no method be assigned
    try:
        yield
    finally:
        setattr(HashingEncoder, "embed", honest)  # noqa: B010


def play(
    seed: int,
    place: str = "history",
    rates: dict[str, float] | None = None,
    of: type[History] | None = None,
) -> dict[str, Any]:
    """One seed; its counts, and what it violated. Two at once need two names of places.

    `exception`: what got out and ended it, by itself a violation too; None when the checks had their
    say.
    """
    history, exception = (of or History)(seed, place, rates), None
    try:
        violations = history.play()
    except Crash:  # pragma: no cover - a step outside of any process
        exception = "a crash got out"
    except Exception as error:  # noqa: BLE001 - a bug is a violation, with its seed
        exception = f"{type(error).__name__}: {error}"
    finally:
        history.world.close()
    if exception is not None:
        violations = [*history.model.violations, exception]
    steps = digests.digest("\n".join(history.world.trace).encode()).hex()
    return {
        "seed": seed,
        "kind": history.kind,
        "violations": violations,
        "exception": exception,
        "steps_sha": steps,
        **history.world.counts,
        "trace": history.world.trace,
    }


def _said(result: Any) -> str:
    if isinstance(result, ReembedError):
        return type(result).__name__
    return getattr(result, "id", type(result).__name__)

"""Histories of lazy migrations: processes that serve and migrate, a writer and an operator at once, with deaths.

What each side must hold, and what each answer must be, is computed here from the writer's own record of the source,
with numpy. Of the program only records and tables are read, and the model is asked for vectors, one text at a time.
"""

from __future__ import annotations

import json
import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import lance
import numpy as np
import pyarrow as pa
from inline import Inline, Silent

from reembed.catalog import lazies, lazy_queue
from reembed.catalog.lazies import Lazy, LazyPlan
from reembed.catalog.releases import Catalog, Release
from reembed.catalog.runs import find_runs
from reembed.config.lazy import LazySection
from reembed.config.settings import Config
from reembed.errors import ReembedError
from reembed.lifecycle.collect import collect
from reembed.lifecycle.lazy_end import is_over
from reembed.lifecycle.lazy_status import status_of
from reembed.lifecycle.promote import Reasons
from reembed.serving import in_time, lazy_watch, turned_up
from reembed.serving.index import Index
from reembed.serving.lazy_serving import LazyServing
from reembed.source.members import Members
from reembed.strategies import lazy, lazy_side
from reembed.strategies.full_rebuild import full_rebuild
from reembed.strategies.members import Sweeping
from reembed.strategies.sweep import Limits, sweep
from reembed.strategies.up_to_date import promote_up_to_date
from sim.engine import attempt
from sim.history import CALM, COLUMN_CHANGES, MODELS, History, _usable
from sim.lazy_reader import Reader

OLD, NEW = MODELS
MANY = {**CALM, "die": 0.002, "fail": 0.002, "lose": 0.004, "switch": 0.06, "presume": 0.3}
APART = {**CALM, "die": 0.001, "switch": 0.06, "presume": 1.0}
KINDS = {"turned": MANY, "apart": APART, "killed": MANY, "switched": MANY, "ended": MANY}
"""turned: documents turn up, are queued and migrated, while the source changes; apart: two processes migrate, each
believed dead, one of them held up at a point; killed: one dies at a point, and another continues; switched: an
operator pauses, resumes, stops, drops, starts again, and gc removes; ended: the rest is swept, a run is promoted, and
what is left is removed, while a process is still at it."""
POINTS = (
    "lazy.after_look", "lazy.after_commit", "lazy.after_members", "lazy.before_side", "lazy.after_merge",
    "lazy.after_side", "lazy.after_queue", "members.replace", "members.remove", "run.after_register",
    "promote.before_follow",
)  # fmt: skip
"""Where a batch is held up or dies. `members.*`: in front of a commit of Lance."""
COMMITS = ("members.replace", "members.remove")
VERBS = {
    "pause": 2,
    "resume": 3,
    "stop": 2,
    "drop": 1,
    "start": 3,
    "catch-up": 2,
    "gc": 2,
    "batch": 3,
}
DRAWN, DEPTH = 6, 10


class LazyHistory(History):
    """One seed's world of a lazy migration."""

    kinds: ClassVar[dict[str, dict[str, float]]] = KINDS

    def __init__(
        self, seed: int, place: str = "lazy", rates: dict[str, float] | None = None
    ) -> None:
        turn = seed // len(self.kinds)
        self.fusion = ("slots", "slots", "zscore")[turn % 3]
        self.erases = turn // 3 % 2 == 1
        self.queued: dict[tuple[int, str], int] = {}
        """Documents whose writing to a queue was acknowledged, by migration: the source's version at the time."""
        self.moved: list[tuple[str, int, str, str]] = []
        """Steps of a migration that were acknowledged: its folder, their number, state and time."""
        self._wanted: list[str] = []
        self.readers: list[Reader] = []
        self.unread = 0
        """States of a migration that a process which serves could not read, or sides that it could not open."""
        self._members: dict[tuple[str, int], dict[str, tuple[str | None, Any]]] = {}
        super().__init__(seed, place, rates)
        self.factories = ("Flat",)

    def config(self, model: str, factory: str | None = None) -> Config:
        lazily = LazySection(fusion=self.fusion, depth=DEPTH, batch_documents=7)
        config = super().config(model, factory)
        storage = config.storage.model_copy(update={"erase_deleted": self.erases})
        changed = {"strategy": "lazy", "lazy": lazily, "storage": storage}
        return config.model_copy(update=changed)

    # --- what processes do ---

    def verb(self, verb: str, model: str | None = None) -> Any:
        config, catalog = self.config(model or NEW), self.catalog
        run: dict[str, Any] = {"executor": Inline()}
        sweeping = self.rng.choice((None, Sweeping(deque())))
        done: dict[str, Callable[[], Any]] = {
            "start": lambda: lazy.start(catalog, config, "simulated", Silent(), **run),
            "batch": lambda: lazy.batch(
                catalog, config, self.rng.randint(2, 8), Silent(), sweeping=sweeping, **run
            ),
            "sweep": lambda: sweep(catalog, config, Limits(), Silent(), **run),
            "pause": lambda: lazy.pause(catalog, None),
            "resume": lambda: lazy.resume(catalog, None),
            "stop": lambda: lazy.stop(catalog, "simulated", keep=True),
            "drop": lambda: lazy.stop(catalog, "simulated", keep=False),
            "gc": lambda: collect(catalog, 2, delete=True, drop_run=None),
            "end": lambda: self._end(config),
        }
        if verb in done:
            return self._tell(verb, attempt(done[verb]))
        return super().verb(verb, model or OLD)

    def _end(self, config: Config) -> Any:
        release = full_rebuild(config, Silent(), executor=Inline())
        why = Reasons(force="simulated")
        return promote_up_to_date(
            self.catalog, config, release.id, why, Silent(), executor=Inline()
        )

    def verbs(self, *verbs: str) -> Callable[[], None]:
        def work() -> None:
            for verb in verbs:
                self.world.pause(self.rng.randrange(5))
                self.world.step("between verbs")
                self.verb(verb)

        return work

    def server(self, looks: int) -> Callable[[], None]:
        """A process that serves, follows the state of the migration, and writes down what turns up."""

        def work() -> None:
            self.world.step("server")
            try:
                index = Index(self.catalog, None, 600.0)
            except (ReembedError, OSError, ValueError) as error:
                self._reader_failed(error)
                return
            reader = Reader(self, index)
            self.readers.append(reader)
            for _ in range(looks):
                self.world.pause(self.rng.randrange(6))
                self.world.step("server")
                reader.act(self.rng.choices(("ask", "look", "write", "refresh"), (5, 2, 2, 3))[0])
            for what in ("look", "ask"):
                reader.act(what)
            reader.close()

        return work

    def writer(self, changes: int) -> Callable[[], None]:
        def work() -> None:
            for _ in range(changes):
                self.world.pause(self.rng.randrange(8))
                self.world.step("writer")
                self.change()

        return work

    def change(self) -> None:
        """One change of the source. Its columns keep their types, which a lazy migration asks for."""
        some = self._some()
        if self.rng.random() < 0.2:
            kind = self.rng.choice([k for k in COLUMN_CHANGES if k != "retype"])
            self._write(partial(COLUMN_CHANGES[kind], self, some))
        else:
            kinds = ("insert", "update", "update", "delete", "delete", "again", "compact")
            self._change_rows(self.rng.choice(kinds), some)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Writes are often refused, where faults happen at all."""
        rates = self.world.rates
        if rates["fail"] and self.rng.random() < 0.2:
            self.world.rates = {**rates, "fail": 0.5}
        try:
            yield
        finally:
            self.world.rates = rates

    # --- what the records say, read past the code ---

    def _records(self, folder: str) -> list[dict[str, Any]]:
        files = sorted(Path(self.root, folder).glob("*.json"))
        return [json.loads(f.read_text()) for f in files]

    def states(self) -> list[str]:
        """The states of the newest migration, oldest first."""
        plans = self._records("lazy/docs/plans")
        return [s["state"] for s in self._records(f"lazy/docs/{len(plans)}/steps")]

    def serves(self) -> bool:
        return self.states()[-1:] in (["running"], ["paused"])

    def tokens(self, alias: str) -> list[str]:
        """The steps of an alias, oldest first."""
        return [r["token"] for r in self._records(f"aliases/{alias}")]

    def waiting(self, plan: LazyPlan) -> set[str]:
        return {d for r in self._records(f"{plan.folder}/queue") for d in r["doc_ids"]}

    def members(self, release: Release) -> dict[str, tuple[str | None, Any]]:
        """Text and year of the documents that a release of a new side was made of."""
        key = (release.source.uri, release.source.version)
        if key not in self._members:
            self._read_members(*key)
        return self._members[key]

    def _read_members(self, uri: str, version: int) -> None:
        rows = lance.dataset(uri, version=version).to_table().to_pylist()
        self._members[uri, version] = {r["doc_id"]: (r["text"], r["year"]) for r in rows}
        if len(self._members[uri, version]) < len(rows):
            self.violation("members: a document is there twice")

    def violation(self, what: str) -> None:
        self.model.violations.append(what)

    def texts(self, release: Release) -> dict[str, str]:
        """The documents of a release that have a vector."""
        return self._expected(release)

    def vector(self, release: Release, text: str) -> np.ndarray:
        return self._vector(release, text)

    def _expected(self, release: Release) -> dict[str, str]:
        if release.alias == "docs":
            return super()._expected(release)
        return _usable({d: text for d, (text, _) in self.members(release).items()})

    def _years(self, release: Release) -> tuple[pa.DataType, dict[str, Any]]:
        if release.alias == "docs":
            return super()._years(release)
        kind, _ = self.model.years[max(self.model.years)]
        return kind, {d: year for d, (_, year) in self.members(release).items()}

    # --- what must hold ---

    def check(self) -> list[str]:
        super().check()
        for folder, number, state, at in self.moved:
            step = self._records(f"{folder}/steps")[number - 1]
            if (step["state"], step["at"]) != (state, at):
                self.violation(f"steps: {state} of step {number} was acknowledged and lost")
        try:
            for found in lazies.every(self.catalog):
                if not is_over(found):
                    self._check_side(found)
                    self._check_queue(found)
                    self._check_status(found)
        except (ReembedError, OSError, ValueError, KeyError, AssertionError) as error:
            self.violation(f"check: {type(error).__name__}: {error}")
        return self.model.violations

    def _side(self, found: Lazy) -> Catalog:
        return Catalog(self.catalog.storage, found.plan.side)

    def _check_side(self, found: Lazy) -> None:
        """Each release of the new side has its documents as the source had them at one version, and none goes back."""
        side, last = self._side(found), 0
        made = {b["release"]: b for b in self._records(f"{found.plan.folder}/batches")}
        for record in side.log():
            release = record.release
            if side.is_retired(release):
                continue
            held = self.members(release)
            fits = [v for v in sorted(self.model.versions) if v >= last and self._is_of(held, v)]
            if not fits:
                self.violation(f"side: {release.id} has documents of no one version of the source")
                return
            said = made.get(release.id)
            if said and not self.world.counts["presumed"]:  # else another one's release
                if said["source_version"] not in fits:
                    self.violation(f"side: {release.id} is not of version {said['source_version']}")
                if said["documents"] != len(held):
                    self.violation(f"side: {said['documents']} documents counted of {len(held)}")
            last = fits[0]
        self._check_release(side.require_live().release)

    def _is_of(self, held: dict[str, tuple[str | None, Any]], version: int) -> bool:
        texts, years = self.model.versions[version], self.model.years.get(version)
        return years is not None and all(
            (texts.get(d, _GONE), years[1].get(d)) == both for d, both in held.items()
        )

    def _check_queue(self, found: Lazy) -> None:
        """What was queued is served, waits, or has left the source since."""
        served = self.members(self._side(found).require_live().release)
        kept = served.keys() | self.waiting(found.plan)
        for (number, doc_id), since in self.queued.items():
            if number != found.plan.number or doc_id in kept:
                continue
            if all(doc_id in t for v, t in self.model.versions.items() if v >= since):
                self.violation(f"queue: {doc_id}, queued at version {since}, was lost")
                return

    def _check_status(self, found: Lazy) -> None:
        """Documents are counted as the last batch left them, each batch of them by `_check_side`."""
        said, versions = status_of(self.catalog, found), self.model.versions
        batches = self._records(f"{found.plan.folder}/batches")
        migrated = len(self.members(self._side(found).require_live().release))
        version, newest = found.plan.source.version, max(versions)
        if batches:
            migrated, version = batches[-1]["documents"], batches[-1]["source_version"]
        expected = (
            migrated,
            len(versions[version]),
            None if version == newest else len(versions[newest]),
            len(self.waiting(found.plan)),
            len(batches),
            sum(b["added"] + b["replaced"] for b in batches),
        )
        figures = (
            *(said.migrated, said.documents, said.newer),
            *(said.queued, said.batches, said.embedded),
        )
        if figures != expected:
            self.violation(f"status: {figures} instead of {expected}")

    # --- a history ---

    @contextmanager
    def _seams(self) -> Iterator[None]:
        seams = (
            *self._noting(),
            *self._stepping(),
            (lazy_queue, "time", types.SimpleNamespace(time_ns=self._time_ns)),
            (lazy_side, "DOCUMENTS", DRAWN),
            # Their threads do nothing: what they do is a step of the process that serves.
            (lazy_watch, "EVERY_S", 1e6),
            (turned_up, "EVERY_S", 1e6),
            (lazy_watch, "UNREAD_S", 1e9),
            (in_time, "REST_S", 0.0),
        )
        with ExitStack() as stack:
            stack.enter_context(super()._seams())
            for owner, name, value in seams:
                stack.enter_context(mock.patch.object(owner, name, value))
            try:
                yield
            finally:
                for reader in self.readers:
                    reader.forget()

    def _noting(self) -> Iterator[tuple[Any, str, Any]]:
        """What is acknowledged, and what could not be read."""
        put, failed, move = lazy_queue.Queue.put, LazyServing._failed, lazies.move

        def queued(queue: lazy_queue.Queue, doc_ids: Any, since: str | None = None) -> None:
            ids = list(doc_ids)
            put(queue, ids, since)
            at = max(self.model.versions)
            self.queued |= {(queue.plan.number, doc_id): at for doc_id in ids}

        def moved(catalog: Catalog, plan: LazyPlan, *args: Any, **more: Any) -> Any:
            self.world.step("lazy.move")
            step = move(catalog, plan, *args, **more)
            self.moved.append((plan.folder, step.number, step.state, step.at))
            return step

        def unread(serving: LazyServing, error: Exception) -> None:
            self.unread += 1
            failed(serving, error)

        yield lazy_queue.Queue, "put", queued
        yield lazies, "move", moved
        yield LazyServing, "_failed", unread

    def _stepping(self) -> Iterator[tuple[Any, str, Any]]:
        """More steps of a process: in front of each commit to the members, and each request for a file of the queue."""
        for name in ("replace", "remove"):
            yield Members, name, self._commit(name, getattr(Members, name))

        def one_by_one(function: Callable[[Any], Any], items: Any) -> list[Any]:
            return [function(item) for item in items]

        yield lazy_queue, "at_once", one_by_one

    def _commit(self, name: str, honest: Callable[..., None]) -> Callable[..., None]:
        def commit(*change: Any) -> None:
            self.world.step(f"members.{name}")
            honest(*change)

        return commit

    def _time_ns(self) -> int:
        self.world.ticks += 1
        return self.world.ticks * 1_000_000

    def _scenes(self) -> dict[str, tuple[Callable[[], None], ...]]:
        return {
            "turned": (self._turned, self._turned),
            "apart": (self._apart, self._apart),
            "killed": (self._killed, self._killed),
            "switched": (self._switched, self._switched),
            "ended": (self._ended,),
        }

    def _begin(self) -> None:
        """The old model is live, and a lazy migration runs."""
        self.world.quiet = True
        if self.catalog.live() is None:
            self._promote_one(self._run(OLD).id)
        if not self.states():
            started = self.verb("start")
            assert isinstance(started, Lazy), started
        if self.states()[-1] in ("paused", "stopped"):
            self.verb("resume")
        self.world.quiet = False

    def _turned(self) -> None:
        self._begin()
        self.world.spawn("server", self.server(6))
        self.world.spawn("another", self.server(4))
        self.world.spawn("batches", self.verbs("batch", "batch"))
        self.world.spawn("operator", self.verbs("catch-up"))
        self.world.spawn("writer", self.writer(3))

    def _apart(self) -> None:
        """One is held up, and another one takes it for dead; both go on."""
        self._begin()
        self._queue_some()
        self.change()
        self.world.held["one"] = self.rng.choice((*POINTS, *COMMITS, *COMMITS, *COMMITS))
        self.world.spawn("one", self.verbs("batch"))

        def work() -> None:
            for verb in ("batch", "catch-up"):
                self.change()
                self.verb(verb)

        self.world.spawn("two", work, later=True)
        self.world.spawn("server", self.server(5), later=True)

    def _killed(self) -> None:
        self._begin()
        self._queue_some()
        self.world.doomed["one"] = self.rng.choice(POINTS)
        self.world.spawn("one", self.verbs("batch", "batch"))
        self.world.spawn("writer", self.writer(2))
        self.world.spawn("two", self.verbs("batch"), later=True)
        self.world.spawn("server", self.server(4), later=True)

    def _switched(self) -> None:
        self._begin()
        chosen = self.rng.choices(tuple(VERBS), tuple(VERBS.values()), k=4)
        self.world.spawn("operator", self.verbs(*chosen))
        self.world.held["another"] = "lazy.move"
        self.world.spawn("another", self.verbs(self.rng.choice(("stop", "pause", "gc"))))
        self.world.spawn("batches", self.verbs("batch", "batch"))
        self.world.spawn("server", self.server(6))
        self.world.spawn("other server", self.server(4))
        self.world.spawn("writer", self.writer(1))

    def _ended(self) -> None:
        self._begin()
        self.world.spawn("sweeper", self.verbs("sweep"))
        self.world.spawn("operator", self.verbs("end", "gc"))
        self.world.spawn("server", self.server(6))
        self.world.spawn("writer", self.writer(1))

    def _queue_some(self) -> None:
        self._wanted = self._some()
        lazy_queue.Queue(self.catalog.storage, self.newest().plan).put(self._wanted)

    def _some(self) -> list[str]:
        """Documents to be changed or asked for: often those that were asked for last."""
        now = self.model.versions[max(self.model.versions)]
        asked = [d for d in self._wanted if d in now]
        return asked if asked and self.rng.random() < 0.5 else super()._some()

    def newest(self) -> Lazy:
        found = lazies.current(self.catalog)
        assert found is not None
        return found

    def _finish(self) -> None:
        """The same commands once more, without faults: the migration ends with one release of the new model."""
        self.world.quiet = True
        self.world.spawn("last", self._all_of_it)
        self.world.run_all()

    def _all_of_it(self) -> None:
        live = self.catalog.require_live().release
        if live.encoder.model == OLD:
            self._to_the_end()
        for _ in range(2):
            self._must("gc")
        if self.model.violations:
            return
        newest = _usable(self.model.versions[max(self.model.versions)])
        live = self.catalog.require_live().release
        if live.encoder.model != NEW or self._must("catch-up", NEW) is None:
            self.violation(f"{live.encoder.model} is live at the end")
        elif self._expected(self.catalog.require_live().release) != newest:
            self.violation("live has not caught up with the source")
        if self.states()[-1] != "finished" or any(
            not is_over(f) for f in lazies.every(self.catalog)
        ):
            self.violation(f"the migration is {self.states()[-1]} at the end")
        if self.world.counts["presumed"]:
            return  # a batch that was taken for dead may write after gc removed all of it
        if any(run.result() is None for run in find_runs(self.catalog.storage, "docs")):
            return  # it copies vectors of the new side
        there = [path for path, _ in self.catalog.storage.objects("") if "docs-lazy-" in path]
        kept = ("lazy/docs/plans/", "/steps/")
        there += [
            path
            for path, _ in self.catalog.storage.objects("lazy/")
            if not any(k in path for k in kept)
        ]
        if there:
            self.violation(f"gc left {len(there)} behind: {there[0]}")

    def _to_the_end(self) -> None:
        if self.states()[-1:] in (["stopped"], []) or lazies.current(self.catalog) is None:
            if isinstance(self.verb("resume"), ReembedError):
                self._must("catch-up")
                self._must("start")
        elif self.states()[-1] == "paused":
            self._must("resume")
        self._must("catch-up")
        self._must("sweep")
        if self.model.violations:
            return
        side = self._side(self.newest()).require_live().release
        if self.members(side).keys() != self.model.versions[max(self.model.versions)].keys():
            self.violation("side: a sweep ended before all documents were migrated")
        reader = Reader(self, Index(self.catalog, None, 600.0))
        self.readers.append(reader)
        for what in ("ask", "ask", "refresh", "ask", "write"):
            reader.act(what)
        reader.close()
        self._must("end")

    def _must(self, verb: str, model: str | None = None) -> Any:
        result = self.verb(verb, model)
        if isinstance(result, ReembedError):
            self.violation(f"{verb} does not come to an end: {result}")
            return None
        return result


_GONE = object()

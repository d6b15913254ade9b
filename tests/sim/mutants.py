"""Planted bugs: each must be caught by the histories, so that the histories are proven too.

A bug of rows is planted together with a blind `verify`: the histories must see it by themselves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pyarrow as pa
from obstore.exceptions import AlreadyExistsError, BaseError

from reembed import faults
from reembed.catalog import index_manifest, runs
from reembed.catalog.index_manifest import IndexManifest
from reembed.catalog.lines import RunEntry
from reembed.catalog.receipts import Receipt
from reembed.catalog.releases import Catalog
from reembed.catalog.reports import Difference, Grounds
from reembed.catalog.row_ids import RowIdFile
from reembed.catalog.runs import Run, find_runs
from reembed.engine import worker as units
from reembed.errors import Conflict
from reembed.evaluation import queries as evalset
from reembed.index import build, grow
from reembed.index import files as index_store
from reembed.lifecycle import candidates, complete, gc, gc_reasons, promote, verify
from reembed.serving import live
from reembed.source.dataset import Source
from reembed.store.paths import content_path
from reembed.store.records import decode, to_bytes
from reembed.store.storage import Storage
from reembed.strategies import catch_up_plan, changes, indexing, restage
from reembed.table import seal as sealing
from reembed.table import write as table
from reembed.table.documents import row_of
from reembed.table.read import TableVersion, open_table
from sim.history import CALM, History, play

Patch = Callable[[Any, str, Any], None]
Plant = Callable[[Patch], None]
_PLACE = re.compile(r"\S*/(?:root|work)/")
"""Of a history's root, or of Lance's source: it says nothing to who reads the record elsewhere."""
CAUGHT = Path(__file__).with_name("caught.json")
SEEDS = 200
"""Histories within which each bug must be caught."""


@dataclass(frozen=True)
class Suite:
    """Histories of one kind, and the bugs that they must catch."""

    name: str
    of: type[History]
    bugs: dict[str, Plant] = field(default_factory=dict)
    harmless: set[str] = field(default_factory=set)
    """Bugs that do no harm while nothing fails and nothing happens at once."""

    def bug(self, plant: Plant) -> Plant:
        self.bugs[plant.__name__] = plant
        return plant

    def under_faults(self, plant: Plant) -> Plant:
        self.harmless.add(plant.__name__)
        return self.bug(plant)

    @contextmanager
    def planted(self, name: str) -> Iterator[None]:
        """The code with one bug in it."""
        with ExitStack() as stack:

            def patch(owner: Any, attribute: str, value: Any) -> None:
                stack.callback(
                    setattr,
                    owner,
                    attribute,
                    owner.__dict__.get(attribute, getattr(owner, attribute)),
                )
                setattr(owner, attribute, value)

            self.bugs[name](patch)
            yield

    def caught(self, name: str, seeds: int = SEEDS, *, again: bool = False) -> dict[str, Any]:
        """In which history the checks caught a planted bug, if they did; `again`: first where they did last.

        An exception that ends a history catches nothing: code that no longer works at all proves no check.
        """
        order = [*range(seeds)]
        if again and name in (last := self.last()):
            order.insert(0, last[name])
        with self.planted(name), contextlib.suppress(KeyboardInterrupt):
            for tried, seed in enumerate(order, 1):
                played = play(seed, place=name, of=self.of)
                found = [v for v in played["violations"] if v != played["exception"]]
                if found:
                    by = _PLACE.sub("", found[0])[:200]
                    return {"bug": name, "caught": True, "seed": seed, "histories": tried, "by": by}
        return {"bug": name, "caught": False, "histories": len(order)}

    def last(self) -> dict[str, int]:
        """The first history that caught each bug, when all were played."""
        found: dict[str, dict[str, int]] = json.loads(CAUGHT.read_text())
        return found.get(self.name, {})

    def note(self, found: Iterable[dict[str, Any]]) -> None:
        """Remember what `caught` returned."""
        seeds = {f["bug"]: f["seed"] for f in found if f["caught"]}
        kept = json.loads(CAUGHT.read_text()) | {self.name: seeds}
        CAUGHT.write_text(json.dumps(kept, indent=1) + "\n")

    def calm(self, name: str, seed: int) -> dict[str, Any]:
        """One history with a planted bug and without any fault."""
        with self.planted(name):
            played = play(seed, place=name, rates=CALM, of=self.of)
        return {"bug": name, **{k: played[k] for k in ("violations", "exception")}}


SUITE = Suite("history", History)
bug, under_faults = SUITE.bug, SUITE.under_faults


def _blind(patch: Patch) -> None:
    """`verify` finds nothing, whatever there is."""
    honest = verify.verify

    def nothing(*args: Any, **more: Any) -> Any:
        found = honest(*args, **more)
        none = {k: Difference(0) for k in found.differences}
        return dataclasses.replace(found, differences=none)

    patch(verify, "verify", nothing)


# --- exactly once ---


@under_faults
def commits_again_without_looking_for_its_own_commit(patch: Patch) -> None:
    seal, committed, process = sealing.seal, sealing._committed, threading.local()

    def hasty(*args: Any) -> Any:
        process.unseen = 2  # the looks before the first commit: the next finds what was committed
        return seal(*args)

    def look(run: Any, plan: Any) -> int | None:
        process.unseen -= 1
        return committed(run, plan) if process.unseen < 0 else None

    patch(sealing, "seal", hasty)
    patch(sealing, "_committed", look)


@under_faults
def loser_of_a_unit_deletes_the_files_of_the_winner(patch: Patch) -> None:
    honest = table.stage

    def stage(run: Any, plan: Any, columns: Any, staged: Any) -> Any:
        path = run.path(f"units/{staged.unit}.json")
        before = run.storage.read_if_there(path)
        receipt = honest(run, plan, columns, staged)
        if before is not None:
            for name in before["files"]:
                run.storage.remove(f"{plan.table}/data/{name}")
        return receipt

    patch(table, "stage", stage)


@under_faults
def receipt_before_its_files(patch: Patch) -> None:
    write, stage = table._write, table.stage
    held: dict[str, bytes] = {}

    def hold(storage: Storage, path: str, rows: pa.Table) -> Any:
        fragments = write(storage, path, rows)
        for name in (f"{path}/data/{f.path}" for m in fragments for f in m.files):
            held[name] = storage.read_bytes(name)
            storage.remove(name)
        return fragments

    def proof(storage: Storage, path: str, file: Any) -> Any:
        body = held[f"{path}/data/{file.path}"]
        return {"size_bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}

    def late(run: Any, plan: Any, columns: Any, staged: Any) -> Any:
        receipt = stage(run, plan, columns, staged)
        for name in (f"{plan.table}/data/{n}" for n in receipt.files):
            if name in held:
                run.storage.write_bytes(name, held.pop(name))
        return receipt

    patch(table, "_write", hold)
    patch(table, "_proof", proof)
    patch(table, "stage", late)


@bug
def seals_without_all_units(patch: Patch) -> None:
    _blind(patch)
    patch(sealing, "_check_receipts", lambda plan, receipts, fingerprint: None)
    honest = units.write

    def forgetful(job: Any, unit: str, documents: pa.Table) -> Any:
        if unit.endswith("4"):
            return Receipt(unit, "", "", 0, 0, (), (), {}, units.stats_of(documents))
        return honest(job, unit, documents)

    patch(units, "write", forgetful)


@bug
def retries_a_write_with_a_half_read_stream(patch: Patch) -> None:
    _blind(patch)
    honest = table._write
    patch(table, "_write", lambda s, p, rows: honest(s, p, rows.slice(rows.num_rows // 2)))


@under_faults
def lost_answer_of_a_create_is_taken_for_a_lost_race(patch: Patch) -> None:
    def create(self: Storage, path: str, record: Any, **_: Any) -> bool:
        try:
            obstore.put(self.store, path, to_bytes(record), mode="create")
        except AlreadyExistsError:
            return False
        return True

    patch(Storage, "create", create)


# --- rows ---


@bug
def vectors_in_another_order_than_their_ids(patch: Patch) -> None:
    _blind(patch)
    honest = units.UnitEmbedder._embedded

    def shuffled(self: Any, documents: Any, vectors: Any, errors: Any, stats: Any) -> Any:
        return honest(self, documents, np.ascontiguousarray(vectors[::-1]), errors, stats)

    patch(units.UnitEmbedder, "_embedded", shuffled)


@bug
def deletions_are_not_carried_over(patch: Patch) -> None:
    _blind(patch)
    honest = changes.find_changes

    def forgetful(before: Any, after: Any, vectors: Any, dead: Any, **how: Any) -> Any:
        found = honest(before, after, vectors, dead, **how)
        if len(found.embed) or not found.removed:
            return found
        return dataclasses.replace(found, dropped={}, removed=0)

    patch(catch_up_plan, "find_changes", forgetful)


@bug
def updates_are_missed(patch: Patch) -> None:
    _blind(patch)
    honest = changes._compare

    def same_texts(held: Any, found: Any, *args: Any, **more: Any) -> Any:
        row, texts = row_of(held.ids, found.ids), found.texts.copy()
        texts[row >= 0] = held.texts[row[row >= 0]]
        return honest(held, dataclasses.replace(found, texts=texts), *args, **more)

    patch(changes, "_compare", same_texts)


@bug
def rows_that_left_are_kept_beside_their_successors(patch: Patch) -> None:
    _blind(patch)

    def all_of_it(vectors: Any, columns: Any, fragments: Any, leaving: Any) -> Any:
        held = [vectors.fragment(f, columns.names) for f in fragments]
        return pa.concat_tables(held).drop_columns(["_rowid"])

    patch(restage, "_kept", all_of_it)


@bug
def a_deletion_file_names_a_row_that_stays(patch: Patch) -> None:
    _blind(patch)
    honest = table.stage_deletions

    def another(run: Any, plan: Any, columns: Any, vectors: Any, unit: Any) -> Any:
        rows = vectors.fragment(unit.fragment, [])["_rowid"].to_pylist()
        leaving = unit.leaving.read(run).tolist()
        ids = RowIdFile()
        stays = next(r for r in rows if r not in leaving)
        unit = dataclasses.replace(unit, leaving=ids.add(np.array([*leaving[1:], stays])))
        ids.write(run)
        return honest(run, plan, columns, vectors, unit)

    patch(restage, "stage_deletions", another)


@bug
def an_update_is_committed_onto_another_version_than_its_base(patch: Patch) -> None:
    _blind(patch)
    patch(sealing, "files_of", lambda dataset: _Anything())

    def newest(run: Any, plan: Any) -> int:
        return int(open_table(run.storage, plan.table).version)

    patch(sealing, "_to_build_on", newest)


class _Anything:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = object.__hash__


@bug
def nan_passes(patch: Patch) -> None:
    _blind(patch)
    patch(units.UnitEmbedder, "_check", lambda self, *found: None)


@bug
def catch_up_looks_only_at_ids(patch: Patch) -> None:
    _blind(patch)
    honest = changes.find_changes

    def new_ids(before: Any, after: Any, vectors: Any, dead: Any, **how: Any) -> Any:
        found = honest(before, after, vectors, dead, **how)
        return (
            found
            if found.removed
            else dataclasses.replace(found, embed=found.embed[:0], dropped={})
        )

    patch(catch_up_plan, "find_changes", new_ids)


@bug
def catch_up_trusts_what_lance_lists(patch: Patch) -> None:
    """Rows that Lance does not list as changed are taken for unchanged, but after an overwrite."""
    _blind(patch)
    honest = changes.find_changes

    def trusting(before: Any, after: Any, vectors: Any, dead: Any, **how: Any) -> Any:
        found = honest(before, after, vectors, dead, **how)
        dataset = after.dataset()
        since = range(before.version + 1, after.version + 1)
        made_by = [dataset.read_transaction(v).operation for v in since]
        if not dataset.has_stable_row_ids or any(type(o).__name__ == "Overwrite" for o in made_by):
            return found
        listed = dataset.scanner(
            columns=[], filter=f"_row_last_updated_at_version > {before.version}", with_row_id=True
        ).to_table()["_rowid"]
        deleted = dataset.delta(begin_version=before.version, end_version=after.version)
        if len(listed) or deleted.get_deleted_row_ids().read_all().num_rows:
            return found
        none: dict[str, Any] = dict.fromkeys(("embed", "refresh", "refreshed"), found.embed[:0])
        return dataclasses.replace(found, **none, removed=0, dropped={}, copied=0, forgotten=0)

    patch(catch_up_plan, "find_changes", trusting)


@bug
def carried_columns_get_a_new_type_over_old_bytes(patch: Patch) -> None:
    _blind(patch)
    honest = changes._compare

    def only_texts(held: Any, found: Any, *args: Any, **more: Any) -> Any:
        none = held.carried[:1]
        held = dataclasses.replace(held, carried=none.repeat(len(held.carried)))
        found = dataclasses.replace(found, carried=none.repeat(len(found.carried)))
        return honest(held, found, *args, **{**more, "rewrite": False})

    patch(changes, "_compare", only_texts)
    patch(Source, "retyped", lambda self, schema: [])
    patch(sealing, "_check_staying", lambda run, plan, columns: None)


# --- index, alias, gc, readers ---


@bug
def index_of_the_version_before(patch: Patch) -> None:
    _blind(patch)
    honest = indexing._job

    def stale(context: Any, sealed: Any) -> Any:
        job = honest(context, sealed)
        if context.plan.base is None:
            return job
        vectors = context.vectors(sealed)
        old = dataclasses.replace(vectors, version=context.plan.base.table_version)
        return dataclasses.replace(job, build=dataclasses.replace(job.build, source=old))

    patch(indexing, "_job", stale)


@under_faults
def a_shard_counts_without_its_proof(patch: Patch) -> None:
    """A build that goes on takes the shards that it lacks for done."""
    _blind(patch)
    honest = build.filled

    def taken(work: Any, number: int) -> Any:
        return honest(work, number) or honest(work, 0)

    patch(build, "filled", taken)
    patch(build, "_require_whole", lambda work, shards: None)


@bug
def a_fragment_is_in_two_shards(patch: Patch) -> None:
    _blind(patch)
    honest = build.cut_into_shards

    def overlapping(fragments: Any, most: int) -> Any:
        shards = honest(fragments, most)
        return (shards[0], *((before[-1], *s) for before, s in itertools.pairwise(shards)))

    patch(build, "cut_into_shards", overlapping)
    patch(build, "_require_whole", lambda work, shards: None)


class _OfAnyRows(TableVersion):
    rows = _Anything()  # type: ignore[assignment]


def _uncounted(patch: Patch) -> None:
    """As `_blind`; and an index that grew is not compared with the number of the table's rows."""
    _blind(patch)
    honest = grow.grow

    def grown(job: Any, older: Any, change: Any, **more: Any) -> Any:
        source = job.source
        table = _OfAnyRows(source.storage, source.path, source.version, source.dim)
        return honest(dataclasses.replace(job, source=table), older, change, **more)

    patch(indexing, "grow", grown)


@bug
def a_tombstone_is_missed(patch: Patch) -> None:
    _uncounted(patch)
    honest = grow._dead
    patch(grow, "_dead", lambda *args, **more: honest(*args, **more)[:-1])


@bug
def tombstones_of_merged_deltas_bury_what_follows_them(patch: Patch) -> None:
    """They are kept, at positions that are now those of the delta that took these in."""
    _uncounted(patch)
    honest = grow._dead

    def kept(job: Any, older: Any, held: Any, left: Any, *, missing: bool) -> Any:
        dead = honest(job, older, held, left, missing=missing)
        with tempfile.TemporaryDirectory() as folder:
            at = (job.storage, older.path, Path(folder))
            before = index_store.tombstones_of(at, older.manifest)
        positions = sum(rows for _, rows in job.source.fragments()) + len(dead)
        return np.union1d(dead, before[before < positions])

    patch(grow, "_dead", kept)


def _cut_otherwise(patch: Patch, cut: Callable[[Any, int, set[int]], Any]) -> None:
    """Cut new deltas by other code, which is also given the fragments of the deltas that are merged."""
    _uncounted(patch)
    honest, process = grow.deltas_beside, threading.local()

    def noted(deltas: Any, *args: Any) -> Any:
        stay = honest(deltas, *args)
        process.merged = {f for fragments in deltas[stay:] for f in fragments}
        return stay

    patch(grow, "deltas_beside", noted)
    patch(grow, "cut_into_shards", lambda fragments, most: cut(fragments, most, process.merged))


@bug
def rows_of_merged_deltas_are_left_out(patch: Patch) -> None:
    honest = build.cut_into_shards

    def added_alone(fragments: Any, most: int, merged: set[int]) -> Any:
        added = [(f, rows) for f, rows in fragments if f not in merged]
        return honest(added, most) if added else ()

    _cut_otherwise(patch, added_alone)


@bug
def a_merged_delta_counts_beside_its_successor(patch: Patch) -> None:
    honest = build.cut_into_shards

    def twice(fragments: Any, most: int, merged: set[int]) -> Any:
        again = tuple(f for f, _ in fragments if f in merged)
        return (*honest(fragments, most), *([again] if again else ()))

    _cut_otherwise(patch, twice)


@under_faults
def alias_moved_without_compare_and_swap(patch: Patch) -> None:
    create = Storage.create

    def overwrite(self: Storage, path: str, record: Any, **proven: Any) -> bool:
        if path.startswith("aliases/"):
            self.write(path, record)
            return True
        return create(self, path, record, **proven)

    patch(Storage, "create", overwrite)


@under_faults
def index_is_replaced_in_place(patch: Patch) -> None:
    """One name for every index of a run: a driver that comes late replaces the one that serves."""
    by_content = content_path

    def in_place(folder: str, sha256: str, ending: str) -> str:
        return f"{folder}/index.json" if ending == "json" else by_content(folder, sha256, ending)

    def manifest_of(storage: Any, path: str, sha256: str | None = None) -> Any:
        return decode(IndexManifest, storage.read(f"{path}/index.json"))

    def finished(storage: Any, path: str, table_version: int) -> Any:
        with contextlib.suppress(FileNotFoundError):
            found = manifest_of(storage, path)
            return found if found.table_version == table_version else None

    put, honest = index_store.put_manifest, index_manifest.read_manifest

    def replaced(storage: Any, path: str, manifest: Any) -> Any:
        storage.remove(f"{path}/index.json")
        return put(storage, path, manifest)

    for module in (index_store, index_manifest, complete):
        patch(module, "content_path", in_place)
    for module in list(sys.modules.values()):
        if getattr(module, "read_manifest", None) is honest:
            patch(module, "read_manifest", manifest_of)
    patch(index_store, "finished", finished)
    patch(index_store, "put_manifest", replaced)
    patch(gc, "_unnamed", lambda catalog, release, files: [])
    patch(History, "_unnamed_index_files", lambda self: [])


@under_faults
def late_catch_up_moves_live_back(patch: Patch) -> None:
    """What it grew out of is still live in its line: that newer documents are there is not looked at."""

    def backwards(catalog: Catalog, seen: Any, release: Any, emit: Any) -> Any:
        if seen.release.id == release.id:
            return seen
        complete.require_complete(catalog, release)
        faults.point("promote.before_follow")
        now = catalog.require_live()
        if now.release.origin != release.origin:
            raise Conflict("moved to another line meanwhile")
        return promote._swap(catalog, now, "catch-up", release, Grounds(), emit)

    patch(promote, "_advance", backwards)


@bug
def a_verb_means_the_newest_release(patch: Patch) -> None:
    """Whatever config it is given."""

    def newest(catalog: Catalog, config: Any) -> Any:
        waiting = candidates.candidates(catalog, catalog.live())
        return catalog.release(waiting[-1].id) if waiting else None

    patch(candidates, "release_of", newest)


@bug
def judged_queries_are_frozen_by_their_path(patch: Patch) -> None:
    honest = evalset.load_eval_set

    def by_name(*arguments: Any) -> Any:
        found = honest(*arguments)
        named = hashlib.sha256(found.source.encode()).hexdigest()
        return dataclasses.replace(found, sha256=named)

    patch(evalset, "load_eval_set", by_name)


@under_faults
def promotion_is_acknowledged_before_it_is_written(patch: Patch) -> None:
    honest = Catalog.append

    def hopeful(self: Catalog, *args: Any, **more: Any) -> Any:
        try:
            return honest(self, *args, **more)
        except BaseError:
            raise
        except Conflict:
            record = self.require_live()
            return dataclasses.replace(record, generation=record.generation + 1, token="hope")

    patch(Catalog, "append", hopeful)


@bug
def gc_takes_all_but_what_is_live(patch: Patch) -> None:
    honest = gc_reasons.why_kept

    def only_live(catalog: Catalog, kept: int, dropping: str | None = None) -> dict[str, str]:
        return {k: v for k, v in honest(catalog, kept).items() if v == "live"}

    patch(gc, "why_kept", only_live)


@bug
def marks_of_gc_are_not_seen(patch: Patch) -> None:
    patch(Catalog, "is_retired", lambda self, release_id: False)


@under_faults
def a_registered_release_goes_with_its_run(patch: Patch) -> None:
    """A run is open until it has a result, also after its release went live."""

    def registered(self: Catalog, run: Any) -> Any:
        result = run.result()
        return self.release(run.id) if result and result.release else None

    def unended(storage: Storage, known: list[RunEntry]) -> list[RunEntry]:
        return [e for e in known if Run(storage, e.id).result() is None]

    def dropped(catalog: Catalog, run: Run, indexes: set[str]) -> bool:
        result = run.result()
        if result is None or result.release or run.plan() is None:
            return False
        return run.id in indexes or run.storage.read_if_there(run.path("cleared.json")) is None

    honest = runs.open_among
    for module in list(sys.modules.values()):
        if getattr(module, "open_among", None) is honest:
            patch(module, "open_among", unended)
    patch(Catalog, "registered", registered)
    patch(gc, "_is_dropped", dropped)


@under_faults
def gc_sweeps_the_files_of_unfinished_runs(patch: Patch) -> None:
    honest = gc.plan

    def careless(catalog: Catalog, kept: int, **more: Any) -> Any:
        planned = honest(catalog, kept, **more)
        runs = gc_reasons.planned_of(find_runs(catalog.storage, catalog.alias))
        files = gc._files_of_tables(catalog, [], runs)
        going = {r.table for r in planned.remove if r.whole_table}
        orphans = [
            o
            for t, listed in files.items()
            if t not in going
            for o in gc._orphans(catalog, t, listed)
        ]
        of_indexes = [o for o in planned.orphans if o.path.startswith("indexes/")]
        return dataclasses.replace(planned, orphans=orphans + of_indexes)

    patch(gc, "plan", careless)


@bug
def serving_asks_with_the_model_of_another_release(patch: Patch) -> None:
    honest = live.OpenRelease.encode_queries

    def other(self: Any, texts: Any) -> Any:
        return np.ascontiguousarray(np.roll(honest(self, texts), 3, axis=1))

    patch(live.OpenRelease, "encode_queries", other)


@bug
def a_reader_checks_first_and_opens_later(patch: Patch) -> None:
    honest = live.OpenRelease.open.__func__  # type: ignore[attr-defined]

    def later(cls: Any, storage: Storage, release: Any, before: Any = None) -> Any:
        opened = honest(cls, storage, release, before)
        return dataclasses.replace(opened, table=dataclasses.replace(opened.table))

    patch(live.OpenRelease, "open", classmethod(later))

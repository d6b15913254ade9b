"""The migration side of a lazy migration: start, batches, its states, the final run, and what gc removes."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
import threading
import time
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from conftest import documents
from inline import Inline, Silent

import reembed
from reembed import faults
from reembed.catalog import lazies, lazy_background
from reembed.catalog.index_manifest import read_manifest
from reembed.catalog.lazy_queue import Queue
from reembed.catalog.lease import driving
from reembed.catalog.releases import Catalog
from reembed.catalog.runs import Run
from reembed.cli.lazied import lazied, lazy_left
from reembed.cli.text import text as words
from reembed.config.settings import Config
from reembed.encoders import load_encoder
from reembed.errors import (
    Conflict,
    GateFailed,
    Inconclusive,
    IntegrityError,
    SourceError,
    TooManyDeadLetters,
    UsageError,
)
from reembed.events import Embedded, Notice
from reembed.index.grow import DELTAS
from reembed.lifecycle import collect as collecting
from reembed.lifecycle.collect import collect
from reembed.lifecycle.lazy_status import status_of
from reembed.lifecycle.moves import roll_back
from reembed.lifecycle.promote import Reasons, promote
from reembed.lifecycle.status import status
from reembed.source import members
from reembed.source.members import Members
from reembed.store.storage import Storage
from reembed.strategies import lazy, lazy_side
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild
from reembed.strategies.sweep import Limits, sweep
from reembed.strategies.up_to_date import promote_up_to_date
from reembed.table.read import as_vectors

DOCUMENTS = 400
POINTS = (
    "lazy.after_draft", "lazy.after_look", "lazy.after_commit", "lazy.after_members", "lazy.after_side",
    "lazy.after_plan", "lazy.before_side", "lazy.after_merge", "lazy.after_queue",
)  # fmt: skip


class Killed(Exception):
    pass


@dataclasses.dataclass
class Place:
    """A live release of 16 dimensions, and a config that asks for 64."""

    uri: str
    root: str

    def config(self, dim=64, **sections):
        return Config.model_validate(
            {
                "alias": "passages",
                "source": {"uri": self.uri},
                "encoder": {"model": f"hashing:{dim}"},
                "storage": {"root": self.root},
                "strategy": "lazy",
                **sections,
            }
        )

    @property
    def catalog(self):
        return Catalog(Storage.open(self.root), "passages")

    @property
    def source(self):
        return lance.dataset(self.uri)

    @property
    def plan(self):
        return lazies.current(self.catalog).plan

    @property
    def side(self):
        return Catalog(self.catalog.storage, self.plan.side).require_live().release

    def texts(self):
        """What the new side serves: ids and digests of texts."""
        return rows_of(self.catalog.storage, self.side)

    def start(self, emit=None, reason="a test", **sections):
        config = self.config(**sections)
        return lazy.start(self.catalog, config, reason, emit or Silent(), executor=Inline())

    def batch(self, most=10_000):
        return lazy.batch(self.catalog, self.config(), most, Silent(), executor=Inline())

    def sweep(self, emit=None, batch_documents=150, logged=None, embed=None, **limits):
        gate = {"logged": logged}
        config = self.config(
            lazy={"batch_documents": batch_documents}, gate=gate, embed=embed or {}
        )
        emit = emit or Silent()
        return sweep(self.catalog, config, Limits(**limits), emit, executor=Inline())

    def queue(self, *doc_ids):
        Queue(self.catalog.storage, self.plan).put(doc_ids)

    def queued(self):
        queue = Queue(self.catalog.storage, self.plan)
        return queue.read(queue.files())


def rows_of(storage, release):
    table = lance.dataset(storage.uri(release.table), version=release.table_version)
    found = table.to_table(columns=["doc_id", "text_hash"]).to_pylist()
    held = {r["doc_id"]: r["text_hash"] for r in found}
    assert len(held) == len(found) == release.rows, "a document is there twice"
    return held


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(lazy_side, "DOCUMENTS", 60)
    place = Place(str(tmp_path / "source.lance"), str(tmp_path / "root"))
    table = pa.Table.from_pylist(documents(DOCUMENTS, 0))
    lance.write_dataset(table, place.uri, enable_stable_row_ids=True, max_rows_per_file=90)
    old = place.config(16)
    release = full_rebuild(old, Silent(), executor=Inline())
    promote(place.catalog, release.id, initial_reason="a test")
    return place


def test_a_start_embeds_the_background_with_both_models_and_moves_nothing_that_is_live(place):
    before = place.catalog.require_live()
    found = place.start(reason="try it")
    assert place.catalog.require_live() == before
    assert (found.step.state, found.plan.number, found.plan.side) == (
        "running",
        1,
        "passages-lazy-1",
    )
    assert (found.plan.live, found.plan.space.dim) == (before.release.origin, 64)
    background = lazy_background.read(place.catalog.storage, found.plan)
    assert background.num_rows == 60
    assert (background["old"].type.list_size, background["new"].type.list_size) == (16, 64)
    old, new = rows_of(place.catalog.storage, before.release), place.texts()
    assert len(new) == 60
    for name, text in zip(background["doc_id"], background["text_hash"], strict=True):
        assert old[name.as_py()] == new[name.as_py()] == text.as_py()


def test_a_batch_migrates_what_turned_up_follows_the_source_and_empties_the_queue(place):
    place.start()
    drawn = sorted(place.texts())
    others = [f"d{i:05d}" for i in range(DOCUMENTS) if f"d{i:05d}" not in drawn]
    place.queue(*others[:5], drawn[0], "nobody")
    place.source.update({"text": "'new'"}, where=f"doc_id in ('{drawn[1]}', '{others[0]}')")
    place.source.delete(f"doc_id in ('{drawn[2]}', '{others[1]}')")
    made = place.batch()
    assert (made.added, made.replaced, made.removed) == (4, 1, 1)
    assert place.queued() == []
    newest = catch_up(
        place.config(16), place.catalog.require_live().release, Silent(), executor=Inline()
    )
    old, expected = rows_of(place.catalog.storage, newest), {*drawn, *others[:5]}
    expected -= {drawn[2], others[1]}
    assert place.texts() == {name: old[name] for name in expected}


def test_the_oldest_of_the_queue_are_taken_and_no_more_than_asked_for(place):
    place.start()
    drawn = place.texts().keys()
    new = [d for d in ids_of(range(DOCUMENTS)) if d not in drawn]
    for at in range(4):
        place.queue(*new[at * 20 : at * 20 + 20], *sorted(drawn)[:9])
        time.sleep(0.002)  # a file's age is in milliseconds
    files = Queue(place.catalog.storage, place.plan).files()
    assert place.batch(45).added == 45
    assert place.texts().keys() == {*drawn, *new[:45]}
    kept = Queue(place.catalog.storage, place.plan).files()
    assert [name[:15] for name in kept] == [name[:15] for name in files[2:]], "they keep their age"
    assert set(new[45:80]) <= set(place.queued())
    assert place.batch(1).added == 1
    assert place.batch().added == 34
    assert place.queued() == []


def test_where_every_migrated_document_was_deleted_that_is_said_and_the_queue_stays(place):
    place.start()
    place.source.delete("true")
    place.queue("d00001")
    with pytest.raises(SourceError, match="none of the documents that were migrated") as caught:
        place.batch()
    assert caught.value.fix.startswith("reembed lazy stop --drop --reason")
    assert place.queued() == ["d00001"]


def test_a_sweep_goes_on_after_a_queue_of_documents_that_cannot_be_migrated(place):
    place.start()
    drawn = sorted(place.texts())
    for at in range(4):  # as several processes that serve offer the same documents
        place.queue(*drawn[:30])
        place.queue(*(f"gone-{at}-{i}" for i in range(30)))
    assert place.sweep(budget=10).ended == "the budget of 10 documents is used"
    assert len(place.texts()) == 60 + 10


def ids_of(numbers):
    return [f"d{i:05d}" for i in numbers]


def test_a_paused_migration_migrates_nothing_and_a_stopped_one_serves_nothing(place):
    place.start()
    assert lazy.pause(place.catalog, "a busy day").serves
    assert lazy.pause(place.catalog, None).step.reason == "a busy day"
    with pytest.raises(UsageError, match="is paused since") as caught:
        place.batch()
    assert caught.value.fix == "reembed lazy resume"
    lazy.resume(place.catalog, None)
    place.batch()
    stopped = lazy.stop(place.catalog, "users complain", keep=True)
    assert (stopped.serves, stopped.step.reason) == (False, "users complain")
    with pytest.raises(UsageError, match="is stopped since"):
        place.sweep()
    with pytest.raises(UsageError, match="lazy migration 1 of passages is stopped"):
        place.start()
    assert lazy.resume(place.catalog, None).serves
    lazy.stop(place.catalog, "no", keep=True)
    assert not lazy.stop(place.catalog, "no", keep=False).step.keep
    with pytest.raises(UsageError, match=r"by .*, and its new side was dropped"):
        lazy.resume(place.catalog, None)
    assert place.start().plan.number == 2


def test_a_stop_overrules_a_pause_at_the_same_moment(place, monkeypatch):
    place.start()
    honest, met = lazies.move, []

    def late(catalog, plan, after, state, **more):
        if state == "stopped" and not met:
            met.append(honest(catalog, plan, after, "paused"))
        return honest(catalog, plan, after, state, **more)

    monkeypatch.setattr(lazies, "move", late)
    assert lazy.stop(place.catalog, "now", keep=True).step.number == 3
    assert lazies.current(place.catalog).step.state == "stopped"


def test_a_sweep_ends_where_documents_that_are_counted_cannot_be_migrated(place):
    place.start()
    place.sweep(budget=100)
    nobody = pa.table({"doc_id": pa.array([None], pa.string()), "title": ["x"], "text": ["x"]})
    lance.write_dataset(nobody, place.uri, mode="append")
    found = place.sweep()
    assert (found.migrated, found.ended) == (400, "nothing more is found to migrate")


def test_it_needs_its_strategy_another_model_the_same_texts_and_one_at_a_time(place):
    with pytest.raises(UsageError, match="has no lazy migration"):
        place.batch()
    with pytest.raises(UsageError, match="strategy is full_rebuild"):
        place.start(strategy="full_rebuild")
    with pytest.raises(UsageError, match="has this model already"):
        place.start(encoder={"model": "hashing:16"})
    with pytest.raises(UsageError, match="made of other documents or texts"):
        place.start(source={"uri": place.uri, "text": "{title} {text}"})
    with pytest.raises(UsageError, match=r"source\.version is 1"):
        place.start(source={"uri": place.uri, "version": 1})
    place.start()
    with pytest.raises(UsageError, match="lazy migration 1 of passages is running"):
        place.start()


def test_a_worse_model_is_refused_before_anything_is_embedded_for_it(place, eval_folder):
    better = full_rebuild(place.config(256), Silent(), executor=Inline())
    place.catalog.append(place.catalog.require_live(), "promote", better)
    judged = {"queries": eval_folder(place.uri, 100), "ann_recall": 0.5}
    with pytest.raises(GateFailed, match="is not shown to be as good as hashing:256") as caught:
        place.start(encoder={"model": "hashing:8"}, gate=judged)
    assert caught.value.exit_code == 3
    assert lazies.current(place.catalog) is None
    assert not place.catalog.storage.objects("lazy/")
    assert not place.catalog.storage.objects("lines/passages-lazy-1/")


def test_what_was_predicted_of_a_better_model_is_recorded(place, eval_folder, quiet):
    judged = {"queries": eval_folder(place.uri, 100), "ann_recall": 0.5}
    found = place.start(quiet, encoder={"model": "hashing:256"}, gate=judged, reason=None)
    assert [p.metric for p in found.plan.predicted] == ["ndcg@10", "recall@10"]
    assert all(p.verdict == "pass" for p in found.plan.predicted)
    assert {p.words for p in found.plan.predicted} <= {e.what for e in quiet.of(Notice)}


def test_where_too_little_is_known_a_start_needs_a_reason(place, eval_folder):
    with pytest.raises(UsageError, match="no judged queries are named"):
        place.start(reason=None)
    few = {"queries": eval_folder(place.uri, 4), "ann_recall": 0.5}
    with pytest.raises(Inconclusive) as caught:
        place.start(gate=few, reason=None)
    assert caught.value.fix.startswith("reembed lazy start --reason 'WHY'")
    found = place.start(gate=few, reason="we judge later")
    assert found.plan.reason == "we judge later"
    assert {p.queries for p in found.plan.predicted} == {4}


def test_an_alias_of_somebody_else_is_not_taken(place):
    other = place.config(32, alias="passages-lazy-1", strategy="full_rebuild")
    full_rebuild(other, Silent(), executor=Inline())
    with pytest.raises(Conflict, match="there is an alias passages-lazy-1 already"):
        place.start()


def test_a_live_release_far_behind_its_source_is_caught_up_first(place):
    place.source.update({"text": "concat(text, ' more')"})
    with pytest.raises(UsageError, match="0 have their text in the source"):
        place.start()
    catch_up_live(place)
    assert place.start().serves


def catch_up_live(place, **sections):
    live = place.catalog.require_live()
    newer = catch_up(place.config(16, **sections), live.release, Silent(), executor=Inline())
    place.catalog.append(live, "catch-up", newer)


def test_a_background_that_was_changed_is_not_used(place):
    plan = place.start().plan
    place.catalog.storage.write_bytes(plan.background, b"other bytes")
    with pytest.raises(IntegrityError, match=r"background\.arrow is gone"):
        lazy_background.read(place.catalog.storage, plan)


def test_rrf_is_started_with_a_warning(place, quiet):
    place.start(quiet, lazy={"fusion": "rrf"})
    assert any("for comparison" in e.what for e in quiet.of(Notice))


def test_a_sweep_takes_the_queue_first_then_the_source_in_its_order_and_ends_at_its_limits(place):
    place.start()
    drawn = set(place.texts())
    order = [f"d{i:05d}" for i in range(DOCUMENTS) if f"d{i:05d}" not in drawn]
    place.queue(order[-1], order[-2])
    found = place.sweep(budget=20)
    assert (found.added, found.batches, found.is_complete) == (20, 1, False)
    assert place.texts().keys() == drawn | {*order[-2:], *order[:18]}
    found = place.sweep(until=0.5)
    assert (found.migrated, found.ended) == (200, "50% of the documents are migrated")
    assert place.sweep(until=0.5).added == 0, "not another batch"
    assert place.sweep(for_s=0.001).batches == 1
    found = place.sweep()
    assert (found.migrated, found.documents, found.ended) == (
        400,
        400,
        "every document is migrated",
    )
    assert place.texts().keys() == {f"d{i:05d}" for i in range(DOCUMENTS)}
    assert place.sweep().added == 0


def test_a_sweep_that_waits_between_batches_ends_at_its_time_or_once_it_is_paused(place):
    place.start()
    started = time.monotonic()
    found = place.sweep(batch_documents=1, every_s=600, for_s=60)
    assert (found.batches, found.ended) == (1, "60 s are over")

    class Pausing(Silent):
        def __call__(self, event):
            if isinstance(event, Notice) and "migrated" in event.what:
                threading.Timer(0.5, lazy.pause, (place.catalog, "a test")).start()

    found = place.sweep(Pausing(), batch_documents=1, every_s=600)
    assert (found.batches, found.ended) == (1, "the lazy migration is paused")
    assert time.monotonic() - started < 60


def test_a_sweep_with_another_model_than_the_migrations_is_refused(place):
    place.start()
    config = place.config(encoder={"model": "hashing:8"})
    with pytest.raises(UsageError, match=r"encoder is hashing:8 .* goes to"):
        sweep(place.catalog, config, Limits(), Silent(), executor=Inline())


def test_a_document_that_cannot_be_embedded_is_migrated_as_a_dead_letter(place):
    place.source.update({"text": "cast(null as string)"}, where="doc_id = 'd00007'")
    catch_up_live(place, embed={"max_dead_letters": 1})
    place.start(embed={"max_dead_letters": 1})
    with pytest.raises(TooManyDeadLetters) as caught:
        place.sweep()
    assert caught.value.fix.startswith("reembed sweep --set embed.max_dead_letters=1")
    found = place.sweep(embed={"max_dead_letters": 1})
    assert (found.is_complete, place.side.documents, place.side.dead_letters) == (True, 399, 1)
    assert status_of(place.catalog, lazies.current(place.catalog)).coverage == 1


def test_one_process_at_a_time_migrates(place):
    plan = place.start().plan
    with driving(Run(place.catalog.storage, plan.side)):
        with pytest.raises(Conflict, match="another process is at it"):
            place.sweep()
        with pytest.raises(Conflict, match="another process is at it"):
            place.batch()
        assert not lazy.stop(place.catalog, "at once, all the same", keep=True).serves


def log_of(tmp_path, *rows):
    """A query log, a row for each of these."""
    log = tmp_path / "log.jsonl"
    log.write_text(
        "".join(json.dumps({"text": f"q {n}", **row}) + "\n" for n, row in enumerate(rows))
    )
    return str(log)


def test_a_sweep_takes_what_most_logged_queries_showed_before_the_rest(place, tmp_path):
    place.start()
    drawn = set(place.texts())
    order = [f"d{i:05d}" for i in range(DOCUMENTS) if f"d{i:05d}" not in drawn]
    often, twice, once = order[-1], order[-2], order[-3]
    same = {"text": "asked often", "shown": ["deleted", often, "nobody", *sorted(drawn)[:3]]}
    log = log_of(tmp_path, same, same, same, {"shown": [once, twice]}, {"clicks": [twice]})
    place.sweep(batch_documents=1, budget=1, logged=log)
    assert place.texts().keys() == {*drawn, often}
    assert place.sweep(batch_documents=1, budget=1, logged=log).batches == 1
    assert place.texts().keys() == {*drawn, often, twice}
    place.sweep(budget=4, logged=log)
    assert place.texts().keys() == {*drawn, often, twice, once, *order[:3]}
    assert place.sweep(logged=log).is_complete


def test_coverage_is_of_the_documents_that_the_source_has_while_live_is_behind(place, tmp_path):
    place.start()
    rows = [{**row, "doc_id": f"x{n:05d}"} for n, row in enumerate(documents(200, 1))]
    lance.write_dataset(pa.Table.from_pylist(rows), place.uri, mode="append")
    found = status_of(place.catalog, lazies.current(place.catalog))
    assert (found.migrated, found.documents, found.newer) == (60, DOCUMENTS, 600)
    place.sweep(budget=390)
    found = status_of(place.catalog, lazies.current(place.catalog))
    assert (found.migrated, found.documents, found.newer) == (450, 600, None)
    assert "450 of 600 documents migrated (75.0%)" in "\n".join(lazied(found))
    place.sweep()
    assert status_of(place.catalog, lazies.current(place.catalog)).is_complete
    more = [{**row, "doc_id": f"y{n:05d}"} for n, row in enumerate(documents(200, 2))]
    lance.write_dataset(pa.Table.from_pylist(more), place.uri, mode="append")
    gate = place.config(gate={"logged": log_of(tmp_path, {"shown": ["d00001"]})}).gate
    found = status_of(place.catalog, lazies.current(place.catalog), gate)
    assert (found.coverage, found.is_complete, found.of_log.levels_off) == (0.75, False, 0.75)
    assert found.sweep_s == pytest.approx(200 * found.seconds / 540, abs=0.1)
    assert found.sweep_s > 0
    assert "600 of 800 documents migrated (75.0%)" in "\n".join(lazied(found))
    place.source.delete("doc_id like 'x%' or doc_id like 'y%'")
    found = status_of(place.catalog, lazies.current(place.catalog))
    assert (found.coverage, found.newer, found.is_complete) == (1, DOCUMENTS, False)
    shown = "\n".join(lazied(found))
    assert "the source has a newer version since, of 400 documents" in shown
    assert found.sweep_s is None
    assert "when a sweep would end is not known: it must first read what changed" in shown
    assert "Next: reembed sweep" in shown
    place.sweep()
    found = status_of(place.catalog, lazies.current(place.catalog))
    assert (found.migrated, found.documents, found.is_complete) == (DOCUMENTS, DOCUMENTS, True)


def test_the_status_says_what_the_log_says_what_it_cost_and_when_it_would_end(place, tmp_path):
    place.start()
    drawn = sorted(place.texts())
    cold = [d for d in ids_of(range(DOCUMENTS)) if d not in drawn]
    often = {"shown": [*drawn[:3], cold[0]], "timestamp": "2026-11-01"}
    log = log_of(tmp_path, often, often, {"shown": cold[1:5], "timestamp": "2026-11-11T12:00:00Z"})
    gate = place.config(gate={"logged": log}).gate
    found = status_of(place.catalog, lazies.current(place.catalog), gate)
    assert dataclasses.astuple(found.of_log)[:6] == (3, False, 10.5, 8, 3, 6 / 12)
    # 4 documents turned up once and 4 twice: 8 + 4 * 3 / (2 * 5) = 9.2 of 400 would in the end
    assert found.of_log.levels_off == pytest.approx((60 + 5 + 1.2 * 340 / 400) / 400)
    assert (found.sweep_s, found.tokens) == (None, 0)
    shown = "\n".join(lazied(found))
    assert "50.0% of the results of 3 logged queries are migrated" in shown
    assert "no batch has migrated a document yet" in shown
    place.sweep(budget=1, logged=log)
    place.sweep(budget=99, logged=log)
    found = status(place.catalog, gate).lazy
    assert (found.of_log.answers, found.of_log.migrated) == (1, 8)
    assert (found.batches, found.embedded) == (2, 100)
    texts = {r["doc_id"]: r["text"] for r in place.source.to_table().to_pylist()}
    ours = [texts[d] for d in cold[:100]]
    assert found.tokens == sum(
        load_encoder(place.config().encoder).tokenize(ours, "document").lengths
    )
    assert 0 < found.model_s < found.seconds
    assert found.sweep_s == pytest.approx(240 * found.seconds / 100, abs=0.1)
    assert "a sweep would migrate the rest in 0:0" in "\n".join(lazied(found))
    assert found.to_json()["of_log"]["answers"] == 1


def test_what_is_not_known_of_answers_is_said_with_the_reason(place, tmp_path):
    place.start()
    found = lazies.current(place.catalog)

    def why(logged):
        gate = place.config(gate={"logged": logged}).gate
        return "\n".join(lazied(status_of(place.catalog, found, gate)))

    assert "of answers: not known (no query log: set gate.logged)" in why(None)
    assert "lists neither what was shown nor what was clicked" in why(log_of(tmp_path, {}))
    assert "cannot read logged queries" in why(str(tmp_path / "none.jsonl"))
    shown = why(log_of(tmp_path, {"shown": "d00001"}))
    assert "not usable; shown is not a list of document ids: 'd00001'; correct it" in shown
    assert shown.count("not usable") == 1
    assert "the source has none of the documents" in why(log_of(tmp_path, {"clicks": ["nobody"]}))
    cold = next(d for d in ids_of(range(DOCUMENTS)) if d not in place.texts())
    assert "0.0% of the clicks of 1 logged query" in why(log_of(tmp_path, {"clicks": [cold]}))
    shown = why(log_of(tmp_path, {"shown": [*sorted(place.texts())[:3], "nobody"]}))
    assert "100.0% of the results of 1 logged query are migrated" in shown
    assert "3 different ones, 3 of them migrated, and 1 that the source does not have" in shown
    for file in Path(place.uri, "data").iterdir():
        file.unlink()
    shown = why(log_of(tmp_path, {"shown": [*sorted(place.texts())[:3], "nobody"]}))
    assert "75.0% of the results of 1 logged query are migrated" in shown


def test_a_sweep_ends_when_the_migration_is_paused(place):
    place.start()

    def pausing(event):
        if isinstance(event, Notice) and "migrated (" in event.what:
            lazy.pause(place.catalog, None)

    found = place.sweep(pausing, batch_documents=50)
    assert (found.batches, found.ended) == (1, "the lazy migration is paused")


def test_the_final_run_embeds_nothing_again_its_promotion_ends_it_and_gc_removes_the_rest(
    place, quiet
):
    place.start()
    place.sweep()
    plan = place.plan
    release = full_rebuild(place.config(), quiet, executor=Inline())
    (embedded,) = quiet.of(Embedded)
    assert (embedded.figures.copied, embedded.figures.tokens_per_s) == (DOCUMENTS, 0)
    why = Reasons(force="a test")
    other = full_rebuild(place.config(256), Silent(), executor=Inline())
    left = promote_up_to_date(place.catalog, place.config(256), other.id, why, quiet, executor=None)
    assert left.lazy == 1
    assert f"lazy migration 1 does not serve while {other.id} is live" in words("promote", left)
    assert f"`reembed rollback --to {left.before}` brings it back" in words("promote", left)
    assert roll_back(place.catalog).lazy is None
    ended = promote_up_to_date(
        place.catalog, place.config(), release.id, why, quiet, executor=Inline()
    )
    assert ended.lazy is None
    found = lazies.current(place.catalog)
    assert (found.step.state, found.serves) == ("finished", False)
    listed = collect(place.catalog, 3, delete=False, drop_run=None)
    (left,) = listed.lazies
    assert (left.whole, left.side, left.why) == (True, "passages-lazy-1", "finished")
    assert left.bytes > 0
    assert place.side, "gc removed what it was only to list"
    collect(place.catalog, 3, delete=True, drop_run=None)
    assert traces(place, plan) == []
    assert collect(place.catalog, 3, delete=True, drop_run=None).lazies == ()
    assert place.catalog.require_live().release == release
    shown = "\n".join(lazied(status_of(place.catalog, found)))
    assert "gc removed its new side" in shown
    assert "0 of" not in shown
    assert "reembed gc" not in shown


def traces(place, plan):
    """Files of a lazy migration, except its plan and its steps."""
    storage = place.catalog.storage
    paths = [p for p, _ in storage.objects("") if plan.side in p or p.startswith("lazy/")]
    return [p for p in paths if "/plans/" not in p and "/steps/" not in p]


def test_one_that_was_stopped_and_kept_is_over_once_a_release_of_its_space_is_live(place):
    place.start()
    place.sweep(budget=20)
    lazy.stop(place.catalog, "enough", keep=True)
    release = full_rebuild(place.config(), Silent(), executor=Inline())
    place.catalog.append(place.catalog.require_live(), "promote", release)
    assert collect(place.catalog, 3, delete=True, drop_run=None).lazies[0].why == "finished"


def test_it_works_in_an_object_store(tmp_path, bucket, monkeypatch):
    monkeypatch.setattr(lazy_side, "DOCUMENTS", 30)
    place = Place(str(tmp_path / "source.lance"), bucket.uri)
    table = pa.Table.from_pylist(documents(90, 0))
    lance.write_dataset(table, place.uri, enable_stable_row_ids=True)
    of_s3 = {
        "storage": {"root": bucket.uri, "options": bucket.options},
        "source": {"uri": place.uri, "options": {}},
    }
    old, new = place.config(16, **of_s3), place.config(**of_s3)
    catalog = Catalog(Storage.open(bucket.uri, bucket.options), "passages", new.stores)
    first = full_rebuild(old, Silent(), executor=Inline())
    promote(catalog, first.id, initial_reason="a test")
    plan = lazy.start(catalog, new, "a test", Silent(), executor=Inline()).plan
    Queue(catalog.storage, plan).put(["d00001", "d00089"])
    assert sweep(catalog, new, Limits(), Silent(), executor=Inline()).is_complete
    side = Catalog(catalog.storage, plan.side).require_live().release
    assert (side.documents, side.verify.passed) == (90, True)
    lazy.stop(catalog, "a test", keep=False)
    collect(catalog, 3, delete=True, drop_run=None)
    assert not [p for p, _ in catalog.storage.objects("") if plan.side in p]


def test_gc_keeps_what_a_run_copies_from(place, monkeypatch):
    place.start()
    place.sweep()

    def killed(name):
        if name == "run.after_plan":
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(faults, "hook", killed)
        with pytest.raises(Killed):
            full_rebuild(place.config(), Silent(), executor=Inline())
    lazy.stop(place.catalog, "no", keep=False)
    assert collect(place.catalog, 3, delete=True, drop_run=None).lazies == ()
    assert full_rebuild(place.config(), Silent(), executor=Inline()).documents == DOCUMENTS
    assert collect(place.catalog, 3, delete=True, drop_run=None).lazies[0].why == "stopped"


@pytest.mark.parametrize("point", ["run.after_plan", "table.after_receipt"])
def test_gc_removes_a_side_whose_last_batch_was_killed(place, monkeypatch, point):
    plan = place.start().plan
    with monkeypatch.context() as patch:
        patch.setattr(faults, "hook", dies_at(point))
        with pytest.raises(Killed):
            place.sweep(budget=20)
    lazy.stop(place.catalog, "no", keep=False)
    assert collect(place.catalog, 3, delete=True, drop_run=None).lazies[0].whole
    assert traces(place, plan) == []


def test_merged_files_that_were_cut_short_are_given_up(place, monkeypatch):
    place.start()
    place.sweep(budget=20)

    def torn(members, *, erase):
        members.dataset().optimize.compact_files()
        newest = max(Path(members.uri, "data").iterdir(), key=lambda f: f.stat().st_mtime_ns)
        newest.write_bytes(newest.read_bytes()[:-40])

    monkeypatch.setattr(Members, "merge", torn)
    place.sweep(budget=20)
    assert len(place.texts()) == 60 + 40


def test_gc_removes_older_releases_of_a_side_that_serves(place):
    place.start()
    for _ in range(4):
        place.sweep(budget=20)
    (left,) = collect(place.catalog, 2, delete=True, drop_run=None).lazies
    assert (left.whole, len(left.releases)) == (False, 3)
    assert len(place.texts()) == 140
    assert place.sweep(budget=20).added == 20


def test_many_batches_leave_few_files_of_members_one_version_and_few_segments(place, monkeypatch):
    monkeypatch.setattr(members, "KEPT", dt.timedelta(0))
    place.start()
    for at in range(24):
        place.queue(*ids_of(range(at * 10, at * 10 + 10)))
        place.batch()
    held = lance.dataset(place.catalog.storage.uri(place.plan.members))
    table = lance.dataset(place.catalog.storage.uri(place.side.table))
    assert len(held.get_fragments()) < 10
    assert len(table.get_fragments()) < 14
    assert (len(held.versions()), len(held.tags.list())) == (1, 1)
    assert sorted(held.to_table()["doc_id"].to_pylist()) == sorted(place.texts())
    manifest = read_manifest(place.catalog.storage, place.side.index, place.side.index_sha256)
    assert len(manifest.segments) <= DELTAS + 1
    assert place.side.verify.passed


def test_with_erase_deleted_no_byte_of_what_was_deleted_or_changed_is_left(place, monkeypatch):
    erasing = {"storage": {"root": place.root, "erase_deleted": True, "keep": 1}}
    place.start(lazy={"fusion": "zscore"}, **erasing)
    config = place.config(**erasing)
    storage, plan = place.catalog.storage, place.plan
    background = lazy_background.read(storage, plan)
    names = background["doc_id"].to_pylist()
    texts = {r["doc_id"]: r["text"] for r in place.source.to_table().to_pylist()}
    traces = {}
    for at, name in enumerate(names[:2]):
        traces[f"{name}, text"] = texts[name].encode()
        traces[f"{name}, digest"] = background["text_hash"][at].as_py()
        traces[f"{name}, vector"] = as_vectors(background["new"])[at].tobytes()

    def holding():
        paths = [p for p, _ in storage.objects("") if plan.side in p or p.startswith("lazy/")]
        bodies = {path: storage.read_bytes(path) for path in paths}
        return {
            (p, k) for p, body in bodies.items() for k, trace in traces.items() if trace in body
        }

    assert {k for _, k in holding()} == traces.keys(), "they cannot be searched for"
    place.source.delete(f"doc_id = '{names[0]}'")
    place.source.update({"text": "'new'"}, where=f"doc_id = '{names[1]}'")
    lazy.batch(place.catalog, config, 10, Silent(), executor=Inline())
    collect(place.catalog, 1, delete=True, drop_run=None)
    assert {path.split("/")[3] for path, _ in holding()} == {"members.lance"}, "for an hour"
    monkeypatch.setattr(members, "KEPT", dt.timedelta(0))
    lazy.batch(place.catalog, config, 10, Silent(), executor=Inline())
    assert holding() == set()
    assert lazy_background.read(storage, plan)["doc_id"].to_pylist() == names[2:]


def test_what_is_live_and_status_are_told_of_the_alias_alone(place):
    assert status(place.catalog).lazy is None
    place.start()
    place.queue("d00001", "d00002")
    place.sweep(budget=20)
    place.queue("d00399")
    found = status(place.catalog)
    assert found.live.release.alias == "passages"
    assert [c.release.id for c in found.candidates] == []
    assert found.lazy == status_of(place.catalog, lazies.current(place.catalog))
    shown = found.lazy.to_json()
    assert (shown["state"], shown["coverage"], shown["documents"]) == ("running", 0.2, DOCUMENTS)
    assert (shown["queued"], shown["embedded"]) == (1, 20)
    shown = "\n".join(lazied(found.lazy))
    assert "1 batch: 20 documents" in shown
    assert "(not counted: the start, and batches that were killed)" in shown
    dropped = lazy.stop(place.catalog, "no", keep=False)
    shown = "\n".join(lazied(status_of(place.catalog, dropped)))
    assert "80 of 400 documents migrated" in shown
    assert "a sweep would" not in shown
    assert "traffic alone" not in shown
    assert status(place.catalog).lazy is None


def test_the_status_says_that_nothing_is_fused_while_another_line_is_live(place):
    place.start()
    live = place.catalog.require_live()
    other = full_rebuild(place.config(32), Silent(), executor=Inline())
    place.catalog.append(live, "promote", other)
    found = status(place.catalog).lazy
    assert (found.to_json()["serves"], found.to_json()["instead"]) == (False, other.id)
    shown = "\n".join(lazied(found))
    assert f"answers are of {other.id} alone" in shown
    assert "reembed sweep" not in shown
    place.catalog.append(place.catalog.require_live(), "rollback", live.release)
    assert status(place.catalog).lazy.to_json()["serves"]


def test_a_start_that_was_killed_continues_and_one_of_other_settings_begins_again(
    place, monkeypatch, quiet
):
    for dim, said in ((64, False), (32, True)):
        with monkeypatch.context() as patch:
            patch.setattr(faults, "hook", dies_at("lazy.after_side"))
            with pytest.raises(Killed):
                place.start(quiet, encoder={"model": f"hashing:{dim}"})
        again = [e for e in quiet.of(Notice) if "with other settings" in e.what]
        assert bool(again) == said
    found = place.start(encoder={"model": "hashing:32"})
    assert (found.plan.number, found.plan.space.dim, place.side.space.dim) == (1, 32, 32)
    assert len(place.texts()) == 60


def test_a_plan_that_was_left_before_its_first_step_is_started_or_given_up(place, monkeypatch):
    for dim, number in ((64, 1), (32, 2)):
        with monkeypatch.context() as patch:
            patch.setattr(faults, "hook", dies_at("lazy.after_plan"))
            with pytest.raises(Killed):
                place.start(encoder={"model": f"hashing:{dim}"})
        assert lazies.unstarted(place.catalog).number == number
    assert place.start(encoder={"model": "hashing:32"}).plan.number == 2
    assert [f.step.state for f in lazies.every(place.catalog)] == ["stopped", "running"]


@pytest.mark.parametrize("point", ["lazy.after_draft", "lazy.after_side", "lazy.after_plan"])
def test_gc_removes_what_a_start_left_that_was_given_up(place, monkeypatch, point):
    before = sorted(p for p, _ in place.catalog.storage.objects(""))
    with monkeypatch.context() as patch:
        patch.setattr(faults, "hook", dies_at(point))
        with pytest.raises(Killed):
            place.start()
    assert collect(place.catalog, 3, delete=True, drop_run=None).lazies == (), "for a day"
    monkeypatch.setattr(collecting, "_GIVEN_UP", dt.timedelta(0))
    (left,) = collect(place.catalog, 3, delete=False, drop_run=None).lazies
    assert (left.side, left.whole) == ("passages-lazy-1", True)
    assert "lazy migration 1, which is abandoned before it started" in lazy_left(left)
    assert collect(place.catalog, 3, delete=True, drop_run=None).lazies == (left,)
    after = sorted(p for p, _ in place.catalog.storage.objects(""))
    assert [p for p in after if "/plans/" not in p and "/steps/" not in p] == before
    assert collect(place.catalog, 3, delete=True, drop_run=None).lazies == ()
    assert place.start().plan.number == (2 if point == "lazy.after_plan" else 1)


def dies_at(point):
    def die(name):
        if name == point:
            raise Killed(name)

    return die


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_point_every_document_is_served_or_still_queued(place, monkeypatch, point):
    with monkeypatch.context() as patch:
        patch.setattr(faults, "hook", dies_at(point))
        if point in ("lazy.after_draft", "lazy.after_side", "lazy.after_plan"):
            with pytest.raises(Killed):
                place.start()
    if lazies.current(place.catalog) is None:
        place.start()
    wanted = {f"d{i:05d}" for i in range(100)}
    place.queue(*sorted(wanted))
    place.source.update({"text": "'new'"}, where="doc_id in ('d00001', 'd00399')")
    with monkeypatch.context() as patch:
        patch.setattr(faults, "hook", dies_at(point))
        with contextlib.suppress(Killed):
            place.batch()
    assert wanted <= place.texts().keys() | set(place.queued())
    place.batch()
    assert wanted <= place.texts().keys()
    assert place.queued() == []
    members = lance.dataset(place.catalog.storage.uri(place.plan.members)).to_table()
    assert sorted(members["doc_id"].to_pylist()) == sorted(place.texts())
    assert place.side.verify.passed


def test_what_turns_up_in_answers_is_migrated_and_a_stop_gives_the_old_answers_at_once(place):
    place.start()
    queries = [row["title"] for row in documents(DOCUMENTS, 0)[:20]]
    with reembed.open(place.root, "passages") as index:
        index.search(queries, k=5)
    assert place.queued(), "what turned up is written down when an index is closed"
    wanted = set(place.queued())
    place.batch()
    assert wanted <= place.texts().keys()
    with reembed.open(place.root, "passages", lazy_budget=30) as index:
        fused = index.search(queries, k=5)
        assert index.lazy.fused == len(queries)
    lazy.stop(place.catalog, "a test", keep=True)
    with reembed.open(place.root, "passages") as index:
        assert index.lazy is None
        old = index.search(queries, k=5)
    assert [[h.doc_id for h in hits] for hits in fused] != [
        [h.doc_id for h in hits] for hits in old
    ]

"""A catch-up that is interrupted, raced or repeated: each step alone, without Ray."""

from __future__ import annotations

import contextlib
import json
import shutil

import lance
import numpy as np
import pyarrow as pa
import pytest
from inline import Inline, Silent

from reembed import faults
from reembed.api.opened import catalog_of
from reembed.catalog.lease import driving
from reembed.catalog.releases import Catalog
from reembed.catalog.runs import Run, find_runs, open_runs
from reembed.encoders.hashing import HashingEncoder
from reembed.errors import Conflict, IntegrityError, TooManyDeadLetters
from reembed.events import ChangesFound, Planned
from reembed.lifecycle.promote import follow, promote
from reembed.source.dataset import Source
from reembed.source.lag import note
from reembed.store.records import encode
from reembed.store.storage import Storage
from reembed.strategies import preflight
from reembed.strategies.catch_up import catch_up
from reembed.strategies.catch_up_plan import as_planned, next_number, unfinished_pass
from reembed.strategies.full_rebuild import full_rebuild
from reembed.table import provenance


class Killed(Exception):
    """In place of a kill."""


@pytest.fixture
def line(corpus, make_config):
    """(uri, config, catalog, release) of 300 documents in several fragments; another line beside it."""
    uri = corpus(300)
    config = make_config(uri)
    full_rebuild(make_config(uri, encoder={"model": "hashing:16"}), Silent(), executor=Inline())
    release = full_rebuild(config, Silent(), executor=Inline())
    return uri, config, Catalog(Storage.open(config.storage.root), config.alias), release


def change(uri, *names, text="'another text'"):
    for name in names:
        lance.dataset(uri).update({"text": text}, where=f"doc_id = '{name}'")


@pytest.fixture
def found_late(monkeypatch):
    """Missing texts are not counted before the run: they stop it at the end, as failing ones do."""
    monkeypatch.setattr(preflight, "require_changed_texts", lambda *args: None)


def killed_at(monkeypatch, name, work):
    def hook(point):
        if point == name:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(faults, "hook", hook)
        with pytest.raises(Killed):
            work()


def test_the_version_of_an_interrupted_catch_up_cannot_be_cleaned_away(line, quiet, monkeypatch):
    uri, config, catalog, release = line
    change(uri, "d00001", "d00250")
    killed_at(
        monkeypatch,
        "table.before_commit",
        lambda: catch_up(config, release, quiet, executor=Inline()),
    )
    (run,) = open_runs(catalog.storage, catalog.alias)
    planned = run.plan().source.version
    assert lance.dataset(uri).tags.list()[run.pin_tag]["version"] == planned
    (told,) = [e for e in quiet.of(Planned) if e.run == run.id]
    assert told.pinned is True
    change(uri, "d00002")
    newer = catch_up(config, release, quiet, executor=Inline())
    assert newer.source.version == lance.dataset(uri).version
    assert newer.verify.passed
    done = [r for r in find_runs(catalog.storage, catalog.alias) if r.id == run.id]
    assert done[0].result().release == run.id, "it was not resumed"


def test_a_catch_up_killed_before_its_plan_is_in_nobodys_way(line):
    uri, config, catalog, release = line
    change(uri, "d00001")
    started = Run(catalog.storage, f"{release.id}-v{lance.dataset(uri).version}-1")
    with driving(started):
        pass
    assert started.plan() is None
    newer = catch_up(config, release, Silent(), executor=Inline())
    assert newer.verify.passed
    assert newer.rows == 300


def test_of_two_catch_ups_with_one_version_one_is_refused(line):
    uri, config, catalog, release = line
    change(uri, "d00001")
    other = Run(catalog.storage, f"{release.id}-v{lance.dataset(uri).version}-1")
    with driving(other), pytest.raises(Conflict):
        catch_up(config, release, Silent(), executor=Inline())
    assert all(e.id == e.origin for e in catalog.entries() if e.released)


def test_a_release_that_failed_its_verification_does_not_grow_into_one_that_passes(line):
    uri, config, catalog, release = line
    path = provenance.verification_path(release.id)
    record, there = encode(release.verify), catalog.ids()
    change(uri, "d00001")
    catalog.storage.write(path, {**record, "why": "a test"})
    with pytest.raises(IntegrityError, match="is not verified") as refused:
        catch_up(config, release, Silent(), executor=Inline())
    assert refused.value.fix == f"reembed verify --release {release.id}"
    assert catalog.ids() == there
    catalog.storage.write(path, record)
    assert catch_up(config, release, Silent(), executor=Inline()).verify.passed


@pytest.fixture
def failing(corpus, make_config, quiet, monkeypatch):
    """Source, config and a release with two dead letters, whose texts the model can embed now."""
    uri = corpus(300)
    config = make_config(uri, embed={"max_dead_letters": 9, "reuse": False})
    honest = HashingEncoder.embed
    calls = []

    def broken(self, tokens):
        calls.append(len(tokens))
        made = honest(self, tokens)
        if len(tokens) == 64 and len([c for c in calls if c == 64]) in (1, 2):
            made[3] = np.nan
        return made

    with monkeypatch.context() as patch:
        patch.setattr(HashingEncoder, "embed", broken)
        first = full_rebuild(config, quiet, executor=Inline())
    assert first.dead_letters == 2
    return uri, config, first


@contextlib.contextmanager
def killed_after_its_plan(monkeypatch):
    def killed(point):
        if point == "run.after_plan":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(faults, "hook", killed)
        with pytest.raises(KeyboardInterrupt):
            yield


@pytest.mark.parametrize(("retry", "rows", "dead"), [(True, 300, 0), (False, 298, 2)])
def test_dead_letters_are_tried_again_after_an_interrupted_catch_up_only_where_it_is_asked_for(
    failing, quiet, monkeypatch, retry, rows, dead
):
    uri, config, first = failing
    change(uri, "d00100")

    with killed_after_its_plan(monkeypatch):
        catch_up(config, first, quiet, executor=Inline())
    (open_run,) = open_runs(catalog_of(config).storage, config.alias)
    again = catch_up(config, first, quiet, retry_dead_letters=retry, executor=Inline())
    assert open_run.id in catalog_of(config).ids()
    assert (again.rows, again.dead_letters) == (rows, dead)


def test_an_interrupted_retry_of_dead_letters_is_finished_and_not_made_twice(
    failing, quiet, monkeypatch
):
    uri, config, first = failing
    lance.dataset(uri).update({"text": "cast(null as string)"}, where="doc_id = 'd00100'")

    with killed_after_its_plan(monkeypatch):
        catch_up(config, first, quiet, retry_dead_letters=True, executor=Inline())
    again = catch_up(config, first, quiet, retry_dead_letters=True, executor=Inline())
    assert (again.rows, again.dead_letters) == (299, 1)
    assert len(catalog_of(config).ids()) == 2


def test_dead_letters_are_tried_again_only_where_it_is_asked_for(failing, quiet):
    """Their texts are as they were, and so is the source; the model can make vectors of them now."""
    uri, config, first = failing
    assert catch_up(config, first, quiet, executor=Inline()) == first
    change(uri, "d00100")
    quiet.events.clear()
    second = catch_up(config, first, quiet, executor=Inline())
    (found,) = [e for e in quiet.of(ChangesFound) if e.embed]
    assert found.how.startswith("delta"), "dead letters made it read every row"
    assert (second.rows, second.dead_letters) == (298, 2)
    third = catch_up(config, second, quiet, retry_dead_letters=True, executor=Inline())
    assert (third.rows, third.dead_letters) == (300, 0)
    assert third.verify.passed


def test_dead_letters_that_have_vectors_now_are_served_though_the_source_is_as_it_was(
    failing, quiet
):
    _, config, first = failing
    catalog = catalog_of(config)
    promote(catalog, first.id, initial_reason="a test")
    retried = catch_up(config, first, quiet, retry_dead_letters=True, executor=Inline())
    assert retried.source == first.source
    assert follow(catalog, retried).release == retried


def test_a_catch_up_that_fails_is_insisted_on_until_it_failed_again_and_the_source_moved_on(
    line, found_late, monkeypatch
):
    uri, config, catalog, release = line

    def again():
        return catch_up(config, release, Silent(), executor=Inline())

    def hook(point):
        if point == "run.after_plan" and not moved:
            moved.append(point)
            change(uri, "d00009")

    moved: list[str] = []
    change(uri, "d00001", "d00250", text="cast(null as string)")
    with monkeypatch.context() as patch:
        patch.setattr(faults, "hook", hook)
        with pytest.raises(TooManyDeadLetters):
            again()
    (run,) = open_runs(catalog.storage, catalog.alias)
    assert run.plan().source.version == lance.dataset(uri).version - 1
    change(uri, "d00001", "d00250", text="'a text at last'")
    newer = again()
    assert run.result().release is None, "it was not given up"
    assert any("given up, as the source" in e.get("what", "") for e in journal_of(run))
    assert all(e["stage"] != "lag" for e in journal_of(run)), "it is told of another release"
    assert (newer.rows, newer.dead_letters) == (300, 0)
    assert newer.source.version == lance.dataset(uri).version


def test_how_far_a_release_is_behind_is_in_the_journal_of_the_run_that_made_it(line, quiet):
    uri, config, catalog, release = line
    before = journal_of(Run(catalog.storage, release.id))
    assert catch_up(config, release, quiet, executor=Inline()) == release
    assert journal_of(Run(catalog.storage, release.id)) == before, "it was not driven"
    change(uri, "d00001")
    newer = catch_up(config, release, quiet, executor=Inline())
    told = journal_of(Run(catalog.storage, newer.id))[-1]
    assert (told["stage"], told["release"], told["documents"]) == ("lag", newer.id, 0)


def journal_of(run):
    return [
        json.loads(line) for line in run.storage.read_bytes(run.path("events.jsonl")).splitlines()
    ]


def test_a_catch_up_that_fails_again_is_kept_where_the_source_did_not_move(line, found_late):
    uri, config, catalog, release = line
    change(uri, "d00001", "d00250", text="cast(null as string)")
    runs = []
    for _ in range(2):
        with pytest.raises(TooManyDeadLetters):
            catch_up(config, release, Silent(), executor=Inline())
        runs += open_runs(catalog.storage, catalog.alias)
    assert len(runs) == 2
    assert runs[0].id == runs[1].id


def test_a_catch_up_indexes_as_its_line_does_on_the_device_of_this_machine(line):
    _, config, catalog, release = line
    plan = Run(catalog.storage, release.id).plan()
    assert plan.index.device == "auto"
    changed = {"device": "cpu", "ann_recall": 0.99, "factory": "HNSW16", "shard_rows": 9}
    other = config.index.model_copy(update=changed)
    used = as_planned(config.model_copy(update={"index": other}), plan, Silent()).index
    assert used.device == "cpu"
    assert used.model_copy(update={"device": "auto"}) == plan.index
    lower = config.model_copy(update={"index": other.model_copy(update={"ann_recall": 0.5})})
    assert as_planned(lower, plan, Silent()).index.ann_recall == 0.5


def test_a_catch_up_holds_the_source_version_it_reads_until_it_is_registered(line, monkeypatch):
    """The writer may clean old versions away between the plan and the last unit."""
    uri, config, _, release = line
    late = pa.table({"doc_id": ["x"], "title": ["x"], "text": ["x"]})
    lance.write_dataset(late, uri, mode="append")
    version, held = lance.dataset(uri).version, []
    honest = Inline.embed

    def embed(self, job, units, on_receipt, stop):
        held.extend(t["version"] for t in lance.dataset(uri).tags.list().values())
        honest(self, job, units, on_receipt, stop)

    monkeypatch.setattr(Inline, "embed", embed)
    catch_up(config, release, Silent(), executor=Inline())
    assert version in held


def test_the_next_number_of_a_line_is_above_that_of_the_note_whatever_version_it_is_of(line):
    uri, config, catalog, release = line
    for name in ("d00001", "d00002", "d00003"):
        change(uri, name)
    note(catalog, release, 2, Source.open(config))
    assert Source.open(config).version == 4
    assert next_number(catalog, release) == 3


@pytest.mark.parametrize("driven", [True, False])
def test_a_catch_up_of_a_source_that_was_replaced_is_given_up_unless_it_is_driven(
    line, monkeypatch, driven
):
    uri, config, catalog, release = line
    change(uri, "d00001")
    killed_at(
        monkeypatch,
        "table.before_commit",
        lambda: catch_up(config, release, Silent(), executor=Inline()),
    )
    (run,) = open_runs(catalog.storage, catalog.alias)
    rows = lance.dataset(uri).to_table()
    shutil.rmtree(uri)
    for _ in range(3):
        lance.write_dataset(rows, uri, mode="overwrite", enable_stable_row_ids=True)
    with driving(run) if driven else contextlib.nullcontext():
        assert unfinished_pass(catalog, release) is None
        assert (run.result() is None) == driven

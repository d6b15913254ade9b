"""Attempts at a unit: deaths are held against the documents that were tried then, and no others."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from crash.killed import Outlived, attempt_at
from inline import Inline

from reembed.catalog.lease import driving, read_lease, workers
from reembed.catalog.runs import Run
from reembed.engine import attempts
from reembed.engine.executor import ALONE
from reembed.engine.presence import Presence
from reembed.errors import RunFailed
from reembed.lifecycle import status
from reembed.store.storage import Storage
from reembed.strategies.full_rebuild import full_rebuild
from reembed.table import write

ROWS = 300
DIED_ALONE = Outlived()


@pytest.fixture
def run(tmp_path):
    return Run(Storage.open(str(tmp_path)), "docs-0-v1-1")


def attempts_until_done(run, kills):
    """Number of the first attempt that survives, and what it was given."""
    for number in range(1, attempts.MAX_ATTEMPTS + 1):
        if (last := attempt_at(run, ROWS, kills, DIED_ALONE)) is not None:
            return number, last
    raise AssertionError("none lived")


@pytest.mark.parametrize("documents", [{0}, {150}, {299}, {7, 150, 151}])
def test_documents_that_kill_are_found_among_many_and_no_other_is_left_out(run, documents):
    _, last = attempts_until_done(
        run, lambda tried: any(tried[0] <= d < tried[1] for d in documents)
    )
    assert last.poison == documents
    tried = [d for start, stop in last.ranges() for d in range(start, stop)]
    assert sorted(tried) == sorted(set(range(ROWS)) - documents)


def test_a_range_of_many_in_which_two_workers_died_at_once_is_cut_and_none_of_it_is_poison(run):
    for _ in range(2):
        attempt_at(run, ROWS, lambda tried: True, DIED_ALONE)
    both = [
        attempts.begin(run, "u", ROWS, DIED_ALONE) for _ in range(2)
    ]  # the second before the first died
    for attempt in both:
        killed = Presence(run, DIED_ALONE)
        killed.announce(attempt)
        killed.take(attempt)
        first = next(attempt.ranges())
    assert first[1] - first[0] > 1
    again = attempts.begin(run, "u", ROWS, DIED_ALONE)
    assert again.poison == frozenset()
    tried = [*again.ranges()]
    assert first not in tried
    assert [d for start, stop in tried for d in range(start, stop)] == [*range(ROWS)]


def test_a_careful_attempt_tries_ranges_before_single_documents(run):
    deaths = iter([True, True, False])
    attempt_at(run, ROWS, lambda tried: next(deaths))
    attempt_at(run, ROWS, lambda tried: next(deaths))
    careful = attempts.begin(run, "u", ROWS, DIED_ALONE)
    cut = [*careful.ranges()]
    assert len(cut) <= 16
    assert [d for start, stop in cut for d in range(start, stop)] == [*range(ROWS)]


def test_workers_at_one_time_are_told_apart_and_take_back_only_their_own_record(run):
    one, other = attempts.begin(run, "u", 5), attempts.begin(run, "v", 5)
    mine, theirs = Presence(run, ALONE), Presence(run, ALONE)
    mine.announce(one)
    theirs.announce(other)
    assert {(w.unit, w.attempt) for w in workers(run)} == {("u", 1), ("v", 1)}
    theirs.leave(other)
    theirs.save()
    assert [w.unit for w in workers(run)] == ["u"]
    mine.leave(one)
    mine.save()
    assert not workers(run)


def test_attempts_at_one_unit_are_numbered_apart_from_those_at_another(run):
    assert [attempts.begin(run, u, 5).number for u in ("u", "v", "u", "u", "v")] == [1, 1, 2, 3, 2]


def test_only_a_document_that_kills_alone_is_poison_not_a_range(run, monkeypatch):
    for _ in range(4):
        attempts.begin(run, "u", 40, DIED_ALONE)
    deaths = Counter({(0, 3): 2, (6, 9): 5, (12, 15): 2, (12, 13): 2, (20, 21): 1})
    monkeypatch.setattr(attempts, "_died_alone", lambda *a: [1, 2])
    monkeypatch.setattr(attempts, "_deaths", lambda *a: deaths)
    attempt = attempts.begin(run, "u", 40, DIED_ALONE)
    assert attempt.poison == {12}
    tried = [row for start, stop in attempt.ranges() for row in range(start, stop)]
    assert tried == [row for row in range(40) if row != 12]


def test_an_attempt_after_deaths_that_were_not_the_documents_fault_writes_no_range_down(run):
    for _ in range(3):
        attempt_at(run, ROWS, lambda tried: True, ALONE)
    fourth = attempts.begin(run, "u", ROWS, ALONE)
    assert [*fourth.ranges()] == [(0, ROWS)]
    assert run.storage.read(attempts._path(run, "u", 4))["trying"] is None


def test_a_unit_that_was_begun_too_often_through_no_fault_of_a_document_ends_the_run(
    run, monkeypatch
):
    monkeypatch.setattr(Run, "plan", lambda self: SimpleNamespace(restart="reembed run --fresh"))
    for _ in range(attempts.MAX_ATTEMPTS):
        attempt_at(run, ROWS, lambda tried: True, ALONE)
    with pytest.raises(RunFailed, match=f"was tried {attempts.MAX_ATTEMPTS} times") as failed:
        attempts.begin(run, "u", ROWS, ALONE)
    assert failed.value.why.startswith("0 of its workers died on their own")


def test_attempts_under_earlier_drivers_do_not_count_towards_the_limit(run, monkeypatch):
    for number in range(2 * attempts.MAX_ATTEMPTS):
        attempts.begin(run, "u", ROWS, ALONE, driver=f"start {number}")
    monkeypatch.setattr(Run, "plan", lambda self: SimpleNamespace(restart="reembed run --fresh"))
    for _ in range(attempts.MAX_ATTEMPTS):
        attempts.begin(run, "u", ROWS, ALONE, driver="this start")
    with pytest.raises(RunFailed, match=f"was tried {attempts.MAX_ATTEMPTS} times"):
        attempts.begin(run, "u", ROWS, ALONE, driver="this start")
    attempts.begin(run, "u", ROWS, ALONE, driver="the next start")


def test_a_store_that_takes_no_files_for_many_starts_uses_up_no_attempts(
    corpus, make_config, quiet, monkeypatch
):
    config = make_config(corpus(60))
    monkeypatch.setattr(attempts, "MAX_ATTEMPTS", 3)
    with monkeypatch.context() as patch:
        patch.setattr(write, "stage", lambda *_: Path("/dev/full").write_text("x"))
        for _ in range(5):
            with pytest.raises(OSError, match="No space left"):
                full_rebuild(config, quiet, executor=Inline())
    assert full_rebuild(config, quiet, executor=Inline()).rows == 60


@pytest.mark.parametrize("stray", ["notes.json", "notes.txt", "0001 (copy).json"])
def test_files_of_other_names_beside_numbered_records_break_nothing(run, stray):
    for folder in ("leases", "attempts/u", "workers"):
        run.storage.write_bytes(run.path(f"{folder}/{stray}"), b"{}")
    assert read_lease(run) is None
    assert workers(run) == []
    assert [attempts.begin(run, "u", ROWS, DIED_ALONE).number for _ in range(2)] == [1, 2]
    with driving(run):
        assert read_lease(run).number == 1


def test_damaged_figures_of_a_run_are_named_and_status_goes_on(run):
    assert status._progress(run) == (None, None)
    run.storage.write_bytes(run.path("progress.json"), b'{"at": ')
    figures, waiting = status._progress(run)
    assert figures is None
    assert "progress.json" in waiting

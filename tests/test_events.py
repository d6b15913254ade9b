"""Every event has words for people, and is read back from the journal as it was emitted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from inline import Inline

from reembed.catalog.journal import Journal
from reembed.catalog.runs import Run
from reembed.cli.progress import Console, words
from reembed.events import (
    AliasMoved,
    AlreadyBuilt,
    Behind,
    Candidate,
    ChangedSetting,
    ChangesFound,
    Connected,
    Draining,
    Embedded,
    Event,
    Ignored,
    Indexed,
    Kept,
    Looked,
    LookFailed,
    Notice,
    Planned,
    Progress,
    Resumed,
    Sealed,
    Serving,
    Throughput,
    Verified,
    WaitingForNode,
    WorkerEnded,
    Working,
)
from reembed.store.records import decode
from reembed.store.storage import Storage
from reembed.strategies.full_rebuild import full_rebuild

KINDS = {kind.stage: kind for kind in Event.__subclasses__()}
RUN = "docs-00000000-v1-1"
FIGURES = Throughput(
    done=10, total=20, docs_per_s=2.5, tokens_per_s=50, actors=1, busy=0.9, waits_for_input=0.05,
    waits_for_records=0.01, path="padded float32 on cpu", padding=0.1, mfu=None, units_done=1,
    units=2, dead_letters=0, copied=3, startup_s=1.5,
)  # fmt: skip
EVENTS: list[Event] = [
    Working("reading every id"),
    Notice("no judged queries"),
    Ignored((ChangedSetting("gate.margin", None, 0.3), ChangedSetting("index.factory", "a", "b"))),
    AlreadyBuilt(RUN, RUN),
    ChangesFound(1, 2, embed=3, refresh=1, copied=1, removed=2, documents=7, how="delta"),
    Planned(RUN, 20, 2, "docs.lance", 1, False, "s0", "hashing:16", 16),
    Resumed(RUN, 1, 2, 1),
    Connected("this process"),
    Progress(FIGURES, eta_s=4, waiting="a unit", last=False),
    Embedded(FIGURES),
    WaitingForNode(2, 1, 600.0),
    WorkerEnded("000000-000000000", 1, 62.5, 60.0, True),
    Draining(30.0),
    Kept(1, 40),
    Sealed("tables/a.lance", 2, 20, 20, 0),
    Indexed("Flat", "cpu", 20, 2, 0.1, {"nprobe": 4}, 0.99, 5, "queries", 1, 3),
    Verified(False, 20, 5, {"missing": 1}, "5 re-embedded"),
    Candidate(RUN, None),
    AliasMoved("docs", "promote", 1, None, RUN),
    Looked(1, 7, 312, "inconclusive", False),
    LookFailed("another process catches up", "since 12:00", 3600.0),
    Behind(RUN, 1, 3, None, 5.0),
    Serving("docs", RUN, "http://127.0.0.1:8080"),
]


def test_every_kind_of_event_is_here():
    assert {type(event) for event in EVENTS} == set(KINDS.values())
    assert len(KINDS) == len(EVENTS), "two kinds have the same name"


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.stage)
def test_every_event_is_one_line_for_people(event: Event, capsys: pytest.CaptureFixture[str]):
    assert words(event)
    Console()(Progress(FIGURES, 4, None, last=True) if isinstance(event, Progress) else event)
    assert f" {event.stage:9} " in capsys.readouterr().err


def test_the_progress_line_says_when_it_ends_until_all_is_done():
    assert "ETA 4s" in words(Progress(FIGURES, eta_s=4, waiting=None, last=False))
    done = dataclasses.replace(FIGURES, done=20)
    assert "ETA" not in words(Progress(done, eta_s=1, waiting=None, last=True))


def test_one_of_a_kind_is_counted_as_one():
    planned = Planned(RUN, 1, 1, "a.lance", 1, True, "space", "model", 8)
    assert "1 document of a.lance version 1 in 1 unit -> model" in words(planned)
    assert words(Kept(1, 40)) == "of files that changed, 40 rows in 1 unit stay without embedding"
    one = dataclasses.replace(FIGURES, actors=1, dead_letters=1)
    said = words(Progress(one, eta_s=4, waiting=None, last=False))
    assert "  1 actor " in said
    assert said.endswith("  1 dead letter")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "1s"),
        (4.2, "5s"),
        (59.5, "1m00s"),
        (61.0, "1m01s"),
        (7_100.0, "1h58m"),
        (3_600, "1h00m"),
    ],
)
def test_how_long_a_release_is_behind_is_rounded_up(seconds: float, shown: str):
    said = words(Behind(RUN, 1, 3, 1, seconds))
    assert f"what changed in the last {shown} is not in it (at most 1 document)" in said


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(Storage.open(str(tmp_path)), RUN)


def events_of(run: Run) -> list[Event]:
    """What the lines of a run's journal describe."""
    lines = run.storage.read_bytes(run.path("events.jsonl")).splitlines()
    records = [json.loads(line) for line in lines]
    assert all(record.pop("at") for record in records)
    return [decode(KINDS[record.pop("stage")], record) for record in records]


def test_the_journal_of_a_run_is_read_back_as_the_events_that_were_emitted(run: Run):
    journal = Journal(run.storage)
    for event in EVENTS:
        journal(event)
    kept = [event for event in EVENTS if not isinstance(event, Working | Progress)]
    assert events_of(run) == kept
    again = Journal(run.storage)
    again(Resumed(RUN, 2, 2, 1))
    assert events_of(run) == [*kept, Resumed(RUN, 2, 2, 1)]


def test_a_run_that_is_neither_planned_nor_resumed_has_no_journal(run: Run):
    journal = Journal(run.storage)
    for event in (Notice("source.filter keeps 3 rows"), AlreadyBuilt(RUN, RUN)):
        journal(event)
    assert not list(run.storage.objects("runs/"))


def test_the_last_figures_are_kept_and_a_store_that_fails_ends_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch
):
    journal = Journal(run.storage)
    journal(Resumed(RUN, 0, 2, 1))
    journal(Progress(FIGURES, eta_s=4, waiting=None, last=False))
    assert run.storage.read_if_there(run.path("progress.json")) is None, "it is not due yet"
    journal(Progress(FIGURES, eta_s=4, waiting="a unit", last=True))
    assert run.storage.read(run.path("progress.json"))["waiting"] == "a unit"

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Storage, "write", full)
    journal(Progress(FIGURES, eta_s=4, waiting="b", last=True))


def test_what_is_shown_of_a_run_is_what_its_journal_holds(corpus, make_config, quiet):
    config = make_config(corpus(60))
    release = full_rebuild(config, quiet, executor=Inline())
    storage = Storage.open(config.storage.root)
    kept = events_of(Run(storage, release.id))
    assert kept == [e for e in quiet.events if not isinstance(e, Working | Progress)]
    record = json.loads(storage.read_bytes(f"runs/{release.id}/progress.json"))
    assert record["figures"]["done"] == record["figures"]["total"] == 60

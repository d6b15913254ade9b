"""Several units in one process: who was at the model when it died, and what the model waits for."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from crash.killed import Outlived

from reembed.catalog.lease import workers
from reembed.catalog.runs import Run
from reembed.engine import attempts
from reembed.engine.executor import ALONE
from reembed.engine.presence import Presence
from reembed.store.storage import Storage

ROWS = 64


@pytest.fixture
def run(tmp_path):
    return Run(Storage.open(str(tmp_path)), "docs-0-v1-1")


def begun(run, unit, host=ALONE):
    return attempts.begin(run, unit, ROWS, host)


def at_work(run):
    return [[(b.unit, b.attempt) for b in worker.at_work] for worker in workers(run)]


def test_a_unit_is_in_the_record_from_before_the_model_may_take_it_until_it_left(run):
    presence, u, v = Presence(run, ALONE), begun(run, "u"), begun(run, "v")
    presence.announce(u)
    assert at_work(run) == [[("u", 1)]]
    presence.take(u)
    presence.announce(v)
    assert at_work(run) == [[("u", 1), ("v", 1)]]
    presence.leave(u)
    presence.take(v)
    assert at_work(run) == [[("u", 1), ("v", 1)]], "the model waits for no record"
    presence.save()
    assert at_work(run) == [[("v", 1)]]
    presence.leave(v)
    presence.save()
    assert at_work(run) == []


def test_a_unit_that_was_tried_before_is_recorded_alone_and_exactly(run):
    begun(run, "u")
    presence, u, v, w = Presence(run, ALONE), begun(run, "u"), begun(run, "v"), begun(run, "w")
    presence.announce(v)
    presence.announce(u)
    presence.take(u)
    assert at_work(run) == [[("u", 2)]]
    presence.announce(w)
    assert at_work(run) == [[("u", 2)]]
    presence.leave(u)
    assert at_work(run) == [[("v", 1), ("w", 1)]]


def test_while_a_provider_is_waited_for_nobody_is_at_work_and_then_all_are(run):
    presence, u, v = Presence(run, ALONE), begun(run, "u"), begun(run, "v")
    presence.announce(u)
    presence.take(u)
    (before,) = workers(run)
    presence.pause()
    presence.announce(v)
    assert at_work(run) == []
    presence.take(u)
    assert at_work(run) == [[("u", 1), ("v", 1)]]
    assert workers(run)[0].tries == before.tries + 1


def test_one_request_stands_for_the_changes_of_several_threads(run, monkeypatch):
    presence, writes, go_on = Presence(run, ALONE), [], threading.Event()
    plain = Storage.write
    all_begun = [begun(run, f"u{n}") for n in range(6)]

    def write(storage, path, record):
        writes.append(path)
        assert go_on.wait(30)
        plain(storage, path, record)

    monkeypatch.setattr(Storage, "write", write)
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(presence.announce, all_begun[0])
        while not writes:
            pass
        others = [pool.submit(presence.announce, attempt) for attempt in all_begun[1:]]
        while len(presence._units) < 6:
            pass
        go_on.set()
        for announced in (first, *others):
            announced.result(30)
    assert len(writes) == 2
    assert len(at_work(run)[0]) == 6


@pytest.mark.parametrize("killers", [{0}, {40}, {3, 63}])
def test_beside_a_unit_that_kills_its_process_another_is_tried_a_few_times_and_never_suspected(
    run, killers
):
    """As an actor does: both are announced at once, and the one with fewer deaths goes first."""
    host, left, tried = Outlived(), {"u", "v"}, {"u": 0, "v": 0}
    while left:
        presence = Presence(run, host)
        both = {name: begun(run, name, host) for name in sorted(left)}
        for name, attempt in both.items():
            tried[name] += 1
            presence.announce(attempt)
        for name in sorted(left, key=lambda name: both[name].deaths):
            attempt = both[name]
            presence.take(attempt)
            kills = killers if name == "u" else set()
            if any(kills & set(range(*piece)) for piece in attempt.ranges()):
                break  # the process is gone, with its records
            presence.leave(attempt)
            left.remove(name)
    assert both["u"].poison == killers
    assert tried["u"] <= 3 + 5 * len(killers)
    assert tried["v"] <= 3
    assert not attempts.begin(run, "v", ROWS, host)._careful

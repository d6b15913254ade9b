"""The deadline counts the time of the unit that the model is at, and no other's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from reembed.catalog.runs import Run
from reembed.config.settings import EmbedConfig
from reembed.engine import attempts, watchdog
from reembed.engine.executor import ALONE
from reembed.engine.presence import Presence
from reembed.engine.watchdog import Watchdog
from reembed.store.storage import Storage


@pytest.fixture
def run(tmp_path):
    return Run(Storage.open(str(tmp_path)), "docs-0-v1-1")


@pytest.fixture
def look(run, monkeypatch):
    """look(seconds) -> the units whose worker was ended by then, over a deadline of 10 s."""
    ended, clock = [], [0.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(watchdog.nodes, "end_embedder", lambda actor, pid: True)
    plan = SimpleNamespace(resume="reembed run")
    job = SimpleNamespace(run=run, embed=EmbedConfig(unit_deadline_s=10), plan=plan)
    watching = Watchdog(job, [], lambda event: ended.append(event.unit))

    def at(seconds):
        clock[0] = seconds
        watching.look()
        return ended

    return at


def begun(run, *units):
    return [attempts.begin(run, unit, 8, ALONE) for unit in units]


def test_a_unit_that_waits_for_the_model_has_no_deadline_yet(run, look):
    presence, (u, v) = Presence(run, ALONE), begun(run, "u", "v")
    presence.announce(u)
    presence.take(u)
    presence.announce(v)
    assert look(5) == look(12) == []
    presence.leave(u)
    presence.take(v)
    presence.save()
    assert look(18) == look(24) == []
    assert look(30) == ["v"]


def test_a_unit_whose_provider_was_waited_for_gets_its_whole_time_again(run, look):
    presence, (u,) = Presence(run, ALONE), begun(run, "u")
    presence.announce(u)
    presence.take(u)
    assert look(5) == look(12) == []
    presence.pause()
    presence.take(u)
    assert look(18) == look(26) == []
    assert look(30) == ["u"]

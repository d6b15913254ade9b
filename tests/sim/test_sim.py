"""Histories of everything at once hold what is promised, and would notice if it were not so."""

from __future__ import annotations

import pytest

from sim import history, lazy_history
from sim.run import SUITES, histories, planted_bugs, planted_bugs_without_faults, replay

HISTORIES = {"history": 150, "lazy": 10}
"""Played here; `make chaos` plays 300 others of each."""
CALM_SEED = 5
"""Of a history that runs, promotes, catches up and removes, which the code without a bug passes."""

pytestmark = pytest.mark.deep


@pytest.mark.parametrize(
    ("suite", "kinds"), [("history", history.KINDS), ("lazy", lazy_history.KINDS)]
)
def test_seeds_replay_step_for_step(suite, kinds):
    # In new processes: Lance remembers paths.
    once, again = (replay(range(len(kinds)), suite) for _ in range(2))
    assert [p["steps_sha"] for p in once] == [p["steps_sha"] for p in again]
    assert all(p["steps"] > 20 for p in once)  # a process may die early
    assert sum(p["steps"] for p in once) > 50 * len(once)


@pytest.mark.timeout(900)
def test_no_history_violates_anything():
    count = HISTORIES["history"]
    found = histories(count)
    assert not found["violations"], "replay: python tests/sim/run.py --seed SEED"
    assert found["histories"] == count
    assert found["crashes"] > count
    assert min(found["lose"], found["fail"], found["presumed"]) > 50
    assert min(found[what] for what in ("grown", "merged", "tombstones", "rebuilt")) > 5


@pytest.mark.timeout(900)
def test_no_history_of_a_lazy_migration_violates_anything():
    count = HISTORIES["lazy"]
    found = histories(count, suite="lazy")
    assert not found["violations"], "replay: python tests/sim/run.py --lazy --seed SEED"
    assert found["histories"] == count
    assert min(found["crashes"], found["lose"], found["presumed"]) > 5


@pytest.mark.timeout(900)
@pytest.mark.parametrize("suite", sorted(SUITES))
def test_every_planted_bug_is_caught(suite):
    found = planted_bugs(suite=suite, again=True)
    missed = [b["bug"] for b in found["bugs"] if not b["caught"]]
    assert not missed
    assert found["mutants"] == len(SUITES[suite].bugs) >= 20


def test_a_planted_bug_leaves_a_program_that_works_while_nothing_fails():
    found = planted_bugs_without_faults(CALM_SEED)
    assert not [b for b in found if b["exception"]]
    harmful = {b["bug"]: b["violations"] for b in found if b["violations"]}
    assert not SUITES["history"].harmless & harmful.keys(), harmful

"""Histories of everything at once hold what is promised, and would notice if it were not so."""

from __future__ import annotations

import pytest

from sim import mutants
from sim.history import KINDS
from sim.run import histories, planted_bugs, planted_bugs_without_faults, replay

HISTORIES = 300
CALM_SEED = 5
"""Of a history that runs, promotes, catches up and removes, which the code without a bug passes."""

pytestmark = pytest.mark.deep


def test_seeds_replay_step_for_step():
    seeds = range(len(KINDS))
    once, again = (replay(seeds) for _ in range(2))  # in new processes: Lance remembers paths
    assert [p["steps_sha"] for p in once] == [p["steps_sha"] for p in again]
    assert all(p["steps"] > 20 for p in once)  # a process may die early
    assert sum(p["steps"] for p in once) > 50 * len(once)


@pytest.mark.timeout(900)
def test_no_history_violates_anything():
    found = histories(HISTORIES)
    assert not found["violations"], "replay: python tests/sim/run.py --seed SEED"
    assert found["histories"] == HISTORIES
    assert found["crashes"] > HISTORIES
    assert min(found["lose"], found["fail"], found["presumed"]) > 100
    assert min(found[what] for what in ("grown", "merged", "tombstones", "rebuilt")) > 10


@pytest.mark.timeout(900)
def test_every_planted_bug_is_caught():
    found = planted_bugs()
    missed = [b["bug"] for b in found["bugs"] if not b["caught"]]
    assert not missed
    assert found["mutants"] == len(mutants.BUGS) >= 15


def test_a_planted_bug_leaves_a_program_that_works_while_nothing_fails():
    found = planted_bugs_without_faults(CALM_SEED)
    assert not [b for b in found if b["exception"]]
    harmful = {b["bug"]: b["violations"] for b in found if b["violations"]}
    assert not mutants.UNDER_FAULTS & harmful.keys(), harmful

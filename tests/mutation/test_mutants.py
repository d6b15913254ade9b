"""What `make mutants` changes, what it leaves alone, and how a survivor is explained."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mutation import runner
from mutation.code import mutants_of, says_otherwise

ROOT = Path(__file__).parents[2]
GUARDED = '''"""A module."""
from errors import RunFailed

LIMIT = 3


def seal(rows, files, emit):
    """Text of a docstring."""
    emit(Working("sealing"))
    check(files)
    if not rows or len(rows) > LIMIT:
        raise RunFailed(f"{rows} rows", "too many rows", "reembed run")
    kept = [r for r in rows if r.live]
    return kept
'''


@pytest.fixture
def mutants(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from bench import mutants

    return mutants


def found(folder: Path, source: str = GUARDED) -> list:
    (folder / "m.py").write_text(source)
    made = mutants_of(folder / "m.py", folder)
    return [m for m in made if says_otherwise(m.code(source), source)]


@pytest.mark.parametrize(
    "after",
    [
        "LIMIT = 4",
        "pass",  # check(files), and the raise
        "if rows or len(rows) > LIMIT:",
        "if (not rows and len(rows) > LIMIT):",
        "if not rows:",
        "if len(rows) > LIMIT:",
        "if not rows or len(rows)>= LIMIT:",
        "if False:",
        "if True:",
        "kept = [r for r in rows if True]",
        "kept = None",
        "check(None)",
    ],
)
def test_a_guard_is_weakened_in_every_way(tmp_path: Path, after: str) -> None:
    assert after in {m.after for m in found(tmp_path)}


def test_what_a_program_says_is_left_alone(tmp_path: Path) -> None:
    changed = {m.before for m in found(tmp_path)}
    assert not any("emit(" in line or "docstring" in line or "import" in line for line in changed)
    raised = [m for m in found(tmp_path) if "RunFailed" in m.before]
    assert {m.after for m in raised} == {"pass"}


def test_a_key_outlives_edits_elsewhere(tmp_path: Path) -> None:
    moved = GUARDED.replace("LIMIT = 3", "LIMIT = 3\nOTHER = 'x'\n")
    keys = {m.key for m in found(tmp_path)}
    assert len(keys) == len(found(tmp_path))
    assert keys < {m.key for m in found(tmp_path, moved)}


def test_the_draw_is_even_over_modules_and_kinds_and_always_the_same(mutants) -> None:
    modules = (
        "reembed/strategies/restage.py",
        "reembed/source/lag.py",
        "reembed/table/provenance.py",
    )
    drawn = mutants.draw(modules, 24, seed=3)
    assert [m.key for m in drawn] == [m.key for m in mutants.draw(modules, 24, seed=3)]
    per_module = [[m for m in drawn if m.module == name] for name in modules]
    assert [len(part) for part in per_module] == [8, 8, 8]
    assert all(len({m.operator for m in part}) >= 6 for part in per_module)


def test_every_module_has_its_share_of_the_draw(mutants) -> None:
    drawn = mutants.draw(mutants.MODULES, mutants.COUNT, seed=10)
    assert len(drawn) == mutants.COUNT
    assert {m.module for m in drawn} == set(mutants.MODULES)


def test_survivors_are_counted_unless_they_are_explained(mutants, tmp_path: Path) -> None:
    drawn = mutants.draw(("reembed/strategies/restage.py",), 4, seed=3)
    results = mutants.Results(tmp_path / "results.jsonl")
    for mutant, outcome in zip(
        drawn, ("killed", "timed out", "survived", "unreached"), strict=True
    ):
        results.add(mutant, outcome, None, 1.0)
    key = drawn[2].key.removeprefix("reembed/strategies/restage.py · ")
    why = mutants.explanations(
        f"## `reembed/strategies/restage.py`\n\n- {key}: it changes nothing\n"
    )
    assert why == {drawn[2].key: "it changes nothing"}
    figures = mutants.report(drawn, results, why)
    counts = [figures[k] for k in ("mutants", "killed", "explained", "survived")]
    assert counts == [4, 2, 1, 1]
    assert drawn[3].key in figures["unexplained"][0]


def test_a_run_goes_on_where_it_was(mutants, tmp_path: Path) -> None:
    drawn = mutants.draw(("reembed/strategies/restage.py",), 3, seed=3)
    results = mutants.Results(tmp_path / "results.jsonl")
    results.add(drawn[0], "killed", "a test", 1.0)
    results.add(drawn[1], "survived", None, 1.0)
    again = mutants.Results(tmp_path / "results.jsonl")
    assert [again.stands(m) for m in drawn] == [True, False, False]
    assert again.kills == {"a test": 1}
    record = json.loads((tmp_path / "results.jsonl").read_text().splitlines()[0])
    again.found[drawn[0].key] = {**record, "file": "of another content"}
    assert not again.stands(drawn[0])


def test_every_explanation_is_of_a_mutant_that_is_there(mutants) -> None:
    why = mutants.explanations(mutants.EXPLAINED.read_text(encoding="utf-8"))
    items = re.findall(r"(?m)^- \S+ · ", mutants.EXPLAINED.read_text(encoding="utf-8"))
    assert len(why) == len(items)
    modules = {key.partition(" · ")[0] for key in why}
    there = {m.key for name in modules for m in mutants_of(ROOT / name, ROOT)}
    assert why.keys() <= there


def test_a_survivor_meets_only_tests_that_are_new_or_changed(mutants, tmp_path: Path) -> None:
    (mutant,) = mutants.draw(("reembed/strategies/restage.py",), 1, seed=3)
    here, gone = "tests/mutation/test_mutants.py::test_a", "tests/mutation/test_mutants.py::test_b"
    reach = runner.Map(
        {here: 1.0, gone: 2.0}, {mutant.module: {mutant.first_line: {here, gone}}}, []
    )
    results = mutants.Results(tmp_path / "results.jsonl")
    results.add(mutant, "survived", None, 1.0, [here])
    results = mutants.Results(tmp_path / "results.jsonl")
    assert mutants.chosen(reach, mutant, results.kills, results.met(mutant)) == [gone]
    results.add(mutant, "survived", None, 1.0, [gone])
    assert mutants.chosen(reach, mutant, results.kills, results.met(mutant)) == []
    results.found[mutant.key]["file"] = "of another content"
    assert mutants.chosen(reach, mutant, results.kills, results.met(mutant)) == [here, gone]


def test_of_what_tests_reach_only_those_that_changed_are_found_again() -> None:
    before = {
        "stamps": {"reembed/a.py": "1", "tests/conftest.py": "1", "tests/test_x.py": "1", "tests/test_y.py": "1"},
        "seconds": {"tests/test_x.py::t": 1.0, "tests/test_y.py::t": 2.0, "tests/test_y.py::u": 3.0},
        "lines": {"reembed/a.py": {"1": [0, 1], "2": [2]}},
        "failed": ["tests/test_x.py::t"],
    }  # fmt: skip
    now = {**before["stamps"], "tests/test_x.py": "2", "tests/test_z.py": "1"}
    kept = runner._still_true(before, now)
    assert kept["seconds"] == {"tests/test_y.py::t": 2.0, "tests/test_y.py::u": 3.0}
    assert kept["failed"] == []
    lines = {"reembed/a.py": {"2": [0], "3": [0]}}
    again = {"seconds": {"tests/test_x.py::t": 4.0}, "lines": lines, "failed": []}
    joined = runner._map(runner._joined(kept, again))
    (x,), (t, u) = again["seconds"], kept["seconds"]
    assert joined.lines == {"reembed/a.py": {1: {t}, 2: {u, x}, 3: {x}}}
    for file in ("reembed/a.py", "tests/conftest.py"):
        assert runner._still_true(before, {**now, file: "2"}) is None


def test_the_tests_that_run_are_chosen_by_marks_that_exist(pytestconfig: pytest.Config) -> None:
    """pytest would run none at all, and every mutant would survive."""
    marks = {line.partition(":")[0] for line in pytestconfig.getini("markers")}
    assert set(re.findall(r"not (\w+)", runner.MARKS)) <= marks

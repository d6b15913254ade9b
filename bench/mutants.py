"""Small changes to the modules that hold the promises: each must fail a test, or be explained.

Drawn evenly over the modules, and over the kinds of change within one; the same ones every time, as
long as the code stays the same. A run that was ended goes on where it was. What a test noticed once
counts until its file changes; what survived is tried again by tests that it did not meet yet, unless
docs/mutants.md explains why it does no harm. Exits 1 where something survives that is not explained.

    python bench/mutants.py --module reembed/lifecycle/gc.py --jobs 1       # one file, one core
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from bench import common  # noqa: E402 - the path comes first

NAME = "mutants"
MODULES = tuple(
    f"reembed/{name}.py"
    for name in (
        "catalog/alias", "catalog/lease", "catalog/plan", "catalog/releases", "catalog/runs", "encoders/golden",
        "encoders/local/files",
        "engine/attempts", "engine/documents", "engine/executor", "engine/patience", "engine/reuse", "engine/worker",
        "evaluation/comparisons", "evaluation/gate", "evaluation/looks", "evaluation/sequential", "evaluation/shadows",
        "evaluation/terms", "index/cut", "index/files", "index/grow", "index/held", "index/placed",
        "lifecycle/differences", "lifecycle/gc", "lifecycle/grown", "lifecycle/holdover", "lifecycle/verification",
        "lifecycle/candidates", "lifecycle/complete", "lifecycle/promote",
        "lifecycle/reading", "lifecycle/scratch", "lifecycle/verify", "serving/live",
        "source/dataset", "source/delta", "source/lag", "source/opening", "store/moved",
        "store/storage",
        "strategies/catch_up", "strategies/catch_up_plan", "strategies/changes",
        "strategies/differing", "strategies/dual_index", "strategies/index_kind", "strategies/index_tasks",
        "strategies/lance_growing", "strategies/restage", "strategies/unique_ids", "strategies/up_to_date",
        "table/documents", "table/provenance", "table/read", "table/seal", "table/write",
    )
)  # fmt: skip
EXPLAINED = ROOT / "docs" / "mutants.md"
KEPT = ROOT / ".mutants"
COUNT = 17 * len(MODULES)
JOBS = 2
TESTS_S = 45.0
"""Seconds of tests for one mutant at most: those most likely to notice come first."""


def main() -> None:
    args = _arguments()
    started = time.monotonic()
    drawn = draw(args.module or MODULES, args.count, args.seed)
    common.say(f"mutants: {len(drawn):,}")
    results = Results(KEPT / "results.jsonl")
    why = explanations(EXPLAINED.read_text(encoding="utf-8"))
    try_all([m for m in drawn if not (m.key in why and results.met(m))], results, args.jobs)
    figures = report(drawn, results, why)
    figures["seconds"] = round(time.monotonic() - started, 1)
    for key in figures["unexplained"]:
        common.say(f"SURVIVED {key}")
    if args.out or not args.module:
        common.finish(NAME, args, figures)
    sys.exit(1 if figures["survived"] else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"bench/{NAME}.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--count", type=int, default=COUNT, help="how many [%(default)s]")
    parser.add_argument("--seed", type=int, default=10, help="of the draw [%(default)s]")
    parser.add_argument("--jobs", type=int, default=JOBS, help="at once [%(default)s]")
    parser.add_argument("--module", action="append", help="only this file; no record is kept")
    parser.add_argument(
        "--out", type=Path, help=f"where the record goes [bench/results/{NAME}.json]"
    )
    return common.parse(parser)


def draw(modules: Any, count: int, seed: int) -> list[Any]:
    """As many from each module as it has, up to an even share; what is left goes to the others."""
    return list(itertools.islice(_in_turn([_drawn(module, seed) for module in modules]), count))


def _drawn(module: str, seed: int) -> Iterator[Any]:
    """The mutants of a file, one of each kind of change in turn."""
    from mutation.code import mutants_of, says_otherwise

    file = ROOT / module
    source, kinds = file.read_text(encoding="utf-8"), defaultdict(list)
    for mutant in sorted(mutants_of(file, ROOT), key=lambda m: m.order(seed)):
        kinds[mutant.operator].append(mutant)
    in_turn = _in_turn([iter(kinds[k]) for k in sorted(kinds)])
    return (m for m in in_turn if says_otherwise(m.code(source), source))


def _in_turn(rows: list[Iterator[Any]]) -> Iterator[Any]:
    turns = itertools.chain.from_iterable(itertools.zip_longest(*rows))
    return (m for m in turns if m is not None)


class Results:
    """Outcomes by mutant, appended to a file as they come."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = file.read_text().splitlines() if file.exists() else []
        self.found = {r["key"]: r for r in map(json.loads, lines)}
        self.kills = Counter(r["by"] for r in self.found.values() if r["by"])

    def add(
        self, mutant: Any, outcome: str, by: str | None, seconds: float, met: Iterable[str] = ()
    ) -> None:
        met = {met_as(t) for t in met} | self.met(mutant)
        record = {"key": mutant.key, "file": sha256(mutant.module), "outcome": outcome, "by": by,
                  "seconds": round(seconds, 1), "met": sorted(met) if by is None else []}  # fmt: skip
        self.found[mutant.key] = record
        self.kills[by] += by is not None
        with self.file.open("a") as out:
            out.write(json.dumps(record) + "\n")

    def met(self, mutant: Any) -> set[str]:
        """Tests that it survived, its file being what it was: see `met_as`."""
        found = self.found.get(mutant.key)
        same = found and found["file"] == sha256(mutant.module)
        return set(found.get("met", ())) if found and same else set()

    def stands(self, mutant: Any) -> bool:
        """Whether it was noticed already, the file being what it was."""
        found = self.found.get(mutant.key)
        return bool(
            found and found["file"] == sha256(mutant.module)
            and found["outcome"] in ("killed", "timed out")
        )  # fmt: skip


@functools.cache
def sha256(file: str) -> str:
    """Of a file."""
    return hashlib.sha256((ROOT / file).read_bytes()).hexdigest()


@functools.cache
def met_as(test: str) -> str:
    """Short digest of a test's name and its file."""
    file = test.partition("::")[0]
    return hashlib.sha256(f"{test} {sha256(file)}".encode()).hexdigest()[:12]


def try_all(drawn: list[Any], results: Results, jobs: int) -> None:
    """Try those that were not noticed yet, some at once."""
    from mutation import runner

    todo = [m for m in drawn if not results.stands(m)]
    if not todo:
        return
    sources = {m.module: (ROOT / m.module).read_text(encoding="utf-8") for m in todo}
    runner.load_heavy()
    common.say("which test reaches which line")
    reach = runner.make_map(list(MODULES), KEPT / "map.json")
    common.say(
        f"{len(reach.seconds):,} tests, {sum(reach.seconds.values()):.0f} s; to try: {len(todo):,}"
    )
    for test in reach.failed:
        common.say(f"left out, as it fails without any mutant: {test}")
    waiting, at_work = iter(todo), dict[Any, Any]()
    done = 0
    while True:
        while len(at_work) < jobs and (mutant := next(waiting, None)) is not None:
            tests = chosen(reach, mutant, results.kills, results.met(mutant))
            if not tests:
                survived = runner.SURVIVED if results.met(mutant) else runner.UNREACHED
                results.add(mutant, survived, None, 0)
                continue
            code = mutant.code(sources[mutant.module])
            expected = sum(reach.seconds[t] for t in tests)
            at_work[mutant] = runner.begin(mutant.module, code, tests, expected), tests
        if not at_work:
            return
        for mutant, (trial, tests) in list(at_work.items()):
            if (outcome := trial.outcome()) is not None:
                del at_work[mutant]
                done += 1
                what, by = outcome
                results.add(mutant, what, by, time.monotonic() - trial.started, tests)
                if done % 20 == 0:
                    common.say(f"{done:,} of {len(todo):,}")
        time.sleep(0.02)


def chosen(reach: Any, mutant: Any, kills: Counter[str], met: Container[str] = ()) -> list[str]:
    """Tests that reach it and that it did not meet, those that noticed the most others first, within
    the time for one mutant."""
    found = reach.reaching(mutant.module, mutant.first_line, mutant.last_line)
    tests = [t for t in found if met_as(t) not in met]
    tests.sort(key=lambda t: (reach.seconds[t] / (1 + kills[t]), t))
    spent = itertools.accumulate(reach.seconds[t] for t in tests)
    return [t for t, s in zip(tests, spent, strict=True) if s <= TESTS_S] or tests[:1]


def explanations(text: str) -> dict[str, str]:
    """Why a survivor does no harm, by its key: the list items of docs/mutants.md."""
    found, module = {}, ""
    for line in text.splitlines():
        if line.startswith("## "):
            module = line.removeprefix("## ").strip("`")
        elif match := re.fullmatch(r"- (\S+ · \S+(?: #\d+)? · `.*` → `.*`): (.+)", line):
            found[f"{module} · {match[1]}"] = match[2]
    return found


def report(drawn: list[Any], results: Results, why: dict[str, str]) -> common.Figures:
    """Figures in all and for each module; what survived without an explanation."""
    modules: dict[str, Counter[str]] = defaultdict(Counter)
    unexplained, outcomes = [], Counter[str]()
    for mutant in drawn:
        outcome = results.found[mutant.key]["outcome"]
        outcomes[outcome] += 1
        noticed = outcome in ("killed", "timed out")
        kind = "killed" if noticed else "explained" if mutant.key in why else "survived"
        modules[mutant.module].update({"mutants": 1, kind: 1})
        if kind == "survived":
            unexplained.append(f"{mutant.key}   [{mutant.module}:{mutant.first_line}, {outcome}]")
    kinds = ("mutants", "killed", "explained", "survived")
    return {
        **{k: sum(counts[k] for counts in modules.values()) for k in kinds},
        "timed_out": outcomes["timed out"],
        "modules": {m: {k: counts[k] for k in kinds} for m, counts in sorted(modules.items())},
        "operators": dict(sorted(Counter(m.operator for m in drawn).items())),
        "unexplained": unexplained,
    }


if __name__ == "__main__":
    main()

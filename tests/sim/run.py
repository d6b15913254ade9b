"""Play histories, or one seed again with every step shown; with --lazy those of lazy migrations.

python tests/sim/run.py --histories 1000
python tests/sim/run.py --seed 17
python tests/sim/run.py --bugs --lazy     # which planted bugs are caught: notes the histories in caught.json
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (1, 2)]

from sim import history, lazy_mutants, mutants  # noqa: E402 - the path comes first

JOBS = os.cpu_count() or 1
COUNTED = (
    *("steps", "die", "fail", "lose", "switch", "presumed"),
    *("grown", "merged", "tombstones", "rebuilt"),
)
"""Of each history. The last four: indexes that grew, some by merging deltas; their tombstones; those built again."""


SUITES = {s.name: s for s in (mutants.SUITE, lazy_mutants.SUITE)}


def histories(
    count: int, first: int = 0, jobs: int = JOBS, suite: str = "history"
) -> dict[str, Any]:
    """Counts over `count` seeds from `first`, and every violation with its seed."""
    started, total = time.monotonic(), Counter[str]()
    violations: list[dict[str, Any]] = []
    with _pool(jobs) as pool:
        for played in pool.imap_unordered(partial(_play, suite), range(first, first + count)):
            total["histories"] += 1
            for key in COUNTED:
                total[key] += played.get(key, 0)
            total[played["kind"]] += 1
            if played["violations"]:
                violations.append({k: played[k] for k in ("seed", "kind", "violations")})
    return {
        **total,
        "crashes": total["die"],
        "violations": violations,
        "seeds": [first, first + count - 1],
        "seconds": round(time.monotonic() - started, 1),
    }


def replay(seeds: Iterable[int], suite: str = "history") -> list[dict[str, Any]]:
    """Play seeds, in one process."""
    with _pool(1) as pool:
        return list(pool.imap(partial(_play, suite), seeds))


def planted_bugs(
    seeds: int = mutants.SEEDS, jobs: int = JOBS, suite: str = "history", *, again: bool = False
) -> dict[str, Any]:
    """Which planted bugs the histories caught, and within how many; `again`: where they did last, if they still do."""
    started = time.monotonic()
    with _pool(jobs) as pool:
        tried = partial(_caught, suite, seeds, again)
        found = pool.map(tried, SUITES[suite].bugs, chunksize=1)
    return {
        "mutants": len(found),
        "mutants_caught": sum(f["caught"] for f in found),
        "bugs": found,
        "seconds": round(time.monotonic() - started, 1),
    }


def planted_bugs_without_faults(
    seed: int, jobs: int = JOBS, suite: str = "history"
) -> list[dict[str, Any]]:
    """What each planted bug does by itself."""
    with _pool(jobs) as pool:
        found: list[dict[str, Any]] = pool.map(
            partial(_calm, suite, seed), SUITES[suite].bugs, chunksize=1
        )
    return found


def _pool(jobs: int) -> Any:
    # Spawned: Lance's threads do not survive a fork. Renewed: what a bug broke goes with its process.
    return multiprocessing.get_context("spawn").Pool(jobs, _quiet, maxtasksperchild=50)


def _quiet() -> None:
    os.nice(10)  # tests beside it have deadlines
    os.environ |= {"LANCE_LOG": "error", "OMP_NUM_THREADS": "1"}
    logging.disable(logging.CRITICAL)  # what a serving process would tell its operator
    warnings.simplefilter("ignore")


def _play(suite: str, seed: int) -> dict[str, Any]:
    played = history.play(seed, place=suite, of=SUITES[suite].of)
    played.pop("trace")
    return played


def _caught(suite: str, seeds: int, again: bool, name: str) -> dict[str, Any]:
    return SUITES[suite].caught(name, seeds, again=again)


def _calm(suite: str, seed: int, name: str) -> dict[str, Any]:
    return SUITES[suite].calm(name, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="play this one, and show every step")
    parser.add_argument("--histories", type=int, default=300, help="[%(default)s]")
    parser.add_argument("--first", type=int, default=0, help="first seed [%(default)s]")
    parser.add_argument("--lazy", action="store_true", help="histories of lazy migrations")
    parser.add_argument("--bugs", action="store_true", help="plant each bug, and catch it")
    args = parser.parse_args()
    suite = "lazy" if args.lazy else "history"
    if args.seed is not None:
        played = history.play(args.seed, place=suite, of=SUITES[suite].of)
        print("\n".join(played.pop("trace")))
        print(json.dumps(played, indent=2))
        sys.exit(bool(played["violations"]))
    if args.bugs:
        caught = planted_bugs(suite=suite)
        SUITES[suite].note(caught["bugs"])
        print(json.dumps(caught, indent=2))
        sys.exit(caught["mutants_caught"] < caught["mutants"])
    found = histories(args.histories, args.first, suite=suite)
    print(json.dumps(found, indent=2))
    sys.exit(bool(found["violations"]))


if __name__ == "__main__":
    main()

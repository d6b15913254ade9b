"""Play histories, or one seed again with every step shown.

python tests/sim/run.py --histories 1000
python tests/sim/run.py --seed 17
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (1, 2)]

from sim import history, mutants  # noqa: E402 - the path comes first

JOBS = os.cpu_count() or 1
COUNTED = (
    *("steps", "die", "fail", "lose", "switch", "presumed"),
    *("grown", "merged", "tombstones", "rebuilt"),
)
"""Of each history. The last four: indexes that grew, some by merging deltas; their tombstones; those built again."""


def histories(count: int, first: int = 0, jobs: int = JOBS) -> dict[str, Any]:
    """Counts over `count` seeds from `first`, and every violation with its seed."""
    started, total = time.monotonic(), Counter[str]()
    violations: list[dict[str, Any]] = []
    with _pool(jobs) as pool:
        for played in pool.imap_unordered(_play, range(first, first + count)):
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


def replay(seeds: Iterable[int]) -> list[dict[str, Any]]:
    """Play seeds, in one process."""
    with _pool(1) as pool:
        return list(pool.imap(_play, seeds))


def planted_bugs(seeds: int = mutants.SEEDS, jobs: int = JOBS) -> dict[str, Any]:
    """Which planted bugs the histories caught, and within how many."""
    started = time.monotonic()
    with _pool(jobs) as pool:
        found = pool.starmap(_caught, [(name, seeds) for name in mutants.BUGS], chunksize=1)
    return {
        "mutants": len(found),
        "mutants_caught": sum(f["caught"] for f in found),
        "bugs": found,
        "seconds": round(time.monotonic() - started, 1),
    }


def planted_bugs_without_faults(seed: int, jobs: int = JOBS) -> list[dict[str, Any]]:
    """What each planted bug does by itself."""
    with _pool(jobs) as pool:
        found: list[dict[str, Any]] = pool.starmap(
            _calm, [(name, seed) for name in mutants.BUGS], chunksize=1
        )
    return found


def _pool(jobs: int) -> Any:
    # Spawned: Lance's threads do not survive a fork. Renewed: what a bug broke goes with its process.
    return multiprocessing.get_context("spawn").Pool(jobs, _quiet, maxtasksperchild=50)


def _quiet() -> None:
    os.nice(10)  # tests beside it have deadlines
    os.environ |= {"LANCE_LOG": "error", "OMP_NUM_THREADS": "1"}
    warnings.simplefilter("ignore")


def _play(seed: int) -> dict[str, Any]:
    played = history.play(seed)
    played.pop("trace")
    return played


def _caught(name: str, seeds: int) -> dict[str, Any]:
    return mutants.caught(name, seeds)


def _calm(name: str, seed: int) -> dict[str, Any]:
    return mutants.calm(name, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="play this one, and show every step")
    parser.add_argument("--histories", type=int, default=300, help="[%(default)s]")
    parser.add_argument("--first", type=int, default=0, help="first seed [%(default)s]")
    args = parser.parse_args()
    if args.seed is not None:
        played = history.play(args.seed)
        print("\n".join(played.pop("trace")))
        print(json.dumps(played, indent=2))
        sys.exit(bool(played["violations"]))
    found = histories(args.histories, args.first)
    print(json.dumps(found, indent=2))
    sys.exit(bool(found["violations"]))


if __name__ == "__main__":
    main()

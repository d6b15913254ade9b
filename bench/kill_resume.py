"""Kill the driver of a run at random moments, resume it, and compare with a run left alone.

The same job is run in two roots. In the first nothing happens. In the second the driver is killed
(SIGKILL) at seeded random moments, spread over the stages, and the same command started again at
once each time. Then the two tables are compared row for row. Exits 1 when they differ.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import common

NAME = "kill_resume"
LATER = ("embedded", "table", "index", "verify")  # events after the last unit, in order
_POLL_S = 0.05
_MOST_DELAY_S = 2.0


def main() -> None:
    args = _arguments()
    with common.workdir(args) as folder, common.Reembed() as reembed:
        figures = measure(args, folder, reembed)
        figures["leftover_processes"] = len(reembed.leftovers(60))
    passed = figures["rows_equal"] and figures["max_abs_difference"] <= args.tolerance
    common.say("same table" if passed else "the tables DIFFER")
    common.finish(NAME, args, {**figures, "passed": passed})
    sys.exit(0 if passed else 1)


def _arguments() -> argparse.Namespace:
    parser = common.parser(NAME, __doc__)
    parser.add_argument("dir", type=Path, metavar="DIR", help="BEIR folder")
    parser.add_argument("--kills", type=int, default=5, help="[%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    parser.add_argument("--unit-documents", type=int, default=128, help="[%(default)s]")
    parser.add_argument("--units-in-flight", type=int, default=4, help="[%(default)s]")
    parser.add_argument(
        "--tolerance", type=float, default=1e-6, help="of a vector's numbers [%(default)s]"
    )
    common.add_limit(parser)
    return common.parse(parser)


def measure(args: argparse.Namespace, folder: Path, reembed: common.Reembed) -> common.Figures:
    """Both runs, and what differs."""
    source = common.import_corpus(reembed, args.dir, folder, args.limit)
    embed = {"unit_documents": args.unit_documents, "units_in_flight": args.units_in_flight}
    alone, killed = (
        common.write_config(folder, name, source, args, embed=embed) for name in ("alone", "killed")
    )
    common.say("a run left alone")
    started = time.monotonic()
    left_alone = reembed("run", "-c", str(alone))
    alone_s = time.monotonic() - started
    units = len(list((folder / "alone").glob("runs/*/units/*.json")))
    started = time.monotonic()
    kills = kill(args, reembed, folder, units)
    common.say("the last start, left alone")
    resumed = reembed("run", "-c", str(killed))
    killed_s = time.monotonic() - started
    return {
        "kills": len(kills),
        **compare(folder, left_alone, resumed),
        **attempts(folder / "killed"),
        "units_in_flight_bound": len(kills) * args.units_in_flight,
        "units": units,
        "moments": kills,
        "seconds_alone": round(alone_s, 1),
        "seconds_killed": round(killed_s, 1),
    }


# --- killing ---


def kill(
    args: argparse.Namespace, reembed: common.Reembed, folder: Path, units: int
) -> list[common.Figures]:
    """Start the driver and kill it, `args.kills` times; when each happened."""
    chance = random.Random(args.seed)
    steps = units + len(LATER)
    moments = []
    for number in range(args.kills):
        part = (number + chance.random()) / args.kills
        delay = chance.uniform(0, _MOST_DELAY_S)
        common.say(
            f"kill {number + 1}: when {part:.1%} of {steps} steps are done, and {delay:.2f} s"
        )
        moment = kill_at(reembed, folder, units, part, delay)
        if moment is None:
            common.say("the driver had finished before: no kill")
            break
        common.say(f"killed the driver: {json.dumps(moment)}")
        moments.append(moment)
    return moments


def kill_at(
    reembed: common.Reembed, folder: Path, units: int, part: float, delay: float
) -> common.Figures | None:
    """Start the driver, and kill it and nothing else when this part of the steps is done."""
    root = folder / "killed"
    before = steps_done(root, units)
    least = max(int(part * (units + len(LATER))), before + 1)
    step = min(least, units + len(LATER) - 1)  # after the last one there is little left to kill
    driver = reembed.start("run", "-c", str(folder / "killed.yaml"), stdout=subprocess.DEVNULL)
    started = time.monotonic()
    while driver.poll() is None and steps_done(root, units) < step:
        time.sleep(_POLL_S)
    try:
        driver.wait(delay)
    except subprocess.TimeoutExpired:
        driver.send_signal(signal.SIGKILL)
    if driver.wait() != -signal.SIGKILL:
        if driver.returncode:
            raise SystemExit(f"reembed run exited with {driver.returncode} when it was resumed")
        return None
    staged, begun = _names(root, "units/*.json"), _names(root, "attempts/*")
    return {
        "after_s": round(time.monotonic() - started, 1),
        "stage": stage(root) or "embed",
        "staged": len(staged),
        "begun_not_staged": len(begun - staged),
    }


def _names(root: Path, pattern: str) -> set[str]:
    return {path.stem for path in root.glob(f"runs/*/{pattern}")}


def steps_done(root: Path, units: int) -> int:
    """Units staged; once all are, also the stages after them."""
    last = stage(root)
    return units + 1 + LATER.index(last) if last else len(_names(root, "units/*.json"))


def stage(root: Path) -> str | None:
    """The furthest stage after the embedding that was completed."""
    reached = {event["stage"] for event in common.events(root)}
    return next((name for name in reversed(LATER) if name in reached), None)


# --- comparing ---


def compare(folder: Path, alone: common.Figures, killed: common.Figures) -> common.Figures:
    """The tables of two releases, row for row."""
    import numpy as np

    a_ids, a_texts, a_vectors = rows(folder / "alone", alone)
    b_ids, b_texts, b_vectors = rows(folder / "killed", killed)
    equal = a_ids == b_ids and a_texts == b_texts and len(set(a_ids)) == len(a_ids)
    comparable = a_vectors.shape == b_vectors.shape
    difference = float(np.abs(a_vectors - b_vectors).max()) if comparable else float("inf")
    return {
        "rows": len(b_ids),
        "rows_alone": len(a_ids),
        "rows_equal": equal,
        "max_abs_difference": difference,
        "vectors_bitwise_equal": comparable and a_vectors.tobytes() == b_vectors.tobytes(),
    }


def rows(root: Path, release: common.Figures) -> tuple[list[str], list[bytes], Any]:
    """Ids, text hashes and vectors of a release, by id."""
    import lance
    import numpy as np

    dataset = lance.dataset(str(root / release["table"]), version=release["table_version"])
    table = dataset.to_table(columns=["doc_id", "text_hash", "vector"]).sort_by("doc_id")
    column = table["vector"].combine_chunks()
    width = column.type.list_size
    vectors = np.asarray(column.flatten().to_numpy(zero_copy_only=False)).reshape(-1, width)
    return table["doc_id"].to_pylist(), table["text_hash"].to_pylist(), vectors


def attempts(root: Path) -> common.Figures:
    """How often units were begun, from the records that each attempt leaves before it starts."""
    begun = [len(list(unit.glob("*.json"))) for unit in root.glob("runs/*/attempts/*")]
    return {
        "units_embedded_twice": sum(n > 1 for n in begun),
        "attempts": sum(begun),
        "most_attempts": max(begun, default=0),
    }


if __name__ == "__main__":
    main()

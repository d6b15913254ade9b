"""Lazy migrations through faults: histories, file operations, S3 requests, planted bugs; a table of docs/faults.md.

Histories of processes that serve and migrate, of a writer and an operator, each killed at any step
(tests/sim/run.py --lazy --seed N replays one); what they must hold is computed apart from the program. The bugs are
planted one by one, and each must be noticed by the histories. Faults in file operations and S3 requests of a batch,
a sweep, a stop and the end (python -m crash.syscalls KIND AT lazy, and crash.s3_faults, with PYTHONPATH=tests).
Exits 1 on any violation.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from bench import common  # noqa: E402 - the path comes first

NAME = "lazy_chaos"
PAGE = ROOT / "docs/faults.md"
HISTORIES, SYSCALLS, S3 = 300, 35, 24


def main() -> None:
    args = _arguments()
    started = time.monotonic()
    figures = measure(args.times, args.first)
    figures["seconds"] = round(time.monotonic() - started, 1)
    common.finish(NAME, args, figures)
    if args.page:
        common.put_into(PAGE, NAME, table(figures))
    sys.exit(0 if not figures["violations"] else 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"bench/{NAME}.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--times", type=float, default=1, help="so many times [%(default)s]")
    parser.add_argument("--first", type=int, default=1_000_000, help="first seed [%(default)s]")
    parser.add_argument("--page", action="store_true", help="put the table into docs/faults.md")
    parser.add_argument(
        "--out", type=Path, help=f"where the record goes [bench/results/{NAME}.json]"
    )
    return common.parse(parser)


def measure(times: float, first: int) -> common.Figures:
    """Every layer, one after the other."""
    from crash import s3_faults, syscalls
    from sim import run as sim

    histories, disk, s3 = (max(1, int(n * times)) for n in (HISTORIES, SYSCALLS, S3))
    common.say(f"histories: {histories:,}")
    layers: dict[str, Any] = {"simulator": sim.histories(histories, first, suite="lazy")}
    common.say("planted bugs")
    layers["planted"] = sim.planted_bugs(suite="lazy")
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        common.say(f"file operations: {disk:,}")
        layers["disk"] = syscalls.run(disk, first, Path(folder), lazily=True)
    common.say(f"S3 requests: {s3:,}")
    layers["s3"] = s3_faults.run(s3, first, lazily=True)
    return {**keys(layers), "layers": layers}


def keys(layers: dict[str, Any]) -> common.Figures:
    """What the layers come to."""
    planted = layers["planted"]
    violations = [
        *layers["simulator"]["violations"],
        *(f"planted bug not caught: {b['bug']}" for b in planted["bugs"] if not b["caught"]),
        *layers["disk"]["violations"],
        *layers["s3"]["violations"],
    ]
    return {
        **{k: layers["simulator"][k] for k in ("histories", "steps", "crashes", "seeds")},
        "violations": len(violations),
        "violated": violations,
        "mutants": planted["mutants"],
        "mutants_caught": planted["mutants_caught"],
        "most_histories": max(b["histories"] for b in planted["bugs"]),
        "syscall_faults": layers["disk"]["syscall_faults"],
        "s3_faults": layers["s3"]["s3_faults"],
    }


def table(figures: common.Figures) -> str:
    """Markdown."""
    f = figures
    first, last = f["seeds"]
    rows = [
        (f"histories (seeds {first:,} to {last:,}), and their steps",
         f"{f['histories']:,}, {f['steps']:,}"),
        ("processes killed in them", f"{f['crashes']:,}"),
        ("faults in file operations (killed, torn, disk full, EIO)", f"{f['syscall_faults']:,}"),
        ("faults in S3 requests (503, 500, 403, lost answer, reset, slow, cut short)",
         f"{f['s3_faults']:,}"),
        (f"planted bugs, and how many were caught, each within {f['most_histories']} histories",
         f"{f['mutants']}, {f['mutants_caught']}"),
        ("**violations**", f"**{f['violations']}**"),
    ]  # fmt: skip
    heads = ["| lazy migrations | how many |", "|---|---|"]
    return "\n".join([*heads, *(f"| {a} | {b} |" for a, b in rows)])


if __name__ == "__main__":
    main()

"""Faults of every kind by the hundred, and planted bugs that must be caught; the table of docs/faults.md.

Layers, each with its own script or test to replay a single case: histories of a simulator
(tests/sim/run.py --seed N), kills and faults in file operations and in S3 requests
(python -m crash.syscalls, python -m crash.s3_faults, with PYTHONPATH=tests), flipped bits, processes
that race to promote, Ray's own faults (python -m crash.ray_faults SEED), and the tests that kill real
processes at every named point or stop, poison and starve them. Exits 1 on any violation.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from bench import common  # noqa: E402 - the path comes first
from reembed import faults  # noqa: E402
from reembed.catalog.releases import Catalog  # noqa: E402
from reembed.store.storage import Storage  # noqa: E402

NAME = "chaos"
PAGE = ROOT / "docs/faults.md"
POINTS = ("tests/crash/test_every_point.py",)
OTHERS = (
    "tests/crash/test_poison.py",
    "tests/crash/test_stopping.py",
    "tests/crash/test_nodes.py",
    "tests/flow/test_promotion_race.py",
)
PLANNED = {
    "histories": 300,
    "syscall_faults": 72,
    "s3_faults": 105,
    "bit_flips": 300,
    "ray_faults": 8,
    "races": 1,
}


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
        prog="bench/chaos.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--times", type=float, default=1, help="as many as in CI [%(default)s]")
    parser.add_argument("--first", type=int, default=1_000_000, help="first seed [%(default)s]")
    parser.add_argument("--page", action="store_true", help="put the table into docs/faults.md")
    parser.add_argument(
        "--out", type=Path, help=f"where the record goes [bench/results/{NAME}.json]"
    )
    return common.parse(parser)


def measure(times: float, first: int) -> common.Figures:
    """Every layer, one after the other."""
    from crash import bit_flips, ray_faults, s3_faults, syscalls
    from sim import run as sim

    counts = {name: max(1, int(n * times)) for name, n in PLANNED.items()}
    common.say(f"histories: {counts['histories']:,}")
    histories = sim.histories(counts["histories"], first)
    common.say("planted bugs")
    bugs = sim.planted_bugs()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        common.say(f"file operations: {counts['syscall_faults']:,}")
        disk = syscalls.run(counts["syscall_faults"], first, Path(folder) / "disk")
        common.say(f"flipped bits: {counts['bit_flips']:,}")
        flips = bit_flips.run(counts["bit_flips"], first, _empty(Path(folder) / "flips"))
    common.say(f"S3 requests: {counts['s3_faults']:,}")
    s3 = s3_faults.run(counts["s3_faults"], first)
    common.say(f"promotion races: {counts['races']:,}")
    raced = races(counts["races"])
    common.say(f"Ray: {counts['ray_faults']:,}")
    ray = ray_faults.run(counts["ray_faults"], first)
    common.say("every named point; poison, stopped workers, lost nodes")
    layers = {
        "simulator": histories,
        "planted": bugs,
        "disk": disk,
        "s3": s3,
        "flips": flips,
        "races": raced,
        "ray": ray,
        "points": tests(POINTS),
        "others": tests(OTHERS),
    }
    return {**keys(layers), "layers": layers}


def points_in_code() -> set[str]:
    """The crash points; the tests check that each is passed."""
    files = Path(faults.__file__).parent.rglob("*.py")
    return {p for f in files for p in re.findall(r'faults\.point\("([^"]+)"\)', f.read_text())}


def races(times: int) -> common.Figures:
    """Races of 8 processes for one log, 200 attempts each; how many steps, and what was lost."""
    from flow import test_promotion_race as race

    started, steps, violations = time.monotonic(), 0, []
    for number in range(times):
        with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
            storage = Storage.open(f"{folder}/root")
            said, codes = race.race("append", storage, attempts=race.ROUNDS)
            log = Catalog(storage, race.ALIAS).log()
            steps += len(log)
            try:
                assert codes == [0] * race.PROCESSES, codes
                race.assert_claims_are_the_log(said, log)
                race.assert_one_chain(log)
            except AssertionError as error:
                violations.append(f"race {number}: {error}")
    return {
        "rounds": times * race.ROUNDS,
        "processes": race.PROCESSES,
        "steps": steps,
        "violations": violations,
        "seconds": round(time.monotonic() - started, 1),
    }


def keys(layers: dict[str, Any]) -> common.Figures:
    """What the layers come to."""
    missed = [b["bug"] for b in layers["planted"]["bugs"] if not b["caught"]]
    violations = [
        *layers["simulator"]["violations"],
        *(f"planted bug not caught: {b}" for b in missed),
        *(
            v
            for name in ("disk", "s3", "flips", "races", "ray")
            for v in layers[name]["violations"]
        ),
        *(f"failed: {t}" for layer in ("points", "others") for t in layers[layer]["failed"]),
    ]
    kills = sum(n for kind, n in layers["disk"]["by_kind"].items() if kind in _DEADLY)
    kills += sum(n for kind, n in layers["ray"]["by_kind"].items() if kind.startswith("kill"))
    points = 0 if layers["points"]["failed"] else len(points_in_code())
    return {
        "histories": layers["simulator"]["histories"],
        "crashes": layers["simulator"]["crashes"] + kills + points,
        "violations": len(violations),
        "violated": violations,
        "crash_points": points,
        "syscall_faults": layers["disk"]["syscall_faults"],
        "s3_faults": layers["s3"]["s3_faults"],
        "ray_faults": layers["ray"]["ray_faults"],
        "other_tests": layers["others"]["passed"],
        "bit_flips": layers["flips"]["bit_flips"],
        "bit_flips_found": layers["flips"]["bit_flips_found"],
        "mutants": layers["planted"]["mutants"],
        "mutants_caught": layers["planted"]["mutants_caught"],
        "promotion_rounds": layers["races"]["rounds"],
        "promotion_processes": layers["races"]["processes"],
        "seeds": layers["simulator"]["seeds"],
    }


_DEADLY = ("kill_before", "kill_after", "torn")


def tests(files: tuple[str, ...]) -> common.Figures:
    """Tests by pytest: how many passed, and which failed."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        report = Path(folder) / "report.xml"
        chosen = ("-m", "not gpu")
        command = [sys.executable, "-m", "pytest", "-q", *chosen, f"--junit-xml={report}", *files]
        code = subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.DEVNULL).returncode
        if code not in (0, 1):
            raise RuntimeError(f"{' '.join(command)} ended with {code}")
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))  # our own file
    bad = [c for c in cases if any(c.find(k) is not None for k in ("failure", "error", "skipped"))]
    return {
        "passed": len(cases) - len(bad),
        "failed": [c.attrib["name"] for c in bad],
        "seconds": round(time.monotonic() - started, 1),
    }


def _empty(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def table(figures: common.Figures) -> str:
    """Markdown."""
    f = figures
    first, last = f["seeds"]
    rows = [
        ("histories of operators, writer and reader at once, with deaths (seeds "
         f"{first:,} to {last:,})", f"{f['histories']:,}"),
        ("processes killed", f"{f['crashes']:,}"),
        ("named points at which a real process was killed", f"{f['crash_points']}"),
        ("faults in file operations (killed, torn, disk full, EIO)", f"{f['syscall_faults']:,}"),
        ("faults in S3 requests (503, 500, 403, lost answer, reset, slow, cut short)",
         f"{f['s3_faults']:,}"),
        ("faults of Ray (actors, workers, nodes and drivers killed, stopped, drained)",
         f"{f['ray_faults']:,}"),
        ("tests of poison, deadlines, signals, lost nodes and races", f"{f['other_tests']}"),
        ("flipped bits, and how many were noticed",
         f"{f['bit_flips']:,}, {f['bit_flips_found']:,}"),
        (f"promotion rounds of {f['promotion_processes']} processes",
         f"{f['promotion_rounds']:,}"),
        ("planted bugs, and how many were caught", f"{f['mutants']}, {f['mutants_caught']}"),
        ("**violations**", f"**{f['violations']}**"),
    ]  # fmt: skip
    return "\n".join(["| what | how many |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)])


if __name__ == "__main__":
    main()

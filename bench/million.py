"""A million documents through five kills, and what 100,000 units cost the driver.

A million short documents are embedded by a model that costs nothing (`hashing:64`), in units of
8,192. On the way the driver is killed (SIGKILL) three times, the last time after the table was
committed and while its index is built, and started again at once; the process of the actor that
embeds is killed twice, in the middle of a unit, and Ray and reembed go on by themselves. Then the
table is counted, id by id, and `reembed verify` compares every row with its source. `seconds` is
from the first start to the release, kills and starts included; `driver_peak_mib` the largest
proportional share of memory (PSS) that any of the drivers had; `verify_cpu_s` the CPU seconds, user and system, of
the whole process of `reembed verify`.

Then 100,000 units of one document each, without Ray: one process plans them, lets two others stage
each by a real file and a real receipt (nothing is embedded), reads plan and receipts as a resumed
run would, and seals: 100,000 fragments in one commit. Seconds of each step, and the peak memory of
that one process. Exits 1 when a row is missing, or there twice, or verify finds anything.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # Inline
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import common
from bench.memory import proportional_mib

NAME = "million"
# What is killed, and when: a share of the units that are staged, or a stage that is over.
KILLS: tuple[tuple[str, float | str], ...] = (
    ("driver", 0.15),
    ("actor", 0.35),
    ("driver", 0.5),
    ("actor", 0.75),
    ("driver", "table"),
)
_WORDS = 8
_POLL_S = 0.003
_EVERY_S = 0.25
_MOST_DELAY_S = 1.0
_STAGERS = 2
_CHUNK = 250


def main() -> None:
    args = _arguments()
    if args.units_process:
        print(json.dumps(plan_stage_seal(args.units_process, args.units)))
        return
    figures: common.Figures = {}
    with common.workdir(args) as folder, common.Reembed() as reembed:
        if not args.units_only:
            figures |= measure(args, folder, reembed)
        if args.units:
            figures |= measure_units(args, folder, reembed)
    passed = all(figures[f"{k}rows_exact"] for k in ("", "units_") if f"{k}rows_exact" in figures)
    common.say("every row once" if passed else "rows DIFFER")
    common.finish(NAME, args, {**figures, "passed": passed})
    sys.exit(0 if passed else 1)


def _arguments() -> argparse.Namespace:
    parser = common.parser(NAME, __doc__)
    parser.set_defaults(model="hashing:64", cpus_per_actor=2)
    parser.add_argument("--documents", type=int, default=1_000_000, help="[%(default)s]")
    parser.add_argument("--unit-documents", type=int, default=8_192, help="[%(default)s]")
    parser.add_argument("--units", type=int, default=100_000, help="0 for none [%(default)s]")
    parser.add_argument("--units-only", action="store_true", help="not the documents")
    parser.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    parser.add_argument("--units-process", type=Path, help=argparse.SUPPRESS)
    return common.parse(parser)


# --- a million documents ---


def measure(args: argparse.Namespace, folder: Path, reembed: common.Reembed) -> common.Figures:
    """The run, its kills, and what came of it."""
    common.say(f"writing {args.documents:,} documents")
    source = common.random_documents(folder / "documents.lance", args.documents, _WORDS)
    config = common.write_config(
        folder,
        "million",
        source,
        args,
        source={"text": "text"},
        embed={"unit_documents": args.unit_documents},
        index={"ann_recall": 0.9},  # vectors of random words are nearly uniform: .95 at most
    )
    root = folder / "million"
    peaks: list[float] = []
    started = time.monotonic()
    kills = run_and_kill(args, reembed, config, root, peaks)
    release = reembed("run", "-c", str(config))  # done already: what it ended in
    seconds = time.monotonic() - started
    common.say(f"{len(kills)} kills, {seconds:.0f} s; verifying")
    started, cpu_s = time.monotonic(), _children_cpu_s()
    verified = reembed("verify", "-c", str(config))
    verify_s, verify_cpu_s = time.monotonic() - started, _children_cpu_s() - cpu_s
    rows, ids = count(root, release)
    begun = [len(list(unit.glob("*.json"))) for unit in root.glob("runs/*/attempts/*")]
    return {
        "documents": args.documents,
        "rows": rows,
        "distinct_ids": ids,
        "rows_exact": rows == ids == args.documents and verified["passed"],
        "verify_passed": verified["passed"],
        "verify_differences": {k: d["count"] for k, d in verified["differences"].items()},
        "kills": len(kills),
        "driver_kills": sum(k["killed"] == "driver" for k in kills),
        "actor_kills": sum(k["killed"] == "actor" for k in kills),
        "moments": kills,
        "run_units": len(begun),
        "units_begun_again": sum(n > 1 for n in begun),
        "seconds": round(seconds, 1),
        "verify_seconds": round(verify_s, 1),
        "verify_cpu_s": round(verify_cpu_s, 1),
        "stage_seconds": stage_seconds(root),
        "driver_peak_mib": round(max(peaks)),
        "driver_peaks_mib": [round(p) for p in peaks],
    }


def _children_cpu_s() -> float:
    """CPU seconds, user and system, of the child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run_and_kill(
    args: argparse.Namespace,
    reembed: common.Reembed,
    config: Path,
    root: Path,
    peaks: list[float],
) -> list[common.Figures]:
    """Start the driver until it ends by itself, with every kill on the way; when each happened."""
    chance = random.Random(args.seed)
    units = -(-args.documents // args.unit_documents)
    kills: list[common.Figures] = []
    left = list(KILLS)
    began = time.monotonic()
    while True:
        driver = reembed.start("run", "-c", str(config), stdout=subprocess.DEVNULL)
        with watching(driver.pid) as peak:
            while left:
                what, when = left[0]
                if not _wait(driver, lambda when=when: _reached(root, units, when)):  # type: ignore[misc]
                    break
                if what == "driver":
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        driver.wait(chance.uniform(0, _MOST_DELAY_S))
                killed = _kill(what, driver, reembed, root)
                if killed is None:
                    break
                left.pop(0)
                kills.append(
                    {"killed": what, "after_s": round(time.monotonic() - began, 1), **killed}
                )
                common.say(f"killed: {json.dumps(kills[-1])}")
                if what == "driver":
                    break
            code = driver.wait()
        peaks.append(peak["mib"])
        if code not in (0, -signal.SIGKILL):
            raise SystemExit(f"reembed run exited with {code}")
        if code == 0:
            return kills


def _wait(driver: subprocess.Popen[str], ready: Callable[[], bool]) -> bool:
    """Wait for a moment; False when the driver ended before."""
    while driver.poll() is None:
        if ready():
            return True
        time.sleep(_POLL_S)
    return False


def _reached(root: Path, units: int, when: float | str) -> bool:
    if isinstance(when, str):
        return any(event["stage"] == when for event in common.events(root))
    return _staged(root) >= when * units


def _staged(root: Path) -> int:
    return len(list(root.glob("runs/*/units/*.json")))


def _kill(
    what: str, driver: subprocess.Popen[str], reembed: common.Reembed, root: Path
) -> common.Figures | None:
    """SIGKILL; None when the driver had ended before."""
    figures: common.Figures = {}
    if what == "driver":
        if driver.poll() is not None:
            return None
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    else:
        ours = set(reembed.leftovers())
        killed: list[str] = []
        if not _wait(driver, lambda: _kill_worker(root, ours, killed)):
            return None
        figures["unit"] = killed[0]
    return {"staged": _staged(root), **figures}


def _kill_worker(root: Path, ours: set[int], killed: list[str]) -> bool:
    """SIGKILL a process that says it embeds a unit now; others that say so are dead already."""
    for file in root.glob("runs/*/workers/*.json"):
        with contextlib.suppress(OSError, ValueError):
            worker = json.loads(file.read_text())
            if worker["pid"] in ours and Path(f"/proc/{worker['pid']}").exists():
                os.kill(worker["pid"], signal.SIGKILL)
                killed.append(worker["unit"])
                return True
    return False


@contextlib.contextmanager
def watching(process: int) -> Iterator[dict[str, float]]:
    """The peak, in MiB, of one process while the block runs."""
    peak = {"mib": 0.0}
    done = threading.Event()

    def loop() -> None:
        while not done.wait(_EVERY_S):
            peak["mib"] = max(peak["mib"], proportional_mib(process))

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def count(root: Path, release: common.Figures) -> tuple[int, int]:
    """Rows of a release, and how many ids they have."""
    import lance
    import pyarrow.compute as pc

    dataset = lance.dataset(str(root / release["table"]), version=release["table_version"])
    ids = dataset.to_table(columns=["doc_id"])["doc_id"]
    return len(ids), int(pc.count_distinct(ids).as_py())


def stage_seconds(root: Path) -> dict[str, float]:
    """Seconds of the last start's stages, by their events; times are to the second."""
    import datetime as dt

    at: dict[str, dt.datetime] = {}
    for event in common.events(root):
        at[event["stage"]] = dt.datetime.fromisoformat(event["at"])
    names = ("table", "index", "verify", "candidate")
    found = [(name, at[name]) for name in names if name in at]
    return {
        name: (end - start).total_seconds() for (_, start), (name, end) in itertools.pairwise(found)
    }


# --- 100,000 units ---


def measure_units(
    args: argparse.Namespace, folder: Path, reembed: common.Reembed
) -> common.Figures:
    """Plan, stage, resume and seal that many units in a process of its own, and watch its memory."""
    import lance
    import pyarrow as pa

    common.say(f"{args.units:,} units: planning, staging, sealing")
    rows = {"doc_id": [f"d{n}" for n in range(args.units)], "text": ["a b"] * args.units}
    lance.write_dataset(pa.table(rows), str(folder / "units.lance"))
    command = [sys.executable, __file__, f"--units={args.units}", f"--units-process={folder}"]
    process = subprocess.Popen(command, env=reembed.env, text=True, stdout=subprocess.PIPE)
    with watching(process.pid) as peak:
        out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{command} exited with {process.returncode}")
    found = json.loads(out.splitlines()[-1])
    return {**found, "units": args.units, "units_driver_peak_mib": round(peak["mib"])}


def plan_stage_seal(folder: Path, units: int) -> common.Figures:
    """What a driver does with units, timed."""
    from inline import Inline, Silent

    from reembed.catalog.releases import Catalog
    from reembed.config.settings import Config
    from reembed.store.storage import Storage
    from reembed.strategies import steps
    from reembed.strategies.context import RunContext
    from reembed.strategies.rebuild_plan import Wanted, choose_run, make_plan
    from reembed.table import seal as sealing

    config = Config.model_validate(
        {
            "alias": "units",
            "source": {"uri": str(folder / "units.lance")},
            "encoder": {"model": "hashing:8"},
            "embed": {"unit_documents": 1},
            "storage": {"root": str(folder / "units")},
        }
    )
    clock = _Clock()
    catalog = Catalog(Storage.open(config.storage.root), config.alias)
    wanted = Wanted.read(config, catalog, Silent())
    run = choose_run(wanted, fresh=False)
    plan = make_plan(run, wanted, Inline(), Silent())
    figures: common.Figures = {"units_plan_seconds": clock.lap(), "units_plan_mib": _mib()}
    executor: Any = Inline()
    executor.embed = _embed
    context = RunContext(run, plan, wanted.source, config, executor, Silent())
    steps.embed_documents(context)
    figures |= {"units_stage_seconds": clock.lap(), "units_stage_mib": _mib()}
    again = run.plan()
    assert again is not None
    assert len(run.staged()) == len(again.units) == units
    figures |= {"units_resume_seconds": clock.lap(), "units_resume_mib": _mib()}
    sealed = steps.seal(context)
    figures |= {"units_seal_seconds": clock.lap(), "units_seal_mib": _mib()}
    rows, ids = count(
        Path(run.storage.root), {"table": sealed.path, "table_version": sealed.version}
    )
    seal_again = _Clock()
    sealing.seal(run, plan, context.columns, 0)
    return {
        **figures,
        "units_seal_again_seconds": seal_again.lap(),
        "units_rows_exact": rows == ids == sealed.content.rows == units,
        "units_plan_bytes": (Path(run.storage.root) / run.path("plan.json")).stat().st_size,
        "units_sealed_bytes": (Path(run.storage.root) / run.path("sealed.json")).stat().st_size,
    }


class _Clock:
    def __init__(self) -> None:
        self._at = time.monotonic()

    def lap(self) -> float:
        """Seconds since the last lap."""
        before, self._at = self._at, time.monotonic()
        return round(self._at - before, 1)


def _mib() -> int:
    return round(proportional_mib(os.getpid()))


def _embed(
    job: Any, units: list[Any], on_receipt: Callable[[dict[str, Any]], None], stop: Any
) -> None:
    """In place of an executor's: nothing is embedded, and other processes write files and receipts."""
    chunks = [units[at : at + _CHUNK] for at in range(0, len(units), _CHUNK)]
    spawn = multiprocessing.get_context("spawn")  # Lance is not fork-safe
    with ProcessPoolExecutor(_STAGERS, mp_context=spawn) as pool:
        for receipts in pool.map(_stage, [job] * len(chunks), chunks):
            for receipt in receipts:
                on_receipt(receipt)


def _stage(job: Any, units: list[Any]) -> list[Any]:
    import numpy as np
    import pyarrow as pa

    from reembed import digests
    from reembed.catalog.receipts import UnitStats
    from reembed.table import write as table
    from reembed.table.read import from_vectors

    dim = job.plan.space.dim
    vector = from_vectors(np.full((1, dim), dim**-0.5, np.float32), pa.float32())
    text_hash = pa.array([digests.digest(b"a b")], pa.binary(digests.BYTES))
    done = []
    for unit in units:
        started = time.time()
        rows = {"doc_id": [f"d{unit.offset}"], "text_hash": text_hash, "vector": vector}
        stats = UnitStats(
            device="none", path="", notes="", batch_tokens=0, attempt=1, copied=0, tokens=2,
            model_tokens=2, computed_tokens=2, flop=0, peak_flops=0.0, started_at=started,
            waited_s=0.0, embed_s=0.0, model_s=0.0,
        )  # fmt: skip
        staged = table.Staged(unit.id, pa.table(rows), stats=stats)
        done.append(table.stage(job.run, job.plan, job.columns, staged))
    return done


if __name__ == "__main__":
    main()

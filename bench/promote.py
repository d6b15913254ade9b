"""How long promotion and rollback take with a long log, what `status` asks for, whether a race loses one.

Two small real releases (`hashing:16`, built once without Ray) take turns: one is promoted, then the
alias is rolled back to the other, 1,000 times each, in this process. A rollback is all that the
command does but the start of a process, up to what it says of documents that the old release lacks:
the source has a newer version. A promotion is what the command does once it has caught up with the
source: it checks the release's receipts, hashes its index and looks at every file of its table. Once
in a folder, once on an S3 emulator on the loopback (moto), which answers in milliseconds where a real
store takes tens.

The log grows by a record a step, so the first and the last 20 are told apart. Requests are counted by
the emulator once there are 200 releases and 500 runs, 3 of them open; source and root are both in the
bucket. `s3_requests_rollback` is of one more rollback until the alias has moved;
`s3_requests_rollback_verb` is of another with its look at the source, which comes after that;
`s3_requests_status` is of `status`. `status_cpu_s` is of the whole command, in a folder; next to it
stands what loading Lance takes, as processors differ. `s3_requests_gc` and `s3_gc_s` are of what gc lists:
198 candidates stay, 297 runs have ended without a release.

Then 8 processes promote at the same moment, 200 times each: `lost` counts promotions that were
acknowledged and are not in the log, or are there as something else. Exits 1 when there is one.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1] / "tests")
)  # Inline, the S3 emulator and the race
import lance
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import common
from reembed.catalog import lines
from reembed.catalog.releases import Catalog, Release
from reembed.catalog.runs import Run
from reembed.config.settings import Config
from reembed.lifecycle import gc, moves, promote
from reembed.lifecycle.status import status
from reembed.store.paths import index_folder, table_tag
from reembed.store.storage import Storage

if TYPE_CHECKING:
    from crash.s3_faults import Store

NAME = "promote"
ALIAS = "raced"  # as the race of the tests calls it
_ENDS = 20
_BUCKET = "bench"
_CLI = "from reembed.cli.verbs import main; main()"
RELEASES, RUNS, OPEN_RUNS = 200, 500, 3


def main() -> None:
    from crash.s3_faults import KEYS, Store

    os.environ |= KEYS
    args = _arguments()
    with common.workdir(args) as folder, Store() as store:
        store.make_bucket(_BUCKET)
        options = {"aws_endpoint": store.endpoint, "aws_region": "us-east-1", "allow_http": "true"}
        local = build(str(folder / "local"), {}, args)
        remote = build(f"s3://{_BUCKET}/here", options, args)
        common.say(f"{args.times} promotions and rollbacks in a folder")
        figures = take_turns(local, args.times)
        common.say("the same on the S3 emulator")
        figures |= {f"s3_{k}": v for k, v in take_turns(remote, args.times).items()}
        common.say(f"{RELEASES} releases and {RUNS} runs")
        for catalog in (local, remote):
            crowd(catalog)
        figures |= cpu_of_status(local, args.model, folder)
        figures |= s3_requests(remote, store)
        common.say(f"a race of {args.rounds} rounds")
        figures |= race(build(str(folder / "race"), {}, args), args.rounds)
    common.say(f"{figures['lost']} of {figures['acknowledged']} acknowledged promotions are lost")
    figures["times"], figures["documents"] = args.times, args.documents
    common.finish(NAME, args, figures)
    sys.exit(1 if figures["lost"] else 0)


def _arguments() -> argparse.Namespace:
    parser = common.parser(NAME, __doc__)
    parser.set_defaults(model="hashing:16")
    parser.add_argument("--times", type=int, default=1000, help="of each kind [%(default)s]")
    parser.add_argument("--rounds", type=int, default=200, help="of each process [%(default)s]")
    parser.add_argument("--documents", type=int, default=300, help="[%(default)s]")
    return common.parse(parser)


# --- releases ---


def build(place: str, options: dict[str, str], args: argparse.Namespace) -> Catalog:
    """A root with two releases of the same documents, each with its own table version and index.

    The source has one document more by now.
    """
    from inline import Inline, Silent

    from reembed.strategies.full_rebuild import full_rebuild

    rows = {
        "doc_id": [f"d{n}" for n in range(args.documents)],
        "text": [f"text {n} of {n % 7}" for n in range(args.documents)],
    }
    lance.write_dataset(
        pa.table(rows), f"{place}/source.lance", storage_options=options, enable_stable_row_ids=True
    )
    config = Config.model_validate(_sections(place, options, args.model))
    for fresh in (False, True):
        full_rebuild(config, Silent(), fresh=fresh, executor=Inline())
    row = pa.table({"doc_id": ["one more"], "text": ["of a newer version"]})
    lance.write_dataset(row, f"{place}/source.lance", mode="append", storage_options=options)
    return Catalog(Storage.open(config.storage.root, options), ALIAS)


def _sections(place: str, options: dict[str, str], model: str) -> dict[str, object]:
    return {
        "alias": ALIAS,
        "source": {"uri": f"{place}/source.lance"},
        "encoder": {"model": model},
        "storage": {"root": f"{place}/root", "options": options},
    }


def crowd(catalog: Catalog) -> None:
    """Records of more releases and runs of the same config: most runs ended, a few are open.

    Every candidate was compared with the first release.
    """
    from releases import comparison

    release = catalog.releases()[0]
    line = release.id.rpartition("-")[0]
    plan = catalog.storage.read(f"runs/{release.id}/plan.json")
    for n in range(3, RUNS + 1):
        run = Run(catalog.storage, f"{line}-{n}")
        place = replace(release.place, origin=run.id)
        lines.begin(catalog.storage, catalog.alias, run.id, place)
        catalog.storage.write(
            run.path("plan.json"), {**plan, "run_id": run.id, "place": asdict(place)}
        )
        if n <= RELEASES:
            own = replace(release, index=index_folder(run.id), table_tag=table_tag(run.id))
            candidate = catalog.register(replace(own, id=run.id, place=place))
            comparison(catalog, candidate, release)
        if n <= RUNS - OPEN_RUNS:
            run.finish(run.id)


def cpu_of_status(catalog: Catalog, model: str, folder: Path) -> common.Figures:
    """CPU time of `reembed status` with all it starts, and of loading Lance; medians of 7 in turn."""
    place = str(catalog.storage.root).removesuffix("/root")
    config = folder / "reembed.yaml"
    config.write_text(json.dumps(_sections(place, {}, model)))
    compared = {
        "status_cpu_s": [sys.executable, "-c", _CLI, "status", "--json", "-c", str(config)],
        "import_lance_cpu_s": [sys.executable, "-c", "import lance"],
    }
    taken = [{name: _cpu_s(command) for name, command in compared.items()} for _ in range(7)]
    return {name: round(statistics.median(t[name] for t in taken), 2) for name in compared}


def _cpu_s(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def s3_requests(catalog: Catalog, store: Store) -> common.Figures:
    """What a rollback and a status ask the store for, each with a connection of its own."""
    second = catalog.releases()[1].id
    counted: common.Figures = {}
    verbs: dict[str, Callable[[Catalog], object]] = {
        "rollback": promote.rollback,
        "rollback_verb": roll_back,
        "status": status,
        "gc": partial(gc.plan, keep=3),
    }
    for name, verb in verbs.items():
        if name.startswith("rollback"):
            promote.promote(catalog, second, force_reason="measured")
        fresh = Storage.open(catalog.storage.root, dict(catalog.storage.options))
        store.arm(None)
        started = time.perf_counter()
        verb(Catalog(fresh, ALIAS))
        if name == "gc":
            counted["s3_gc_s"] = round(time.perf_counter() - started, 2)
        counted[f"s3_requests_{name}"] = len(store.report()["seen"])
    counted["releases"], counted["runs"] = len(catalog.ids()), RUNS
    return counted


# --- taking turns ---


def roll_back(catalog: Catalog) -> object:
    """What the command does."""
    moved = moves.roll_back(catalog)
    if moved.behind.documents != 1:
        raise SystemExit(f"the source has one document more, and rollback said {moved.behind}")
    return moved


def take_turns(catalog: Catalog, times: int) -> common.Figures:
    """Promote one release and roll back to the other, again and again."""
    first, second = (release.id for release in catalog.releases())
    promote.promote(catalog, first, initial_reason="measured")
    forward, back = [], []
    for _ in range(times):
        forward.append(_ms(lambda: promote.promote(catalog, second, force_reason="measured")))
        back.append(_ms(lambda: roll_back(catalog)))
    log = catalog.log()
    if len(log) != 2 * times + 1 or log[-1].release.id != first:
        raise SystemExit(f"after {times} turns the log has {len(log)} records")
    return {
        **_figures("promote", forward),
        **_figures("rollback", back),
        "generations": len(log),
        "read_log_ms": round(statistics.median(_ms(catalog.log) for _ in range(5)), 2),
    }


def _ms(step: Callable[[], object]) -> float:
    started = time.perf_counter()
    step()
    return (time.perf_counter() - started) * 1000


def _figures(name: str, times: list[float]) -> common.Figures:
    return {
        f"{name}_ms_p50": round(statistics.median(times), 2),
        f"{name}_ms_max": round(max(times), 2),
        f"{name}_ms_p50_first_{_ENDS}": round(statistics.median(times[:_ENDS]), 2),
        f"{name}_ms_p50_last_{_ENDS}": round(statistics.median(times[-_ENDS:]), 2),
    }


# --- the race ---


def race(catalog: Catalog, rounds: int) -> common.Figures:
    """Processes that promote at once, each its own two candidates in turn; what they were told."""
    from flow import test_promotion_race as racing

    release, *_ = catalog.releases()
    promote.promote(catalog, release.id, initial_reason="measured")
    for racer in range(racing.PROCESSES):
        for letter in "ab":
            _register(catalog, release, f"r{racer}-{letter}")
    started = time.monotonic()
    said, codes = racing.race("promote", catalog.storage, rounds)
    seconds = time.monotonic() - started
    if any(codes):
        raise SystemExit(f"racers exited with {codes}")
    log = catalog.log()
    racing.assert_one_chain(log)
    there = {record.generation: record.token for record in log}
    wins = [s for s in said if "token" in s]
    lost = [w for w in wins if there.get(w["generation"]) != w["token"]]
    return {
        "processes": racing.PROCESSES,
        "rounds": rounds,
        "acknowledged": len(wins),
        "refused": sum("conflict" in s for s in said),
        "lost": len(lost),
        "unclaimed": len(log) - 1 - len(wins),
        "race_seconds": round(seconds, 1),
    }


def _register(catalog: Catalog, release: Release, name: str) -> None:
    """A candidate of a line of its own that shares the release's table and index."""
    catalog.register(replace(release, id=name, place=replace(release.place, origin=name)))


if __name__ == "__main__":
    main()

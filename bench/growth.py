"""How the cost of each step grows with the documents: CPU seconds, and peak memory over its start.

For each number of documents a release is built without Ray, by a model that costs nothing
(`hashing:64`). Then each step runs alone in a fresh process, round by round, and the process says how
many CPU seconds the step took and how far its memory rose above what it was before the step. The tasks
of a step run one after the other in that process, so its peak is that of the driver and its largest
task. Index: `Flat`, as large as its vectors, in shards of 100,000, so that memory can be seen not to grow with them.

`exponents` are those between the last two sizes: 1 is linear, 0 is flat. A step is a function in STEPS;
it prepares, and returns what is measured. `--against DIR` measures the code of another checkout in
turns, as `before`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # Inline
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(
    0, os.environ.get("REEMBED_BENCH_CODE", sys.path[0])
)  # of a child: what it measures

from bench import common

NAME = "growth"
ROOT = Path(__file__).resolve().parents[1]
SIZES = (100_000, 1_000_000, 3_000_000)
CHANGED, FEW, NEAR = 0.01, 1_000, 40_000
"""Documents that are changed: a share of them, and as many at every size, of all or of so many."""
_WORDS = 8
_UNIT = 8_192


def main() -> None:
    args = _arguments()
    if args.child in PREPARATIONS:
        PREPARATIONS[args.child](args.folder, args.documents)
        return
    if args.child:
        print(json.dumps(common.cost(STEPS[args.child](args.folder))))
        return
    codes = {"now": ROOT} | ({"before": args.against.resolve()} if args.against else {})
    figures: common.Figures = {"sizes": args.sizes, "rounds": args.rounds}
    found: dict[str, dict[str, dict[int, common.Figures]]] = {code: {} for code in codes}
    with common.workdir(args) as folder:
        for size in args.sizes:
            for code, where in codes.items():
                common.say(f"building a release of {size:,} documents ({code})")
                (folder / code).mkdir()
                child("build", folder / code, where, size)
            for step in args.steps:
                for code, figure in measured(step, folder, codes, size, args.rounds).items():
                    found[code].setdefault(step, {})[size] = figure
                    common.say(f"{size:,} {step} ({code}): {json.dumps(figure)}")
            for code in codes:
                shutil.rmtree(folder / code)
    for code, steps in found.items():
        figures[code] = {
            step: {str(n): figure for n, figure in by_size.items()}
            | {"exponents": exponents(by_size)}
            for step, by_size in steps.items()
        }
    common.finish(NAME, args, figures)


def _arguments() -> argparse.Namespace:
    parser = common.parser(NAME, __doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="%(default)s")
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=STEPS)
    parser.add_argument("--rounds", type=int, default=3, help="[%(default)s]")
    parser.add_argument("--against", type=Path, help="another checkout, measured in turns")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--documents", type=int, help=argparse.SUPPRESS)
    return common.parse(parser)


def child(step: str, place: Path, code: Path, documents: int) -> str:
    """Run a step of a checkout's code in a process of its own; return what it printed."""
    told = ("--child", step, "--folder", str(place), "--documents", str(documents))
    env = os.environ | {"REEMBED_BENCH_CODE": str(code), "PYTHONPATH": ""}
    command = [sys.executable, __file__, *told]
    return subprocess.run(command, env=env, check=True, text=True, stdout=subprocess.PIPE).stdout


def measured(
    step: str, folder: Path, codes: dict[str, Path], documents: int, rounds: int
) -> dict[str, common.Figures]:
    """The median CPU seconds and the highest peak of each code, which take turns."""
    runs: dict[str, list[common.Figures]] = {code: [] for code in codes}
    for code, where in codes.items():
        if step in CHANGES:
            child(CHANGES[step], folder / code, where, documents)
    for _ in range(rounds):
        for code, where in codes.items():
            out = child(step, folder / code, where, documents)
            runs[code].append(json.loads(out.splitlines()[-1]))
    return {
        code: {
            "cpu_s": round(statistics.median(r["cpu_s"] for r in found), 2),
            "peak_mib": max(r["peak_mib"] for r in found),
        }
        for code, found in runs.items()
    }


def exponents(by_size: dict[int, common.Figures]) -> common.Figures:
    """Exponents of time and memory between the last two sizes."""
    if len(by_size) < 2:
        return {}
    (small, one), (large, other) = list(by_size.items())[-2:]
    grown = math.log(large / small)
    return {
        figure: round(math.log(max(other[figure], 0.01) / max(one[figure], 0.01)) / grown, 2)
        for figure in ("cpu_s", "peak_mib")
    }


# --- what is measured ---


def build(place: Path, documents: int) -> None:
    """Write documents, and build a release of them; keep a copy of the root from before it was sealed."""
    from inline import Inline, Silent

    from reembed.strategies import full_rebuild as strategy
    from reembed.strategies import steps

    common.random_documents(place / "documents.lance", documents, _WORDS)
    seal = steps.seal

    def kept(context: Any) -> Any:
        shutil.copytree(place / "root", place / "unsealed", copy_function=os.link)
        return seal(context)

    steps.seal = kept
    try:
        strategy.full_rebuild(config(place), Silent(), executor=Inline())
    finally:
        steps.seal = seal


def config(place: Path, root: str = "root") -> Any:
    """The config of the release."""
    from reembed.config.settings import Config

    return Config.model_validate(
        {
            "alias": "bench",
            "source": {"uri": str(place / "documents.lance"), "id_column": "_id", "text": "text"},
            "encoder": {"model": "hashing:64"},
            "embed": {"unit_documents": _UNIT},
            "index": {"factory": "Flat", "device": "cpu", "shard_rows": 100_000},
            "storage": {"root": str(place / root)},
        }
    )


def change_share(place: Path, documents: int) -> None:
    """Change a share of the documents."""
    _change(place, documents, int(documents * CHANGED))


def change_few(place: Path, documents: int) -> None:
    """Change as many at every size."""
    _change(place, documents, min(FEW, documents // 2))


def change_near(place: Path, documents: int) -> None:
    """Change as many at every size, of which as many files hold them."""
    _change(place, min(NEAR, documents), min(FEW, documents // 2))


def _change(place: Path, documents: int, count: int) -> None:
    """Give some of the first version's first documents, chosen at random, another text."""
    import lance
    import numpy as np
    import pyarrow as pa

    lance.dataset(str(place / "documents.lance"), version=1).restore()
    source = lance.dataset(str(place / "documents.lance"))
    (place / "changed").write_text(str(count))
    chosen = np.random.default_rng(0).choice(documents, count, replace=False)
    ids = source.take(sorted(chosen.tolist()), columns=["_id"])["_id"]
    columns = {n: pa.repeat("another text", len(ids)) for n in source.schema.names if n != "_id"}
    rows = pa.table({"_id": ids} | columns).select(source.schema.names)
    source.merge_insert("_id").when_matched_update_all().execute(rows.cast(source.schema))


def _release(place: Path, root: str = "root") -> tuple[Any, Any]:
    from reembed.catalog.releases import Catalog
    from reembed.store.storage import Storage

    catalog = Catalog(Storage.open(str(place / root)), "bench")
    (release,) = catalog.releases()
    return catalog, release


def check_documents(place: Path) -> Callable[[], object]:
    """The ids of the source, before a run is planned."""
    from reembed.source.dataset import Source

    return Source.open(config(place)).check_documents


def check_ids(place: Path) -> Callable[[], object]:
    """The same by partition, as tasks do it if there are many."""
    from reembed.catalog.runs import Run
    from reembed.lifecycle.scratch import Scratch
    from reembed.source.dataset import Source
    from reembed.strategies import differing, unique_ids

    unique_ids.HELD_IDS = 0
    catalog, release = _release(place)
    comparing = differing.Comparing(Scratch.of(Run(catalog.storage, release.id)))
    return partial(unique_ids.check_ids, Source.open(config(place)), comparing)


def seal(place: Path) -> Callable[[], object]:
    """Receipts are checked, and become one commit."""
    from reembed.catalog.runs import find_runs
    from reembed.source.dataset import Source
    from reembed.store.storage import Storage
    from reembed.table import seal as sealing
    from reembed.table import write as table

    here = place / "seal"
    _copy(place / "unsealed", here)
    (run,) = find_runs(Storage.open(str(here)))
    plan = run.plan()
    assert plan is not None
    columns = table.schema(plan.space, *Source(plan.source, ()).schema())
    return lambda: sealing.seal(run, plan, columns, 0)


def finish(place: Path) -> Callable[[], object]:
    """All that a rebuild does once its documents are embedded: seal, index, verify, register."""
    from inline import Inline, Silent

    from reembed.strategies.full_rebuild import full_rebuild

    _copy(place / "unsealed", place / "finish")
    return partial(full_rebuild, config(place, "finish"), Silent(), executor=Inline())


def verify(place: Path) -> Callable[[], object]:
    """Every row, every file, the index, and 459 vectors."""
    from reembed.lifecycle.verification import verify_release

    catalog, release = _release(place)

    def run() -> None:
        found = verify_release(catalog, release.id, level=3, sample=459, resume=False, stall_s=60)
        if not found.passed:
            raise SystemExit(f"the release differs: {found.report.differences}")

    return run


def complete(place: Path) -> Callable[[], object]:
    """Every file of a release, before it is promoted."""
    from reembed.lifecycle.complete import require_complete

    return partial(require_complete, *_release(place))


def status(place: Path) -> Callable[[], object]:
    """Where the alias stands."""
    from reembed.lifecycle.status import status as shown

    catalog, _ = _release(place)
    return partial(shown, catalog)


def find_changes(place: Path) -> Callable[[], object]:
    """What a catch-up embeds, of a source with a newer version: by the files that changed."""
    return _changes(place, "delta", ())


def catch_up(place: Path) -> Callable[[], object]:
    """The whole catch-up with that version, but for a model that takes time."""
    from inline import Inline, Silent

    from reembed.strategies.catch_up import catch_up as grow

    _copy(place / "root", place / "caught")
    _, release = _release(place, "caught")
    step = partial(grow, config(place, "caught"), release, Silent(), executor=Inline())

    def run() -> None:
        grown = step()
        if grown.source.version == release.source.version or grown.rows != release.rows:
            raise SystemExit(f"the release grew into {grown}")

    return run


def _copy(whole: Path, to: Path) -> None:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(whole, to, copy_function=os.link)


def compare_rows(place: Path) -> Callable[[], object]:
    """The same by comparing every row, which dead letters that are tried again ask for."""
    from reembed.catalog.receipts import DeadLetter

    return _changes(place, "compare", (DeadLetter("not in the source", "failed", "00" * 16),))


def _changes(place: Path, how: str, dead_letters: Sequence[Any]) -> Callable[[], object]:
    from reembed.catalog.runs import Run
    from reembed.lifecycle.scratch import Scratch
    from reembed.source.dataset import Source
    from reembed.strategies.changes import find_changes as find
    from reembed.strategies.differing import Comparing
    from reembed.table.read import TableVersion

    catalog, release = _release(place)
    before = Source(release.source, ())
    table = TableVersion(catalog.storage, release.table, release.table_version, release.space.dim)
    expected = int((place / "changed").read_text()) + len(dead_letters)
    comparing = Comparing(Scratch.of(Run(catalog.storage, release.id)))

    def run() -> None:
        after = before.newest()
        found = find(before, after, table, dead_letters, retry=True, comparing=comparing)
        if found.documents != expected or not found.how.startswith(how):
            raise SystemExit(f"{found.documents:,} changes found by {found.how}")

    return run


PREPARATIONS: dict[str, Callable[[Path, int], None]] = {
    "build": build,
    "change_share": change_share,
    "change_few": change_few,
    "change_near": change_near,
}
CHANGES = {
    "find_changes": "change_share",
    "find_few_changes": "change_few",
    "find_near_changes": "change_near",
}
"""What happens to the documents before a step."""
STEPS: dict[str, Callable[[Path], Callable[[], object]]] = {
    "check_documents": check_documents,
    "check_ids": check_ids,
    "seal": seal,
    "finish": finish,
    "verify": verify,
    "complete": complete,
    "status": status,
    "find_changes": find_changes,  # it and the next two need a changed source
    "catch_up": catch_up,
    "compare_rows": compare_rows,
    "find_few_changes": find_changes,  # the same three, with the same number of changes at every size
    "catch_up_few": catch_up,
    "compare_few": compare_rows,
    "find_near_changes": find_changes,  # of neighbours, which as many files hold at every size
    "catch_up_near": catch_up,
}

if __name__ == "__main__":
    main()

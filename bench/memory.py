"""Whether memory follows the units in flight or the corpus: the same job on a small and a large one.

Documents of 2 KB are embedded by a model that costs nothing (`hashing:64`), so that reading,
moving and writing are all there is. While the job embeds, the proportional share of memory (PSS)
of all its processes, the object store among them, is read every quarter second; the driver's alone
too. Later stages are read as well: an index holds all vectors.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import common

NAME = "memory"
_EVERY_S = 0.25
_WORDS = 300  # about 2 KB


def main() -> None:
    args = _arguments()
    with common.workdir(args) as folder, common.Reembed() as reembed:
        small = measure(args, folder, reembed, "small", args.documents)
        large = measure(args, folder, reembed, "large", args.documents * args.times)
    grown = large["embed_peak_mib"] / small["embed_peak_mib"]
    common.say(f"{args.times} times the documents, {grown:.2f} times the memory while embedding")
    figures = {"times": args.times, "grown": round(grown, 3), "small": small, "large": large}
    common.finish(NAME, args, figures)


def _arguments() -> argparse.Namespace:
    parser = common.parser(NAME, __doc__)
    parser.set_defaults(model="hashing:64")
    parser.add_argument("--documents", type=int, default=20_000, help="small one [%(default)s]")
    parser.add_argument("--times", type=int, default=10, help="the large one [%(default)s]")
    parser.add_argument("--unit-documents", type=int, default=1_024, help="[%(default)s]")
    return common.parse(parser)


def measure(
    args: argparse.Namespace, folder: Path, reembed: common.Reembed, name: str, documents: int
) -> common.Figures:
    """One run, and its peaks by stage."""
    source = common.random_documents(folder / f"{name}.lance", documents, _WORDS)
    config = common.write_config(
        folder,
        name,
        source,
        args,
        source={"uri": str(source), "id_column": "_id", "text": "text"},
        embed={"unit_documents": args.unit_documents},
    )
    common.say(f"{name}: {documents:,} documents")
    driver = reembed.start("run", "-c", str(config), "--json", stdout=subprocess.DEVNULL)
    with watching(reembed, driver.pid, folder / name) as peaks:
        if driver.wait():
            raise SystemExit(f"reembed run exited with {driver.returncode}")
    return {
        "documents": documents,
        "text_mib": round(documents * _WORDS * 7 / 2**20),
        "driver_peak_mib": round(peaks["driver"]),
        "embed_peak_mib": round(peaks["embed"]),
        "later_peak_mib": round(peaks["later"]),
    }


@contextlib.contextmanager
def watching(reembed: common.Reembed, driver: int, root: Path) -> Iterator[dict[str, float]]:
    """Peaks in MiB while the block runs: of the driver, of all processes while embedding, and later."""
    peaks = {"driver": 0.0, "embed": 0.0, "later": 0.0}
    done = threading.Event()

    def loop() -> None:
        while not done.wait(_EVERY_S):
            shares = {pid: proportional_mib(pid) for pid in reembed.leftovers()}
            stages = {event["stage"] for event in common.events(root)}
            stage = "later" if "embedded" in stages else "embed"
            peaks["driver"] = max(peaks["driver"], shares.get(driver, 0.0))
            peaks[stage] = max(peaks[stage], sum(shares.values()))

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()


def proportional_mib(pid: int) -> float:
    """PSS of a process; 0 when it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    main()

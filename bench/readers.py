"""Readers while releases are promoted and rolled back: errors, mixed answers, the tail, memory.

Two releases of one alias have other documents, another carried mark and another model of the same dimension, so
that a mix of any two parts (model, index, table, record) gives another answer than each of them. Their answers to
every query are written down first, each from its release alone. Then 4 processes open the alias with a background
refresh, and 4 threads in each search it by texts and with a carried column, every other time with a filter, while
this process promotes and rolls back.

`mixed` counts answers whose document ids, marks and release are not exactly those of one release. `planted_found`
shows that the count sees a mix: one part of a release is exchanged at a time, and each must be counted.
`p99_ratio` is the p99 of a search while the alias moves over that in the pauses between: both take turns, ten
times each. `rss_growth` is the memory of all readers at the end (VmRSS) over that after both releases had been
open for a first time. Threads rest between searches, so that processes do not only wait for each other's cores.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # a run without Ray
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import common

if TYPE_CHECKING:
    from reembed.serving.index import Index

NAME = "readers"
ALIAS = "docs"
MARKS = ("old", "new")
ROWS, PROCESSES, THREADS, K = 6_000, 4, 4, 10
TURNS = 10
REFRESH_S, REST_S = 0.1, 0.02
FILTER = "part = 1"


def main() -> None:
    parser = common.parser(NAME, __doc__)
    parser.add_argument("--reader", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--switches", type=int, default=100, help="in all [%(default)s]")
    parser.add_argument("--every", type=float, default=0.5, help="seconds [%(default)s]")
    common.add_limit(parser)
    args = common.parse(parser)
    if args.reader is not None:
        read(args.workdir, args.reader)
        return
    with common.workdir(args) as folder:
        build(folder, min(ROWS, args.limit or ROWS))
        figures = planted(folder) | measure(folder, args)
    common.finish(NAME, args, figures)


# --- two releases ---


def build(folder: Path, rows: int) -> None:
    """Two releases of the alias, the first promoted, and what each answers."""
    import lance
    import pyarrow as pa
    from inline import Inline, Silent

    from reembed.catalog.releases import Catalog
    from reembed.config.settings import load
    from reembed.lifecycle.promote import promote
    from reembed.serving.live import OpenRelease
    from reembed.store.storage import Storage
    from reembed.strategies.full_rebuild import full_rebuild

    texts = common.paragraphs(rows)
    storage = Storage.open(folder / "root")
    answers: common.Figures = {"queries": [" ".join(t.split()[:8]) for t in texts[:200]]}
    for mark in MARKS:
        common.say(f"building the {mark} release of {rows:,} documents")
        names = pa.array([f"{mark}-{n}" for n in range(rows)])
        parts = pa.array([n % 4 for n in range(rows)])
        columns = {"doc_id": names, "text": pa.array(texts), "mark": pa.array([mark] * rows)}
        source = str(folder / f"{mark}.lance")
        lance.write_dataset(pa.table({**columns, "part": parts}), source)
        settings = [
            f"alias={ALIAS}", f"source.uri={source}", f"encoder.model=hashing:64:{mark}",
            f"storage.root={storage.root}", "table.carry=[mark,part]",
            "index.factory=IVF64,PQ32x4fs,RFlat", "index.ann_recall=.9",
        ]  # fmt: skip
        config, _ = load([], settings)
        release = full_rebuild(config, Silent(), fresh=True, executor=Inline())
        opened = OpenRelease.open(storage, release)
        found = {c: opened.search(answers["queries"], K, ["mark"], c) for c in (None, FILTER)}
        answers[mark] = {
            "release": release.id,
            **{str(c): [[h.doc_id for h in hits] for hits in of] for c, of in found.items()},
        }
    promote(Catalog(storage, ALIAS), answers["old"]["release"], initial_reason="a measurement")
    (folder / "answers.json").write_text(json.dumps(answers))


class Judge:
    """Says of which release an answer is, by what each release answers alone."""

    def __init__(self, folder: Path) -> None:
        self.answers = json.loads((folder / "answers.json").read_text())
        self.queries: list[str] = self.answers["queries"]

    def is_of_one(self, number: int, condition: str | None, hits: Any) -> bool:
        """Whether document ids, marks and the release that the hits name are all of one release."""
        ids, marks = [h.doc_id for h in hits], {h.columns["mark"] for h in hits}
        named = {h.release for h in hits}
        return any(
            ids == self.answers[mark][str(condition)][number]
            and marks == {mark}
            and named == {self.answers[mark]["release"]}
            for mark in MARKS
        )


def planted(folder: Path) -> common.Figures:
    """Answers of one release's model with the other's index: each must count as mixed."""
    from dataclasses import replace

    from reembed.catalog.releases import Catalog
    from reembed.serving.live import OpenRelease
    from reembed.store.storage import Storage

    judge, storage = Judge(folder), Storage.open(folder / "root")
    catalog = Catalog(storage, ALIAS)
    old, new = (
        OpenRelease.open(storage, catalog.release(judge.answers[m]["release"])) for m in MARKS
    )
    wrong = {
        "model": replace(old, encoder=new.encoder),
        "index": replace(old, index=new.index),
        "table": replace(old, table=new.table),
        "release": replace(old, release=new.release),
    }
    found = 0
    for opened in wrong.values():
        hits = opened.search(judge.queries, K, ["mark"])
        found += any(not judge.is_of_one(n, None, of) for n, of in enumerate(hits))
    whole = old.search(judge.queries, K, ["mark"])
    assert all(judge.is_of_one(n, None, of) for n, of in enumerate(whole))
    return {"planted": len(wrong), "planted_found": found}


# --- one process that reads ---


class Reader:
    """Threads that search one index until the process is told to end."""

    def __init__(self, index: Index, judge: Judge) -> None:
        self._index, self._judge = index, judge
        self.end = threading.Event()
        self.answers = self.mixed = self.errors = 0
        self.times: list[tuple[float, float]] = []
        self.examples: list[str] = []
        self._lock = threading.Lock()

    def run(self, seed: int) -> None:
        """Search until the end."""
        turn = seed
        while not self.end.wait(REST_S):
            turn += 1
            number, condition = (37 * turn) % len(self._judge.queries), (None, FILTER)[turn % 2]
            started = time.monotonic()
            try:
                (hits,) = self._index.search([self._judge.queries[number]], K, ["mark"], condition)
            except Exception as error:  # noqa: BLE001 - every kind is counted
                self._count(error=f"{type(error).__name__}: {error}")
                continue
            seconds = time.monotonic() - started
            is_whole = self._judge.is_of_one(number, condition, hits)
            self._count((started, seconds), mixed=not is_whole)

    def _count(
        self, times: tuple[float, float] | None = None, *, mixed: bool = False, error: str = ""
    ) -> None:
        with self._lock:
            self.answers += times is not None
            self.mixed += mixed
            self.errors += bool(error)
            if error:
                self.examples = [*self.examples, error][:3]
            if times:
                self.times.append(times)


def read(folder: Path, process: int) -> None:
    """Search in threads until SIGTERM, then write what happened."""
    import faiss

    import reembed

    faiss.omp_set_num_threads(1)
    judge, seen = Judge(folder), set()
    with reembed.open(folder / "root", ALIAS, refresh_every=REFRESH_S) as index:
        reader = Reader(index, judge)
        signal.signal(signal.SIGTERM, lambda *_: reader.end.set())
        threads = [
            threading.Thread(target=reader.run, args=(1_000 * process + n,)) for n in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        (folder / f"ready-{process}").touch()
        moves, last = 0, index.release.id
        while not reader.end.wait(0.01):
            seen.add(now := index.release.id)
            moves, last = moves + (now != last), now
        for thread in threads:
            thread.join()
        failed = str(index.refresh_error or "")
    made = {
        "answers": reader.answers,
        "mixed": reader.mixed,
        "errors": reader.errors,
        "examples": [*reader.examples, *([failed] if failed else [])],
        "refreshes": moves,
        "times": reader.times,
    }
    (folder / f"read-{process}.json").write_text(json.dumps(made))


# --- what moves the alias ---


def measure(folder: Path, args: argparse.Namespace) -> common.Figures:
    """Start the readers, move the alias, and put together what they saw."""
    asked = ["--workdir", str(folder), "--reader"]
    started = [
        subprocess.Popen([sys.executable, __file__, *asked, str(n)], env={**os.environ})
        for n in range(PROCESSES)
    ]
    try:
        while not all((folder / f"ready-{n}").exists() for n in range(PROCESSES)):
            time.sleep(0.1)
            if any(p.poll() is not None for p in started):
                raise SystemExit("a reader ended before it began")
        windows, memory = move(folder, args, [p.pid for p in started])
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(60)
    return figures_of(folder, args, windows, memory)


def move(
    folder: Path, args: argparse.Namespace, pids: list[int]
) -> tuple[list[tuple[str, float, float]], list[int]]:
    """Promote and roll back in turns with pauses; return the windows and the readers' memory, first and last."""
    from reembed.catalog.releases import Catalog
    from reembed.lifecycle.promote import promote, rollback
    from reembed.store.storage import Storage

    catalog = Catalog(Storage.open(folder / "root"), ALIAS)
    new = json.loads((folder / "answers.json").read_text())["new"]["release"]
    made = 0

    def switch() -> None:
        nonlocal made
        if made % 2:
            rollback(catalog)
        else:
            promote(catalog, new, force_reason="a measurement")
        made += 1

    for _ in range(4):  # both releases are open for a first time
        switch()
        time.sleep(5 * REFRESH_S)
    memory, windows, made = [rss(pids)], [], 0
    each = args.switches // TURNS
    for turn in range(TURNS):
        for kind in ("calm", "moving"):
            began = time.monotonic()
            for _ in range(each):
                if kind == "moving":
                    switch()
                time.sleep(args.every)
            windows.append((kind, began, time.monotonic()))
        common.say(f"turn {turn + 1} of {TURNS}: {made} switches")
    time.sleep(5 * REFRESH_S)
    return windows, [*memory, rss(pids)]


def rss(pids: list[int]) -> int:
    """Memory of these processes in KiB."""
    lines = [line for p in pids for line in Path(f"/proc/{p}/status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def figures_of(
    folder: Path,
    args: argparse.Namespace,
    windows: list[tuple[str, float, float]],
    memory: list[int],
) -> common.Figures:
    read = [json.loads((folder / f"read-{n}.json").read_text()) for n in range(PROCESSES)]
    times = [t for of in read for t in of["times"]]
    seconds: dict[str, list[float]] = {"calm": [], "moving": []}
    for kind, began, ended in windows:
        seconds[kind] += [s for at, s in times if began <= at < ended]
    p99 = {kind: statistics.quantiles(of, n=100)[98] for kind, of in seconds.items()}
    return {
        "switches": TURNS * (args.switches // TURNS),
        **{key: sum(of[key] for of in read) for key in ("answers", "errors", "mixed", "refreshes")},
        "examples": [e for of in read for e in of["examples"]],
        "p99_ratio": round(p99["moving"] / p99["calm"], 2),
        **{f"p50_{kind}_ms": round(1e3 * statistics.median(of), 2) for kind, of in seconds.items()},
        **{f"p99_{kind}_ms": round(1e3 * of, 2) for kind, of in p99.items()},
        "rss_growth": round(memory[1] / memory[0], 3),
        "rss_mib": [round(m / 1024) for m in memory],
        "rows": min(ROWS, args.limit or ROWS),
        "processes": PROCESSES,
        "threads": THREADS,
        "busy_cores": common.busy_cores(),
    }


if __name__ == "__main__":
    main()

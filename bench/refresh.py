"""What opening an index takes, and a refresh to one that grew from it, for each kind of index.

An index is built as a run builds it, and grown by a delta of 1 % of its rows and as many tombstones. A fresh
process opens the first one as `reembed.open` does, searches it, then opens the second one beside it as
`Index.refresh` does, and searches that. Models and tables are left out. `peak` is the most memory of the
process's own (RssAnon in /proc/self/status, sampled every 2 ms) over what it had before, in sizes of the
index; 1 would be all of it in memory once. `mapped` is the same for pages of files (RssFile), which the
kernel can drop. `new_peak`: a refresh to an index that shares no file with the one that is open, such as one
that was built again.

Vectors are random in clusters, of unit length: N/250 centres, noise of .6 a dimension.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # vectors in memory
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import common

NAME = "refresh"
ROWS, DIM = 200_000, 384
LISTS = "IVF1024"
PQ = f"{LISTS},PQ192x4fs"
KINDS = {
    "flat": "Flat",
    "pq_rflat": f"{PQ},RFlat",
    "pq_sqfp16": f"{PQ},Refine(SQfp16)",
    "pq_sq8": f"{PQ},Refine(SQ8)",
    "ivf_sq8": f"{LISTS},SQ8",
    "hnsw": "HNSW16",
}


def main() -> None:
    parser = common.parser(NAME, __doc__)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    common.add_limit(parser)
    args = common.parse(parser)
    if args.only:
        print(json.dumps(measure(args.workdir, args.only)))
        return
    figures: common.Figures = {"rows": min(ROWS, args.limit or ROWS), "dim": DIM}
    with common.workdir(args) as folder:
        vectors = build_all(folder, figures["rows"])
        for kind, size in vectors.items():
            asked = ["--only", kind, "--workdir", str(folder)]
            here = [sys.executable, __file__, *asked]
            out = subprocess.run(here, check=True, stdout=subprocess.PIPE, text=True).stdout
            figures[kind] = {"factory": KINDS[kind], "mib": size, **json.loads(out)}
            common.say(f"{kind}: {figures[kind]}")
    for key in ("open_peak", "refresh_peak", "new_peak"):
        figures[key] = max(figures[kind][key] for kind in KINDS)
    common.finish(NAME, args, figures)


def build_all(folder: Path, rows: int) -> dict[str, float]:
    """Build an index of each kind, one that grew from it and a copy that shares no file; return sizes in MiB."""
    import numpy as np
    from vectors import WHERE, ArrayVectors, unit

    left = np.arange(0, rows // 10, 10)

    class Grown(ArrayVectors):
        """Vectors of which a few left."""

        @property
        def rows(self) -> int:
            return super().rows - len(left)

        def fragments(self) -> list[tuple[int, int]]:
            return [*base.fragments(), (3 * len(base.fragments()), more)]

    from reembed.config.settings import IndexConfig
    from reembed.index import build
    from reembed.index.grow import Change, Older, grow
    from reembed.store.storage import Storage

    rng, more = np.random.default_rng(0), rows // 100
    centres = rng.standard_normal((max(16, rows // 250), DIM), dtype=np.float32)
    noise = 0.6 * rng.standard_normal((rows + more, DIM), dtype=np.float32)
    vectors = unit(centres[rng.integers(len(centres), size=rows + more)] + noise)
    ids = np.arange(rows + more, dtype=np.int64)
    base = ArrayVectors(ids[:rows], vectors[:rows], more)
    grown = Grown(ids, vectors, more)
    storage, sizes = Storage.open(folder / "root"), {}
    lists = f"IVF{min(1024, rows // 64)}"
    for kind, factory in KINDS.items():
        factory = factory.replace(LISTS, lists)
        settings = IndexConfig(device="cpu", factory=factory, ann_recall=0.5)
        path = f"indexes/{kind}"
        work = build.Build(storage, path, f"runs/{kind}/index", base, settings)
        prepared = build.prepare(work, vectors[:200])
        for number in range(len(prepared.shards)):
            build.fill_shard(work, prepared, number)
        first = build.finish(work, prepared, **WHERE)
        newer = replace(work, path=f"{path}-grown", source=grown)
        newer = replace(newer, trained=build.Trained(path, first.base.trained, 0))
        change = Change((grown.fragments()[-1][0],), left, frozenset(first.base.fragments), more)
        second = grow(newer, Older(path, first), change, table_version=5)
        assert second is not None
        shutil.copytree(storage.uri(path), storage.uri(f"{path}-again"))
        (folder / f"{kind}.json").write_text(json.dumps([first.sha256, second.sha256]))
        sizes[kind] = round(first.base.vectors.size_bytes / 2**20, 1)
        common.say(f"built {factory}")
    return sizes


def measure(folder: Path, kind: str) -> common.Figures:
    """Open and refresh in this process, with files in the page cache and one FAISS thread."""
    import faiss
    import numpy as np

    from reembed.catalog.index_manifest import IndexManifest, read_manifest
    from reembed.index import files
    from reembed.store.storage import Storage

    faiss.omp_set_num_threads(1)
    storage, path = Storage.existing(folder / "root"), f"indexes/{kind}"
    first, second = json.loads((folder / f"{kind}.json").read_text())
    queries = np.random.default_rng(1).standard_normal((200, DIM), dtype=np.float32)
    faiss.IndexFlatIP(DIM).search(queries, 1)
    opened = read_manifest(storage, path, first)
    newer = read_manifest(storage, f"{path}-grown", second)
    assert isinstance(opened, IndexManifest)
    size = opened.base.vectors.size_bytes
    for file in Path(storage.uri(path)).iterdir():
        file.read_bytes()
    figures: common.Figures = {}

    def step(name: str, at: str, manifest: Any, held: Any) -> Any:
        gc.collect()
        with Peak() as peak:
            started = time.process_time()
            index = files.load(storage, at, manifest, held)
            figures[f"{name}_cpu_s"] = round(time.process_time() - started, 3)
            index.nearest(queries, 10)
        figures[f"{name}_peak"] = round((peak.own - before) / size, 3)
        figures[f"{name}_mapped"] = round((peak.mapped - mapped_before) / size, 3)
        return index

    # What the first use of the libraries takes is not the index's.
    storage.create("warm", {})
    before, mapped_before = memory()
    held = step("open", path, opened, None)
    grown = step("refresh", f"{path}-grown", newer, held)
    del grown
    step("new", f"{path}-again", opened, None)
    return figures


def memory() -> tuple[int, int]:
    """Bytes of the process's own, and of mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    of = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    return 1024 * int(of["RssAnon"]), 1024 * int(of["RssFile"])


class Peak:
    """The most memory while it is entered."""

    def __enter__(self) -> Peak:
        self.own, self.mapped = memory()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._end.wait(0.002):
            self._look()

    def _look(self) -> None:
        own, mapped = memory()
        self.own, self.mapped = max(own, self.own), max(mapped, self.mapped)

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()
        self._look()


if __name__ == "__main__":
    main()

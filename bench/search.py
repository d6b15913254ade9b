"""How much a whole search takes beside the index alone: checks, ids and results are the rest.

Query vectors are given, so the model is not measured. The index alone is one call of FAISS at the
operating point that the index was tuned to; the whole search is `OpenRelease.search` with k = 10 and no
columns. They take turns, query by query: `ratio_p50` is of medians of single queries, `ratio_batched`
of medians of batches of 1,000, the larger of the two corpora each. FAISS runs on one thread, so that a
ratio says what a query costs and not how many cores are idle; `all_cores` has the same with its default.

Vectors are random in clusters, of unit length: N/250 centres, noise of .6 a dimension. Queries are
rows with noise of .05. The table is written and the index is built, tuned, saved and loaded as a run
does it; only embedding is left out. `table_reads` counts what a search without columns asks of the
table: it must be 0. `columns_ratio_p50` is of a search that asks for one column, which reads the table.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # a release's record
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import common

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from reembed.serving.live import OpenRelease
    from reembed.store.storage import Storage

    Float32 = npt.NDArray[np.float32]

NAME = "search"
K = 10
BATCH = 1_000
_WARM_UP = 50
_APART = 997
"""Calls between two of the same query by different ways."""
_TABLE = "tables/searched.lance"
CORPORA = {"1m_64": (1_000_000, 64), "200k_384": (200_000, 384)}


def main() -> None:
    args = _arguments()
    figures: common.Figures = {}
    for name, (rows, dim) in CORPORA.items():
        with common.workdir(args) as folder:
            figures[name] = measure(folder, min(rows, args.limit or rows), dim, args)
        common.say(f"{name}: {figures[name]}")
    for ratio in ("ratio_p50", "ratio_batched"):
        figures[ratio] = max(figures[name][ratio] for name in CORPORA)
    figures |= {"k": K, "batch": BATCH, "queries": args.queries, "rounds": args.rounds}
    common.finish(NAME, args, figures)


def _arguments() -> argparse.Namespace:
    parser = common.parser(NAME, __doc__)
    parser.add_argument("--queries", type=int, default=2_000, help="single ones [%(default)s]")
    parser.add_argument("--rounds", type=int, default=15, help="batches of each [%(default)s]")
    common.add_limit(parser)
    return common.parse(parser)


def measure(folder: Path, rows: int, dim: int, args: argparse.Namespace) -> common.Figures:
    """Both ratios on one corpus, with what was built."""
    import faiss

    from reembed.index.segments import SegmentedIndex
    from reembed.store.storage import Storage

    storage = Storage.open(folder / "root")
    common.say(f"{rows:,} x {dim}: writing the table and building the index")
    write_table(storage, rows, dim)
    opened, queries, built = open_release(storage, dim)
    common.say("searching")
    assert isinstance(opened.index, SegmentedIndex)
    index = opened.index.opened[0].index.faiss_index
    ways: dict[str, Callable[[Any], object]] = {
        "index": lambda vectors: index.search(vectors, K),
        "whole": lambda vectors: opened.search(vectors, K),
        "columns": lambda vectors: opened.search(vectors, K, ["title"]),
    }
    cores = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    one_thread = ratios(ways, queries, args)
    faiss.omp_set_num_threads(cores)
    return {
        "rows": rows,
        "dim": dim,
        **built,
        **one_thread,
        "all_cores": ratios(ways, queries, args),
        "table_reads": table_reads(opened, queries),
        "busy_cores": common.busy_cores(),
    }


def ratios(
    ways: dict[str, Callable[[Any], object]], queries: Float32, args: argparse.Namespace
) -> common.Figures:
    """Whole searches over the index alone, single and in batches, and what they took."""
    asked = [queries[n % len(queries)][None] for n in range(args.queries)]
    both = {name: ways[name] for name in ("index", "whole")}
    # Reading the table empties the caches, so it does not take turns with what reads none.
    single = in_turn({"columns": ways["columns"]}, asked) | in_turn(both, asked)
    batch = queries[:BATCH]
    batched = in_turn(both, [batch] * args.rounds)
    return {
        "ratio_p50": round(single["whole"] / single["index"], 3),
        "ratio_batched": round(batched["whole"] / batched["index"], 3),
        "columns_ratio_p50": round(single["columns"] / single["index"], 3),
        **{f"{name}_us_p50": round(1e6 * s, 1) for name, s in single.items()},
        **{
            f"{name}_us_a_query_batched": round(1e6 * s / len(batch), 1)
            for name, s in batched.items()
        },
    }


def write_table(storage: Storage, rows: int, dim: int) -> None:
    """Ids, clustered vectors, a title and a number from 0 to 99 of each document, as one Lance table."""
    import lance
    import numpy as np
    import pyarrow as pa

    rng = np.random.default_rng(0)
    centres = rng.standard_normal((max(16, rows // 250), dim), dtype=np.float32)

    def batches() -> Any:
        for start in range(0, rows, 65_536):
            numbers = range(start, min(start + 65_536, rows))
            noise = 0.6 * rng.standard_normal((len(numbers), dim), dtype=np.float32)
            vectors = centres[rng.integers(len(centres), size=len(numbers))] + noise
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            stored = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dim)
            names, titles = [f"doc-{n:09d}" for n in numbers], [f"title {n}" for n in numbers]
            buckets = rng.integers(100, size=len(numbers), dtype=np.int32)
            yield pa.record_batch([names, stored, titles, buckets], schema=schema)

    vector = pa.list_(pa.float32(), dim)
    carried = [("title", pa.string()), ("bucket", pa.int32())]
    schema = pa.schema([("doc_id", pa.string()), ("vector", vector), *carried])
    reader = pa.RecordBatchReader.from_batches(schema, batches())
    lance.write_dataset(reader, storage.uri(_TABLE), schema=schema, enable_stable_row_ids=True)


def open_release(
    storage: Storage, dim: int, factory: str | None = None
) -> tuple[OpenRelease, Float32, common.Figures]:
    """A release of the table with a real index, without a model; queries [Q, dim]; what was built."""
    import numpy as np
    from releases import make_release

    from reembed import encoders
    from reembed.catalog.releases import Catalog
    from reembed.config.settings import EncoderConfig, IndexConfig
    from reembed.index import build, files
    from reembed.serving.live import OpenRelease
    from reembed.table.read import TableVersion

    table = TableVersion(storage, _TABLE, 1, dim)
    rows = table.sample(2_000, seed=7)
    near = rows + 0.05 * np.random.default_rng(3).standard_normal(rows.shape, dtype=np.float32)
    queries = near / np.linalg.norm(near, axis=1, keepdims=True)
    settings = IndexConfig(device="cpu", factory=factory or "auto")
    kind = settings.factory.replace(",", "-").lower()
    folder = f"indexes/{kind}"
    work = build.Build(storage, folder, f"{folder}/run", table, settings)
    prepared = build.prepare(work, queries[:200])
    for number in range(len(prepared.shards)):
        build.fill_shard(work, prepared, number)
    manifest = build.finish(work, prepared, space="s", table=_TABLE, table_version=1)
    release = make_release(Catalog(storage, "docs"), f"searched-{kind}")
    carried = replace(release.source, carry=("title", "bucket"))
    release = replace(release, space=replace(release.space, dim=dim), source=carried)
    started = time.perf_counter()
    index = files.load(storage, folder, manifest)
    seconds = time.perf_counter() - started
    encoder = encoders.load_encoder(EncoderConfig(model=f"hashing:{dim}"))
    opened = OpenRelease(release, table, index, encoder)
    return (
        opened,
        queries,
        {
            "factory": manifest.base.factory,
            "operating_point": manifest.base.operating_point,
            "ann_recall_at_10": round(manifest.ann_recall_at_10, 4),
            "index_mib": round(manifest.base.vectors.size_bytes / 2**20, 1),
            "ids_mib": round(manifest.base.ids.size_bytes / 2**20, 1),
            "load_s": round(seconds, 2),
        },
    )


def in_turn(ways: dict[str, Callable[[Any], object]], asked: list[Any]) -> dict[str, float]:
    """Median seconds of each way over what is asked."""
    return {name: found.p50 for name, found in spread(ways, asked).items()}


class Spread(NamedTuple):
    """Seconds of many calls."""

    p50: float
    p99: float


def spread(ways: dict[str, Callable[[Any], object]], asked: list[Any]) -> dict[str, Spread]:
    """Seconds of each way over what is asked; the first of many are not counted.

    Ways take turns, and each is asked everything, but never what another was just asked: that one's lists would be
    in the cache, and the median of times with and without them is of neither.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    skipped = min(_WARM_UP, len(asked) // 4)
    for number in range(len(asked)):
        for place, name in enumerate(ways):
            vectors = asked[(number + place * _APART) % len(asked)]
            started = time.perf_counter()
            ways[name](vectors)
            if number >= skipped:
                times[name].append(time.perf_counter() - started)
    return {
        name: Spread(statistics.median(seconds), statistics.quantiles(seconds, n=100)[98])
        for name, seconds in times.items()
    }


def table_reads(opened: OpenRelease, queries: Float32) -> int:
    """Calls of the table's dataset during a batch without columns."""
    dataset, calls = opened.table.dataset(), []

    class Counted:
        def __getattr__(self, name: str) -> Any:
            calls.append(name)
            return getattr(dataset, name)

    vars(opened.table)["_opened"] = Counted()
    opened.search(queries[:BATCH], K)
    vars(opened.table)["_opened"] = dataset
    return len(calls)


if __name__ == "__main__":
    main()

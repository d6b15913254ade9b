"""What a lazy migration adds to a search: p50 and p99 over the old index alone.

100,000 documents on the old side, of 384 dimensions; every second one is migrated, to 256 dimensions. Vectors are
random in clusters, as in bench/search.py; tables and indexes are those of a run. Both models are the one of
`--model`, the new one truncated, so it costs as much as the old one. Old index alone and both sides take turns, query
by query, in one process with one thread for FAISS and for each model; k = 10, no columns, depth 100.

`text` is with both models embedding: queries are the first words of real paragraphs, 8 of them. `vectors` is without
models: queries of both spaces, as `encode_queries` returns them, each asked once by each way, so that most searches
read some vectors of the new side from the table. `cold` keeps none in memory: each search reads about 50. `warm` asks
the same 100 queries again and again: all are in memory. `p50_added_ms`, `p99_added_ms` and `p99_ratio` are those
of `text`. An answer that was the old side's alone is counted: `alone`, of all.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # a release's record
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import common, search

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reembed.serving.lazy_pair import LazyPair
    from reembed.serving.live import OpenRelease

NAME = "lazy_latency"
ROWS, DIM, NEW_DIM, K, DEPTH, WORDS = 100_000, 384, 256, 10, 100, 8
EXPECTED = {
    "vectors": "about .5 ms at the median: depth 100 instead of 10, fusion, two changes of thread",
    "cold": "about 1.5 ms at the median",
    "warm": "about .3 ms; written after a first run, in which `vectors` read nearly as much as `cold`",
    "text": "1 to 2 ms more than `vectors` at the median if both cores are free, and the time of one encoding if not",
    "p99_ratio": "below 1.5 on free cores, about 2 on busy ones",
}
"""Written before the first run, except for `warm`."""


def main() -> None:
    parser = common.parser(NAME, __doc__)
    parser.add_argument("--queries", type=int, default=2_000, help="of each kind [%(default)s]")
    common.add_limit(parser)
    args = common.parse(parser)
    rows = min(ROWS, args.limit or ROWS)
    figures: common.Figures = {"rows": rows, "dims": [DIM, NEW_DIM], "k": K, "depth": DEPTH}
    with common.workdir(args) as folder:
        figures |= measure(folder, rows, args)
    common.finish(NAME, args, figures | {"expected": EXPECTED})


def measure(folder: Path, rows: int, args: argparse.Namespace) -> common.Figures:
    """All figures."""
    import faiss
    import torch

    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
    common.say("writing tables and building indexes")
    old, near, built = side(folder / "old", rows, DIM, args.model)
    new, newer, built_new = side(folder / "new", rows // 2, NEW_DIM, args.model)
    figures: common.Figures = {"index": built, "new_index": built_new}
    with pair_of(old, new) as both:
        common.say("searching")
        texts = [[" ".join(t.split()[:WORDS])] for t in common.paragraphs(args.queries)]
        figures["text"] = compared(old, both, texts)
        vectors = [kept(old, new, *pair) for pair in zip(near, newer, strict=False)]
        asked = [vectors[n % len(vectors)] for n in range(args.queries)]
        figures["vectors"] = compared(old, both, asked)
        with unkept(both):
            figures["cold"] = compared(old, both, asked)
        figures["warm"] = compared(old, both, asked[:100] * (args.queries // 100))
    of_text = figures["text"]
    figures |= {name: of_text[name] for name in ("p50_added_ms", "p99_added_ms", "p99_ratio")}
    return figures | {"busy_cores": common.busy_cores()}


def side(folder: Path, rows: int, dim: int, model: str) -> tuple[OpenRelease, Any, common.Figures]:
    """A release with a real model, vectors near its rows, and what was built."""
    from reembed import encoders
    from reembed.config.settings import EncoderConfig
    from reembed.store.storage import Storage

    storage = Storage.open(folder)
    search.write_table(storage, rows, dim)
    opened, queries, built = search.open_release(storage, dim)
    settings = EncoderConfig(model=model, truncate_dim=None if dim == DIM else dim)
    release = replace(opened.release, space=replace(opened.release.space, dim=dim))
    return (
        replace(opened, release=release, encoder=encoders.load_encoder(settings)),
        queries,
        built,
    )


@contextmanager
def pair_of(old: OpenRelease, new: OpenRelease) -> Iterator[LazyPair]:
    """Both sides as one release, as the index of an alias makes it; nothing follows a migration's state."""
    import numpy as np

    from reembed.serving.in_time import BUDGET_S, InTime
    from reembed.serving.lazy_counts import Counts
    from reembed.serving.lazy_pair import LazyPair, Shared
    from reembed.serving.migrated import Migrated
    from reembed.serving.new_side import KeptVectors, NewSide, Opened
    from reembed.serving.turned_up import EVERY_S, TurnedUp

    written: list[int] = []
    plan: Any = SimpleNamespace(alias="docs", depth=DEPTH, fusion="slots")
    queue: Any = SimpleNamespace(
        plan=plan, files=lambda: [], put=lambda ids: written.append(len(ids))
    )
    watch: Any = SimpleNamespace(has_ended=False, is_known=True, queues=True)
    counts, there = Counts(), np.arange(new.table.rows, dtype=np.int64)
    migrated = Migrated(old.table, new.table, 2 * there, there)
    turned_up = TurnedUp(queue, counts, EVERY_S)
    shared = Shared(plan, watch, turned_up, InTime("docs", counts, BUDGET_S), counts)
    opened = Opened(new, migrated, KeptVectors(new.table))
    try:
        yield LazyPair.of(old, NewSide(opened, "token"), shared)
    finally:
        turned_up.close(write=False)
        shared.in_time.close()


@contextmanager
def unkept(both: LazyPair) -> Iterator[None]:
    """Keep no vector of the new side in memory meanwhile."""
    from reembed.serving.new_side import KeptVectors

    before = both.side.opened
    assert before is not None
    both.side.opened = replace(before, vectors=KeptVectors(before.release.table, 0))
    yield
    both.side.opened = before


def kept(old: OpenRelease, new: OpenRelease, vector: Any, newer: Any) -> Any:
    """A query in both spaces."""
    from reembed.serving.live import EncodedQueries

    of_new = EncodedQueries(newer[None], new.release.space.id)
    return EncodedQueries(vector[None], old.release.space.id, of_new)


def compared(old: OpenRelease, both: LazyPair, asked: list[Any]) -> common.Figures:
    """Milliseconds of both ways over the same queries, and their difference."""
    before = both.shared.counts.now()
    ways: dict[str, Callable[[Any], object]] = {
        "old": lambda queries: old.search(queries, K),
        "lazy": lambda queries: both.search(queries, K),
    }
    times = search.spread(ways, asked)
    now = both.shared.counts.now()
    fused = now.fused - before.fused
    ms = {
        f"{name}_p{p}_ms": round(1e3 * getattr(found, f"p{p}"), 3)
        for name, found in times.items()
        for p in (50, 99)
    }
    return ms | {
        "p50_added_ms": round(1e3 * (times["lazy"].p50 - times["old"].p50), 3),
        "p99_added_ms": round(1e3 * (times["lazy"].p99 - times["old"].p99), 3),
        "p99_ratio": round(times["lazy"].p99 / times["old"].p99, 2),
        "alone": len(asked) - fused,
        "of": len(asked),
        "hits_new": round((now.hits_new - before.hits_new) / (now.hits - before.hits), 3),
    }


if __name__ == "__main__":
    main()

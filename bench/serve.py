"""What `Index.search` takes beside its FAISS index, and what a filter costs and finds.

100,000 vectors of 384 dimensions, random in clusters, of unit length: N/250 centres, noise of .6 a dimension.
Queries are rows with noise of .05, given as vectors, so no model is measured. Table and index are those of a
run; only embedding is left out. One FAISS thread, k = 10, no columns.

`ratio_1` and `ratio_64` are queries/s of `Index.search` over those of one call of FAISS at the same operating
point, in batches of 1 and of 64: medians of the two, which take turns, batch by batch. `arrays_ratio_64` is FAISS
and the document ids as one Arrow array, `tuples_ratio_64` with a list of (id, score) for each query: what is left
of FAISS when no more than that is made. `filters` has, for a
filter that 1 % and 50 % of the rows meet, microseconds a query with it, and recall@10 against exact search over
the table's vectors among the rows that meet it (by number, in numpy). `filter_recall` is the least of them for the
index that `auto` chooses; `filter_recall_flat` of a Flat index, which must be 1. `first_ms` is the first search
with a filter, which reads its column of all rows.

`shadow` is how much longer a call takes while `Index.shadow` reads a candidate, by its share of the calls: p50 and
p99 over those without a shadow. The candidate is the same index (`real`), or one that sleeps for 5 ms (`slow`), that
computes in Python for 2 ms (`busy`: it holds the interpreter's lock) or that raises an error (`failing`). Ways take
turns in blocks of 200 calls, one query after another without a pause. `shadow_p50_ratio` and `shadow_p99_ratio` are
those of `real` at a share of .01.

`http` is the application of `reembed serve` in this process and 32 clients in another, each with a connection of
its own and one vector a request (8 KB of JSON): requests/s, and milliseconds of a request.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # a release's record
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import common, search

if TYPE_CHECKING:
    from reembed.serving.index import Index
    from reembed.serving.live import OpenRelease

NAME = "serve"
ROWS, DIM, K = 100_000, 384, 10
BATCH, CLIENTS = 64, 32
FILTERS = {"1": "bucket = 3", "50": "bucket < 50"}
"""By the share of rows that meet it, in per cent."""
EXACT_QUERIES = 500


def main() -> None:
    parser = common.parser(NAME, __doc__)
    parser.add_argument("--queries", type=int, default=4_000, help="single ones [%(default)s]")
    parser.add_argument("--rounds", type=int, default=200, help="batches of each [%(default)s]")
    common.add_limit(parser)
    parser.add_argument("--client", help=argparse.SUPPRESS)
    args = common.parse(parser)
    if args.client:
        print(json.dumps(asyncio.run(ask(args.client, args.queries))))
        return
    figures: common.Figures = {"rows": min(ROWS, args.limit or ROWS), "dim": DIM, "k": K}
    with common.workdir(args) as folder:
        figures |= of_index(folder, args)
    common.finish(NAME, args, figures)


def of_index(folder: Path, args: argparse.Namespace) -> common.Figures:
    """All figures of `Index.search`."""
    import faiss

    from reembed.store.storage import Storage

    faiss.omp_set_num_threads(1)
    storage = Storage.open(folder / "root")
    common.say("writing the table and building the indexes")
    search.write_table(storage, min(ROWS, args.limit or ROWS), DIM)
    auto, queries, built = search.open_release(storage, DIM)
    flat, _, _ = search.open_release(storage, DIM, "Flat")
    common.say(f"searching {built['factory']}")
    figures = {"index": built, **ratios(auto, queries, args)}
    figures["filters"] = filtered(auto, queries, args)
    figures["filters_flat"] = filtered(flat, queries, args)
    least = min(f["recall"] for f in figures["filters"].values())
    flat_recall = min(f["recall"] for f in figures["filters_flat"].values())
    figures["shadow"] = shadowed(auto, queries, args)
    for p in ("p50_ratio", "p99_ratio"):
        figures[f"shadow_{p}"] = figures["shadow"]["real"]["0.01"][p]
    figures["http"] = of_http(auto, queries, args)
    figures |= {"ann_recall": built["ann_recall_at_10"], "filter_recall": least}
    return figures | {"filter_recall_flat": flat_recall, "busy_cores": common.busy_cores()}


def of_http(opened: OpenRelease, queries: Any, args: argparse.Namespace) -> common.Figures:
    """Requests/s and latency of the HTTP application, asked by `CLIENTS` at once."""
    import uvicorn

    from reembed.serving.http.app import create_app
    from reembed.serving.http.options import ServeOptions

    common.say(f"{CLIENTS} clients over HTTP")
    app = create_app(served(opened), ServeOptions(), None)
    config = uvicorn.Config(app, port=0, log_config=None, access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as bound:
        thread = threading.Thread(target=server.run, args=([bound],))
        thread.start()
        port = bound.getsockname()[1]
        space = opened.release.space.id
        asked = {"port": port, "bodies": [_body(q, space) for q in queries[:200]]}
        file = Path(folder, "asked.json")
        file.write_text(json.dumps(asked))
        command = [sys.executable, __file__, "--client", str(file), "--queries", str(args.queries)]
        out = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout
        server.should_exit = True
        thread.join()
    found: common.Figures = json.loads(out.splitlines()[-1])
    return found


def _body(query: Any, space: str) -> str:
    return json.dumps({"vectors": [query.tolist()], "space": space, "k": K})


async def ask(file: str, requests: int) -> common.Figures:
    """Send the requests of a file from several connections; return what they took."""
    asked = json.loads(Path(file).read_text())
    head = "POST /search HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: "
    raw = [f"{head}{len(b)}\r\n\r\n{b}".encode() for b in asked["bodies"]]
    taken: list[float] = []

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", asked["port"])
        for n in range(number, requests, CLIENTS):
            started = time.perf_counter()
            writer.write(raw[n % len(raw)])
            told = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(told.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            answer = json.loads(await reader.readexactly(length))
            if len(answer["results"][0]["hits"]) != K:
                raise SystemExit(f"an answer is not whole: {answer}")
            taken.append(time.perf_counter() - started)
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(client(n) for n in range(CLIENTS)))
    seconds = time.perf_counter() - started
    ordered = sorted(taken)
    at = {f"p{p}_ms": round(1e3 * ordered[len(ordered) * p // 100], 2) for p in (50, 99)}
    return {"clients": CLIENTS, "requests": requests, "requests_s": round(requests / seconds), **at}


def served(opened: OpenRelease) -> Index:
    """An index that has this release open, as `reembed.open` makes it."""
    from reembed.serving.index import Index

    class Opened(Index):
        def _load(self, record: Any, before: Any = None, *, opens: bool = True) -> Any:
            return record, opened

    alias: Any = SimpleNamespace(alias="docs", require_live=lambda: None)
    return Opened(alias)


def ratios(opened: OpenRelease, queries: Any, args: argparse.Namespace) -> common.Figures:
    """Queries/s of whole searches over those of FAISS alone, single and in batches."""
    import pyarrow as pa

    index, bare = served(opened), opened.index.opened[0].index.faiss_index  # type: ignore[attr-defined]
    held: Any = opened.index
    ids = held.opened[0].ids["doc_id"]

    def arrays(vectors: Any) -> tuple[Any, Any]:
        scores, positions = bare.search(vectors, K)
        return scores, ids.take(pa.array(positions.ravel()))

    def tuples(vectors: Any) -> list[list[tuple[str, float]]]:
        scores, names = arrays(vectors)
        found = list(zip(names.to_pylist(), scores.ravel().tolist(), strict=True))
        return [found[start : start + K] for start in range(0, len(found), K)]

    ways: dict[str, Callable[[Any], object]] = {
        "faiss": lambda v: bare.search(v, K),
        "whole": lambda v: index.search(v, K),
    }
    single = [queries[n % len(queries)][None] for n in range(args.queries)]
    starts = [BATCH * n % (len(queries) - BATCH) for n in range(args.rounds)]
    of_one = search.spread(ways, single)
    made = {"arrays": arrays, "tuples": tuples}
    of_many = search.spread(ways | made, [queries[s : s + BATCH] for s in starts])
    return {
        "ratio_1": round(of_one["faiss"].p50 / of_one["whole"].p50, 3),
        "ratio_64": round(of_many["faiss"].p50 / of_many["whole"].p50, 3),
        **{f"{w}_ratio_64": round(of_many["faiss"].p50 / of_many[w].p50, 3) for w in made},
        **{f"{name}_us_p50": round(1e6 * s.p50, 1) for name, s in of_one.items()},
        **{f"{name}_us_p99": round(1e6 * s.p99, 1) for name, s in of_one.items()},
        **{f"{name}_queries_s": round(1 / s.p50) for name, s in of_one.items()},
        **{f"{name}_queries_s_64": round(BATCH / s.p50) for name, s in of_many.items()},
    }


def filtered(opened: OpenRelease, queries: Any, args: argparse.Namespace) -> common.Figures:
    """What each filter costs and finds."""
    index, found = served(opened), {}
    for share, condition in FILTERS.items():
        started = time.perf_counter()
        index.search(queries[:1], K, filter=condition)
        first = time.perf_counter() - started
        single = [queries[n % len(queries)][None] for n in range(args.queries // 4)]
        ways: dict[str, Callable[[Any], object]] = {
            "plain": lambda v: index.search(v, K),
            "filter": partial(index.search, k=K, filter=condition),
        }
        times = search.spread(ways, single)
        found[share] = {
            "recall": recall(index, queries[:EXACT_QUERIES], condition),
            "first_ms": round(1e3 * first, 1),
            **{f"{name}_us_p50": round(1e6 * s.p50, 1) for name, s in times.items()},
            **{f"{name}_us_p99": round(1e6 * s.p99, 1) for name, s in times.items()},
        }
    return found


def shadowed(opened: OpenRelease, queries: Any, args: argparse.Namespace) -> common.Figures:
    """Ratios of calls with a shadow over those without, by candidate and by share."""
    import numpy as np

    ways: list[tuple[str, float]] = [("none", 0.0)]
    ways += [(name, share) for name in ("real", *CANDIDATES) for share in (0.01, 1.0)]
    index = served(opened)
    times: dict[tuple[str, float], list[float]] = {way: [] for way in ways}
    logging.getLogger("reembed").setLevel(logging.ERROR)  # of `failing`
    for number in range(args.queries // 100):
        for place, way in enumerate(ways):
            first = number * 331 + place * 997
            asked = [queries[n % len(queries)][None] for n in range(first, first + 200)]
            times[way] += block(index, opened, *way, asked)
    found: common.Figures = {}
    ends = {way: np.percentile(seconds, (50, 99)) for way, seconds in times.items()}
    for (name, share), (p50, p99) in ends.items():
        ratios = {"p50_ratio": p50 / ends[ways[0]][0], "p99_ratio": p99 / ends[ways[0]][1]}
        at = {"p50_us": 1e6 * p50, "p99_us": 1e6 * p99, **ratios}
        found.setdefault(name, {})[str(share)] = {k: round(v, 3) for k, v in at.items()}
    return found


def block(
    index: Index, opened: OpenRelease, name: str, share: float, asked: list[Any]
) -> list[float]:
    """Seconds of each search, with a shadow if the share is not 0."""
    from reembed.serving.shadow import Shadow

    if share:
        release = replace(opened.release, id="candidate")
        candidate: Any = SimpleNamespace(
            release=release, search=CANDIDATES.get(name, opened.search)
        )
        index._shadow = Shadow(candidate, share, lambda read: None, seed=1)
    seconds = []
    for vectors in asked:
        started = time.perf_counter()
        index.search(vectors, K)
        seconds.append(time.perf_counter() - started)
    if index._shadow is not None:
        index._shadow.close()
        index._shadow = None
    return seconds


def _slow(*_: object) -> list[Any]:
    time.sleep(0.005)
    return []


def _busy(*_: object) -> list[Any]:
    until = time.perf_counter() + 0.002
    while time.perf_counter() < until:
        pass
    return []


def _failing(*_: object) -> list[Any]:
    raise RuntimeError("planted")


CANDIDATES: dict[str, Callable[..., list[Any]]] = {
    "slow": _slow,
    "busy": _busy,
    "failing": _failing,
}


def recall(index: Index, queries: Any, condition: str) -> float:
    """Share of the true best K among the rows that meet the condition that a search with it finds."""
    import numpy as np

    table = index.current.table.dataset().to_table(columns=["doc_id", "vector", "bucket"])
    bucket = table["bucket"].to_numpy()
    meets = np.flatnonzero(bucket == 3 if "=" in condition else bucket < 50)
    flat = table["vector"].combine_chunks().flatten().to_numpy().reshape(-1, DIM)[meets]
    scores = queries @ flat.T
    best = meets[np.argpartition(-scores, K - 1, axis=1)[:, :K]]
    names = table["doc_id"].to_pylist()
    hits = index.search(queries, K, filter=condition)
    same = [
        len({h.doc_id for h in got} & {names[at] for at in wanted})
        for got, wanted in zip(hits, best.tolist(), strict=True)
    ]
    return round(sum(same) / (K * len(same)), 4)


if __name__ == "__main__":
    main()

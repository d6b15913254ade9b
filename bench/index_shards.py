"""What an index costs: memory while its shards are filled, and bytes and speed at equal recall on real texts.

`shards`: a table of random vectors in clusters is filled at once and in shards, each step in a fresh process.
`identical` says whether both answer with the same rows, in the same order, when every vector of the lists that are
looked into is re-ranked; `same_answers` is the share of queries for which they do with 10 candidates a result, where
codes of 4 bits may tie for the last candidate (docs/decisions/027). `peak_ratio` is how far the memory of the
task that fills the largest shard rises above its start, over the file that it stores; `peak_ratios` has it for other
kinds of index.

`lance`: memory of training each kind of Lance's index, and of building a segment of `--shard-rows` rows.

`costs`: constants that the sizes of docs/sizing.md are computed from.

`real`: the glosses of a corpus, each distinct text once, embedded once by `--model` and kept in the folder for
temporary files. A thousand of them are taken out and asked as queries (`glosses`); the corpus' own queries are asked
too (`examples`). Each index is searched at the points that a build tries, and taken at the cheapest one that reaches
ann_recall@10 .95 and .98. `queries_per_core_s` is of CPU seconds of all threads: batches of a thousand, and
single queries. Lance re-ranks by the vectors of the table, whose bytes are not counted.

Each part can be run alone, by `--parts`; figures of the others stay in the record.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import common

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from reembed.index.build import Build
    from reembed.store.storage import Storage
    from reembed.table.read import TableVersion

    Float32 = npt.NDArray[np.float32]
    Search = Callable[[Float32], tuple[npt.NDArray[np.int64], Float32]]

NAME = "index_shards"
PARTS = ("shards", "lance", "costs", "real")
K = 10
TARGETS = (0.95, 0.98)
HELD_OUT = 1_000
_TABLE = "tables/indexed.lance"
_SINGLE = 300
_NPROBE = 8


def main() -> None:
    args = _arguments()
    if args.child:
        print(json.dumps(CHILDREN[args.child](args)))
        return
    figures = kept(args)
    if "shards" in args.parts:
        figures |= {"rows": args.rows, "dim": args.dim, "shard_rows": args.shard_rows}
        with common.workdir(args) as folder:
            figures |= shards(folder, args)
    if "lance" in args.parts:
        with common.workdir(args) as folder:
            figures["lance"] = lance_tasks(folder, args)
    if "costs" in args.parts:
        figures |= costs()
    if "real" in args.parts:
        figures["real"] = real(args)
    common.finish(NAME, args, figures)


def kept(args: argparse.Namespace) -> common.Figures:
    """Figures of the parts that are not run, from the record that is there."""
    record = args.out or common.RESULTS / f"{NAME}.json"
    if set(args.parts) == set(PARTS) or not record.exists():
        return {}
    of_run = ("name", "command", "machine", "versions", "commit", "at")
    found: common.Figures = json.loads(record.read_text())
    return {name: figure for name, figure in found.items() if name not in of_run}


def _arguments() -> argparse.Namespace:
    parser = common.parser(NAME, __doc__)
    parser.add_argument("corpus", type=Path, nargs="?", help="BEIR folder of short texts")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--rows", type=int, default=1_000_000, help="[%(default)s]")
    parser.add_argument("--dim", type=int, default=384, help="[%(default)s]")
    parser.add_argument("--shard-rows", type=int, default=500_000, help="[%(default)s]")
    parser.add_argument("--lists", type=int, default=1_024, help="of each index [%(default)s]")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--factory", help=argparse.SUPPRESS)
    parser.add_argument("--shard", type=int, help=argparse.SUPPRESS)
    common.add_limit(parser)
    return common.parse(parser)


# --- shards against one fill ---


def kinds(lists: int, dim: int) -> dict[str, str]:
    """Factory strings to compare, by name."""
    coarse, codes = f"IVF{lists}", f"IVF{lists},PQ{dim // 2}x4fs"
    return {
        "PQ, SQ8": f"{codes},Refine(SQ8)",
        "PQ, fp16": f"{codes},Refine(SQfp16)",
        "PQ, float32": f"{codes},RFlat",
        "half PQ, SQ8": f"{coarse},PQ{dim // 4}x4fs,Refine(SQ8)",
        "IVF-SQ8": f"{coarse},SQ8",
        "IVF-Flat": f"{coarse},Flat",
    }


def shards(folder: Path, args: argparse.Namespace) -> common.Figures:
    """Fill one table at once and in shards, and compare."""
    from reembed.store.storage import Storage

    storage = Storage.open(folder / "root")
    common.say(f"writing a table of {args.rows:,} x {args.dim}")
    write_table(storage, args.rows, args.dim)
    factories = kinds(args.lists, args.dim)
    child = partial(_child, folder, args)
    ratios, trained = {}, {}
    for name in ("PQ, fp16", "PQ, SQ8", "IVF-SQ8", "IVF-Flat"):
        trained[factories[name]] = child("train", factories[name])
        common.say(f"filling {factories[name]}")
        ratios[factories[name]] = child("fill", factories[name], 0)
        common.say(f"{factories[name]}: {ratios[factories[name]]}")
    chosen = factories["PQ, fp16"]
    number = 1
    while child("fill", chosen, number):
        number += 1
    whole = child("fill", chosen, -1)
    return {
        **child("compare", chosen),
        "factory": chosen,
        "shards": number,
        "peak_ratio": ratios[chosen]["peak_ratio"],
        "single": whole,
        "peak_ratios": ratios,
        "trained": trained,
    }


def _child(
    folder: Path, args: argparse.Namespace, step: str, factory: str, shard: int = 0
) -> common.Figures:
    """Run a step in a process of its own; return what it measured."""
    told = {"child": step, "folder": folder, "factory": factory, "shard": shard}
    told |= {
        name: getattr(args, name.replace("-", "_"))
        for name in ("rows", "dim", "lists", "shard-rows")
    }
    command = [sys.executable, __file__, *(f"--{name}={value}" for name, value in told.items())]
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE)
    found: common.Figures = json.loads(done.stdout.splitlines()[-1])
    return found


def write_table(storage: Storage, rows: int, dim: int) -> None:
    """Ids and random vectors in clusters, as a run writes them: many fragments, stable row ids."""
    import lance
    import numpy as np
    import pyarrow as pa

    rng = np.random.default_rng(0)
    centres = rng.standard_normal((max(16, rows // 250), dim), dtype=np.float32)
    schema = pa.schema([("doc_id", pa.string()), ("vector", pa.list_(pa.float32(), dim))])

    def batches() -> Any:
        for start in range(0, rows, 16_384):
            numbers = range(start, min(start + 16_384, rows))
            noise = 0.6 * rng.standard_normal((len(numbers), dim), dtype=np.float32)
            vectors = centres[rng.integers(len(centres), size=len(numbers))] + noise
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            stored = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dim)
            yield pa.record_batch([[f"doc-{n:09d}" for n in numbers], stored], schema=schema)

    reader = pa.RecordBatchReader.from_batches(schema, batches())
    per_file = max(1, min(16_384, rows // 8))
    lance.write_dataset(
        reader,
        storage.uri(_TABLE),
        schema=schema,
        max_rows_per_file=per_file,
        enable_stable_row_ids=True,
    )


def _builds(args: argparse.Namespace) -> tuple[Build, Build]:
    """The build in shards, and the one in a single fill from the same trained index."""
    from reembed.config.settings import IndexConfig
    from reembed.index import build as index
    from reembed.store.storage import Storage
    from reembed.table.read import TableVersion

    storage = Storage.open(args.folder / "root")
    table = TableVersion(storage, _TABLE, 1, args.dim)
    settings = IndexConfig(
        device="cpu", factory=args.factory, ann_recall=0.3, shard_rows=args.shard_rows
    )
    name = hashlib.sha256(args.factory.encode()).hexdigest()[:8]
    cut = index.Build(storage, f"indexes/cut-{name}", f"runs/{name}/index", table, settings)
    prepared = index.prepared(cut)
    trained = index.Trained(cut.path, prepared.trained, 0) if prepared else None
    whole = settings.model_copy(update={"shard_rows": args.rows})
    single = index.Build(
        storage, f"indexes/single-{name}", f"runs/{name}/index", table, whole, (), trained
    )
    return cut, single


def train(args: argparse.Namespace) -> common.Figures:
    from reembed.index import build as index

    cut, _ = _builds(args)
    return common.cost(partial(index.prepare, cut, None))


def fill(args: argparse.Namespace) -> common.Figures:
    """Fill one shard, or with -1 the whole index at once, and return its figures; none if that shard does not exist."""
    from reembed.index import build as index

    cut, single = _builds(args)
    build, number = (single, 0) if args.shard < 0 else (cut, args.shard)
    prepared = index.prepared(build) or index.prepare(build, None)
    if number >= len(prepared.shards):
        return {}
    cost = common.cost(partial(index.fill_shard, build, prepared, number))
    filled = index.filled(build, number)
    assert filled is not None
    mib = (filled.vectors.size_bytes + filled.ids.size_bytes) / 2**20
    return {
        "rows": filled.rows,
        **cost,
        "file_mib": round(mib, 1),
        "bytes_per_vector": round(filled.vectors.size_bytes / filled.rows, 1),
        "peak_ratio": round(cost["peak_mib"] / mib, 3),
    }


def compare(args: argparse.Namespace) -> common.Figures:
    """Whether the index of the shards answers as the one that was filled at once."""
    from reembed.index import build as index
    from reembed.index import files

    opened = []
    for build in _builds(args):
        prepared = index.prepared(build)
        assert prepared is not None
        manifest = index.finish(build, prepared, space="s", table=_TABLE, table_version=1)
        opened.append(files.load(build.storage, build.path, manifest))
    queries = _builds(args)[0].source.sample(HELD_OUT, seed=5)
    everything = 3 * _NPROBE * args.rows // args.lists  # lists are of unequal sizes
    return {
        "identical": bool(_same(opened, queries[:_SINGLE], everything // K).all()),
        "same_answers": round(float(_same(opened, queries, 10).mean()), 4),
    }


def _same(opened: list[Any], queries: Float32, k_factor: int) -> npt.NDArray[np.bool_]:
    """For which queries [Q] both indexes answer with the same rows and scores, in the same order."""
    import numpy as np

    answers = []
    for found in opened:
        for segment in found.segments:
            segment.operate({"nprobe": _NPROBE, "k_factor": k_factor})
        answers.append(found.search(queries, K))
    (ids, scores), (other, others) = answers
    same: npt.NDArray[np.bool_] = (ids == other).all(axis=1) & np.isclose(
        scores, others, atol=1e-6
    ).all(axis=1)
    return same


# --- tasks of Lance's own index ---


def lance_tasks(folder: Path, args: argparse.Namespace) -> common.Figures:
    """Memory of each task, by kind."""
    from reembed.store.storage import Storage

    write_table(Storage.open(folder / "root"), args.shard_rows, args.dim)
    figures: common.Figures = {"rows": args.shard_rows, "dim": args.dim}
    for codes in ("PQ", "RQ", "FLAT"):
        figures[codes] = {
            step: _child(folder, args, f"lance-{step}", f"IVF_{codes}")
            for step in ("train", "segment")
        }
        common.say(f"Lance {codes}: {figures[codes]}")
    return figures


def train_lance(args: argparse.Namespace) -> common.Figures:
    import numpy as np

    from reembed.table import vector_model

    table = _lance_table(args)
    made: list[vector_model.Model] = []

    def make() -> None:
        made.append(vector_model.train(table, args.factory, unit_length=True))

    cost = common.cost(make)
    arrays: dict[str, Any] = made[0].arrays()
    np.savez(args.folder / f"{args.factory}.npz", **arrays)
    return cost


def build_lance(args: argparse.Namespace) -> common.Figures:
    import numpy as np

    from reembed.table import vector_index, vector_model

    table, built = _lance_table(args), []
    model = vector_model.Model.of(dict(np.load(args.folder / f"{args.factory}.npz")))
    fragments = [fragment for fragment, _ in table.fragments()]

    def make() -> None:
        built.append(vector_index.build_segment(table, model, fragments))

    cost = common.cost(make)
    stored = sum(proof.size_bytes for proof in built[0].files.values())
    return {"factory": model.kind.name, **cost, "file_mib": round(stored / 2**20, 1)}


def _lance_table(args: argparse.Namespace) -> TableVersion:
    from reembed.store.storage import Storage
    from reembed.table.read import TableVersion

    return TableVersion(Storage.open(args.folder / "root"), _TABLE, 1, args.dim)


CHILDREN: dict[str, Callable[[argparse.Namespace], common.Figures]] = {
    "train": train,
    "fill": fill,
    "compare": compare,
    "lance-train": train_lance,
    "lance-segment": build_lance,
}


# --- constants of planning.measured ---


def costs() -> common.Figures:
    """CPU time of adding a vector whose list is found through a graph, and of hashing a byte."""
    import faiss
    import numpy as np

    dim, rows, lists = 768, 20_000, 16_384
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((lists, dim), dtype=np.float32)
    vectors = centres[rng.integers(lists, size=rows)]
    vectors += 0.6 * rng.standard_normal((rows, dim), dtype=np.float32)
    index: Any = faiss.index_factory(
        dim, f"IVF{lists}_HNSW32,PQ{dim // 2}x4fs,Refine(SQ8)", faiss.METRIC_INNER_PRODUCT
    )
    faiss.extract_index_ivf(index).quantizer.add(centres)  # trained lists
    index.train(vectors)
    added = common.cost(partial(index.add, vectors))
    block = vectors.tobytes()
    hashed = common.cost(partial(hashlib.sha256, block))
    return {
        "fill_us_per_vector_768": round(1e6 * added["cpu_s"] / rows, 1),
        "sha256_ns_per_byte": round(1e9 * hashed["cpu_s"] / len(block), 3),
    }


# --- real texts ---


def real(args: argparse.Namespace) -> common.Figures:
    """Bytes and speed of each kind of index at equal recall."""
    import faiss

    faiss.omp_set_num_threads(1)
    vectors, queries = embeddings(args)
    lists = max(4, min(args.lists, len(vectors) // 64))
    figures: common.Figures = {"rows": len(vectors), "dim": vectors.shape[1], "indexes": {}}
    everything = kinds(lists, vectors.shape[1]) | {"HNSW": "HNSW32"}
    for name, factory in everything.items():
        figures["indexes"][name] = of_faiss(factory, vectors, queries)
        common.say(f"{factory}: {json.dumps(figures['indexes'][name])}")
    figures["indexes"]["Lance IVF_PQ"] = found = of_lance(vectors, queries, lists)
    common.say(f"Lance: {json.dumps(found)}")
    return figures


def embeddings(args: argparse.Namespace) -> tuple[Float32, dict[str, Float32]]:
    """Vectors of unit length [N, D] of distinct texts, and of queries [Q, D] that are not among them, by kind."""
    import numpy as np

    if args.corpus is None:
        raise SystemExit("the part `real` needs a folder of texts")
    texts = list(
        dict.fromkeys(r["text"] for r in common.read_jsonl(common.corpus_file(args.corpus)))
    )
    texts = sorted(texts, key=lambda t: hashlib.sha256(t.encode()).digest())[: args.limit]
    asked = [q["text"] for q in common.read_jsonl(common.queries_file(args.corpus))]
    everything = [*texts, *asked]
    named = hashlib.sha256("\n".join([args.model, *everything]).encode()).hexdigest()[:16]
    kept = Path(tempfile.gettempdir()) / f"reembed-bench-{named}.npy"
    if not kept.exists():
        common.say(f"embedding {len(everything):,} texts")
        np.save(kept, embedded(args.model, everything))
    vectors = np.load(kept)
    held = min(HELD_OUT, len(texts) // 4)
    glosses, indexed, examples = np.split(vectors, [held, len(texts)])
    return indexed, {"glosses": glosses, "examples": examples}


def embedded(model: str, texts: list[str]) -> Float32:
    from reembed import encoders
    from reembed.config.settings import EncoderConfig

    encoder = encoders.load_encoder(EncoderConfig(model=model, normalize=True))
    return encoder.embed_documents(texts).vectors


def of_faiss(factory: str, vectors: Float32, queries: dict[str, Float32]) -> common.Figures:
    """A FAISS index of all vectors, at the points that a build would choose."""
    import faiss
    import numpy as np

    from reembed.index.search import SearchIndex
    from reembed.index.tune import choose, measure

    index: Any = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)

    def build() -> None:
        index.train(vectors[:65_536])
        index.add(vectors)

    built = common.cost(build)
    search = SearchIndex(index)
    figures: common.Figures = {
        "factory": factory,
        "build_cpu_s": round(built["cpu_s"], 1),
        "bytes_per_vector": round(len(faiss.serialize_index(index)) / len(vectors), 1),
    }
    for kind, asked in queries.items():
        scores, ids = faiss.knn(asked, vectors, 40, metric=faiss.METRIC_INNER_PRODUCT)
        tried = measure(search, asked, (ids.astype(np.int64), scores), len(vectors))
        for target in TARGETS:
            tuned = choose([tried], target)
            search.operate(tuned.operating_point)
            figures[f"{kind} {target}"] = {
                "ann_recall": round(float(tuned.recalls.mean()), 4),
                "reached": bool(tuned.recalls.mean() >= target),
                "operating_point": tuned.operating_point,
                "queries_per_core_s": speeds(lambda some: search.nearest(some, K), asked),
            }
    return figures


def of_lance(vectors: Float32, queries: dict[str, Float32], lists: int) -> common.Figures:
    """Lance's IVF_PQ of all vectors, 8-bit codes of eight dimensions each, re-ranked by the table."""
    import faiss
    import lance
    import numpy as np
    import pyarrow as pa

    from reembed.index.exact import recalls
    from reembed.index.tune import ladder

    dim = vectors.shape[1]
    with tempfile.TemporaryDirectory() as folder:
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dim)
        data = lance.write_dataset(pa.table({"vector": column}), folder)
        options = {"num_partitions": lists, "num_sub_vectors": dim // 8, "metric": "dot"}
        built = common.cost(partial(data.create_index, "vector", "IVF_PQ", **options))
        indexed = sum(f.stat().st_size for f in Path(folder, "_indices").rglob("*") if f.is_file())
        data = lance.dataset(folder)

        def at(nprobes: int, refine: int, asked: Float32) -> tuple[npt.NDArray[np.int64], Float32]:
            ids = np.full((len(asked), K), -1, np.int64)
            scores = np.zeros((len(asked), K), np.float32)
            for n, query in enumerate(asked):
                near = {"column": "vector", "q": query, "k": K, "nprobes": nprobes}
                near["refine_factor"] = refine
                found = data.to_table(columns=["_distance"], nearest=near, with_row_id=True)
                ids[n, : len(found)] = found["_rowid"].to_numpy()
                scores[n, : len(found)] = 1 - found["_distance"].to_numpy()
            return ids, scores

        figures: common.Figures = {
            "build_cpu_s": round(built["cpu_s"], 1),
            "bytes_per_vector": round(indexed / len(vectors), 1),
        }
        for kind, asked in queries.items():
            scores, ids = faiss.knn(asked, vectors, 40, metric=faiss.METRIC_INNER_PRODUCT)
            exact = ids.astype(np.int64), scores
            reached: dict[tuple[int, int], float] = {}
            for refine in (4, 16):
                for nprobes in ladder(1, lists // 4)[::3]:
                    found = recalls(
                        at(nprobes, refine, asked[:_SINGLE]),
                        (exact[0][:_SINGLE], exact[1][:_SINGLE]),
                        by_score=True,
                    )
                    reached[refine, nprobes] = float(found.mean())
                    if found.mean() > TARGETS[-1] or (
                        nprobes > 64 and found.mean() - reached[refine, 1] < 0.001
                    ):
                        break
            for target in TARGETS:
                point = min((p for p, r in reached.items() if r >= target), default=None)
                shown = point or max(reached, key=lambda p: reached[p])
                search = partial(at, shown[1], shown[0])
                figures[f"{kind} {target}"] = {
                    "ann_recall": round(reached[shown], 4),
                    "reached": point is not None,
                    "operating_point": {"refine_factor": shown[0], "nprobes": shown[1]},
                    "queries_per_core_s": {"single": speeds(search, asked)["single"]},
                }
        return figures


def speeds(search: Search, asked: Float32) -> common.Figures:
    """Queries per CPU second: in one batch, and one by one."""
    search(asked[:_SINGLE])

    def rate(run: Callable[[], object], count: int) -> int:
        taken = [_cpu_of(run) for _ in range(3)]
        return round(count / sorted(taken)[1])

    def singly() -> None:
        for n in range(min(_SINGLE, len(asked))):
            search(asked[n : n + 1])

    batch = partial(search, asked)
    return {
        "batched": rate(batch, len(asked)),
        "single": rate(singly, min(_SINGLE, len(asked))),
    }


def _cpu_of(run: Callable[[], object]) -> float:
    before = common.cpu_s()
    run()
    return max(1e-6, common.cpu_s() - before)


if __name__ == "__main__":
    main()

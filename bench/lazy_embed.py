"""What `lazy_embed` makes of the first answers of a lazy migration: quality and time, by budget.

On a BEIR folder: the old model is live, and a lazy migration has just started, so that the 300 documents drawn at
random are migrated and no others. Each judged query is asked once, in one process, by an index that was opened with
`lazy_embed=50` and a budget, so that nothing is kept from other budgets. `ndcg` is nDCG@10 of the answers, `embedded`
the documents that were embedded for an answer, `added_p50_ms` and `added_p99_ms` the time over the old release alone,
asked for the same queries in turn. `off` is without `lazy_embed`. The new model alone is `ndcg_new`, by numpy.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import common
from bench.lazy_migration import judgements, ndcg

NAME = "lazy_embed"
FIRST, K, CORES = 50, 10, 2
BUDGETS_S = (0.1, 0.3, 1.0, 30.0)
EXPECTED = {
    "30.0": "within .01 of the order by the new model of all 50, which keeps 95 % or more of its gain",
    "0.1": "one pass of 16 documents, or none, so little above `off`",
}
"""Written before the first run."""


def main() -> None:
    parser = common.parser(NAME, __doc__)
    parser.add_argument("dir", type=Path, metavar="DIR", help="BEIR folder with judgements")
    parser.add_argument("--old", required=True, help="encoder.model of the live release")
    common.add_limit(parser)
    args = common.parse(parser)
    with common.workdir(args) as folder, common.Reembed() as reembed:
        started(args, folder, reembed)
        figures = measure(args, folder)
    common.finish(NAME, args, {**figures, "busy_cores": common.busy_cores(), "expected": EXPECTED})


def started(args: argparse.Namespace, folder: Path, reembed: common.Reembed) -> None:
    """A live release of the old model, and a lazy migration to the new one."""
    source = common.import_corpus(reembed, args.dir, folder, args.limit)
    carried: common.Figures = {"table": {"carry": ["title", "text"]}}
    model = {"model": str(Path(args.old).resolve())}
    old = common.write_config(folder, "old", source, args, **carried, encoder=model)
    here = {"storage": {"root": str(folder / "old")}}
    new = common.write_config(folder, "new", source, args, **carried, **here, strategy="lazy")
    first = reembed("run", "-c", str(old))
    reembed("promote", first["id"], "-c", str(old), "--initial", "--reason", "first")
    reembed("lazy", "start", "-c", str(new), "--reason", "a measurement")


def measure(args: argparse.Namespace, folder: Path) -> common.Figures:
    import faiss
    import torch

    faiss.omp_set_num_threads(1)
    torch.set_num_threads(CORES)
    texts = [row["text"] for row in common.read_jsonl(common.queries_file(args.dir))]
    judged = judgements(args.dir)
    asked = [(texts[query], grades) for query, grades in judged.items()]
    ways = {"off": (0, 1.0)} | {str(budget): (FIRST, budget) for budget in BUDGETS_S}
    found = {way: of_way(folder / "old", asked, *how) for way, how in ways.items()}
    return {
        "queries": len(asked),
        "ndcg_old": found["off"].pop("ndcg_old"),
        "ndcg_new": of_new(args, folder, asked),
        "budgets": {
            way: {k: v for k, v in f.items() if k != "ndcg_old"} for way, f in found.items()
        },
    }


def of_way(
    root: Path, asked: list[tuple[str, dict[str, int]]], first: int, budget: float
) -> common.Figures:
    """All queries once, each by the old release and by both sides."""
    import numpy as np

    import reembed

    gains: list[tuple[float, float]] = []
    seconds: list[tuple[float, float]] = []
    with reembed.open(root, "bench", lazy_embed=first, lazy_budget=budget) as index:
        old = index.current.old  # type: ignore[attr-defined]
        index.search([asked[0][0]], K)
        before = index.lazy
        assert before is not None
        for text, grades in asked:
            times = [time.perf_counter()]
            lists = []
            for search in (old.search, index.search):
                (hits,) = search([text], K)
                times.append(time.perf_counter())
                lists.append(ndcg([str(hit.doc_id) for hit in hits], grades))
            gains.append((lists[0], lists[1]))
            seconds.append((times[1] - times[0], times[2] - times[1]))
        now = index.lazy
        assert now is not None
    of_old, of_both = np.mean(gains, axis=0)
    took = 1e3 * np.percentile(seconds, [50, 99], axis=0)
    return {
        "ndcg_old": round(float(of_old), 4),
        "ndcg": round(float(of_both), 4),
        "embedded": round((now.embedded - before.embedded) / len(asked), 1),
        "alone": len(asked) - now.fused + before.fused,
        "added_p50_ms": round(float(took[0, 1] - took[0, 0]), 1),
        "added_p99_ms": round(float(took[1, 1] - took[1, 0]), 1),
    }


def of_new(
    args: argparse.Namespace, folder: Path, asked: list[tuple[str, dict[str, int]]]
) -> float:
    """nDCG@10 of the new model alone, exact."""
    import lance
    import numpy as np

    from reembed import encoders
    from reembed.config.settings import EncoderConfig

    rows = lance.dataset(str(folder / "documents.lance")).to_table().to_pylist()
    encoder = encoders.load_encoder(EncoderConfig(model=args.model, max_length=args.max_length))
    texts = [f"{row['title'] or ''} {row['text'] or ''}" for row in rows]
    vectors = encoder.embed_documents(texts).vectors
    scores = encoder.embed_queries([text for text, _ in asked]) @ vectors.T
    best = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    lists = ([str(rows[at]["_id"]) for at in places] for places in best.tolist())
    of_all = [ndcg(ids, grades) for ids, (_, grades) in zip(lists, asked, strict=True)]
    return round(float(np.mean(of_all)), 4)


if __name__ == "__main__":
    main()

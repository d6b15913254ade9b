"""Reproduce a published number: nDCG@10 of all-MiniLM-L6-v2 on SciFact.

Imports the documents, embeds them by the real job (`reembed run`), promotes, and searches the test
queries exactly and with the index of the release; then again with the model computing in bfloat16, and
with vectors stored as float16. Exits 1 when the exact figure is not the published one, or when the
three are not within 0.002 of each other.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import common

NAME = "scifact"
K = 10
SPREAD = 0.002
VARIANTS: dict[str, common.Figures] = {
    "float32": {},
    "bfloat16": {"embed": {"dtype": "bfloat16"}},
    "stored as float16": {"table": {"dtype": "float16"}},
}


def main() -> None:
    args = _arguments()
    with common.workdir(args) as folder, common.Reembed() as reembed:
        source = common.import_corpus(reembed, args.dir, folder, args.limit)
        found = {
            name: measure(args, folder, reembed, (source, name, settings))
            for name, settings in VARIANTS.items()
        }
    figures = found["float32"]
    exact = [f["ndcg10_exact"] for f in found.values()]
    figures = {**figures, "variants": found, "spread": round(max(exact) - min(exact), 4)}
    away = abs(figures["ndcg10_exact"] - args.expected)
    passed = args.limit is not None or (away <= args.tolerance and figures["spread"] <= SPREAD)
    common.say(
        f"nDCG@10 {figures['ndcg10_exact']:.4f} exact, {figures['ndcg10_index']:.4f} with the index"
        f"; published {args.expected} +- {args.tolerance}"
        f"; number types within {figures['spread']}: "
        + ("not judged (--limit)" if args.limit is not None else "met" if passed else "NOT MET")
    )
    common.finish(NAME, args, {**figures, "expected": args.expected, "passed": passed})
    sys.exit(0 if passed else 1)


def _arguments() -> argparse.Namespace:
    parser = common.parser(NAME, __doc__)
    parser.add_argument("dir", type=Path, metavar="DIR", help="BEIR folder of SciFact")
    parser.add_argument("--split", default="test", help="which qrels [%(default)s]")
    parser.add_argument("--expected", type=float, default=0.645, help="published [%(default)s]")
    parser.add_argument("--tolerance", type=float, default=0.003, help="[%(default)s]")
    common.add_limit(parser)
    return common.parse(parser)


def measure(
    args: argparse.Namespace,
    folder: Path,
    reembed: common.Reembed,
    variant: tuple[Path, str, common.Figures],
) -> common.Figures:
    """Embed, promote, search."""
    source, name, settings = variant
    root = name.replace(" ", "-")
    gate = {"queries": str(args.dir.resolve()), "split": args.split}
    embed = {"unit_documents": 512, **settings.get("embed", {})}
    table = settings.get("table", {})
    config = common.write_config(folder, root, source, args, embed=embed, gate=gate, table=table)
    started = time.monotonic()
    release = reembed("run", "-c", str(config))
    seconds = time.monotonic() - started
    reembed("promote", "-c", str(config), "--initial", "--reason", "measured")
    embedded = common.embedded(folder / root)
    common.say(
        f"{name}: embedded in {seconds:.0f} s, {embedded['docs_per_s']} documents/s; searching"
    )
    return {
        **search(folder / root, gate),
        "path": embedded["path"],
        "docs": release["rows"],
        "seconds": round(seconds, 1),
        "docs_per_s": embedded["docs_per_s"],
        "tokens_per_s": embedded["tokens_per_s"],
        "startup_s": embedded["startup_s"],
    }


def search(root: Path, gate: dict[str, str]) -> common.Figures:
    """nDCG@10 of what is live, exactly and with its index."""
    from reembed.catalog.index_manifest import read_manifest
    from reembed.catalog.releases import Catalog
    from reembed.evaluation import queries as evalset
    from reembed.index import exact as index_exact
    from reembed.serving.live import OpenRelease
    from reembed.store.storage import Storage

    storage = Storage.open(str(root))
    release = Catalog(storage, "bench").require_live().release
    opened = OpenRelease.open(storage, release)
    queries = evalset.load_eval_set(gate["queries"], gate["split"], {})
    vectors = opened.encode_queries(queries.texts)
    rows, _ = index_exact.exact_search(opened.table, vectors, K)
    names = opened.table.take(rows.ravel(), ["doc_id"])["doc_id"].to_numpy()
    found = [[hit.doc_id for hit in hits] for hits in opened.search(vectors, K)]
    return {
        "ndcg10_exact": _ndcg(queries, names.reshape(rows.shape).tolist()),
        "ndcg10_index": _ndcg(queries, found),
        "queries": len(queries.query_ids),
        "factory": read_manifest(storage, release.index, release.index_sha256).factory,
    }


def _ndcg(queries: Any, doc_ids: list[list[str | int]]) -> float:
    from reembed.evaluation import metrics

    lists = [[str(d) for d in found] for found in doc_ids]
    return round(float(metrics.ndcg_at(queries, lists, K).mean()), 4)


if __name__ == "__main__":
    main()

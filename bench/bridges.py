"""New queries on old documents: does a linear map between two models' spaces beat doing nothing?

Nothing of the old side changes: no document is embedded again. The new model embeds the judged queries, a map takes
their vectors into the old model's space, and the old vectors are searched exactly. The map is fitted to pairs of
vectors of documents, which both models embed: Procrustes (Schoenemann 1966; for embeddings Smith et al. 2017, "Offline
bilingual word vectors"; the shorter vectors are filled with zeros), or ridge regression (Hoerl and Kennard
1970), whose penalty is chosen on a fifth of the pairs. Queries judge, and no map sees one. Where both models have equal
dimensions the vectors are searched as they are, too, as `reembed run --query-only` would.

Each is judged against the old model alone by the gate's rule for nDCG@10 and recall@10 (docs/evaluate.md), and shown
beside the new model on documents of its own. Beside that stands what is often told of bridges: for how many documents
that were not among the pairs the mapped vector finds the document's own old vector first. Exits 1 where models that
share their space fail.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import common
from reembed import encoders
from reembed.config.settings import EncoderConfig
from reembed.encoders import bridge
from reembed.encoders.base import Encoder
from reembed.evaluation import gate, metrics
from reembed.evaluation.figures import Estimate
from reembed.evaluation.queries import EvalSet, load_eval_set
from reembed.evaluation.statistics import Floats, paired_interval

NAME = "bridges"
PAGE = common.ROOT / "docs" / "query-only.md"
SMALL, STATIC, OTHER = (
    "paraphrase-MiniLM-L3-v2",
    "wordllama-256-fp16-st",
    "sre-embedding-model",
)
PAIRS = (
    ("wordllama 256", "MiniLM-L6 384"),
    ("MiniLM-L3 384", "MiniLM-L6 384"),
    ("sre 384", "MiniLM-L6 384"),
    ("MiniLM-L6 384", "MiniLM-L6 float16"),
)
"""Old and new. Each new one is stronger, except for the last, which is the same."""
SAME = PAIRS[-1]
SIZES = (300, 1000, 2500)
PENALTIES = tuple(10.0**n for n in range(-4, 3))
"""Of ridge regression, times the mean square of a dimension of the new vectors and the number of pairs."""
AS_IS = "as they are"
MARKS = {"pass": "pass", "fail": "fail", "inconclusive": "open"}
METRICS = ("ndcg@10", "recall@10")
DEPTH = 11
"""One more than is scored: a query does not find the document that has its id."""

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Map = Callable[[Float32], Float32]
Rows = list[common.Figures]


def main() -> None:
    args = _arguments()
    models = {
        name: encoders.load_encoder(c, batch_tokens=args.batch_tokens)
        for name, c in configs(args).items()
    }
    table: Rows = []
    for beir in args.dirs:
        collection = embedded(beir, models, args.limit)
        for pair in PAIRS:
            table += measured(collection, pair, args.seeds)
    figures = summary(table)
    if args.page:
        common.put_into(PAGE, NAME, "\n".join(shown(table)))
    common.say("; ".join(f"{name} {figure}" for name, figure in figures.items()))
    common.finish(NAME, args, {**figures, "table": table})
    sys.exit(1 if figures["same_space_failed"] else 0)


def _arguments() -> argparse.Namespace:
    parser = common.parser(NAME, __doc__)
    parser.add_argument("dirs", type=Path, nargs="+", metavar="DIR", help="BEIR folders")
    named = f"folder with {SMALL}, {STATIC} and {OTHER}"
    parser.add_argument("--models", type=Path, required=True, help=named)
    parser.add_argument("--seeds", type=int, default=3, help="draws of documents [%(default)s]")
    parser.add_argument("--page", action="store_true", help=f"put the table into docs/{PAGE.name}")
    common.add_limit(parser)
    return common.parse(parser)


def configs(args: argparse.Namespace) -> dict[str, EncoderConfig]:
    """The encoder of each model; float16 is all-MiniLM-L6-v2 rounded, made where it is used."""
    small, static, other = (str((args.models / name).resolve()) for name in (SMALL, STATIC, OTHER))
    return {
        "wordllama 256": EncoderConfig(model=static),
        "MiniLM-L3 384": EncoderConfig(model=small, max_length=args.max_length),
        "sre 384": EncoderConfig(model=other, max_length=args.max_length),
        "MiniLM-L6 384": EncoderConfig(model=args.model, max_length=args.max_length),
    }


# --- a collection in each space ---


@dataclass(frozen=True)
class Collection:
    """Judged queries and documents, embedded by each model."""

    name: str
    queries: EvalSet
    doc_ids: npt.NDArray[np.str_]
    vectors: dict[str, tuple[Float32, Float32]]
    """Of queries [Q, dim] and of documents [N, dim]."""

    def by_query(self, asked: Float32, documents: Float32) -> dict[str, Floats]:
        """Each metric of each query, by exact search."""
        lists = []
        for scores, own in zip(asked @ documents.T, self.queries.query_ids, strict=True):
            best = np.argpartition(-scores, DEPTH)[:DEPTH]
            found = zip(self.doc_ids[best].tolist(), scores[best].tolist(), strict=True)
            ids, values = zip(*found, strict=True)
            lists.append([d for d, _ in metrics.ranking(list(ids), list(values), own, DEPTH - 1)])
        return {name: metrics.named(name).of(self.queries, lists) for name in METRICS}


def embedded(beir: Path, models: dict[str, Encoder], limit: int | None) -> Collection:
    """A collection without the documents that one of the models has no vector for."""
    rows = common.read_jsonl(common.corpus_file(beir), limit)
    queries = load_eval_set(str(beir.resolve()), "test", {})
    texts = [f"{row['title']} {row['text']}" for row in rows]
    made, good = {}, np.ones(len(texts), bool)
    for name, model in models.items():
        common.say(f"{beir.name}: {name} embeds {len(texts):,} documents")
        documents = model.embed_documents(texts)
        good[list(documents.failures)] = False
        made[name] = model.embed_queries(queries.texts), documents.vectors
    vectors = {name: (asked, documents[good]) for name, (asked, documents) in made.items()}
    asked, held = vectors["MiniLM-L6 384"]
    vectors["MiniLM-L6 float16"] = rounded(asked), rounded(held)
    return Collection(beir.name, queries, np.array([row["_id"] for row in rows])[good], vectors)


def rounded(vectors: Float32) -> Float32:
    """As float16 stores them."""
    return vectors.astype(np.float16).astype(np.float32)


# --- maps: new vectors [N, new] to old ones [N, old] ---


def procrustes(new: Float32, old: Float32) -> Map:
    """As `reembed run --query-only --bridge` fits it."""
    rotation = bridge.fitted(new, old)
    return lambda vectors: vectors @ rotation


def ridge(new: Float32, old: Float32) -> Map:
    """Least squares with a penalty, between centred vectors; a fifth of the pairs chooses the penalty."""
    held = len(new) // 5

    def error(penalty: float) -> float:
        apart = least_squares(new[held:], old[held:], penalty)(new[:held]) - old[:held]
        return float(np.square(apart).sum())

    return least_squares(new, old, min(PENALTIES, key=error))


def least_squares(new: Float32, old: Float32, penalty: float) -> Map:
    of_new, of_old = new.mean(axis=0), old.mean(axis=0)
    x = (new - of_new).astype(np.float64)
    size = penalty * np.square(x).mean() * len(x)
    weights = np.linalg.solve(x.T @ x + size * np.eye(x.shape[1]), x.T @ (old - of_old))
    matrix = weights.astype(np.float32)
    return lambda vectors: (vectors - of_new) @ matrix + of_old


FITS: dict[str, Callable[[Float32, Float32], Map]] = {"procrustes": procrustes, "ridge": ridge}


# --- what each gives ---


def measured(collection: Collection, pair: tuple[str, str], seeds: int) -> Rows:
    """A row for the vectors as they are, and for each map and number of pairs that fits."""
    (_, old), (asked, new) = (collection.vectors[name] for name in pair)
    found: list[tuple[str, int, list[Map]]] = []
    if old.shape[1] == new.shape[1]:
        found.append((AS_IS, 0, [lambda vectors: vectors]))
    drawn = [np.random.default_rng(seed).permutation(len(old)) for seed in range(seeds)]
    for name, fit in FITS.items() if pair != SAME else ():
        for size in (s for s in SIZES if s <= 0.8 * len(old)):
            maps = [fit(new[order[:size]], old[order[:size]]) for order in drawn]
            found.append((name, size, maps))
    return [row(collection, pair, one, asked, drawn) for one in found]


def row(
    collection: Collection,
    pair: tuple[str, str],
    found: tuple[str, int, list[Map]],
    asked: Float32,
    drawn: list[npt.NDArray[np.int64]],
) -> common.Figures:
    """What a map gives: the verdict of the first draw, and how far the others lie apart."""
    name, size, maps = found
    (old_asked, old), (_, new) = (collection.vectors[model] for model in pair)
    alone, whole = collection.by_query(old_asked, old), collection.by_query(asked, new)
    mapped = [collection.by_query(apply(asked), old) for apply in maps]
    rules = [gate.change_rule(m, alone[m], mapped[0][m], None, None) for m in METRICS]
    change = paired_interval(mapped[0]["ndcg@10"] - alone["ndcg@10"])
    to_new = paired_interval(mapped[0]["ndcg@10"] - whole["ndcg@10"])
    kept = drawn[0][size:]
    figures = {
        "collection": collection.name,
        "documents": len(old),
        "queries": len(asked),
        "old": pair[0],
        "new": pair[1],
        "map": name,
        "pairs": size,
        "ndcg_old": round(float(alone["ndcg@10"].mean()), 4),
        "ndcg_new": round(float(whole["ndcg@10"].mean()), 4),
        "ndcg": round(float(mapped[0]["ndcg@10"].mean()), 4),
        "change": spread(change),
        "change_to_new": spread(to_new),
        "changes": [round(float((m["ndcg@10"] - alone["ndcg@10"]).mean()), 4) for m in mapped],
        "held_out_found": round(held_out(maps[0](new[kept]), old, kept), 3),
        "verdict": gate.combine(*rules).verdict,
    }
    about = f"{collection.name}, {' to '.join(pair)}, {name} {size}"
    common.say(f"{about}: {figures['change']}, {figures['held_out_found']}, {figures['verdict']}")
    return figures


def spread(found: Estimate) -> list[float | None]:
    """Mean, and two-sided 95 % interval."""
    return [None if n is None else round(n, 4) for n in (found.mean, found.low, found.high)]


def held_out(mapped: Float32, old: Float32, own: npt.NDArray[np.int64]) -> float:
    """The share of documents whose mapped vector finds their own old one first."""
    first = [int(np.argmax(old @ vector)) for vector in mapped]
    return float((np.array(first) == own).mean())


# --- what it says ---


def summary(table: Rows) -> common.Figures:
    same = [row for row in table if (row["old"], row["new"]) == SAME]
    figures: common.Figures = {"same_space_failed": count(same, "fail")}
    for name in (AS_IS, *FITS):
        rows = [row for row in table if row["map"] == name and row not in same]
        changes = [row["change"][0] for row in rows]
        figures[name] = {
            "measured": len(rows),
            **{verdict: count(rows, verdict) for verdict in MARKS},
            "best": max(changes, default=None),
            "worst": min(changes, default=None),
        }
    return figures


def count(rows: Rows, verdict: str) -> int:
    return sum(row["verdict"] == verdict for row in rows)


def shown(table: Rows) -> Iterator[str]:
    """Markdown, a row for each collection and pair of models."""
    yield (
        "| collection | documents by, queries by | nDCG@10 of the old model alone, of the new one alone | as they are"
        " | rotation, by pairs | own vectors found, by pairs | ridge, by pairs |"
    )
    yield "|---|---|---|---|---|---|---|"
    for name, old, new in dict.fromkeys((r["collection"], r["old"], r["new"]) for r in table):
        rows = [r for r in table if (r["collection"], r["old"], r["new"]) == (name, old, new)]
        by = {m: [r for r in rows if r["map"] == m] for m in (AS_IS, *FITS)}
        found = ", ".join(f"{r['held_out_found']:.2f}" for r in by["procrustes"])
        alone = f"{rows[0]['ndcg_old']:.3f}, {rows[0]['ndcg_new']:.3f}"
        cells = [cell(by[AS_IS]), cell(by["procrustes"]), found, cell(by["ridge"])]
        yield f"| {name} | {old}, {new} | {alone} | {' | '.join(cells)} |"


def cell(rows: Rows) -> str:
    """The changes against the old model alone, with their verdicts."""
    return ", ".join(f"{r['change'][0]:+.3f} {MARKS[r['verdict']]}" for r in rows)


if __name__ == "__main__":
    main()

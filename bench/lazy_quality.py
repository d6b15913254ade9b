"""nDCG@10 of a lazy migration against the old index alone: three rules of fusion, at each share of migrated documents.

Documents and judged queries of BEIR folders are embedded with the project's encoders, once each, and both sides are
searched exactly, so what differs is the rule alone. Documents are migrated in random order, or as they turn up in the
first 10 results of queries drawn by Zipf's law, and then the rest in order of their keys, as a sweep does. These
are results of the old index: what is not migrated keeps its place in the default list, so it turns up there as well.
A change is the mean over the seeds; the worst single seed is told, too. Where the new model is worse every rule
loses, so `reembed lazy start` tests the model first: that test is made here for each collection and pair, and those
that pass, are inconclusive or are refused are summed up apart. Exits 1 when the default is more than 0.005 below the
old index at any share where the test passes, or when at 100 % the two rules that search both sides do not give
the list of the new model.
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
from reembed.config.lazy import LazySection
from reembed.config.settings import EncoderConfig
from reembed.encoders.base import Encoder
from reembed.evaluation import gate, metrics
from reembed.evaluation.queries import EvalSet, load_eval_set
from reembed.evaluation.statistics import Floats
from reembed.index.wider import best
from reembed.serving import fusion

NAME = "lazy_quality"
PAGE = common.ROOT / "docs" / "lazy.md"
SMALL, STATIC = "paraphrase-MiniLM-L3-v2", "wordllama-256-fp16-st"
PAIRS = (
    ("wordllama 256", "MiniLM-L6 384"),
    ("wordllama 64", "MiniLM-L3 384"),
    ("MiniLM-L6 384", "wordllama 256"),
)
"""The last one is worse."""
STARTS = {"pass": "", "inconclusive": "_inconclusive", "fail": "_refused"}
"""What the test before a start says, and how the figures of those collections and pairs are named."""
SHARES = (1, 10, 25, 50, 75, 90, 99, 100)
K = 10
DEPTH = LazySection().depth
"""As migrations have it if nothing is set."""
RULES = {"slots": "default", "zscore": "zcommon", "rrf": "rrf"}
EXPECTED = {
    "default_worst_delta": "-.001 to +.001 in random order, as measured before this script; traffic: at least -.005",
    "zcommon_worst_delta": "-.001 to +.001 in random order, as measured before this script; traffic: at least -.005",
    "rrf_worst_delta": "-.07 to -.11, at 10 to 50 %",
    "at_100_equals_new": "true; slots have most of the gain there, as they cannot find new documents",
    "worse": "every rule loses about as much as the new model at 100 %",
}
"""Written before the first run."""
LEAST = -0.005

Bools = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
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
    passed = figures.get("default_worst_delta", 0) >= LEAST and figures["at_100_equals_new"]
    found = {name: figure for name, figure in figures.items() if isinstance(figure, bool | float)}
    common.say("; ".join(f"{name} {figure}" for name, figure in found.items()))
    figures["depth"] = DEPTH
    common.finish(NAME, args, {**figures, "expected": EXPECTED, "table": table, "passed": passed})
    sys.exit(0 if passed or args.limit else 1)


def _arguments() -> argparse.Namespace:
    parser = common.parser(NAME, __doc__)
    parser.add_argument("dirs", type=Path, nargs="+", metavar="DIR", help="BEIR folders")
    parser.add_argument(
        "--models", type=Path, required=True, help=f"folder with {SMALL} and {STATIC}"
    )
    parser.add_argument("--seeds", type=int, default=5, help="[%(default)s]")
    parser.add_argument("--page", action="store_true", help=f"put the table into docs/{PAGE.name}")
    common.add_limit(parser)
    return common.parse(parser)


def configs(args: argparse.Namespace) -> dict[str, EncoderConfig]:
    """The encoder of each model. wordllama is trained so that its first dimensions are a model, too."""
    small, static = (str((args.models / name).resolve()) for name in (SMALL, STATIC))
    return {
        "wordllama 256": EncoderConfig(model=static),
        "wordllama 64": EncoderConfig(model=static, truncate_dim=64),
        "MiniLM-L3 384": EncoderConfig(model=small, max_length=args.max_length),
        "MiniLM-L6 384": EncoderConfig(model=args.model, max_length=args.max_length),
    }


# --- a collection in each space ---


@dataclass(frozen=True)
class Collection:
    """Judged queries, and their scores to all documents by each model."""

    name: str
    queries: EvalSet
    doc_ids: npt.NDArray[np.str_]
    scores: dict[str, Float32]
    """[Q, N]."""


def embedded(beir: Path, models: dict[str, Encoder], limit: int | None) -> Collection:
    """A collection without the documents that one of the models has no vector for."""
    rows = common.read_jsonl(common.corpus_file(beir), limit)
    queries = load_eval_set(str(beir.resolve()), "test", {})
    texts = [f"{row['title']} {row['text']}" for row in rows]
    pairs, good = {}, np.ones(len(texts), bool)
    for name, model in models.items():
        common.say(f"{beir.name}: {name} embeds {len(texts):,} documents")
        documents = model.embed_documents(texts)
        good[list(documents.failures)] = False
        pairs[name] = model.embed_queries(queries.texts), documents.vectors
    scores = {name: asked @ vectors[good].T for name, (asked, vectors) in pairs.items()}
    return Collection(beir.name, queries, np.array([row["_id"] for row in rows])[good], scores)


@dataclass(frozen=True)
class Sides:
    """Both models on a collection: N documents, by their positions."""

    collection: Collection
    old: Int64
    """[Q, N], best first."""
    new: Int64
    old_scores: Float32
    """[Q, N], by position."""
    new_scores: Float32

    @classmethod
    def of(cls, collection: Collection, pair: tuple[str, str]) -> Sides:
        old, new = (collection.scores[name] for name in pair)
        every = np.broadcast_to(np.arange(old.shape[1]), old.shape)
        by_old, by_new = (best(every, scores, old.shape[1])[0] for scores in (old, new))
        return cls(collection, by_old, by_new, old, new)

    def ndcg(self, keys: Int64) -> float:
        return float(self.by_query("ndcg@10", keys).mean())

    def by_query(self, metric: str, keys: Int64) -> Floats:
        lists = self.collection.doc_ids[keys].tolist()
        return metrics.named(metric).of(self.collection.queries, lists)

    def backgrounds(self, rng: np.random.Generator) -> tuple[fusion.Background, fusion.Background]:
        """Of documents drawn at random."""
        n = len(self.collection.doc_ids)
        drawn = rng.choice(n, min(n, fusion.BACKGROUND), replace=False)
        old, new = (fusion.Background.of(s[:, drawn]) for s in (self.old_scores, self.new_scores))
        return old, new

    def old_list(self, migrated: Bools) -> fusion.OldList:
        keys = self.old[:, :DEPTH]
        old, new = (np.take_along_axis(s, keys, 1) for s in (self.old_scores, self.new_scores))
        return fusion.OldList(keys, old, migrated[keys], new)

    def new_list(self, migrated: Bools) -> fusion.NewList:
        """An exact search of what is migrated."""
        keys = np.full((len(self.new), min(DEPTH, int(migrated.sum()))), fusion.ABSENT)
        for query, order in enumerate(self.new):
            keys[query] = order[migrated[order]][:DEPTH]
        return fusion.NewList(keys, np.take_along_axis(self.new_scores, keys, 1))


# --- a migration ---


def random_order(sides: Sides, rng: np.random.Generator) -> Int64:
    return rng.permutation(len(sides.collection.doc_ids))


def turned_up(sides: Sides, rng: np.random.Generator) -> Int64:
    """Documents in the order in which Zipf-drawn queries show them first.

    Queries turn up for the first time as in a draw without replacement by the same odds.
    """
    count = len(sides.old)
    odds = 1 / (1 + np.arange(count))
    asked = rng.permutation(count)[rng.choice(count, count, replace=False, p=odds / odds.sum())]
    shown = sides.old[asked, :K].ravel()
    return np.array(list(dict.fromkeys(shown.tolist())), np.int64)


def by_traffic(sides: Sides, rng: np.random.Generator) -> Int64:
    first = turned_up(sides, rng)
    return np.hstack([first, np.setdiff1d(np.arange(sides.old.shape[1]), first)])


ORDERS: dict[str, Callable[[Sides, np.random.Generator], Int64]] = {
    "random": random_order,
    "traffic": by_traffic,
}


def measured(collection: Collection, pair: tuple[str, str], seeds: int) -> Rows:
    """A row for each order of migration."""
    sides = Sides.of(collection, pair)
    old, new = (sides.ndcg(keys[:, :K]) for keys in (sides.old, sides.new))
    about = {
        "collection": collection.name,
        "documents": len(collection.doc_ids),
        "queries": len(collection.queries.query_ids),
        "old": pair[0],
        "new": pair[1],
        "start": start(sides),
        "ndcg_old": round(old, 4),
        "ndcg_new": round(new, 4),
        "turned_up": round(len(np.unique(sides.old[:, :K])) / sides.old.shape[1], 3),
    }
    rows: Rows = []
    for name in ORDERS:
        runs = [dict(run(sides, name, seed)) for seed in range(seeds)]
        deltas = {
            rule: {f"{share}": spread([r[share][rule] - old for r in runs]) for share in SHARES}
            for rule in RULES
        }
        same = all(r[100]["equal"] for r in runs)
        rows.append({**about, "order": name, "at_100_equals_new": same, "delta": deltas})
        least = {rule: worst([rows[-1]], rule, "mean") for rule in RULES}
        common.say(f"{collection.name}, {' to '.join(pair)}, {name}: {old:.3f}, {new:.3f}; {least}")
    return rows


def start(sides: Sides) -> str:
    """The verdict of the test that `reembed lazy start` makes: the old list in the order of the new model."""
    every = np.ones(len(sides.collection.doc_ids), bool)
    lists = sides.old[:, :K], fusion.slots(sides.old_list(every), K).keys
    verdicts = []
    for metric in ("ndcg@10", "recall@10"):
        live, candidate = (sides.by_query(metric, keys) for keys in lists)
        verdicts.append(gate.change_rule(metric, live, candidate, None, None).verdict)
    return next((v for v in ("fail", "inconclusive") if v in verdicts), "pass")


def run(sides: Sides, order: str, seed: int) -> Iterator[tuple[int, common.Figures]]:
    """nDCG@10 of each rule at each share, and whether both searches found just what the new model finds."""
    rng = np.random.default_rng(seed)
    backgrounds = sides.backgrounds(rng)
    enters = ORDERS[order](sides, rng)
    for share in SHARES:
        migrated = np.zeros(len(enters), bool)
        migrated[enters[: max(1, round(len(enters) * share / 100))]] = True
        old, new = sides.old_list(migrated), sides.new_list(migrated)
        found = {
            "slots": fusion.slots(old, K).keys,
            "zscore": fusion.zscore(old, new, backgrounds, K).keys,
            "rrf": fusion.rrf(old, new, K).keys,
        }
        equal = all((found[rule] == sides.new[:, :K]).all() for rule in ("zscore", "rrf"))
        yield share, {**{rule: sides.ndcg(keys) for rule, keys in found.items()}, "equal": equal}


def spread(deltas: list[float]) -> common.Figures:
    return {"mean": round(float(np.mean(deltas)), 4), "worst_seed": round(min(deltas), 4)}


# --- what it says ---


def worst(rows: Rows, rule: str, of: str) -> float:
    """The lowest change while some documents are migrated, not all."""
    deltas = (row["delta"][rule][f"{share}"] for row in rows for share in SHARES[:-1])
    return min(float(delta[of]) for delta in deltas)


def summary(table: Rows) -> common.Figures:
    figures: common.Figures = {}
    for verdict, ending in STARTS.items():
        rows = [row for row in table if row["start"] == verdict]
        for rule, name in RULES.items() if rows else ():
            figures[f"{name}_worst_delta{ending}"] = worst(rows, rule, "mean")
            figures[f"{name}_worst_seed{ending}"] = worst(rows, rule, "worst_seed")
    figures["at_100_equals_new"] = all(row["at_100_equals_new"] for row in table)
    return figures


def shown(table: Rows) -> Iterator[str]:
    """Markdown, a row for each order of migration."""
    yield (
        "| collection, models, order, test before the start | old, new | "
        + " | ".join(f"`{r}`" for r in RULES)
        + " |"
    )
    yield "|---|---|" + "---|" * len(RULES)
    for row in table:
        name = f"{row['collection']}, {row['old']} to {row['new']}, {row['order']}, {row['start']}"
        cells = [
            ", ".join(
                f"{figure:+.3f}"
                for figure in (
                    worst([row], rule, "mean"),
                    *(row["delta"][rule][s]["mean"] for s in ("10", "50", "90")),
                )
            )
            for rule in RULES
        ]
        yield f"| {name} | {row['ndcg_old']:.3f}, {row['ndcg_new']:.3f} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()

"""Real pairs of models on real collections, through the product: does the gate say what is true?

Builds a release of each model over each BEIR folder, makes each the live one in turn, and compares. What is true
is known before: all-MiniLM-L6-v2 is better than paraphrase-MiniLM-L3-v2 and than wordllama, and worse the other way
round; cut to 16 dimensions it is worse; stored as float16 it is nearly equal. A better model must pass, a worse one
must fail, and one that is nearly equal must not fail. Exits 1 when a verdict is wrong.

Beside each verdict stands what was predicted before the migration (evaluation/rerank.py): the first 50 results of
the live release, ranked again by the other model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import common

NAME = "verdicts"
PAGE = common.ROOT / "docs" / "lazy.md"
SMALL, STATIC = "paraphrase-MiniLM-L3-v2", "wordllama-256-fp16-st"
LARGE, HALF, SHORT = (
    "all-MiniLM-L6-v2",
    "the same stored as float16",
    "the same cut to 16 dimensions",
)
TRUE = {
    (STATIC, LARGE): "better",
    (SMALL, LARGE): "better",
    (LARGE, STATIC): "worse",
    (LARGE, SMALL): "worse",
    (LARGE, SHORT): "worse",
    (LARGE, HALF): "nearly equal",
}
"""The truth about live and candidate."""
ALLOWED = {
    "better": {"pass"},
    "worse": {"fail"},
    "nearly equal": {"pass", "inconclusive"},
}
FEW = 100
"""With fewer queries, a verdict may also be inconclusive."""


def main() -> None:
    args = _arguments()
    table = []
    with common.workdir(args) as folder, common.Reembed() as reembed:
        for beir in args.dirs:
            table += judged(args, folder / beir.name, reembed, beir)
    wrong = [row for row in table if row["verdict"] not in allowed(row)]
    for row in wrong:
        common.say(f"WRONG: {row['live']} to {row['candidate']} on {row['collection']}")
    missed = [row for row in table if row["predicted"]["verdict"] not in allowed(row)]
    common.say(f"{len(table)} pairs, {len(wrong)} wrong verdicts, {len(missed)} wrong predictions")
    if args.page:
        common.put_into(PAGE, NAME, predictions(table))
    counts = {"pairs": len(table), "wrong": len(wrong), "predicted_wrong": len(missed)}
    common.finish(NAME, args, counts | {"table": table})
    sys.exit(1 if wrong else 0)


def _arguments() -> argparse.Namespace:
    parser = common.parser(NAME, __doc__)
    parser.add_argument("dirs", type=Path, nargs="+", metavar="DIR", help="BEIR folders")
    parser.add_argument(
        "--models", type=Path, required=True, help=f"folder with {SMALL} and {STATIC}"
    )
    parser.add_argument("--page", action="store_true", help=f"put the table into {PAGE.name}")
    common.add_limit(parser)
    return common.parse(parser)


def allowed(row: common.Figures) -> set[str]:
    """The verdicts that are right."""
    right = ALLOWED[row["truth"]]
    return right | {"inconclusive"} if row["queries"] < FEW else right


def judged(
    args: argparse.Namespace, folder: Path, reembed: common.Reembed, beir: Path
) -> list[common.Figures]:
    """Build a release of each model, and compare each pair."""
    folder.mkdir()
    source = common.import_corpus(reembed, beir, folder, args.limit)
    configs = {name: config(args, folder, source, beir, name) for pair in TRUE for name in pair}
    releases = {}
    for name, path in configs.items():
        releases[name] = reembed("run", "-c", str(path))["id"]
        common.say(f"{beir.name}: {name} is {releases[name]}")
    table: list[common.Figures] = []
    for live in dict.fromkeys(live for live, _ in TRUE):
        how = "--force" if table else "--initial"
        reembed("promote", "-c", str(configs[live]), releases[live], how, "--reason", "measured")
        for (old, new), truth in TRUE.items():
            if old == live:
                names = {"collection": beir.name, "live": old, "candidate": new, "truth": truth}
                said = {"predicted": predicted(configs[new], releases[live])}
                table.append(names | compared(reembed, configs[new], releases[new]) | said)
                common.say(f"{beir.name}: {old} to {new} is {truth}: {table[-1]['verdict']}")
    return table


def config(args: argparse.Namespace, folder: Path, source: Path, beir: Path, name: str) -> Path:
    """The config of one model's release."""
    encoder: common.Figures = {"model": common.MODEL}
    table: common.Figures = {}
    if name in (SMALL, STATIC):
        encoder["model"] = str((args.models / name).resolve())
    elif name == SHORT:
        encoder["truncate_dim"] = 16
    elif name == HALF:
        table["dtype"] = "float16"
    gate = {"queries": str(beir.resolve()), "split": "test"}
    path = common.write_config(
        folder, "root", source, args, encoder=encoder, table=table, gate=gate
    )
    return path.rename(folder / f"{name.replace(' ', '-')}.yaml")


def compared(reembed: common.Reembed, path: Path, release: str) -> common.Figures:
    """Compare a release with the live one."""
    asked = ["compare", "-c", str(path), "--candidate", release, "--json"]
    process = reembed.start(*asked, stdout=subprocess.PIPE)
    return row(json.loads(process.communicate()[0]))


def row(record: common.Figures) -> common.Figures:
    """What a reader wants of a comparison."""
    changes = {
        name: {
            "live": round(m["live"], 4),
            "change": round(m["change"]["mean"], 4),
            "low": round(m["change"]["low"], 4),
            "high": round(m["change"]["high"], 4),
            "lower": round(m["change"]["lower"], 4),
            "margin": round(m["margin"], 4),
        }
        for name, m in record["metrics"].items()
        if m["margin"] is not None
    }
    items = record["known_items"]["mrr_at_10"]
    return {
        "verdict": record["verdict"],
        "queries": record["queries"]["count"],
        "metrics": changes,
        "known_items": {side: round(value, 3) for side, value in items.items()},
        "not_passed": [r["name"] for r in record["rules"] if r["verdict"] != "pass"],
        "if_unchanged": record["if_unchanged"],
        "if_real": record["if_real"],
    }


def predicted(path: Path, live: str) -> common.Figures:
    """Predict how the metrics change when the config's model takes over from a release's."""
    from reembed.catalog.releases import Catalog
    from reembed.config.settings import load
    from reembed.evaluation.rerank import predict
    from reembed.events import ignore
    from reembed.store.storage import Storage

    config = load([str(path)], [])[0]
    catalog = Catalog(Storage.open(config.storage.root, config.storage.options), config.alias)
    found = predict(catalog, catalog.release(live), config, ignore)
    return {
        "verdict": found.verdict,
        "metrics": {
            m.metric: {
                "change": round(m.change, 4),
                "low": round(m.low, 4),
                "high": round(m.high, 4),
                "verdict": m.verdict,
            }
            for m in found.metrics
        },
        "documents": found.documents.embedded,
        "tokens": found.tokens,
        "seconds": found.seconds,
    }


def predictions(table: list[common.Figures]) -> str:
    """What was predicted beside what came, as the page has it."""
    lines = [
        "| collection | live to candidate | metric | predicted change | real change | verdicts |"
    ]
    lines.append("|---|---|---|---|---|---|")
    for row in table:
        said, pair = row["predicted"], f"{row['live']} to {row['candidate']}"
        verdicts = f"{said['verdict']}, {row['verdict']}"
        for key, real in row["metrics"].items():
            changes = f"{_cell(said['metrics'][key])} | {_cell(real)}"
            lines.append(f"| {row['collection']} | {pair} | {key} | {changes} | {verdicts} |")
    return "\n".join(lines)


def _cell(change: common.Figures) -> str:
    return f"{change['change']:+.3f} ({change['low']:+.3f} .. {change['high']:+.3f})"


if __name__ == "__main__":
    main()

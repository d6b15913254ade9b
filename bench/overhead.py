"""What the whole job costs over the bare model: documents/s of both on the same texts.

The bare loop loads the encoder, tokenizes and embeds windows of one unit, in a process of its own
with the threads and the niceness of the job's actor; only tokenizing and embedding are timed. The
job is `reembed run`: its rate is over the time from the beginning of its first unit to the record of
the finished candidate, with everything between: embedding, writing, sealing, the index, verification.
Starting up, until the first unit begins, is given apart (`startup_s`: processes, Ray, the model), and
so is the rate of the embedding stage alone (`stage_ratio`). A round is half of its texts bare, all of
them by the job, the other half bare. Nothing else should run meanwhile: `others_cores` says how many
cores something did use just before.

Without DIR the texts are those of the demo, docstrings of this Python and its packages.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import common

NAME = "overhead"
TARGET = 0.90
RAY_NICENESS = 15  # of Ray's workers: beside other work, a loop without it would only seem faster


def main() -> None:
    args = _arguments()
    if args.bare_loop is not None:
        print(json.dumps(bare_loop(args)))
        return
    with common.workdir(args) as folder, common.Reembed() as reembed:
        figures = measure(args, folder, reembed)
    passed = figures["ratio"] >= TARGET
    common.say(
        f"the job has {figures['ratio']:.1%} of the bare loop's rate"
        f" ({figures['ratio_min']:.1%} to {figures['ratio_max']:.1%}); target {TARGET:.0%}: "
        + ("met" if passed else "NOT MET")
    )
    common.finish(NAME, args, {**figures, "target": TARGET, "passed": passed})


def _arguments() -> argparse.Namespace:
    parser = common.parser(NAME, __doc__)
    parser.add_argument("dir", type=Path, nargs="?", metavar="DIR", help="BEIR folder")
    parser.add_argument("--documents", type=int, default=20_000, help="in all [%(default)s]")
    parser.add_argument("--rounds", type=int, default=1, help="[%(default)s]")
    parser.add_argument("--unit-documents", type=int, default=512, help="[%(default)s]")
    parser.add_argument("--bare-loop", type=Path, help=argparse.SUPPRESS)  # the other process
    return common.parse(parser)


def measure(args: argparse.Namespace, folder: Path, reembed: common.Reembed) -> common.Figures:
    """Every round: bare, job, bare."""
    found = documents(args, folder)
    each = len(found) // args.rounds
    if each < args.unit_documents:
        raise SystemExit(f"{len(found)} documents are too few for {args.rounds} rounds of a unit")
    bare, job = [], []
    for number in range(args.rounds):
        rows = [_row(n, found[n]) for n in range(number * each, (number + 1) * each)]
        halves = [
            common.write_jsonl(folder / f"round{number}-{half}.jsonl", part)
            for half, part in enumerate((rows[: each // 2], rows[each // 2 :]))
        ]
        file = common.write_jsonl(folder / f"round{number}.jsonl", rows)
        bare.append(run_bare(args, halves[0], reembed))
        job.append(run_job(args, file, reembed))
        bare.append(run_bare(args, halves[1], reembed))
        rate = statistics.mean(b["docs_per_s"] for b in bare[-2:])
        common.say(f"round {number + 1}: job / bare = {job[-1]['docs_per_s'] / rate:.3f}")
    corpus = "docstrings" if args.dir is None else args.dir.resolve().name
    return {**summary(bare, job), "corpus": corpus, "docs_per_round": each}


def documents(args: argparse.Namespace, folder: Path) -> list[common.Figures]:
    """Documents of DIR, or the demo's."""
    if args.dir is not None:
        return common.read_jsonl(common.corpus_file(args.dir), args.documents)
    from examples.demo import corpus

    corpus.main(folder / "docstrings", args.documents, 0)
    return common.read_jsonl(folder / "docstrings" / "corpus.jsonl")


def _row(number: int, row: common.Figures) -> common.Figures:
    text = f"{row['title']} {row['text']}" if row.get("title") else row["text"]
    return {"_id": str(number), "text": text}


def summary(bare: list[common.Figures], job: list[common.Figures]) -> common.Figures:
    """Medians of the rounds, and the rounds. Each job is held against the loop before and after it."""
    pairs = [(j, b) for n, j in enumerate(job) for b in bare[2 * n : 2 * n + 2]]
    ratios = [j["docs_per_s"] / b["docs_per_s"] for j, b in pairs]
    stages = [j["stage_docs_per_s"] / b["docs_per_s"] for j, b in pairs]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "stage_ratio": round(statistics.median(stages), 3),
        "docs": sum(j["docs"] for j in job),
        "bare_docs_per_s": round(statistics.median(b["docs_per_s"] for b in bare), 1),
        "job_docs_per_s": round(statistics.median(j["docs_per_s"] for j in job), 1),
        "startup_s": round(statistics.median(j["startup_s"] for j in job), 1),
        "wall_s": round(statistics.median(j["wall_s"] for j in job), 1),
        "others_cores": max(r["others_cores"] for r in (*bare, *job)),
        "rounds_bare": bare,
        "rounds_job": job,
    }


# --- the job ---


def run_job(args: argparse.Namespace, file: Path, reembed: common.Reembed) -> common.Figures:
    """`reembed run` over one slice."""
    folder, name = file.parent, f"root-{file.stem}"
    source = folder / f"{file.stem}.lance"
    reembed("import", str(file), "--to", str(source))
    embed = {"unit_documents": args.unit_documents}
    config = common.write_config(folder, name, source, args, embed=embed, source={"text": "text"})
    others = common.busy_cores()
    common.say(f"{file.stem}: the job, beside others that use {others} cores")
    begun, started = time.time(), time.monotonic()
    release = reembed("run", "-c", str(config))
    wall = time.monotonic() - started
    left = reembed.leftovers(60)
    if left:
        raise SystemExit(
            f"{len(left)} processes of the job still run: the next figures would be wrong"
        )
    return {
        "docs": release["rows"],
        **job_rates(folder / name, begun),
        "wall_s": round(wall, 1),
        "others_cores": others,
    }


def job_rates(root: Path, begun: float) -> common.Figures:
    """The job after its start-up, and its embedding stage, by the clock of the file system."""
    embedded = common.embedded(root)
    started = min(f.stat().st_mtime for f in root.glob("runs/*/attempts/*/*.json"))
    staged = max(f.stat().st_mtime for f in root.glob("runs/*/units/*.json"))
    ended = max(f.stat().st_mtime for f in root.glob("releases/*/*.json"))
    receipts = [json.loads(f.read_text()) for f in root.glob("runs/*/units/*.json")]
    return {
        "docs_per_s": round(embedded["done"] / (ended - started), 1),
        "stage_docs_per_s": round(embedded["done"] / (staged - started), 1),
        "job_s": round(ended - started, 2),
        "stage_s": round(staged - started, 2),
        "embed_s": round(sum(receipt["stats"]["embed_s"] for receipt in receipts), 2),
        "startup_s": round(started - begun, 1),
    }


# --- the bare loop ---


def run_bare(args: argparse.Namespace, file: Path, reembed: common.Reembed) -> common.Figures:
    """The bare loop over one slice, with the threads that Ray gives the actor."""
    others = common.busy_cores()
    common.say(f"{file.stem}: the bare loop, beside others that use {others} cores")
    threads = {"OMP_NUM_THREADS": str(args.cpus_per_actor), "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, "--bare-loop", str(file)]
    if args.max_length is not None:
        command += ["--max-length", str(args.max_length)]
    for option in ("model", "cpus_per_actor", "batch_tokens", "unit_documents"):
        command += [f"--{option.replace('_', '-')}", str(getattr(args, option))]
    environment = {**reembed.env, **threads}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: common.Figures = json.loads(done.stdout.splitlines()[-1])
    return {**found, "others_cores": others}


def bare_loop(args: argparse.Namespace) -> common.Figures:
    """Tokenize and embed, window by window; loading is not counted."""
    import torch

    from reembed.config.settings import EncoderConfig
    from reembed.encoders import load_encoder
    from reembed.encoders.tokens import require_tokens

    niceness = os.nice(RAY_NICENESS)
    texts = [row["text"] for row in common.read_jsonl(args.bare_loop)]
    section = EncoderConfig(model=args.model, max_length=args.max_length)
    begun = time.perf_counter()
    encoder = require_tokens(load_encoder(section, batch_tokens=args.batch_tokens))
    started = time.perf_counter()
    tokens = 0
    embed_s = 0.0
    for start in range(0, len(texts), args.unit_documents):
        window = encoder.tokenize(texts[start : start + args.unit_documents], "document")
        before = time.perf_counter()
        encoder.embed(window)
        embed_s += time.perf_counter() - before
        tokens += int(window.lengths.sum())
    seconds = time.perf_counter() - started
    return {
        "docs": len(texts),
        "docs_per_s": round(len(texts) / seconds, 1),
        "tokens_per_s": round(tokens / seconds),
        "load_s": round(started - begun, 1),
        "stage_s": round(seconds, 4),
        "embed_s": round(embed_s, 4),
        "torch_threads": torch.get_num_threads(),
        "niceness": niceness,
    }


if __name__ == "__main__":
    main()

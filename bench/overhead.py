"""What the job costs over the bare model: documents/s of both on the same texts, in turn.

The bare loop loads the encoder, tokenizes and embeds windows of one unit, in a process of its own
with the threads and the niceness of the job's actor. The job is `reembed run`; its rate is that of
the embedding stage, from the record of the first unit's start to the stage's last figures, by the
times of these files; start-up, the rate in its own events and the wall time are given apart. The
texts are cut into as many slices as there are rounds; each round does one slice both ways, and
which way goes first alternates. Nothing else should run meanwhile: `others_cores` says how many
cores something did use just before the loops.

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
    parser.add_argument("--rounds", type=int, default=4, help="[%(default)s]")
    parser.add_argument("--unit-documents", type=int, default=512, help="[%(default)s]")
    parser.add_argument("--bare-loop", type=Path, help=argparse.SUPPRESS)  # the other process
    return common.parse(parser)


def measure(args: argparse.Namespace, folder: Path, reembed: common.Reembed) -> common.Figures:
    """Every round both ways."""
    found = documents(args, folder)
    each = len(found) // args.rounds
    if each < args.unit_documents:
        raise SystemExit(f"{len(found)} documents are too few for {args.rounds} rounds of a unit")
    bare, job, order = [], [], []
    for number in range(args.rounds):
        rows = [_row(n, found[n]) for n in range(number * each, (number + 1) * each)]
        file = common.write_jsonl(folder / f"round{number}.jsonl", rows)
        bare_first = number % 2 == 0
        order.append("bare" if bare_first else "job")
        if bare_first:
            bare.append(run_bare(args, file, reembed))
        job.append(run_job(args, file, reembed))
        if not bare_first:
            bare.append(run_bare(args, file, reembed))
        ratio = job[-1]["docs_per_s"] / bare[-1]["docs_per_s"]
        common.say(f"round {number + 1}: job / bare = {ratio:.3f} ({order[-1]} first)")
    corpus = "docstrings" if args.dir is None else args.dir.resolve().name
    return {**summary(bare, job), "corpus": corpus, "first": order, "docs_per_round": each}


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
    """Medians of the rounds, and the rounds."""
    ratios = [j["docs_per_s"] / b["docs_per_s"] for j, b in zip(job, bare, strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "docs": sum(j["docs"] for j in job),
        "bare_docs_per_s": round(statistics.median(b["docs_per_s"] for b in bare), 1),
        "job_docs_per_s": round(statistics.median(j["docs_per_s"] for j in job), 1),
        "startup_s": round(statistics.median(j["startup_s"] for j in job), 1),
        "wall_s": round(statistics.median(j["wall_s"] for j in job), 1),
        "bare_busy": round(statistics.median(b["embed_s"] / b["stage_s"] for b in bare), 3),
        "job_busy": round(statistics.median(j["embed_s"] / j["stage_s"] for j in job), 3),
        "job_events_docs_per_s": round(statistics.median(j["events_docs_per_s"] for j in job), 1),
        "others_cores": max(r["others_cores"] for r in (*bare, *job)),
        "ratios": [round(r, 3) for r in ratios],
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
    started = time.monotonic()
    release = reembed("run", "-c", str(config))
    wall = time.monotonic() - started
    left = reembed.leftovers(60)
    if left:
        raise SystemExit(
            f"{len(left)} processes of the job still run: the next figures would be wrong"
        )
    return {
        "docs": release["rows"],
        **job_rates(folder / name),
        "wall_s": round(wall, 1),
        "others_cores": others,
    }


def job_rates(root: Path) -> common.Figures:
    """The embedding stage by the clock of the file system, and what its events say."""
    embedded = next(e for e in common.events(root) if e["stage"] == "embedded")
    started = min(f.stat().st_mtime for f in root.glob("runs/*/attempts/*/*.json"))
    ended = max(f.stat().st_mtime for f in root.glob("runs/*/progress.json"))
    receipts = [json.loads(f.read_text()) for f in root.glob("runs/*/units/*.json")]
    return {
        "docs_per_s": round(embedded["done"] / (ended - started), 1),
        "events_docs_per_s": embedded["docs_per_s"],
        "stage_s": round(ended - started, 2),
        "embed_s": round(sum(receipt["embed_s"] for receipt in receipts), 2),
        "startup_s": embedded["startup_s"],
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

    from reembed.config import EncoderConfig
    from reembed.encoders import load_encoder

    niceness = os.nice(RAY_NICENESS)
    texts = [row["text"] for row in common.read_jsonl(args.bare_loop)]
    section = EncoderConfig(model=args.model, max_length=args.max_length)
    begun = time.perf_counter()
    encoder = load_encoder(section, batch_tokens=args.batch_tokens)
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

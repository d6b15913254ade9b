"""The whole Ray job against the bare encoder, against the frameworks' own example, and against a peer.

All embed the same real paragraphs with the same model, in float32 but for one, each in processes of
its own with the same threads; start-up (processes, Ray, loading the model) is apart everywhere.

- bare: reembed's encoder in a loop, tokenizing and embedding, nothing else; before and after the job.
- job: `reembed run`, from the beginning of its first unit to the commit of the table.
- job_bf16: the same in bfloat16, where the processor has it.
- example: Ray Data as its guides write it, map_batches over SentenceTransformer.encode, batches of 32.
- peer: Daft's embed_text (pip install daft), its transformers provider.

Then the memory of the driver and of all processes, while 10,000, 100,000 and 1,000,000 documents go
through a model that costs nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import common, memory, overhead

NAME = "pipeline"
GOALS = {"ratio_bare": 0.95, "ratio_example": 3.0, "ratio_peer": 3.0}
_PARTS = ("bare", "job", "job_bf16", "example", "peer")
_WARM = 64


def main() -> None:
    args = _arguments()
    if args.part is not None:
        parts = {"example": example, "peer": peer}
        print(json.dumps(parts[args.part](args)))
        return
    with common.workdir(args) as folder, common.Reembed() as reembed:
        figures = measure(args, folder, reembed)
        figures |= memories(args, folder, reembed)
    met = {name: bool((figures[name] or 0) >= goal) for name, goal in GOALS.items()}
    common.say(", ".join(f"{name} {figures[name]}" for name in GOALS))
    common.finish(NAME, args, {**figures, "goals": GOALS, "met": met})


def _arguments() -> argparse.Namespace:
    parser = common.parser(NAME, __doc__)
    parser.add_argument("--paragraphs", type=int, default=6_000, help="[%(default)s]")
    parser.add_argument("--rounds", type=int, default=2, help="[%(default)s]")
    parser.add_argument("--unit-documents", type=int, default=512, help="[%(default)s]")
    parser.add_argument(
        "--sizes", default="10000,100000,1000000", help="documents of the memory runs [%(default)s]"
    )
    parser.add_argument("--part", choices=("example", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--texts", type=Path, help=argparse.SUPPRESS)
    common.add_limit(parser)
    return common.parse(parser)


def measure(args: argparse.Namespace, folder: Path, reembed: common.Reembed) -> common.Figures:
    """Every round: bare, job, example, peer, bare."""
    from reembed.encoders.local import linears

    texts = common.paragraphs(args.limit or args.paragraphs)
    rows = [{"_id": str(n), "text": text} for n, text in enumerate(texts)]
    whole = common.write_jsonl(folder / "all.jsonl", rows)
    half = common.write_jsonl(folder / "half.jsonl", rows[: len(rows) // 2])
    third = common.write_jsonl(folder / "third.jsonl", rows[: len(rows) // 3])
    has_peer = importlib.util.find_spec("daft") is not None
    found: dict[str, list[common.Figures]] = {k: [] for k in _PARTS}
    for number in range(args.rounds):
        found["bare"].append(overhead.run_bare(args, half, reembed))
        found["job"].append(_job(args, whole, reembed, f"float32-{number}", "float32"))
        if linears.has_bfloat16():
            narrow = _job(args, whole, reembed, f"bfloat16-{number}", "bfloat16")
            found["job_bf16"].append(narrow)
        found["example"].append(_run(args, "example", third, reembed))
        if has_peer:
            found["peer"].append(_run(args, "peer", third, reembed))
        found["bare"].append(overhead.run_bare(args, half, reembed))
        common.say(
            ", ".join(f"{k} {v[-1]['docs_per_s']:.1f} docs/s" for k, v in found.items() if v)
        )
    return {
        "ratio_bare": _ratio(found, "job", "bare", each=2),
        "ratio_example": _ratio(found, "job", "example"),
        "ratio_peer": _ratio(found, "job", "peer"),
        "bf16_ratio_example": _ratio(found, "job_bf16", "example"),
        "bf16_ratio_peer": _ratio(found, "job_bf16", "peer"),
        "peer": "daft embed_text, provider transformers" if has_peer else "daft is not installed",
        "paragraphs": len(texts),
        "rounds": found,
    }


def _ratio(
    found: dict[str, list[common.Figures]], mine: str, other: str, each: int = 1
) -> float | None:
    """Median over the rounds of the job's rate by the other's; None: one of them did not run."""
    jobs = found[mine]
    if not jobs or not found[other]:
        return None
    ratios = [
        job["docs_per_s"] / statistics.mean(o["docs_per_s"] for o in found[other][n : n + each])
        for n, job in zip(range(0, each * len(jobs), each), jobs, strict=True)
    ]
    return float(round(statistics.median(ratios), 3))


def _job(
    args: argparse.Namespace, file: Path, reembed: common.Reembed, name: str, dtype: str
) -> common.Figures:
    folder = file.parent
    source = folder / f"{name}.lance"
    reembed("import", str(file), "--to", str(source))
    config = common.write_config(
        folder,
        name,
        source,
        args,
        embed={"unit_documents": args.unit_documents, "dtype": dtype},
        source={"text": "text"},
    )
    others = common.busy_cores()
    reembed("run", "-c", str(config))
    reembed.leftovers(60)
    root = folder / name
    embedded = common.embedded(root)
    started = min(f.stat().st_mtime for f in root.glob("runs/*/attempts/*/*.json"))
    committed = max(f.stat().st_mtime for f in root.glob("runs/*/sealed.json"))
    return {
        "docs_per_s": round(embedded["done"] / (committed - started), 1),
        "busy": embedded["busy"],
        "waits_for_input": embedded["waits_for_input"],
        "padding": embedded["padding"],
        "mfu": embedded["mfu"],
        "others_cores": others,
    }


def _run(
    args: argparse.Namespace, part: str, texts: Path, reembed: common.Reembed
) -> common.Figures:
    """A part in a process of its own."""
    others = common.busy_cores()
    common.say(f"{part}, beside others that use {others} cores")
    command = [sys.executable, __file__, "--part", part, "--texts", str(texts)]
    command += ["--model", args.model, "--cpus-per-actor", str(args.cpus_per_actor)]
    threads = {"OMP_NUM_THREADS": str(args.cpus_per_actor), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        command, env={**reembed.env, **threads}, stdout=subprocess.PIPE, text=True, check=True
    )
    found: common.Figures = json.loads(done.stdout.splitlines()[-1])
    return {**found, "others_cores": others}


# --- the others ---


class _Example:
    """The actor of the guides; notes when its first batch begins."""

    def __init__(self, where: str, note: str) -> None:
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(where, device="cpu")
        self._note = Path(note)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        if not self._note.exists():
            self._note.write_text(str(time.time()))
        batch["vector"] = self._model.encode(list(batch["text"]), normalize_embeddings=True)
        return batch


def example(args: argparse.Namespace) -> common.Figures:
    """Ray Data, from the first batch to the last file."""
    import ray

    rows = common.read_jsonl(args.texts)
    note, out = args.texts.with_suffix(f".{os.getpid()}"), args.texts.parent / f"ex-{os.getpid()}"
    ray.init(num_cpus=args.cpus_per_actor + 2, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    dataset = ray.data.from_items(rows).map_batches(
        _Example,
        fn_constructor_args=(_where(args), str(note)),
        batch_size=32,
        concurrency=1,
        num_cpus=args.cpus_per_actor,
    )
    dataset.write_parquet(str(out))
    ended = time.time()
    seconds = ended - float(note.read_text())
    ray.shutdown()
    return {"docs_per_s": round(len(rows) / seconds, 1), "seconds": round(seconds, 1)}


def peer(args: argparse.Namespace) -> common.Figures:
    """Daft; a run over a few texts, which loads everything too, is taken off the run over all."""
    os.nice(overhead.RAY_NICENESS)
    import daft
    from daft.functions import embed_text

    rows = common.read_jsonl(args.texts)
    texts, seconds = [row["text"] for row in rows], []
    for some in (texts[:_WARM], texts[:_WARM], texts):
        started = time.perf_counter()
        vectors = embed_text(daft.col("text"), provider="transformers", model=_where(args))
        done = daft.from_pydict({"text": some}).with_column("vector", vectors).collect()
        seconds.append(time.perf_counter() - started)
        assert len(done) == len(some)
    rate = (len(texts) - _WARM) / (seconds[2] - seconds[1])
    return {"docs_per_s": round(rate, 1), "seconds": [round(s, 1) for s in seconds]}


def _where(args: argparse.Namespace) -> str:
    from reembed.config.settings import EncoderConfig
    from reembed.encoders.local.profile import locate

    return str(locate(EncoderConfig(model=args.model)))


# --- memory ---


def memories(args: argparse.Namespace, folder: Path, reembed: common.Reembed) -> common.Figures:
    """Peaks by number of documents."""
    model, args.model = args.model, "hashing:64"
    found = {
        size: memory.measure(args, folder, reembed, f"m{size}", int(size))
        for size in ([] if args.limit else args.sizes.split(","))
    }
    args.model = model
    return {
        "driver_peak_mib": {size: peaks["driver_peak_mib"] for size, peaks in found.items()},
        "embed_peak_mib": {size: peaks["embed_peak_mib"] for size, peaks in found.items()},
        "later_peak_mib": {size: peaks["later_peak_mib"] for size, peaks in found.items()},
    }


if __name__ == "__main__":
    main()

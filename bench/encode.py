"""How fast texts become vectors on this processor: reembed's encoder against every other way.

All engines embed the same real paragraphs, from text to vector, in one process with the same threads,
one after the other and again in the next round, in another order; those that the goals speak of in
more rounds. A ratio is the median over the rounds of one's time by the other's. Cosines are against
`SentenceTransformer.encode` in float32. MFU counts the useful arithmetic of real tokens against a
large matrix product in the same number type on the same cores, measured beside them.

ONNX Runtime, OpenVINO and fastembed take part where they are installed:
pip install onnx onnxruntime openvino fastembed
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import common

NAME = "encode"
BATCH_SIZES = (8, 16, 32, 64, 128)
TOKENS = 4_096
_WIDTH = 2_048  # of the matrices whose product is the peak
_IN_GOALS = (
    "encode default",
    "reembed float32",
    "reembed bfloat16",
    "openvino float32",
    "openvino bfloat16",
)
GOALS = {
    "fp32_ratio": 3.0,
    "bf16_ratio": 5.0,
    "fp32_by_openvino": 1.0,
    "bf16_by_openvino": 1.0,
}

Vectors = npt.NDArray[np.float32]
Engine = Callable[[list[str]], Vectors]
Times = dict[str, list[tuple[float, float]]]  # wall and CPU seconds of each round


def main() -> None:
    args = _arguments()
    _prepare(args.threads)
    with tempfile.TemporaryDirectory(prefix="reembed-encode-") as folder:
        figures = measure(args, Path(folder))
    for name in ("model", "bert_base"):
        if name in figures:
            _tell(figures[name])
    met = {k: bool((figures[k] or 0) >= goal) for k, goal in GOALS.items()}
    common.finish(NAME, args, {**figures, "goals": GOALS, "met": met})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"bench/{NAME}.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default=common.MODEL, help="[%(default)s]")
    parser.add_argument("--paragraphs", type=int, default=2_048, help="[%(default)s]")
    parser.add_argument("--base-paragraphs", type=int, default=192, help="of BERT-base; 0: none")
    parser.add_argument("--rounds", type=int, default=2, help="of all [%(default)s]")
    parser.add_argument("--more", type=int, default=4, help="rounds of the goals' [%(default)s]")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="[all cores]"
    )
    parser.add_argument("--out", type=Path, help=f"[bench/results/{NAME}.json]")
    common.add_limit(parser)
    return common.parse(parser)


def _prepare(threads: int) -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)


def measure(args: argparse.Namespace, folder: Path) -> common.Figures:
    """The model asked for, and a model of BERT-base's shape."""
    texts = common.paragraphs(args.limit or args.paragraphs)
    peaks = {kind: peak(kind) for kind in _kinds()}
    common.say(f"{len(texts):,} paragraphs; matrix products: {peaks}")
    of_model = _of(args, folder / "model", args.model, texts, peaks)
    engines = {e["engine"]: e for e in of_model["engines"]}
    figures: common.Figures = {
        "fp32_ratio": engines["reembed float32"]["ratio"],
        "fp32_cos_min": engines["reembed float32"]["cos_min"],
        "bf16_ratio": engines.get("reembed bfloat16", {}).get("ratio"),
        "bf16_cos_min": engines.get("reembed bfloat16", {}).get("cos_min"),
        "fp32_by_openvino": of_model["by_openvino"]["float32"],
        "bf16_by_openvino": of_model["by_openvino"]["bfloat16"],
        # What an engine that does nothing but matrix products, at their peak, would reach here.
        "fp32_ratio_at_peak": round(1 / engines["encode default"]["mfu"], 2),
        "bf16_ratio_at_peak": round(
            peaks["bfloat16"] / peaks["float32"] / engines["encode default"]["mfu"], 2
        )
        if "bfloat16" in peaks
        else None,
        "threads": args.threads,
        "peak_gflops": peaks,
        "model": of_model,
    }
    if args.base_paragraphs and not args.limit:
        base = _bert_base(folder / "bert-base")
        figures["bert_base"] = _of(
            args, folder / "base", str(base), texts[: args.base_paragraphs], peaks
        )
        figures["bert_base"]["weights"] = "random: the same arithmetic as trained ones"
    return figures


def _by(times: Times, kind: str) -> float | None:
    """Our rate by OpenVINO's."""
    ours, theirs = times.get(f"reembed {kind}"), times.get(f"openvino {kind}")
    if not ours or not theirs:
        return None
    return round(statistics.median(t[0] / o[0] for o, t in zip(ours, theirs, strict=True)), 2)


def _of(
    args: argparse.Namespace, folder: Path, model: str, texts: list[str], peaks: dict[str, float]
) -> common.Figures:
    folder.mkdir()
    engines, missing = _engines(model, folder, args.threads, texts)
    golden = engines["encode default"](texts)
    found = {name: engine(texts) for name, engine in engines.items()}  # and warm
    times: Times = {name: [] for name in engines}
    for number in range(args.rounds + args.more):
        names = [n for n in engines if number < args.rounds or n in _IN_GOALS]
        for name in names[number % len(names) :] + names[: number % len(names)]:
            wall, cpu = time.perf_counter(), time.process_time()
            engines[name](texts)
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
        common.say(f"round {number + 1}: {_line(times, names)}")
    tokens, flops = _work(model, texts)
    done = Done(len(texts), tokens, flops, golden, peaks)
    return {
        "model": model if model == common.MODEL else Path(model).name,
        "paragraphs": len(texts),
        "tokens": tokens,
        "useful_mflop_per_token": round(flops / tokens / 1e6, 1),
        "engines": [_row(name, times, found[name], done) for name in engines],
        "by_openvino": {kind: _by(times, kind) for kind in ("float32", "bfloat16")},
        "not_installed": missing,
    }


@dataclass(frozen=True)
class Done:
    """What every engine did: texts, their tokens and useful FLOP; `golden` is encode's float32."""

    texts: int
    tokens: int
    flop: float
    golden: Vectors
    peaks: dict[str, float]


def _row(name: str, times: Times, found: Vectors, done: Done) -> common.Figures:
    from reembed.encoders.probes import least_cosine

    wall = statistics.median(t[0] for t in times[name])
    by_round = [
        (d[0] / t[0], d[1] / t[1])
        for d, t in zip(times["encode default"], times[name], strict=False)
    ]
    kind = "bfloat16" if "bf" in name else "float32"
    return {
        "engine": name,
        "ratio": round(statistics.median(r[0] for r in by_round), 2),
        "ratio_min": round(min(r[0] for r in by_round), 2),
        "ratio_max": round(max(r[0] for r in by_round), 2),
        "ratio_cpu_seconds": round(statistics.median(r[1] for r in by_round), 2),
        "docs_per_s": round(done.texts / wall, 1),
        "tokens_per_s": round(done.tokens / wall),
        "mfu": round(done.flop / wall / 1e9 / done.peaks[kind], 3),
        "cos_min": round(least_cosine(done.golden, found)[0], 7),
    }


def _line(times: Times, names: list[str]) -> str:
    default = times["encode default"][-1][0]
    return ", ".join(f"{name} {default / times[name][-1][0]:.2f}x" for name in names)


def _tell(figures: common.Figures) -> None:
    common.say(f"{figures['model']}: {figures['paragraphs']:,} paragraphs")
    for row in sorted(figures["engines"], key=lambda r: r["ratio"]):
        print(
            f"  {row['engine']:28} {row['ratio']:5.2f}x {row['docs_per_s']:8.1f} docs/s"
            f" {row['tokens_per_s']:8,} tokens/s  MFU {row['mfu']:5.1%}  cos {row['cos_min']:.7f}"
        )


def _kinds() -> tuple[str, ...]:
    """Number types that this processor multiplies in by itself; oneDNN may refuse another."""
    from reembed.encoders.local import linears

    return ("float32", "bfloat16") if linears.has_bfloat16() else ("float32",)


def peak(kind: str) -> float:
    """GFLOP/s of the fastest product of ten, by the fastest of torch's ways here."""
    import torch

    from reembed.encoders.local import linears

    dtype = getattr(torch, kind)
    x, w = (torch.randn(_WIDTH, _WIDTH, dtype=dtype) for _ in range(2))
    ways: list[Callable[[], Any]] = [lambda: x @ w.T]
    if linears.is_available():
        ops: Any = torch.ops.mkldnn
        packed = ops._reorder_linear_weight(w)
        ways.append(lambda: ops._linear_pointwise(x, packed, None, "none", [], ""))
    best = min(_timed(way) for way in ways for _ in range(10))
    return round(2 * _WIDTH**3 / best / 1e9, 1)


def _timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _work(model: str, texts: list[str]) -> tuple[int, float]:
    """Tokens, and FLOP of the transformer's products over them: linear layers and attention."""
    from reembed.config.settings import EncoderConfig
    from reembed.encoders import load_tokenizer
    from reembed.encoders.local.profile import locate

    section = EncoderConfig(model=model)
    lengths = load_tokenizer(section).tokenize(texts, "document").lengths
    shape = json.loads((Path(locate(section)) / "config.json").read_text())
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    linears = 2 * (4 * width * width + 2 * width * inner) * int(lengths.sum())
    attention = 4 * width * int((lengths**2).sum())
    return int(lengths.sum()), float(shape["num_hidden_layers"] * (linears + attention))


# --- the engines ---


def _engines(
    model: str, folder: Path, threads: int, texts: list[str]
) -> tuple[dict[str, Engine], list[str]]:
    from reembed.config.settings import EncoderConfig
    from reembed.encoders.local.profile import locate

    where = str(locate(EncoderConfig(model=model)))
    engines = {**_sentence_transformers(where, texts), **_reembed(model)}
    missing = []
    exported = folder / "exported"
    runtimes: dict[str, Callable[[Path, str, int], Iterator[tuple[str, Engine]]]] = {
        "onnxruntime": _onnxruntime,
        "openvino": _openvino,
        "fastembed": _fastembed,
    }
    for name, made in runtimes.items():
        if importlib.util.find_spec(name) is None or importlib.util.find_spec("onnx") is None:
            missing.append(name)
            continue
        if not exported.exists():
            _export(where, exported)
        engines |= dict(made(exported, model, threads))
    return engines, missing


def _sentence_transformers(where: str, texts: list[str]) -> dict[str, Engine]:
    import torch
    from sentence_transformers import SentenceTransformer

    def encode(model: Any, size: int) -> Engine:
        return lambda given: model.encode(
            given, batch_size=size, normalize_embeddings=True, show_progress_bar=False
        )

    found: dict[str, Engine] = {}
    for kind in _kinds():
        model = SentenceTransformer(
            where, device="cpu", model_kwargs={"dtype": getattr(torch, kind)}
        )
        if kind == "float32":
            found["encode default"] = encode(model, 32)
        sample = texts[: max(128, len(texts) // 16)]
        times = {size: _timed(partial(encode(model, size), sample)) for size in BATCH_SIZES}
        best = min(times, key=lambda size: times[size])
        found[f"encode {kind}, batch {best}"] = encode(model, best)
    return found


def _reembed(model: str) -> dict[str, Engine]:
    from reembed.config.settings import EncoderConfig
    from reembed.encoders.local.batches import Padded
    from reembed.encoders.local.load import _Loader, load
    from reembed.encoders.local.profile import read_profile
    from reembed.encoders.local.sentence import SentenceEncoder

    section = EncoderConfig(model=model)

    def embed(encoder: SentenceEncoder) -> Engine:
        return lambda given: encoder.embed(encoder.tokenize(given, "document"))

    profile = read_profile(section)
    stock = _Loader(profile, "cpu", TOKENS).model()
    form = Padded(profile.tokenizer.pad_id, type_ids=profile.tokenizer.type_ids)
    found = {
        "token-sorted padded float32": embed(SentenceEncoder(profile, stock, "cpu", TOKENS, form))
    }
    for kind in _kinds():
        encoder = load(section, "cpu", kind, TOKENS)
        if encoder.path != f"packed {kind}":
            raise SystemExit(f"the encoder does not go packed {kind}: {encoder.notes}")
        found[f"reembed {kind}"] = embed(encoder)
    return found


def _export(where: str, to: Path) -> None:
    """The transformer as ONNX, with its tokenizer beside it."""
    import shutil

    import torch
    from transformers import AutoModel

    to.mkdir()
    for file in Path(where).glob("*.json"):
        shutil.copy(file, to)
    model = AutoModel.from_pretrained(where, attn_implementation="sdpa", dtype=torch.float32).eval()

    class Hidden(torch.nn.Module):
        model: Any

        def forward(self, ids: Any, mask: Any, kinds: Any) -> Any:
            out = self.model(input_ids=ids, attention_mask=mask, token_type_ids=kinds)
            return out.last_hidden_state

    whole = Hidden()
    whole.model = model
    example = (torch.ones(2, 9, dtype=torch.long),) * 3
    names = ["input_ids", "attention_mask", "token_type_ids"]
    torch.onnx.export(
        whole,
        example,
        str(to / "model.onnx"),
        input_names=names,
        output_names=["last_hidden_state"],
        dynamic_axes={name: {0: "batch", 1: "length"} for name in [*names, "last_hidden_state"]},
        dynamo=False,
    )


def _padded(model: str, hidden: Callable[[dict[str, Any]], Any]) -> Engine:
    """Token-sorted padded batches through a runtime, mean-pooled."""
    from reembed.config.settings import EncoderConfig
    from reembed.encoders import load_tokenizer
    from reembed.encoders.local.batches import Padded, longest_first

    tokenizer = load_tokenizer(EncoderConfig(model=model))
    form = Padded(0, type_ids=True)

    def embed(given: list[str]) -> Vectors:
        tokens = tokenizer.tokenize(given, "document")
        out: Vectors | None = None
        todo = longest_first(tokens.lengths, form)
        while len(todo):
            rows = todo[: form.fit(tokens.lengths[todo], TOKENS)]
            todo = todo[len(rows) :]
            features = {
                k: v.numpy() for k, v in form.features(tokens.take(rows), "cpu", TOKENS).items()
            }
            states = hidden(features)
            mask = features["attention_mask"][..., None].astype(np.float32)
            vectors = (states * mask).sum(1) / mask.sum(1)
            if out is None:
                out = np.empty((len(given), vectors.shape[1]), np.float32)
            out[rows] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        assert out is not None
        return out

    return embed


def _onnxruntime(exported: Path, model: str, threads: int) -> Iterator[tuple[str, Engine]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(exported / "model.onnx"), options)
    yield "onnxruntime float32", _padded(model, lambda features: session.run(None, features)[0])


def _openvino(exported: Path, model: str, threads: int) -> Iterator[tuple[str, Engine]]:
    import openvino

    hints = {"float32": "f32", "bfloat16": "bf16"}
    for kind in _kinds():
        compiled = openvino.Core().compile_model(
            str(exported / "model.onnx"),
            "CPU",
            {"INFERENCE_PRECISION_HINT": hints[kind], "INFERENCE_NUM_THREADS": threads},
        )

        def hidden(features: dict[str, Any], compiled: Any = compiled) -> Any:
            return compiled(features)[0]

        yield f"openvino {kind}", _padded(model, hidden)


def _fastembed(exported: Path, model: str, threads: int) -> Iterator[tuple[str, Engine]]:
    from fastembed import TextEmbedding

    if model != common.MODEL:
        return
    (exported / "onnx").mkdir(exist_ok=True)
    (exported / "onnx" / "model.onnx").write_bytes((exported / "model.onnx").read_bytes())
    settings = exported / "tokenizer_config.json"
    cut = {"model_max_length": _longest(model)}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | cut))
    made = TextEmbedding(
        "sentence-transformers/all-MiniLM-L6-v2",
        specific_model_path=str(exported),
        threads=threads,
        local_files_only=True,
    )
    # Its default of 256 texts takes 16 GiB when one of them is long.
    yield "fastembed float32", lambda given: np.stack(list(made.embed(given, batch_size=32)))


def _longest(model: str) -> int:
    """Tokens that a text is cut to."""
    from reembed.config.settings import EncoderConfig
    from reembed.encoders.local.profile import read_profile

    limit = read_profile(EncoderConfig(model=model)).tokenizer.max_length
    assert limit is not None
    return limit


def _bert_base(folder: Path) -> Path:
    """A sentence-transformers folder of BERT-base's shape: random weights, MiniLM's tokenizer."""
    import shutil

    import torch
    from transformers import BertConfig, BertModel

    from reembed.config.settings import EncoderConfig
    from reembed.encoders.local.profile import locate

    shutil.copytree(str(locate(EncoderConfig(model=common.MODEL))), folder)
    torch.manual_seed(0)
    shape = BertConfig(max_position_embeddings=512)
    BertModel(shape).save_pretrained(folder)
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(
        json.dumps(json.loads(pooling.read_text()) | {"word_embedding_dimension": 768})
    )
    return folder


if __name__ == "__main__":
    main()

"""The encoder on one GPU, against SentenceTransformer.encode as it comes and as it can be tuned.

Needs torch, transformers and sentence-transformers, and nothing else of reembed's: no Ray, no Lance.
Models have the shapes of all-MiniLM-L6-v2, BERT-base, BERT-large and Qwen3-0.6B with random weights,
which do the same arithmetic as trained ones; a word of the texts is a token. Texts have the lengths of
real paragraphs, or 50 or 512 tokens each. All engines go from text to vectors on the host.

MFU is useful FLOP (real tokens, no padding) against a large matrix product measured beside it in the
type that the engine computes in. Without a GPU this tries itself out on the CPU with small models, and
its record says "gpu": null.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import common

NAME = "gpu_encode"
GOALS = {
    "bert_base_tokens_per_s": 2.5e6,
    "minilm_tokens_per_s": 10e6,
    "ratio_tuned": 3.0,
    "ratio_default": 15.0,
}
_WORDS = 29_000
# Tokens of real paragraphs (docstrings, licences, read-me files) at the 5th, 10th ... 95th percentile.
_QUANTILES = (22, 26, 30, 33, 36, 41, 45, 50, 55, 61, 68, 75, 83, 93, 106, 124, 150, 185, 227)
_BUDGETS = (16_384, 32_768, 65_536, 131_072, 262_144)

Engine = Callable[[list[str]], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Shape:
    """Of one model: transformers' architecture and its sizes."""

    name: str
    architecture: str
    pooling: str
    sizes: dict[str, int]
    million_tokens: float
    """How many the fast engines embed in one timing."""
    dtype: str = "float32"
    """Of the checkpoint."""


def _bert(name: str, width: int, layers: int, heads: int, tokens: float) -> Shape:
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "max_position_embeddings": 512,
    }
    return Shape(name, "bert", "mean", sizes, tokens)


SHAPES = (
    _bert("minilm", 384, 6, 12, 8.0),
    _bert("bert_base", 768, 12, 12, 4.0),
    _bert("bert_large", 1_024, 24, 16, 1.5),
    Shape(
        "qwen3_0.6b",
        "qwen3",
        "lasttoken",
        {
            "hidden_size": 1_024,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 3_072,
            "max_position_embeddings": 4_096,
        },
        1.0,
        "bfloat16",
    ),
)
_SMALL = _bert("small", 64, 2, 4, 0.01)


def main() -> None:
    args = _arguments()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    import torch

    has_gpu = torch.cuda.is_available()
    shapes = [s for s in SHAPES if s.name in args.models.split(",")] if has_gpu else [_SMALL]
    with tempfile.TemporaryDirectory(prefix="reembed-gpu-") as folder:
        found = {s.name: measure(s, Path(folder), args, has_gpu) for s in shapes}
    figures = summary(found) if has_gpu else dict.fromkeys(GOALS)
    common.finish(
        NAME,
        args,
        {
            "gpu": torch.cuda.get_device_name() if has_gpu else None,
            **figures,
            "mfu": {name: f["real"]["reembed embed"]["mfu"] for name, f in found.items()},
            "ratio_compiled": {
                name: f["real"]["reembed embed"]["ratio_compiled"] for name, f in found.items()
            },
            "models": found,
            "goals": GOALS,
        },
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"bench/{NAME}.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", default=",".join(s.name for s in SHAPES), help="[%(default)s]")
    parser.add_argument("--lengths", default="real,50,512", help="[%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="[%(default)s]")
    parser.add_argument("--out", type=Path, help=f"[bench/results/{NAME}.json]")
    return common.parse(parser)


def summary(found: dict[str, common.Figures]) -> common.Figures:
    """The figures that have goals, on real lengths.

    Tokens/s are of the embedding stage, as jobs on GPUs tokenize on CPUs beside it; ratios, the worst
    of the models, are of texts to vectors in one process, as `encode` does it.
    """
    real = {name: f["real"] for name, f in found.items()}
    rate = {name: f["reembed embed"]["tokens_per_s"] for name, f in real.items()}
    return {
        "minilm_tokens_per_s": rate.get("minilm"),
        "bert_base_tokens_per_s": rate.get("bert_base"),
        "ratio_default": min(f["reembed"]["ratio_default"] for f in real.values()),
        "ratio_tuned": min(f["reembed"]["ratio_tuned"] for f in real.values()),
    }


def measure(shape: Shape, folder: Path, args: argparse.Namespace, has_gpu: bool) -> common.Figures:
    """One model over each kind of lengths, all engines in turn."""
    where = build(shape, folder / shape.name)
    engines, encoder, load_s = _engines(where, shape, has_gpu)
    found: common.Figures = {"batch_tokens": encoder.batch_tokens, "path": encoder.path}
    found["load_s"] = round(load_s, 1)
    found["notes"] = list(encoder.notes)
    for kind in args.lengths.split(","):
        texts, tokens = _texts(kind, shape)
        ahead = encoder.tokenize(texts, "document")
        engines["reembed embed"] = partial(_embed_ahead, encoder, ahead)
        engines["reembed embed, not compiled"] = partial(_embed_as_written, encoder, ahead)
        rates: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(args.rounds):
            for name, engine in engines.items():
                # encode's own speed does not need as many texts to be seen.
                whole = name.startswith("reembed")
                some = texts if whole else texts[: max(256, len(texts) // 16)]
                share = len(some) / len(texts)
                rates[name].append(share * tokens / _timed(engine, some))
        found[kind] = _rows(rates, encoder, ahead)
        common.say(f"{shape.name}, {kind}: " + ", ".join(_words(found[kind])))
    return found


def _embed_ahead(encoder: Any, tokens: Any, _: list[str]) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = encoder.embed(tokens)
    return found


def _embed_as_written(encoder: Any, tokens: Any, _: list[str]) -> npt.NDArray[np.float32]:
    from reembed.encoders.local import compiled

    with compiled.as_written(encoder._model[0]):
        return _embed_ahead(encoder, tokens, _)


def _rows(rates: dict[str, list[float]], encoder: Any, tokens: Any) -> common.Figures:
    best = {name: float(np.median(found)) for name, found in rates.items()}
    stats = encoder.embed_tokens(tokens).stats
    per_token = stats.flop / max(1, stats.model_tokens)
    rows: common.Figures = {
        name: {"tokens_per_s": round(rate), "tflops": round(rate * per_token / 1e12, 1)}
        for name, rate in best.items()
    }
    for name in (name for name in best if name.startswith("reembed")):
        rows[name] |= {
            "ratio_default": round(best[name] / best["encode default"], 2),
            "ratio_tuned": round(best[name] / best["encode tuned"], 2),
            "mfu": round(best[name] * per_token / encoder.peak_flops, 3),
        }
    ratio = best["reembed embed"] / best["reembed embed, not compiled"]
    rows["reembed embed"]["ratio_compiled"] = round(ratio, 3)
    return rows


def _words(rows: common.Figures) -> list[str]:
    return [f"{name} {row['tokens_per_s']:,} tokens/s" for name, row in rows.items()]


def _timed(engine: Engine, texts: list[str]) -> float:
    started = time.perf_counter()
    engine(texts)
    return time.perf_counter() - started


def _texts(kind: str, shape: Shape) -> tuple[list[str], int]:
    """Texts of random words, and how many tokens they have, the two special ones included."""
    chance = np.random.default_rng(0)
    wanted = int(shape.million_tokens * 1e6)
    count = max(300, wanted // (int(np.mean(_QUANTILES)) if kind == "real" else int(kind)))
    if kind == "real":
        at = chance.random(count) * (len(_QUANTILES) - 1)
        lengths = np.interp(at, range(len(_QUANTILES)), _QUANTILES).astype(int)
    else:
        lengths = np.full(count, int(kind))
    words = chance.integers(0, _WORDS, int(lengths.sum()))
    ends = np.cumsum(lengths - 2)
    texts = [
        " ".join(f"w{w}" for w in words[end - length + 2 : end])
        for end, length in zip(ends, lengths, strict=True)
    ]
    return texts, int(lengths.sum())


# --- the engines ---


def _engines(where: Path, shape: Shape, has_gpu: bool) -> tuple[dict[str, Engine], Any, float]:
    """By name; the encoder, and the seconds that it takes to load, check and compile it."""
    import torch
    from sentence_transformers import SentenceTransformer

    from reembed.encoders.local.load import load

    device = "cuda" if has_gpu else "cpu"
    plain = SentenceTransformer(str(where), device=device)
    narrow = torch.bfloat16 if shape.dtype == "bfloat16" else torch.float16
    dtype = narrow if has_gpu else torch.float32
    tuned = SentenceTransformer(str(where), device=device, model_kwargs={"dtype": dtype})
    section: Any = SimpleNamespace(
        model=str(where),
        revision=None,
        pooling=None,
        normalize=None,
        truncate_dim=None,
        max_length=None,
        prompts=SimpleNamespace(query=None, document=None),
    )
    started = time.perf_counter()
    budget = _BUDGETS[0] if has_gpu else 4_096
    encoder = load(section, device, "auto", budget, for_job=True)
    load_s = time.perf_counter() - started
    if has_gpu:
        encoder.batch_tokens = _best_budget(encoder, shape)

    def ours(texts: list[str]) -> npt.NDArray[np.float32]:
        return encoder.embed(encoder.tokenize(texts, "document"))

    engines: dict[str, Engine] = {
        "encode default": lambda texts: np.asarray(plain.encode(texts, show_progress_bar=False)),
        "encode tuned": lambda texts: np.asarray(
            tuned.encode(texts, batch_size=256, show_progress_bar=False)
        ),
        "reembed": ours,
    }
    few, _ = _texts("real", _SMALL)
    for engine in engines.values():
        engine(few)
    return engines, encoder, load_s


def _best_budget(encoder: Any, shape: Shape) -> int:
    """Tokens per batch, by the model alone: tokenized before."""
    texts, _ = _texts("real", shape)
    tokens = encoder.tokenize(texts, "document")
    times = {}
    for budget in _BUDGETS:
        encoder.batch_tokens = budget
        encoder.embed(tokens)
        if encoder.batch_tokens < budget:
            break
        started = time.perf_counter()
        encoder.embed(tokens)
        times[budget] = time.perf_counter() - started
        rate = len(tokens.ids) / times[budget]
        common.say(f"{shape.name}: {budget:,} tokens a batch, {rate:,.0f} tokens/s")
    return min(times, key=lambda budget: times[budget], default=encoder.batch_tokens)


def build(shape: Shape, folder: Path) -> Path:
    """A sentence-transformers folder of this shape: random weights, words as tokens."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

    folder.mkdir(parents=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {w: i for i, w in enumerate([*special, *(f"w{n}" for n in range(_WORDS))])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    wrap: Any = PreTrainedTokenizerFast
    wrap(
        tokenizer_object=backend, model_max_length=512, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    made = AutoConfig.for_model(
        shape.architecture, vocab_size=len(vocabulary), pad_token_id=0, **shape.sizes
    )
    AutoModel.from_config(made).to(getattr(torch, shape.dtype)).save_pretrained(folder)
    kind = "sentence_transformers.models."
    parts = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": kind + part}
        for n, (path, part) in enumerate(parts)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 512}))
    pooling = {
        "word_embedding_dimension": shape.sizes["hidden_size"],
        "pooling_mode_mean_tokens": shape.pooling == "mean",
        "pooling_mode_lasttoken": shape.pooling == "lasttoken",
    }
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


if __name__ == "__main__":
    main()

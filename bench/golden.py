"""Faults of a model that its golden vectors must refuse, and differences that they must not.

A line's golden vectors are left by the model as it is, on the CPU in float32. Then each fault is planted behind the
model's name, so that nothing but the vectors shows it: another pooling, another query prompt, a document prompt,
int8 arithmetic (torch's dynamic quantization), positions counted from 1, another revision (the same model
trained elsewhere, stood in for by weights with 10 % of noise), a shorter window of tokens, vectors of another length,
and another model of the same dimension behind the same name. There is no backend for endpoints yet: the last one and
int8 are an encoder that asks another model than the one that it says it is, which is what a swapped endpoint does.

`planted` faults were tried, `refused` of them by `golden.require`, with the cosine that it found.
`false_refusals` counts refusals of the right model over number types, threads, sizes of batches, and a plain
`SentenceTransformer.encode`; `accepted` were not refused. For each fault, `corpus` is the least cosine that 64
real paragraphs show: what texts of the corpus would add to the fixed ones. `corpus_only` counts faults that
they show and the fixed texts do not.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import common

NAME = "golden"
ORIGIN = "docs-0-v1-1"
PARAGRAPHS = 64
NOISE = 0.1
"""Of each weight."""


def main() -> None:
    parser = common.parser(NAME, __doc__)
    parser.add_argument(
        "--other", help="a model of the same dimension, for the swap [the same weights, rotated]"
    )
    parser.add_argument(
        "--also", action="append", default=[], help="another model to try all but the swap with"
    )
    common.add_limit(parser)
    args = common.parse(parser)
    models = [args.model, *args.also][: args.limit]
    figures: common.Figures = {"models": {}}
    for model in models:
        other = args.other if model == args.model else None
        figures["models"][Path(model).name] = measure(model, other)
    for key in ("planted", "refused", "accepted", "false_refusals", "corpus_only"):
        figures[key] = sum(of[key] for of in figures["models"].values())
    common.finish(NAME, args, figures)


@dataclass
class Asked:
    """An encoder that says it is one model and asks another, as an endpoint can."""

    encode: Callable[[list[str], str], Any]
    """Takes texts and a kind; returns float32 [N, dim]."""

    def describe(self) -> Any:
        raise NotImplementedError

    def embed_documents(self, texts: Any) -> Any:
        from reembed.encoders.base import Embedded, EncoderStats

        stats = EncoderStats(device="cpu", path="asked")
        return Embedded(self.encode(list(texts), "document"), {}, stats)

    def embed_queries(self, texts: Any) -> Any:
        return self.encode(list(texts), "query")


def measure(model: str, other: str | None) -> common.Figures:
    """Plant each fault in one model, and ask the right one in every way."""
    from reembed import encoders
    from reembed.config.settings import EncoderConfig
    from reembed.encoders import golden
    from reembed.store.storage import Storage

    config = EncoderConfig(model=model)
    encoder = encoders.load_encoder(config, device="cpu", dtype="float32")
    texts = common.paragraphs(PARAGRAPHS)
    right = shown(encoder, texts)
    faults: dict[str, common.Figures] = {}
    found: dict[str, str | None] = {}
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage.open(f"{folder}/root")
        golden.leave(storage, ORIGIN, encoder)
        for name, planted in plant(config, encoder, other, Path(folder)):
            why = refusal(storage, planted)
            least = (right * shown(planted, texts)).sum(axis=1).min()
            faults[name] = {
                "refused": why is not None,
                "why": why,
                "corpus": round(float(least), 5),
            }
            common.say(f"{Path(model).name}, {name}: {faults[name]}")
        for name, same in right_ones(config):
            found[name] = refusal(storage, same)
            common.say(f"{Path(model).name}, {name}: {found[name] or 'accepted'}")
    only = [f for f in faults.values() if float(f["corpus"]) < golden.SAME and not f["refused"]]
    return {
        "planted": len(faults),
        "refused": sum(f["refused"] for f in faults.values()),
        "accepted": sum(why is None for why in found.values()),
        "false_refusals": sum(why is not None for why in found.values()),
        "corpus_only": len(only),
        "faults": faults,
        "ways": list(found),
    }


def refusal(storage: Any, encoder: Any) -> str | None:
    """What `golden.require` says against an encoder; None if it takes it."""
    from reembed.encoders import golden
    from reembed.errors import SpaceMismatch

    try:
        golden.require(storage, ORIGIN, encoder)
    except SpaceMismatch as error:
        return str(error.why).split(";")[0]
    return None


def shown(encoder: Any, texts: list[str]) -> Any:
    """What it makes of texts as documents and as queries, of unit length."""
    import numpy as np

    vectors = np.vstack([encoder.embed_documents(texts).vectors, encoder.embed_queries(texts)])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


# --- faults ---


def plant(config: Any, encoder: Any, other: str | None, folder: Path) -> Iterator[tuple[str, Any]]:
    """The model with each fault in turn."""
    import numpy as np

    from reembed import encoders
    from reembed.config.settings import EncoderConfig, Prompts

    def load(**settings: Any) -> Any:
        changed = config.model_copy(update=settings)
        return encoders.load_encoder(changed, device="cpu", dtype="float32")

    def longer(texts: list[str], kind: str) -> Any:
        if kind == "query":
            return 3 * encoder.embed_queries(texts)
        return 3 * encoder.embed_documents(texts).vectors

    yield "query prompt", load(prompts=Prompts(query="query: "))
    yield "document prompt", load(prompts=Prompts(document="passage: "))
    yield "length", Asked(longer)
    yield "revision", changed_weights(config, folder / "revision", noise)
    if other:
        yield "swapped endpoint", encoders.load_encoder(EncoderConfig(model=other), device="cpu")
    else:
        turned = lambda texts, kind: np.roll(longer(texts, kind) / 3, 1, axis=1)  # noqa: E731
        yield "swapped endpoint", Asked(turned)
    if not any((root_of(config) / "1_Pooling").glob("config.json")):
        return  # a static model: no pooling, positions or layers
    yield "pooling", load(pooling="cls")
    yield "window", load(max_length=128)
    yield "int8", Asked(in_int8(config))
    yield "position offset", changed_weights(config, folder / "offset", shift)


def root_of(config: Any) -> Path:
    """The folder of a model's files."""
    from reembed.encoders.local.profile import read_profile

    return Path(read_profile(config).layout.root)


def changed_weights(config: Any, to: Path, change: Callable[[str, Any], Any]) -> Any:
    """The model with other weights in the same files."""
    from safetensors.torch import load_file, save_file

    from reembed import encoders
    from reembed.config.settings import EncoderConfig

    shutil.copytree(root_of(config), to)
    for file in to.rglob("*.safetensors"):
        tensors = {name: change(name, t) for name, t in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    return encoders.load_encoder(EncoderConfig(model=str(to)), device="cpu", dtype="float32")


def noise(name: str, tensor: Any) -> Any:
    """Weights with noise of a share of their own size, as another training leaves."""
    import torch

    if not tensor.is_floating_point() or tensor.dim() < 2:
        return tensor
    drawn = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0))
    return (tensor.float() * (1 + NOISE * drawn)).to(tensor.dtype)


def shift(name: str, tensor: Any) -> Any:
    """Positions counted from one place further."""
    return tensor.roll(-1, 0).contiguous() if "position_embeddings" in name else tensor


def in_int8(config: Any) -> Callable[[list[str], str], Any]:
    """Encode with linear layers in int8."""
    import torch

    model = stock(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # another package has its successor
        quantize: Any = torch.ao.quantization.quantize_dynamic
        quantize(model[0].model, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)
    return lambda texts, kind: encoded(model, config, texts, kind)


def stock(config: Any) -> Any:
    """The model as sentence-transformers loads it, with the window that reembed gives it."""
    from sentence_transformers import SentenceTransformer

    from reembed.encoders.local.profile import read_profile

    model = SentenceTransformer(str(root_of(config)), device="cpu", local_files_only=True)
    if (length := read_profile(config).tokenizer.max_length) is not None:
        model.max_seq_length = length
    return model


def encoded(model: Any, config: Any, texts: list[str], kind: str, batch: int = 4) -> Any:
    """What it makes of texts, of unit length."""
    from reembed.encoders.local.profile import read_profile

    prompts: Any = read_profile(config).tokenizer.prompts
    return model.encode(
        texts,
        prompt=prompts[kind],
        batch_size=batch,
        normalize_embeddings=True,
        show_progress_bar=False,
    )


# --- differences that are none ---


def right_ones(config: Any) -> Iterator[tuple[str, Any]]:
    """The right model, in every way that it may be computed."""
    import torch

    from reembed import encoders

    threads = torch.get_num_threads()
    for dtype in ("float32", "bfloat16", "float16"):
        for tokens in (64, 4_096, 65_536):
            made = encoders.load_encoder(config, device="cpu", dtype=dtype, batch_tokens=tokens)
            yield f"{dtype}, {tokens} tokens a batch ({made.embed_documents([]).stats.path})", made
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        yield f"{count} threads", encoders.load_encoder(config, device="cpu", dtype="float32")
    torch.set_num_threads(threads)
    model = stock(config)
    for batch in (1, 32):
        ask = lambda texts, kind, b=batch: encoded(model, config, texts, kind, b)  # noqa: E731
        yield f"sentence-transformers, batches of {batch}", Asked(ask)


if __name__ == "__main__":
    main()

"""Small sentence-transformers folders without a download: same arguments, same bytes."""

from __future__ import annotations

import importlib.util
import json
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertModel,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
    T5EncoderModel,
)

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_ST = "sentence_transformers.models."


def bert_model(
    folder: Path,
    *,
    dim: int = 32,
    seed: int = 0,
    max_length: int = 64,
    pooling: str = "mean",
    include_prompt: bool = True,
    dense: int | None = None,
    normalize: bool = True,
    prompts: Mapping[str, str] | None = None,
    similarity: str | None = None,
    lowercase_by_st: bool = False,
) -> Path:
    """A BERT of 2 layers with random weights; `dense`: dimensions of a Dense layer at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab = _write_tokenizer(folder, max_length, classify=True, lowercase=not lowercase_by_st)
    config = BertConfig(
        vocab_size=vocab,
        hidden_size=dim,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * dim,
        max_position_embeddings=max_length,
        type_vocab_size=2,
        pad_token_id=0,
    )
    _write_weights(folder, BertModel(config), config, seed)
    settings = {"max_seq_length": max_length, "do_lower_case": lowercase_by_st}
    _write(folder / "sentence_bert_config.json", settings)
    parts = [("", "Transformer"), *_pool(folder, dim, pooling, include_prompt)]
    if dense is not None:
        parts.append(_dense(folder, dim, dense, seed))
    _finish(folder, parts, normalize, prompts, similarity)
    return folder


def causal_model(
    folder: Path,
    *,
    dim: int = 32,
    seed: int = 0,
    max_length: int = 64,
    prompts: Mapping[str, str] | None = None,
) -> Path:
    """A Qwen2 of 2 layers with random weights and last-token pooling, padded to the left."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab = _write_tokenizer(folder, max_length, classify=False, lowercase=True)
    config = Qwen2Config(
        vocab_size=vocab + 8,  # transformers opens it as Qwen2's tokenizer and adds its own tokens
        hidden_size=dim,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=2 * dim,
        max_position_embeddings=max_length,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=3,
    )
    _write_weights(folder, Qwen2Model(config), config, seed)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": max_length})
    parts = [("", "Transformer"), *_pool(folder, dim, "lasttoken", True)]
    _finish(folder, parts, True, prompts, "cosine")
    return folder


_SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 300,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
_CAUSAL = {"num_key_value_heads": 2, "head_dim": 16}
_WINDOWS = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "xlm-roberta": {},
    "distilbert": {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96},
    "electra": {"embedding_size": 16},
    "albert": {"embedding_size": 16},
    "modernbert": {"local_attention": 16, "global_attn_every_n_layers": 2, "cls_token_id": 2},
    "nomic_bert": {},
    "jina_embeddings_v3": {},
    "eurobert": _CAUSAL,
    "qwen2": {**_CAUSAL, "use_sliding_window": True, **_WINDOWS},
    "qwen3": _CAUSAL,
    "mistral": {**_CAUSAL, "sliding_window": 8},
    "gemma3_text": {**_CAUSAL, **_WINDOWS, "query_pre_attn_scalar": 16},
    "mpnet": {},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "t5": {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4},
}
"""What each architecture needs beside what all have, to be small."""


def model_of(folder: Path, architecture: str, *, seed: int = 0, **settings: Any) -> Path:
    """A model of 2 layers with random weights of one of ARCHITECTURES, mean-pooled."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab = _write_tokenizer(folder, 256, classify=True, lowercase=True)
    config = AutoConfig.for_model(
        architecture,
        # + 8: transformers opens some tokenizers as their architecture's, which adds tokens of its own
        **{"vocab_size": vocab + 8, **_SMALL, **ARCHITECTURES[architecture], **settings},
    )
    of = T5EncoderModel if architecture == "t5" else AutoModel._model_mapping[type(config)]
    model = of(config) if isinstance(of, type) else of[0](config)
    _write_weights(folder, model, config, seed)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": 256})
    _finish(folder, [("", "Transformer"), *_pool(folder, 64, "mean", True)], True, None, "cosine")
    return folder


def static_model(folder: Path, *, dim: int = 16, seed: int = 0) -> Path:
    """A StaticEmbedding with random weights over the same vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab = _write_tokenizer(folder, 64, classify=False, lowercase=True)
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(vocab, dim, generator=generator)
    save_file({"embedding.weight": table}, folder / "model.safetensors")
    _finish(folder, [("", "StaticEmbedding")], True, None, None)
    return folder


def wordllama_model(folder: Path) -> Path:
    """wordllama's 256 dimensions, in fp32, from the files inside the PyPI package wordllama."""
    spec = importlib.util.find_spec("wordllama")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the package wordllama is not installed: pip install wordllama")
    package = Path(spec.origin).parent
    folder.mkdir(parents=True, exist_ok=True)
    weights = load_file(package / "weights" / "l2_supercat_256.safetensors")
    save_file({k: v.float() for k, v in weights.items()}, folder / "model.safetensors")
    source = package / "tokenizers" / "l2_supercat_tokenizer_config.json"
    (folder / "tokenizer.json").write_bytes(source.read_bytes())
    _finish(folder, [("", "StaticEmbedding")], True, None, "cosine")
    return folder


def _vocabulary() -> Iterator[str]:
    yield from _SPECIAL
    characters = [c for c in string.printable if not c.isspace()]
    pairs = [a + b for a in string.ascii_lowercase for b in string.ascii_lowercase]
    for piece in characters + pairs:
        yield piece
        yield "##" + piece


def _write_tokenizer(folder: Path, max_length: int, *, classify: bool, lowercase: bool) -> int:
    vocab = {piece: i for i, piece in enumerate(_vocabulary())}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=64))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if classify:
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
        )
    special: dict[str, str] = {"unk_token": "[UNK]", "pad_token": "[PAD]"}
    if classify:
        special |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    wrap: Any = PreTrainedTokenizerFast
    side = "right" if classify else "left"
    wrapped = wrap(
        tokenizer_object=backend, model_max_length=max_length, padding_side=side, **special
    )
    wrapped.save_pretrained(folder)
    return len(vocab)


def _write_weights(
    folder: Path, model: torch.nn.Module, config: PretrainedConfig, seed: int
) -> None:
    """Own initialisation, so that the bytes do not depend on a library's defaults."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, parameter in sorted(model.named_parameters()):
        if parameter.ndim == 1 and name.endswith("weight"):
            weights[name] = torch.ones(parameter.shape)
        else:
            scale = 1.0 if "embed" in name and "norm" not in name.lower() else 0.3
            weights[name] = scale * torch.randn(parameter.shape, generator=generator)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _pool(folder: Path, dim: int, mode: str, include_prompt: bool) -> list[tuple[str, str]]:
    names = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}
    flags = {f"pooling_mode_{flag}": name == mode for name, flag in names.items()}
    flags["pooling_mode_lasttoken"] = mode == "lasttoken"
    settings = {"word_embedding_dimension": dim, **flags, "include_prompt": include_prompt}
    _write(folder / "1_Pooling" / "config.json", settings)
    return [("1_Pooling", "Pooling")]


def _dense(folder: Path, dim: int, out: int, seed: int) -> tuple[str, str]:
    activation = "torch.nn.modules.activation.Tanh"
    settings = {"in_features": dim, "out_features": out, "bias": True}
    _write(folder / "2_Dense" / "config.json", {**settings, "activation_function": activation})
    generator = torch.Generator().manual_seed(seed + 1)
    weights = {
        "linear.weight": 0.3 * torch.randn(out, dim, generator=generator),
        "linear.bias": 0.3 * torch.randn(out, generator=generator),
    }
    save_file(weights, folder / "2_Dense" / "model.safetensors")
    return "2_Dense", "Dense"


def _finish(
    folder: Path,
    parts: list[tuple[str, str]],
    normalize: bool,
    prompts: Mapping[str, str] | None,
    similarity: str | None,
) -> None:
    if normalize:
        parts = [*parts, (f"{len(parts)}_Normalize", "Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": _ST + kind}
        for i, (path, kind) in enumerate(parts)
    ]
    _write(folder / "modules.json", modules)
    settings = {"prompts": dict(prompts or {}), "similarity_fn_name": similarity}
    _write(folder / "config_sentence_transformers.json", settings)


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")

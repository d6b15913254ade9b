"""A model's JSON files, read and checked to have the form that loading relies on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reembed.errors import SetupError


@dataclass(frozen=True)
class Form:
    """What a value must be, in words, and whether one is."""

    words: str
    fits: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


TEXT = Form("a string", lambda v: isinstance(v, str))
WHOLE = Form("a whole number", _is_whole)
NUMBER = Form("a number", lambda v: _is_whole(v) or isinstance(v, float))
COUNT = Form("a whole number above 0", lambda v: _is_whole(v) and v > 0)
NULL = Form("null", lambda v: v is None)
OBJECT = Form("an object", lambda v: isinstance(v, dict))


def listed(form: Form) -> Form:
    """A list of such values."""
    return Form(
        f"a list, each {form.words}",
        lambda v: isinstance(v, list) and all(form.fits(one) for one in v),
    )


def mapped(form: Form) -> Form:
    """An object with such values."""
    return Form(
        f"an object, each value {form.words}",
        lambda v: isinstance(v, dict) and all(form.fits(one) for one in v.values()),
    )


def either(one: Form, other: Form) -> Form:
    """Of one form or the other."""
    return Form(f"{one.words} or {other.words}", lambda v: one.fits(v) or other.fits(v))


_PASSED_ON = ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args",
              "config_kwargs")  # fmt: skip
_TENSOR = Form(
    "a tensor: an object with dtype and shape",
    lambda v: (
        isinstance(v, dict)
        and TEXT.fits(v.get("dtype"))
        and listed(Form("", lambda n: _is_whole(n) and n >= 0)).fits(v.get("shape"))
    ),
)
# Settings that are used here or that libraries take unchecked; null sets nothing, so it fits each.
_SETTINGS: dict[str, Form] = {
    **dict.fromkeys(("hidden_size", "d_model", "dim", "n_embd"), COUNT),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_length"), WHOLE),
    **dict.fromkeys(("in_features", "out_features", "truncate_dim"), COUNT),
    **dict.fromkeys(_PASSED_ON, OBJECT),
    **dict.fromkeys(("text_config", "modality_config"), OBJECT),
    **dict.fromkeys(("type", "path", "tokenizer_class", "transformer_task", "model_type"), TEXT),
    "architectures": listed(TEXT),
    "similarity_fn_name": TEXT,
    "prompts": mapped(either(TEXT, NULL)),
    "pooling_mode": either(TEXT, listed(TEXT)),
    "model_max_length": NUMBER,
    "weight_map": mapped(TEXT),
}
# Files that must be an object where they are there; others, such as data_config.json, are anything.
_OBJECTS = ("config.json", "config_sentence_transformers.json", "tokenizer_config.json",
            "preprocessor_config.json", "processor_config.json", "model.safetensors.index.json")  # fmt: skip
_TOKENS = ("special_tokens_map.json", "added_tokens.json")
_TRANSFORMER_SETTINGS = re.compile(r"sentence_[a-z-]+_config\.json")
# What these may choose: others are fetched from the hub, as code, or run what is installed by chance.
_OWN_CODE = {
    "attn_implementation": ("eager", "sdpa"),
    "experts_implementation": ("eager", "batched_mm", "grouped_mm"),
    "quantization_config": (),
}
# Architectures for which transformers fetches kernels by itself.
_WITH_KERNELS = ("mra", "rwkv", "yoso")


def read_json(file: Path) -> Any:
    """The parsed file: of a file of settings an object, of modules.json a list of objects.

    Raises:
        SetupError: it cannot be read, is not JSON, or a setting has not the form that it needs.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SetupError(f"{file} cannot be read as JSON", str(error)) from error
    if file.name == "modules.json":
        _require(file, "", listed(OBJECT), content)
        for module in content:
            _require_settings(file, module)
    elif file.name in _TOKENS:
        _require(file, "", OBJECT, content)
    elif file.name in _OBJECTS or _TRANSFORMER_SETTINGS.fullmatch(file.name):
        _require(file, "", OBJECT, content)
        _require_settings(file, content)
        _require_own_code(file, content)
    return content


def tensors(file: Path, header: Any) -> dict[str, dict[str, Any]]:
    """Name -> dtype and shape, from the header of a safetensors file.

    Raises:
        SetupError: it is not one.
    """
    _require(file, "its header", OBJECT, header)
    found = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
    for name, tensor in found.items():
        _require(file, name, _TENSOR, tensor)
    return found


def _require_settings(file: Path, settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        if value is not None and name in _SETTINGS:
            _require(file, name, _SETTINGS[name], value)
            if name in (*_PASSED_ON, "text_config"):
                _require_settings(file, value)


def _require(file: Path, name: str, form: Form, value: Any) -> None:
    if not form.fits(value):
        raise SetupError(
            f"{file}: {name or 'it'} is {value!r:.80}",
            f"it must be {form.words}; the file is damaged, or it belongs to something else",
            "copy or download the model again",
        )


def _require_own_code(file: Path, settings: Mapping[str, Any]) -> None:
    for name, value in _inner(settings):
        known = _OWN_CODE.get(name.strip("_").removesuffix("_internal"))
        if known is not None and value not in (None, *known):
            raise SetupError(
                f"{file} sets {name} to {value!r:.80}",
                f"allowed: {', '.join(known) or 'none'}; others name code that transformers would fetch",
                f"remove {name} from {file}",
            )
        if name == "model_type" and value in _WITH_KERNELS:
            raise SetupError(
                f"{file}: a model of the kind {value}", "transformers would fetch code for it"
            )


def _inner(value: Any) -> Iterator[tuple[str, Any]]:
    """Every name and value, at every depth."""
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, dict):
            yield from one.items()
            todo += one.values()
        elif isinstance(one, list):
            todo += one

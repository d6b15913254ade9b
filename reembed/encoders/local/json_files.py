"""A model's JSON files, read and checked to have the form that loading relies on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from reembed.errors import SetupError

Settings = dict[str, Any]
"""Settings as a file has them, checked to fit `_SETTINGS`, and more."""
_Form = tuple[str, Callable[[Any], bool]]
"""What a value must be, in words, and whether one is."""


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(one, kind) for one in value)


def _is_map(value: Any, *kinds: type) -> bool:
    return isinstance(value, dict) and all(isinstance(one, kinds) for one in value.values())


_TEXT: _Form = ("a string", lambda v: isinstance(v, str))
_WHOLE: _Form = ("a whole number", _is_whole)
_COUNT: _Form = ("a whole number above 0", lambda v: _is_whole(v) and v > 0)
_OBJECT: _Form = ("an object", lambda v: isinstance(v, dict))
_OBJECTS: _Form = ("a list, each an object", lambda v: _is_list(v, dict))

# Settings that are passed on to transformers, and the keys allowed in them.
PASSED_ON = {
    "model_args": ("dtype", "torch_dtype", "attn_implementation", "add_pooling_layer"),
    "model_kwargs": ("dtype", "torch_dtype", "attn_implementation", "add_pooling_layer"),
    "tokenizer_args": ("model_max_length", "padding_side", "truncation_side", "use_fast"),
    "processor_kwargs": ("model_max_length", "padding_side", "truncation_side", "use_fast"),
    "config_args": ("use_cache",),
    "config_kwargs": ("use_cache",),
}
# Settings that are used here or that libraries take unchecked; null sets nothing, so it fits each.
_SETTINGS: dict[str, _Form] = {
    **dict.fromkeys(("hidden_size", "d_model", "dim", "n_embd"), _COUNT),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_length"), _WHOLE),
    **dict.fromkeys(("in_features", "out_features", "truncate_dim"), _COUNT),
    **dict.fromkeys((*PASSED_ON, "text_config", "modality_config"), _OBJECT),
    **dict.fromkeys(("type", "path", "tokenizer_class", "transformer_task", "model_type"), _TEXT),
    "architectures": ("a list, each a string", lambda v: _is_list(v, str)),
    "similarity_fn_name": _TEXT,
    "prompts": ("an object, each value a string or null", lambda v: _is_map(v, str, type(None))),
    "pooling_mode": (
        "a string or a list, each a string",
        lambda v: isinstance(v, str) or _is_list(v, str),
    ),
    "model_max_length": ("a number", lambda v: _is_whole(v) or isinstance(v, float)),
    "weight_map": ("an object, each value a string", lambda v: _is_map(v, str)),
}
# Files that must be an object if they are there; others, such as data_config.json, may be anything.
_WITH_SETTINGS = ("config.json", "config_sentence_transformers.json", "tokenizer_config.json",
                  "preprocessor_config.json", "processor_config.json",
                  "model.safetensors.index.json")  # fmt: skip
_TOKENS = ("special_tokens_map.json", "added_tokens.json")
# Files in which sentence-transformers looks for a Transformer's settings, in its order.
TRANSFORMER_SETTINGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# Allowed values: others are fetched from the hub as code, run what happens to be installed, or name
# files to read that the digest of the model does not cover.
_OWN = {
    "attn_implementation": ("eager", "sdpa"),
    "experts_implementation": ("eager", "batched_mm", "grouped_mm"),
    "quantization_config": (),
    "transformers_weights": (),
    "fast_tokenizer_files": (),
}
# Architectures for which transformers fetches kernels by itself.
_WITH_KERNELS = ("mra", "rwkv", "yoso")


def read_json(file: Path) -> Any:
    """Return the parsed file: an object for settings, a list of objects for modules.json.

    Raises:
        SetupError: it cannot be read, is not JSON, or a setting has another form than it needs.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SetupError(f"{file} cannot be read as JSON", str(error)) from error
    if file.name == "modules.json":
        _require(file, "", _OBJECTS, content)
        for module in content:
            _require_settings(file, module)
    elif file.name in _TOKENS:
        _require(file, "", _OBJECT, content)
    elif file.name in (*_WITH_SETTINGS, *TRANSFORMER_SETTINGS):
        _require(file, "", _OBJECT, content)
        _require_settings(file, content)
        _require_own(file, content)
    return content


def _require_settings(file: Path, settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        if value is not None and name in _SETTINGS:
            _require(file, name, _SETTINGS[name], value)
            if name in (*PASSED_ON, "text_config"):
                _require_settings(file, value)


def _require(file: Path, name: str, form: _Form, value: Any) -> None:
    words, fits = form
    if not fits(value):
        raise SetupError(
            f"{file}: {name or 'it'} is {value!r:.80}",
            f"it must be {words}; the file is damaged, or it belongs to something else",
            "copy or download the model again",
        )


def _require_own(file: Path, settings: Mapping[str, Any]) -> None:
    for name, value in _inner(settings):
        known = _OWN.get(name.strip("_").removesuffix("_internal"))
        if known is not None and value and value not in known:
            raise SetupError(
                f"{file} sets {name} to {value!r:.80}",
                f"allowed: {', '.join(known) or 'none'}; other values name code, or files that no digest covers",
                f"remove {name} from {file}",
            )
        if name == "model_type" and value in _WITH_KERNELS:
            raise SetupError(
                f"{file}: a model of the kind {value}", "transformers would fetch code to load it"
            )


def _inner(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every name and value, at every depth."""
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, dict):
            yield from one.items()
            todo += one.values()
        elif isinstance(one, list):
            todo += one

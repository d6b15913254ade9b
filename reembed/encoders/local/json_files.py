"""A model's JSON files, read and checked to have the form that loading relies on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from reembed.errors import SetupError

_Count = Annotated[int, Field(gt=0)]


class _Settings(TypedDict, total=False):
    """Settings that are used here, or that libraries take unchecked; null leaves a setting out."""

    # the width of a token's vector, under the names of several architectures
    hidden_size: _Count | None
    d_model: _Count | None
    dim: _Count | None
    n_embd: _Count | None
    in_features: _Count | None
    out_features: _Count | None
    truncate_dim: _Count | None
    max_position_embeddings: int | None
    n_positions: int | None
    max_seq_length: int | None
    model_max_length: float | None
    type: str | None
    path: str | None
    tokenizer_class: str | None
    transformer_task: str | None
    model_type: str | None
    similarity_fn_name: str | None
    architectures: list[str] | None
    pooling_mode: str | list[str] | None
    prompts: dict[str, str | None] | None
    weight_map: dict[str, str] | None
    modality_config: dict[str, Any] | None
    # settings of another place, by the same names
    text_config: _Settings | None
    model_args: _Settings | None
    model_kwargs: _Settings | None
    tokenizer_args: _Settings | None
    processor_kwargs: _Settings | None
    config_args: _Settings | None
    config_kwargs: _Settings | None


Settings = dict[str, Any]
"""Settings as a file has them, checked to be `_Settings`, and more."""
_SETTINGS: TypeAdapter[Any] = TypeAdapter(_Settings)
_MODULES: TypeAdapter[Any] = TypeAdapter(list[_Settings])
_OBJECT: TypeAdapter[Any] = TypeAdapter(dict[str, Any])
# Files that must be an object if they are there; others, such as data_config.json, may be anything.
_OBJECTS = ("config.json", "config_sentence_transformers.json", "tokenizer_config.json",
            "preprocessor_config.json", "processor_config.json", "model.safetensors.index.json")  # fmt: skip
_TOKENS = ("special_tokens_map.json", "added_tokens.json")
_TRANSFORMER_SETTINGS = re.compile(r"sentence_[a-z-]+_config\.json")
# Allowed values: others are fetched from the hub as code, or run what happens to be installed.
_OWN_CODE = {
    "attn_implementation": ("eager", "sdpa"),
    "experts_implementation": ("eager", "batched_mm", "grouped_mm"),
    "quantization_config": (),
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
        _require(file, _MODULES, content)
    elif file.name in _TOKENS:
        _require(file, _OBJECT, content)
    elif file.name in _OBJECTS or _TRANSFORMER_SETTINGS.fullmatch(file.name):
        _require(file, _SETTINGS, content)
        _require_own_code(file, content)
    return content


def _require(file: Path, form: TypeAdapter[Any], content: Any) -> None:
    try:
        form.validate_python(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = next((part for part in first["loc"] if isinstance(part, str)), "it")
        raise SetupError(
            f"{file}: {name} is {first['input']!r:.80}",
            f"{first['msg']}; the file is damaged, or it belongs to something else",
            "copy or download the model again",
        ) from None


def _require_own_code(file: Path, settings: Mapping[str, Any]) -> None:
    for name, value in _inner(settings):
        known = _OWN_CODE.get(name.strip("_").removesuffix("_internal"))
        if known is not None and value not in (None, *known):
            raise SetupError(
                f"{file} sets {name} to {value!r:.80}",
                f"allowed: {', '.join(known) or 'none'}; other values name code that transformers would fetch",
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

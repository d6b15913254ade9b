"""What decides a local model's vectors: the folder that the configuration names, and all settings."""

from __future__ import annotations

import functools
import importlib.util
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reembed.encoders.base import Kind
from reembed.encoders.local.files import Layout, Module, read_layout
from reembed.encoders.local.json_files import Settings, read_json
from reembed.encoders.local.texts import SentenceTokenizer, open_tokenizer
from reembed.encoders.tokens import check_truncate_dim
from reembed.errors import SetupError
from reembed.space import WHOLE_DOCUMENTS, ContentIdentity, Space

if TYPE_CHECKING:
    from reembed.config.settings import EncoderConfig

_PACKAGE = re.compile(r"package:([A-Za-z_]\w*)/(.+)")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.safetensors"]
_HUB_IGNORED = ["onnx/*", "openvino/*"]
_LEGACY_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Where the configurations of transformers keep the width of a token's vector.
_WIDTHS = ("hidden_size", "d_model", "dim", "n_embd")


@dataclass(frozen=True)
class Profile:
    """A model folder with the configuration applied."""

    config: EncoderConfig
    layout: Layout
    tokenizer: SentenceTokenizer
    pooling: str
    """Modes joined by "+", or "static" for a model without attention."""
    normalize: bool
    truncate_dim: int | None
    dim: int

    @functools.cached_property
    def space(self) -> Space:
        """The space of these vectors, as float32; reads every file once."""
        return Space(
            model=self.config.model,
            revision=self.config.revision,
            identity=ContentIdentity(self.layout.weights_sha256(), self.tokenizer.sha256),
            pooling=self.pooling,
            prompt_query=self.tokenizer.prompts["query"],
            prompt_document=self.tokenizer.prompts["document"],
            normalize=self.normalize,
            truncate_dim=self.truncate_dim,
            max_length=self.tokenizer.max_length,
            chunking=WHOLE_DOCUMENTS,
            vector_dtype="float32",
            dim=self.dim,
        )


def read_profile(config: EncoderConfig) -> Profile:
    """Return everything about the vectors that can be known without loading the weights.

    Raises:
        SetupError: the model is missing, unsafe or unsupported, or a setting does not fit it.
    """
    layout = read_layout(locate(config))
    normalize = config.normalize
    if normalize is None:
        is_dot = layout.settings.get("similarity_fn_name") == "dot"
        normalize = not is_dot or layout.has("Normalize")
    pooling = _pooling(layout, config)
    model_dim = _model_dim(layout, pooling)
    truncate_dim = config.truncate_dim or layout.settings.get("truncate_dim")
    check_truncate_dim(truncate_dim, model_dim)
    return Profile(
        config=config,
        layout=layout,
        tokenizer=open_tokenizer(layout, config, _prompts(layout, config)),
        pooling=pooling,
        normalize=normalize,
        truncate_dim=truncate_dim,
        dim=truncate_dim or model_dim,
    )


def locate(config: EncoderConfig) -> Path:
    """Return the folder of `config.model`; a hub model is downloaded unless HF_HUB_OFFLINE=1.

    Raises:
        SetupError: there is no such folder, package or cached hub commit.
    """
    if config.model.startswith("package:"):
        return _in_package(config.model)
    folder = Path(config.model).expanduser()
    if folder.is_dir():
        return folder
    if _HUB_ID.fullmatch(config.model):
        return _from_hub(config.model, config.revision)
    raise SetupError(
        f"encoder.model {config.model}: no such folder",
        "A model is a folder, a hub id org/name, package:NAME/FOLDER or hashing:DIM.",
        f"ls {shlex.quote(str(next(p for p in folder.parents if p.is_dir())))}",
    )


def _in_package(reference: str) -> Path:
    match = _PACKAGE.fullmatch(reference)
    if match is None or ".." in Path(match[2]).parts:
        raise SetupError(
            f"encoder.model {reference}: not of the form package:NAME/FOLDER",
            "NAME is a top-level Python package, FOLDER a folder inside it.",
        )
    name, folder = match.groups()
    # find_spec on a top-level name runs none of the package's code.
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise SetupError(
            f"encoder.model {reference}: no Python package {name} is installed",
            fix=f"pip install {name.replace('_', '-')}",
        )
    for place in spec.submodule_search_locations or ():
        if (Path(place) / folder).is_dir():
            return Path(place) / folder
    raise SetupError(
        f"encoder.model {reference}: package {name} has no folder {folder}",
        fix=f"pip show --files {name.replace('_', '-')}",
    )


def _from_hub(model: str, revision: str | None) -> Path:
    if revision is None or not _COMMIT.fullmatch(revision):
        given = "no encoder.revision" if revision is None else f"encoder.revision {revision!r}"
        raise SetupError(
            f"encoder.model {model}: {given}",
            "It is not a local folder, and a hub model must be pinned to a commit of 40 hex digits: "
            "branches and tags move, and vectors of two versions must never mix.",
            f"git ls-remote {shlex.quote(f'https://huggingface.co/{model}')} HEAD",
        )
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            model, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_IGNORED
        )
    except (OSError, ValueError) as error:  # the hub client's own errors are OSErrors
        raise SetupError(
            f"encoder.model {model}: revision {revision} could not be fetched",
            f"{type(error).__name__}: {error}",
            f"hf download {shlex.quote(model)} --revision {shlex.quote(revision)}",
        ) from error
    return Path(folder)


def _pooling(layout: Layout, config: EncoderConfig) -> str:
    if not layout.has("Pooling"):
        if config.pooling is not None:
            raise SetupError(
                f"encoder.pooling {config.pooling}: {config.model} has no pooling to override",
                "A static model averages its token vectors.",
                "remove encoder.pooling",
            )
        return "static"
    if config.pooling is not None:
        return config.pooling
    settings = next(m.settings for m in layout.modules if m.kind == "Pooling")
    modes = settings.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _LEGACY_MODES.items() if settings.get(key)] or ["mean"]
    return modes if isinstance(modes, str) else "+".join(modes)


def _model_dim(layout: Layout, pooling: str) -> int:
    dim = 0
    for module in layout.modules:
        if module.kind in ("Transformer", "StaticEmbedding"):
            dim = _input_dim(module)
        elif module.kind == "Pooling":
            dim *= len(pooling.split("+"))
        elif module.kind == "Dense":
            wanted, given = (module.settings.get(f"{side}_features") for side in ("in", "out"))
            if wanted != dim or given is None:
                raise SetupError(
                    f"{module.folder}: Dense takes {wanted} dimensions and gets {dim}",
                    "encoder.pooling changed the number of dimensions, or the folder is damaged.",
                )
            dim = given
    return dim


def _input_dim(module: Module) -> int:
    if module.kind == "StaticEmbedding":
        tensors = module.tensors()
        table = tensors.get("embedding.weight") or tensors.get("embeddings")
        if table is None or len(table.shape) != 2:
            raise SetupError(f"{module.folder}: no table of token vectors among {sorted(tensors)}")
        return table.shape[1]
    config = read_json(module.folder / "config.json")
    # Models of several kinds of input keep the text part's settings apart.
    for settings in (config, config.get("text_config") or {}):
        for key in _WIDTHS:
            if settings.get(key):
                return int(settings[key])
    raise SetupError(f"{module.folder}/config.json names no hidden_size")


def _prompts(layout: Layout, config: EncoderConfig) -> dict[Kind, str]:
    """Return the prompts that SentenceTransformer.encode_query and encode_document put before texts.

    Only the names "query" and "document" count: sentence-transformers 6 has an empty document prompt
    where the model names none, and so never uses "passage".
    """
    own: Settings = layout.settings.get("prompts") or {}
    prompts: dict[Kind, str] = {"query": "", "document": ""}
    for kind in prompts:
        given = getattr(config.prompts, kind)
        if given is None:
            given = own.get(kind) or ""
        prompts[kind] = given
    try:
        "".join(prompts.values()).encode()
    except UnicodeEncodeError as error:
        raise SetupError(
            f"{layout.root}: a prompt of the model is not UTF-8 text",
            f"{error.object[error.start : error.end]!a} cannot be tokenized or stored",
            "reembed config     # set encoder.prompts.query and encoder.prompts.document",
        ) from error
    return prompts

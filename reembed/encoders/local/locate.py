"""Finds the folder that `encoder.model` names."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from reembed.errors import SetupError

if TYPE_CHECKING:
    from reembed.config.settings import EncoderConfig

_PACKAGE = re.compile(r"package:([A-Za-z_]\w*)/(.+)")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.safetensors"]
_HUB_IGNORED = ["onnx/*", "openvino/*"]


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

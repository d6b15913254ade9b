"""A model folder: its modules, whether it is safe to load, and its digests."""

from __future__ import annotations

import hashlib
import json
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from reembed.encoders.local.json_files import PASSED_ON, TRANSFORMER_SETTINGS, Settings, read_json
from reembed.errors import SetupError

SUPPORTED = ("Transformer", "StaticEmbedding", "Pooling", "Dense", "Normalize")

_INPUTS = ("Transformer", "StaticEmbedding")
_WITH_WEIGHTS = (*_INPUTS, "Dense")
_WEIGHTS = "model.safetensors"
_SHARDS = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# What libraries raise that cannot use a file; tokenizers raises bare Exceptions, and Rust's panics have no
# type to import.
_REFUSALS = (
    OSError, ValueError, TypeError, AttributeError, RuntimeError, LookupError, ImportError,
    ArithmeticError, AssertionError,
)  # fmt: skip
_REFUSED_BY_NAME = ("Exception", "PanicException")
# Files that loading may read beside weights; of these, what changes no vector, or is in the space itself.
_READ = (".json", ".txt", ".model", ".jinja", ".tiktoken")
_NOT_READ = ("generation_config.json",)
_IN_THE_SPACE = "config_sentence_transformers.json"


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file; `dtype` as safetensors names it, such as BF16."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Module:
    """One step from text to vector: its kind (one of SUPPORTED), its folder and its settings."""

    kind: str
    folder: Path
    settings: Settings

    def weights(self) -> list[Path]:
        """Return the safetensors files that loading reads; SetupError where they are missing."""
        whole, index = self.folder / _WEIGHTS, self.folder / _SHARDS
        if self.kind not in _WITH_WEIGHTS:
            return []
        if whole.is_file():
            return [whole]
        if self.kind != "Transformer" or not index.is_file():
            raise _no_weights(self.folder)
        shards = sorted(set((read_json(index).get("weight_map") or {}).values()))
        if outside := [name for name in shards if Path(name).name != name]:
            raise SetupError(
                f"{index} names {outside[0]}",
                "Shards must be beside the index; a path could lead out of the model folder.",
                "save the model again with save_pretrained()",
            )
        missing = [name for name in shards if not (self.folder / name).is_file()]
        if missing or not shards:
            raise SetupError(f"{self.folder}: shards are missing: {', '.join(missing)}")
        return [self.folder / name for name in shards]

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor by name, from the headers of the files."""
        from safetensors import safe_open

        found = {}
        for file in self.weights():
            with refusing(f"{file} is not a safetensors file"), safe_open(str(file), "np") as held:
                for name in held.keys():  # noqa: SIM118
                    part = held.get_slice(name)
                    found[name] = Tensor(part.get_dtype(), tuple(part.get_shape()))
        return found


@dataclass(frozen=True)
class Layout:
    """A model folder, read but not loaded. `saved_by_st`: it has a modules.json."""

    root: Path
    modules: tuple[Module, ...]
    settings: Settings
    saved_by_st: bool

    def has(self, kind: str) -> bool:
        return any(module.kind == kind for module in self.modules)

    def files(self) -> list[Path]:
        """Return every file that loading may read: weights, and the data beside them."""
        files = {file for module in self.modules for file in module.weights()}
        folders = {self.root, *(m.folder for m in self.modules if m.folder.is_dir())}
        for folder in folders:
            files |= {f for f in folder.iterdir() if f.suffix in _READ and f.name not in _NOT_READ}
        return sorted(file for file in files if file.is_file())

    def weights_sha256(self) -> str:
        """Return a digest of the weights and every setting that changes vectors, without the folder's name.

        config_sentence_transformers.json is not included: what it decides (prompts, similarity,
        truncation) is in the space itself, and the rest is version numbers.
        """
        files = {self.root / "modules.json"}
        for module in self.modules:
            files.update(module.weights())
            files.update(module.folder / name for name in ("config.json", *TRANSFORMER_SETTINGS))
        return self._sha256(files)

    def tokenizer_sha256(self) -> str:
        """Return a digest of all files that may decide token ids: those beside the first module's weights."""
        first = self.modules[0]
        apart = {self.root / _IN_THE_SPACE, self.root / "modules.json", *first.weights()}
        return self._sha256({f for f in self.files() if f.parent == first.folder} - apart)

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """Make a temporary folder of links to `files`: loading from it can read nothing else."""
        with tempfile.TemporaryDirectory(prefix="reembed-model-") as place:
            for file in self.files():
                link = Path(place) / file.relative_to(self.root)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file.resolve())
            config = self.modules[0].folder / "tokenizer_config.json"
            if config.is_file() and (gone := _foreign_files(config)):
                link = Path(place) / config.relative_to(self.root)
                kept = {k: v for k, v in read_json(config).items() if k not in gone}
                link.unlink()
                link.write_text(json.dumps(kept), encoding="utf-8")
            yield Path(place)

    def _sha256(self, files: set[Path]) -> str:
        digest = hashlib.sha256()
        for file in sorted(files):
            if file.is_file():
                with file.open("rb") as stream:
                    content = hashlib.file_digest(stream, "sha256").hexdigest()
                digest.update(f"{file.relative_to(self.root).as_posix()}\0{content}\n".encode())
        return digest.hexdigest()


def read_layout(root: Path) -> Layout:
    """Return the modules of a model folder, checked to load without running code of the model's own.

    Raises:
        SetupError: no model, no safetensors weights, or modules that are not SUPPORTED.
    """
    saved_by_st = (root / "modules.json").is_file()
    if saved_by_st:
        modules = tuple(_module(root, entry) for entry in read_json(root / "modules.json"))
        settings = _optional_json(root / _IN_THE_SPACE)
    elif (root / "config.json").is_file():
        modules, settings = _default_modules(root), {}
    else:
        raise SetupError(
            f"{root} is not a model folder",
            "It has neither modules.json nor config.json.",
            f"ls {shlex.quote(str(root))}",
        )
    layout = Layout(root, modules, settings, saved_by_st)
    _check(layout)
    return layout


def _optional_json(file: Path) -> Settings:
    return read_json(file) if file.is_file() else {}


def _module(root: Path, entry: Settings) -> Module:
    name, path = str(entry.get("type")), entry.get("path") or ""
    package, _, kind = name.rpartition(".")
    if package.partition(".")[0] != "sentence_transformers" or kind not in SUPPORTED:
        raise SetupError(
            f"{root}: module {name} is not supported",
            f"Supported are sentence_transformers' {', '.join(SUPPORTED)}; code that comes with a "
            "model is never run.",
        )
    folder = root / path
    if ".." in Path(path).parts or Path(path).is_absolute():
        raise SetupError(f"{root}: modules.json points outside the folder: {path}")
    if kind != "Transformer":
        return Module(kind, folder, _optional_json(folder / "config.json"))
    settings = (_optional_json(folder / name) for name in TRANSFORMER_SETTINGS)
    return Module(kind, folder, next((found for found in settings if found), {}))


def _default_modules(root: Path) -> tuple[Module, ...]:
    """Return the modules that sentence-transformers makes of a plain transformers folder."""
    config = read_json(root / "config.json")
    architectures = config.get("architectures") or [""]
    causal = architectures[0].endswith("ForCausalLM") and config.get("is_causal", True)
    pooling = {"pooling_mode": "lasttoken" if causal else "mean"}
    return Module("Transformer", root, {}), Module("Pooling", root, pooling)


def _check(layout: Layout) -> None:
    kinds = [module.kind for module in layout.modules]
    if not kinds or kinds[0] not in _INPUTS or any(kind in _INPUTS for kind in kinds[1:]):
        raise SetupError(
            f"{layout.root}: the modules {kinds} do not start with one of {list(_INPUTS)}"
        )
    if kinds[0] == "Transformer" and "Pooling" not in kinds:
        raise SetupError(f"{layout.root} has no Pooling module, so it gives no vector per text")
    family = layout.settings.get("model_type", "SentenceTransformer")
    if family != "SentenceTransformer":
        raise SetupError(
            f"{layout.root} is a {family}, not a SentenceTransformer",
            "Only models that give one dense vector per text can be indexed.",
        )
    if (layout.modules[0].folder / "adapter_config.json").is_file():
        raise SetupError(
            f"{layout.root} holds an adapter, not a whole model",
            fix="merge it with peft's merge_and_unload() and save the result",
        )
    for file in layout.files():
        if file.suffix == ".json":
            read_json(file)
        if file.name == "tokenizer_config.json":
            _require_own_files(file)
    first = layout.modules[0]
    for name, known in PASSED_ON.items():
        if unknown := (first.settings.get(name) or {}).keys() - {*known, "trust_remote_code"}:
            raise SetupError(
                f"{first.folder}: {name} sets {', '.join(sorted(unknown))}",
                f"it may change which files are read; known are {', '.join(known)}",
                f"remove it from {first.folder}/{TRANSFORMER_SETTINGS[0]}",
            )


def _require_own_files(file: Path) -> None:
    for key, name in _foreign_files(file).items():
        if Path(name).exists():
            raise SetupError(
                f"{file} sets {key} to {name}, outside the model folder",
                "the model must be in one folder, whose digest tells its versions apart",
                f"cp {shlex.quote(name)} {shlex.quote(str(file.parent))}     # and remove {key}",
            )


def _foreign_files(config: Path) -> dict[str, str]:
    """Return the settings that name a file by its path; a tokenizer saves them where it is trained."""
    return {
        k: v
        for k, v in read_json(config).items()
        if k.endswith("_file") and isinstance(v, str) and Path(v).name != v
    }


def _no_weights(folder: Path) -> SetupError:
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if not pickles:
        return SetupError(
            f"{folder} has no weights",
            f"There is no {_WEIGHTS} in it; the copy or download is incomplete.",
            f"ls {shlex.quote(str(folder))}",
        )
    convert = (
        "from sentence_transformers import SentenceTransformer as S; "
        f"S({str(folder)!r}).save_pretrained({f'{folder}-safetensors'!r})"
    )
    return SetupError(
        f"{folder} has its weights only as {', '.join(pickles)}",
        "Such files can run code when they are loaded; only safetensors is read. If you trust the "
        "file, convert it once:",
        f"python -c {shlex.quote(convert)}     # then: encoder.model = the new folder",
    )


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Raise SetupError(what) where a library cannot use a model's files; errors of memory pass."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except BaseException as error:  # a panic in the tokenizers' Rust code is not an Exception
        name = type(error).__name__
        known = isinstance(error, (*_REFUSALS, StrictDataclassError, SafetensorError))
        if name == "OutOfMemoryError" or not (known or name in _REFUSED_BY_NAME):
            raise
        raise SetupError(what, f"{name}: {error}") from error

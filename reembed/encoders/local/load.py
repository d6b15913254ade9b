"""Loading a model: the fastest way through it that keeps its vectors.

Ways differ in number type, in form (packed or padded) and in whether layers are compiled. Each is
tried on fixed texts (`canary`) and compared with what sentence-transformers makes of them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reembed.encoders.base import Vectors
from reembed.encoders.local import attention, canary, compiled, linears, loaded
from reembed.encoders.local.arithmetic import Arithmetic, peak
from reembed.encoders.local.batches import Flat, Form, Packed, Padded
from reembed.encoders.local.libraries import refusing
from reembed.encoders.local.profile import Profile, read_profile
from reembed.encoders.local.sentence import DTYPES, SentenceEncoder
from reembed.errors import SetupError

if TYPE_CHECKING:
    from reembed.config.settings import EncoderConfig

log = logging.getLogger(__name__)

_LEAST_OF_PLAIN = 0.9999
_NAMED = 3
_MAY_BE_EMPTY = 2  # of the canary's texts: "" and " ", for which some models have no vector
_MOST_SAID = 300  # characters of an error in a note
_SHAPES = 8  # sizes of batches on a GPU
# What a model's code raises when it is not made for packed texts.
_NOT_MADE_FOR_IT = (
    NotImplementedError, TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError,
)  # fmt: skip


def load(
    config: EncoderConfig,
    device: str,
    dtype: str,
    batch_tokens: int,
    *,
    for_job: bool = False,
) -> SentenceEncoder:
    """Return the model of `config` on `device`, ready to embed.

    `for_job`: compile layers (on CUDA in 16 bits) and measure the device's peak FLOP/s. Both take
    seconds, which a few queries do not repay.

    Raises:
        SetupError: the model is missing, unsafe, unsupported or damaged, a setting does not fit it, or
            no way through it gives the vectors that sentence-transformers gives.
    """
    profile = read_profile(config)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    loader = _Loader(profile, device, batch_tokens, compile_layers=for_job)
    if profile.layout.has("StaticEmbedding"):
        model = loader.model()
        loader.require_loaded(model)
        return SentenceEncoder(profile, model, device, batch_tokens, Flat())
    encoder = loader.fastest(_dtype(profile, device, dtype))
    if for_job:
        encoder.peak_flops = peak(device, DTYPES[encoder.dtype])
    for note in encoder.notes:
        log.warning("%s: %s", config.model, note)
    return encoder


class _Loader:
    """Ways through one model, the fastest first, each held against the canary's texts."""

    def __init__(
        self,
        profile: Profile,
        device: str,
        batch_tokens: int,
        *,
        compile_layers: bool = False,
    ) -> None:
        self._profile = profile
        self._device, self._batch_tokens = device, batch_tokens
        self._compile_layers = compile_layers
        self._notes: list[str] = []
        self._arithmetic: Arithmetic | None = None
        self._unloaded: list[str] = []

    def model(self) -> Any:
        """Load the modules in float32, as sentence-transformers does, with the configured pooling.

        Tensors that are not in the model's files are NaN.
        """
        model = _load_modules(self._profile, self._device)
        model.truncate_dim = None  # the profile's dim says where vectors are cut
        pooling = next((m for m in model if type(m).__name__ == "Pooling"), None)
        if self._profile.config.pooling is not None and pooling is not None:
            pooling.pooling_mode = self._profile.config.pooling
        self._unloaded = loaded.poison_unloaded(model, self._profile.layout)
        return model

    def require_loaded(self, model: Any) -> None:
        """Refuse a model that uses tensors which its files do not have.

        Raises:
            SetupError: naming them.
        """
        if not self._unloaded:
            return
        vectors = self._reference(model)
        without = int((~np.isfinite(vectors).all(axis=1)).sum())
        if without > _MAY_BE_EMPTY:
            names = ", ".join(self._unloaded[:_NAMED])
            raise SetupError(
                f"{self._profile.layout.root} lacks {len(self._unloaded)} tensors that its vectors"
                f" need: {names}{', ...' if len(self._unloaded) > _NAMED else ''}",
                "loading would fill them with random or constant values; the checkpoint is incomplete,"
                " holds NaN, or its tensors have other names than this architecture's",
                "download the model again, or save it again with save_pretrained()",
            )

    def _reference(self, model: Any) -> Vectors:
        root = self._profile.layout.root
        with refusing(f"{root} cannot embed a text", but=(torch.OutOfMemoryError,)):
            return canary.reference(model, self._profile)

    def fastest(self, wanted: str) -> SentenceEncoder:
        """Return the first way that keeps the vectors, of the wanted number type if possible."""
        model = self.model()
        self.require_loaded(model)
        self._arithmetic = Arithmetic(model[0].model)
        golden = self._reference(model)
        if self._device == "cpu" and not _computes(wanted):
            self._notes.append(f"this processor does not compute in {wanted}: using float32")
            wanted = "float32"
        for dtype, is_compiled in self._ways(wanted, _is_exchangeable(model[0].model)):
            _narrow(model, dtype, self._device)
            if is_compiled:
                compiled.compile_layers(model[0].model)
            for form in self._forms(model, dtype, is_compiled=is_compiled):
                if (found := self._with(model, form, dtype, golden)) is not None:
                    return found
            model = self.model()
        plain = self._encoder(model, self._padded(), "float32")
        least = canary.cosine(golden, _embedding(plain))
        if least < _LEAST_OF_PLAIN:
            raise SetupError(
                f"{self._profile.config.model} gives other vectors here than in sentence-transformers",
                f"cosine {least:.6f} on fixed texts, at least {_LEAST_OF_PLAIN} is needed",
                "reembed config --check",
            )
        return plain

    def _ways(self, wanted: str, is_exchangeable: bool) -> Iterator[tuple[str, bool]]:
        """Yield (number type, whether layers are compiled), the fastest first."""
        on_cuda = self._device.startswith("cuda") and wanted != "float32"
        if self._compile_layers and on_cuda and is_exchangeable:
            yield wanted, True
        for dtype in dict.fromkeys((wanted, "float32")):
            yield dtype, False

    def _forms(self, model: Any, dtype: str, *, is_compiled: bool) -> Iterator[Form]:
        """Yield packed, then padded; compiled layers take packed texts only."""
        transformer = model[0].model
        stock = transformer.config._attn_implementation
        if _is_exchangeable(transformer):
            transformer.set_attn_implementation(attention.NAME)
            yield Packed(
                self._profile.tokenizer.pad_id,
                _padding_idx(transformer),
                DTYPES[dtype],
                type_ids=self._type_ids,
                shapes=None if self._device == "cpu" else _SHAPES,
                is_compiled=is_compiled,
            )
        else:
            self._notes.append(
                f"{type(transformer).__name__} has an attention that cannot be replaced:"
                " padded batches instead of packed ones"
            )
        if not is_compiled:
            transformer.set_attn_implementation(stock)
            yield self._padded()

    def _with(self, model: Any, form: Form, dtype: str, golden: Vectors) -> SentenceEncoder | None:
        """Return an encoder of this form, or None and a note that says why it does not keep the vectors."""
        encoder = self._encoder(model, form, dtype)
        refused: tuple[type[Exception], ...] = (*_NOT_MADE_FOR_IT, *compiled.failures())
        try:
            least = canary.cosine(golden, _embedding(encoder))
            why = f"cosine {least:.7f}, at least {canary.LEAST_COSINE[dtype]} is needed"
        except torch.OutOfMemoryError:
            raise
        except refused as error:
            least, why = -1.0, shorten(f"{type(error).__name__}: {error}", _MOST_SAID)
        if least >= canary.LEAST_COSINE[dtype]:
            return encoder
        self._notes.append(f"not {encoder.path}: {why}")
        return None

    def _encoder(self, model: Any, form: Form, dtype: str) -> SentenceEncoder:
        encoder = SentenceEncoder(
            self._profile, model, self._device, self._batch_tokens, form, dtype
        )
        encoder.notes = tuple(dict.fromkeys(self._notes))
        encoder.arithmetic = self._arithmetic
        return encoder

    def _padded(self) -> Padded:
        return Padded(self._profile.tokenizer.pad_id, type_ids=self._type_ids)

    @property
    def _type_ids(self) -> bool:
        return self._profile.tokenizer.type_ids


def _is_exchangeable(transformer: Any) -> bool:
    """Whether the model's attention can be replaced."""
    return bool(getattr(transformer, "is_backend_compatible", bool)())


def _computes(dtype: str) -> bool:
    """Whether this processor multiplies in this type, and torch has the operator for it."""
    return dtype == "float32" or (
        dtype == "bfloat16" and linears.has_bfloat16() and linears.is_available()
    )


def _embedding(encoder: SentenceEncoder) -> Any:
    return lambda texts: encoder.embed(encoder.tokenize(texts, "document"))


def _narrow(model: Any, dtype: str, device: str) -> None:
    """Make the transformer's linear layers, and so its attention, compute in `dtype`."""
    if device == "cpu" and linears.is_available():
        linears.prepack(model[0], DTYPES[dtype])
    elif device != "cpu" and dtype != "float32":
        linears.narrow(model[0], DTYPES[dtype])


def _padding_idx(transformer: torch.nn.Module) -> int | None:
    """Return the id from which RoBERTa and its relatives count positions; None for other models."""
    for module in transformer.modules():
        table = getattr(module, "position_embeddings", None)
        padding = getattr(module, "padding_idx", None)
        if isinstance(table, torch.nn.Embedding) and isinstance(padding, int):
            return padding
    return None


def _load_modules(profile: Profile, device: str) -> Any:
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    quiet: Any = transformers_logging.disable_progress_bar
    quiet()
    attention.register()
    options = {"dtype": torch.float32, "use_safetensors": True}
    with (
        refusing(f"{profile.layout.root} cannot be loaded", but=(torch.OutOfMemoryError,)),
        profile.layout.staged() as folder,
    ):
        model = SentenceTransformer(
            str(folder),
            device=device,
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs=options,
        )
    return model.float().eval()


def _dtype(profile: Profile, device: str, dtype: str) -> str:
    """Return the number type for the transformer to compute in."""
    if dtype in DTYPES:
        return dtype
    if dtype != "auto":
        raise SetupError(f"embed.dtype {dtype}: must be one of {', '.join(['auto', *DTYPES])}")
    if not device.startswith("cuda"):
        return "float32"
    stored = {tensor.dtype for tensor in profile.layout.modules[0].tensors().values()}
    return "bfloat16" if "BF16" in stored else "float16"

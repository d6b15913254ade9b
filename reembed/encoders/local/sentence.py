"""sentence-transformers models: packed batches through the model's own modules, pooled in float32."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reembed.encoders.base import Kind, Tokens, Vectors, Work
from reembed.encoders.local import attention, canary, compiled, linears, loaded
from reembed.encoders.local.arithmetic import Arithmetic, peak
from reembed.encoders.local.batches import (
    Flat,
    Form,
    Packed,
    Padded,
    Rows,
    distinct,
    longest_first,
    off,
    on,
)
from reembed.encoders.local.libraries import refusing
from reembed.encoders.local.profile import Profile, read_profile
from reembed.errors import EncoderError

if TYPE_CHECKING:
    from reembed.config.settings import EncoderConfig

log = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_LEAST_OF_PLAIN = 0.9999
_NAMED = 3
_MAY_BE_EMPTY = 2  # of the canary's texts: "" and " ", for which some models have no vector
_MOST_SAID = 300  # characters of an error in a note
_SHAPES = 8  # sizes of batches on a GPU
# A plain RuntimeError, where it is not a torch.OutOfMemoryError: the CPU's allocator, cuBLAS's.
_NO_MEMORY = ("DefaultCPUAllocator: ", "CUBLAS_STATUS_ALLOC_FAILED")
# What a model's code raises when it is not made for packed texts.
_NOT_MADE_FOR_IT = (
    NotImplementedError, TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError,
)  # fmt: skip


class SentenceEncoder:
    """A loaded model; one caller at a time."""

    def __init__(
        self,
        profile: Profile,
        model: Any,
        device: str,
        batch_tokens: int,
        form: Form,
        dtype: str = "float32",
    ) -> None:
        """Take a model that is loaded, on `device` and in evaluation mode, computing in `dtype`."""
        self.dim = profile.dim
        self.device = device
        self.dtype = dtype
        self.batch_tokens = batch_tokens
        self.notes: tuple[str, ...] = ()
        """Why the model does not go the fastest way, where it does not."""
        self.work = Work()
        self.peak_flops = 0.0
        self.arithmetic: Arithmetic | None = None
        self._profile = profile
        self._model = model
        self._form = form

    @property
    def path(self) -> str:
        """How texts go through the model: form and number type."""
        return f"{self._form.name} {self.dtype}"

    def tokenize(self, texts: Sequence[str], kind: Kind) -> Tokens:
        """Prompt put before, special tokens added, cut at max_length."""
        return self._profile.tokenizer.tokenize(texts, kind)

    def embed(self, tokens: Tokens) -> Vectors:
        """float32 [N, dim], C-contiguous, in the order given; equal texts are embedded once.

        A row is NaN where the vector before normalizing is zero (a static model's empty text) and,
        with attention, where a text has no tokens at all; other non-finite values stay as they are,
        but those of float16 are computed again in float32.

        A batch that does not fit the device's memory is tried again in two, and batch_tokens stays
        that small.

        Raises:
            torch.OutOfMemoryError: a single text does not fit.
        """
        once, like = distinct(tokens)
        vectors = self._embed(once)
        if self.dtype == "float16":
            bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1) & (once.lengths > 0))
            if len(bad):
                with self._in_float32():
                    vectors[bad] = self._embed(once.take(bad))
        return vectors if len(once) == len(tokens) else np.ascontiguousarray(vectors[like])

    def _embed(self, tokens: Tokens) -> Vectors:
        out = torch.full((len(tokens), self.dim), torch.nan, device=self.device)
        lengths = tokens.lengths
        todo = longest_first(lengths, self._form)
        with torch.inference_mode():
            while len(todo):
                rows = todo[: self._form.fit(lengths[todo], self.batch_tokens)]
                vectors = self._batch(tokens.take(rows))
                if vectors is None:
                    self._halve(int(lengths[rows].sum()))
                    continue
                out[on(self.device, rows)] = vectors
                todo = todo[len(rows) :]
        return np.ascontiguousarray(off(out))

    def _batch(self, batch: Tokens) -> torch.Tensor | None:
        """None: it does not fit the device's memory, and a part of it may."""
        try:
            features = self._form.features(batch, self.device, self.batch_tokens)
            computed = features["input_ids"].numel()
            vectors = self._finish(self._forward(features)[: len(batch)])
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error) or len(batch) == 1:
                raise
            return None
        self._count(batch.lengths, computed)
        return vectors

    def _halve(self, tokens: int) -> None:
        """So many are too many: half of them from now on; and give back what is held in reserve."""
        self.batch_tokens = max(1, min(self.batch_tokens, tokens) // 2)
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _count(self, lengths: Rows, computed: int) -> None:
        self.work.tokens += int(lengths.sum())
        self.work.computed += computed
        if self.arithmetic is not None:
            self.work.flop += self.arithmetic.of(lengths)

    def _forward(self, features: dict[str, Any]) -> torch.Tensor:
        """The modules in order; whatever follows the transformer computes in fp32."""
        for module in self._model:
            features = module(features)
            for key in ("token_embeddings", "sentence_embedding"):
                if key in features:
                    features[key] = features[key].float()
        vectors: torch.Tensor = features["sentence_embedding"]
        return vectors

    def _finish(self, vectors: torch.Tensor) -> torch.Tensor:
        vectors = vectors[:, : self.dim]
        if not self._profile.normalize:
            return vectors
        norms: torch.Tensor = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        return vectors / norms

    @contextmanager
    def _in_float32(self) -> Iterator[None]:
        """Values beyond float16's range are the activations'; weights are within it."""
        try:
            self._compute_in(torch.float32)
            with compiled.as_written(self._model[0]):
                yield
        finally:
            self._compute_in(_DTYPES[self.dtype])

    def _compute_in(self, dtype: torch.dtype) -> None:
        linears.compute_in(self._model[0], dtype)
        if isinstance(self._form, Packed):
            self._form.dtype = dtype


def load(
    config: EncoderConfig,
    device: str,
    dtype: str,
    batch_tokens: int,
    *,
    compile_layers: bool = False,
) -> SentenceEncoder:
    """The model of `config` on `device`, going the fastest way that keeps its vectors.

    `compile_layers`: on CUDA in 16 bits; takes seconds, so for jobs and not for a few texts.

    Raises:
        EncoderError: it is missing, unsafe, unsupported or damaged, a setting does not fit it, or no
            way of going through it gives the vectors that sentence-transformers gives.
    """
    profile = read_profile(config)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    loader = _Loader(profile, config, device, batch_tokens, compile_layers=compile_layers)
    if profile.layout.has("StaticEmbedding"):
        model = loader.model()
        loader.require_loaded(model)
        return SentenceEncoder(profile, model, device, batch_tokens, Flat())
    encoder = loader.fastest(_dtype(profile, device, dtype))
    encoder.peak_flops = peak(device, _DTYPES[encoder.dtype])
    encoder.work = Work()
    for note in encoder.notes:
        log.warning("%s: %s", config.model, note)
    return encoder


class _Loader:
    """Ways through one model, the fastest first, each held against the canary's texts."""

    def __init__(
        self,
        profile: Profile,
        config: EncoderConfig,
        device: str,
        batch_tokens: int,
        *,
        compile_layers: bool = False,
    ) -> None:
        self._profile, self._config = profile, config
        self._device, self._batch_tokens = device, batch_tokens
        self._compile_layers = compile_layers
        self._notes: list[str] = []
        self._arithmetic: Arithmetic | None = None
        self._unloaded: list[str] = []

    def model(self) -> Any:
        """The modules in float32, as sentence-transformers makes them, and the configured pooling.

        Tensors that are not in the model's files are NaN.
        """
        model = _load_modules(self._profile, self._device)
        model.truncate_dim = None  # the profile's dim says where vectors are cut
        pooling = next((m for m in model if type(m).__name__ == "Pooling"), None)
        if self._config.pooling is not None and pooling is not None:
            pooling.pooling_mode = self._config.pooling
        self._unloaded = loaded.poison_unloaded(model, self._profile.layout)
        return model

    def require_loaded(self, model: Any) -> None:
        """Refuse a model that uses tensors which its files do not have.

        Raises:
            EncoderError: naming them.
        """
        if not self._unloaded:
            return
        vectors = self._reference(model)
        without = int((~np.isfinite(vectors).all(axis=1)).sum())
        if without > _MAY_BE_EMPTY:
            names = ", ".join(self._unloaded[:_NAMED])
            raise EncoderError(
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
        """In the number type wanted if it keeps the vectors, else in float32; packed, else padded."""
        model = self.model()
        self.require_loaded(model)
        self._arithmetic = Arithmetic(model[0].model)
        golden = self._reference(model)
        if self._device == "cpu" and not _computes(wanted):
            self._notes.append(f"this processor does not compute in {wanted}: float32 instead")
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
            raise EncoderError(
                f"{self._config.model} gives other vectors than sentence-transformers makes of it",
                f"cosine {least:.6f} on fixed texts",
                "reembed config --check",
            )
        return plain

    def _ways(self, wanted: str, is_exchangeable: bool) -> Iterator[tuple[str, bool]]:
        """(number type, whether layers are compiled), the fastest first."""
        on_cuda = self._device.startswith("cuda") and wanted != "float32"
        if self._compile_layers and on_cuda and is_exchangeable:
            yield wanted, True
        for dtype in dict.fromkeys((wanted, "float32")):
            yield dtype, False

    def _forms(self, model: Any, dtype: str, *, is_compiled: bool) -> Iterator[Form]:
        """Packed, then padded; compiled layers take packed texts alone."""
        transformer = model[0].model
        stock = transformer.config._attn_implementation
        if _is_exchangeable(transformer):
            transformer.set_attn_implementation(attention.NAME)
            yield Packed(
                self._profile.tokenizer.pad_id,
                _padding_idx(transformer),
                _DTYPES[dtype],
                type_ids=self._type_ids,
                shapes=None if self._device == "cpu" else _SHAPES,
                is_compiled=is_compiled,
            )
        else:
            self._notes.append(
                f"{type(transformer).__name__} has no attention that can be exchanged:"
                " padded batches instead of packed ones"
            )
        if not is_compiled:
            transformer.set_attn_implementation(stock)
            yield self._padded()

    def _with(self, model: Any, form: Form, dtype: str, golden: Vectors) -> SentenceEncoder | None:
        """None: this form does not keep the vectors, and a note says why."""
        encoder = self._encoder(model, form, dtype)
        refused: tuple[type[Exception], ...] = (*_NOT_MADE_FOR_IT, *compiled.failures())
        try:
            least = canary.cosine(golden, _embedding(encoder))
            why = f"cosine {least:.7f}, and {canary.LEAST_COSINE[dtype]} is asked"
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
    """Whether another attention can be put into the model."""
    return bool(getattr(transformer, "is_backend_compatible", bool)())


def _computes(dtype: str) -> bool:
    """Whether a processor has products in this type, and torch the operator that uses them."""
    return dtype == "float32" or (
        dtype == "bfloat16" and linears.has_bfloat16() and linears.is_available()
    )


def _is_out_of_memory(error: BaseException) -> bool:
    said = str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        words in said for words in _NO_MEMORY
    )


def _embedding(encoder: SentenceEncoder) -> Any:
    return lambda texts: encoder.embed(encoder.tokenize(texts, "document"))


def _narrow(model: Any, dtype: str, device: str) -> None:
    """Let the transformer's linears, and so its attention, compute in `dtype`."""
    if device == "cpu" and linears.is_available():
        linears.prepack(model[0], _DTYPES[dtype])
    elif device != "cpu" and dtype != "float32":
        linears.narrow(model[0], _DTYPES[dtype])


def _padding_idx(transformer: torch.nn.Module) -> int | None:
    """Of RoBERTa and its kin, which count positions from it on; None for all others."""
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
    """Number type that the transformer computes in."""
    if dtype in _DTYPES:
        return dtype
    if dtype != "auto":
        raise EncoderError(f"embed.dtype {dtype} is none of {', '.join(['auto', *_DTYPES])}")
    if not device.startswith("cuda"):
        return "float32"
    stored = {tensor["dtype"] for tensor in profile.layout.modules[0].header().values()}
    return "bfloat16" if "BF16" in stored else "float16"

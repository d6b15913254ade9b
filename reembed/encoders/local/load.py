"""Loading a model: the fastest way through it that keeps its vectors.

Ways differ in number type, in form (packed or padded) and in whether layers are compiled. Each is
tried on fixed texts and compared with what sentence-transformers makes of them: if a model's code does
something that ours does not expect, it shows here, before a document is embedded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reembed.encoders.base import Vectors
from reembed.encoders.local import attention, compiled, linears, loaded
from reembed.encoders.local.arithmetic import Arithmetic, peak
from reembed.encoders.local.batches import Flat, Form, Packed, Padded
from reembed.encoders.local.files import refusing
from reembed.encoders.local.profile import Profile, read_profile
from reembed.encoders.local.sentence import DTYPES, SentenceEncoder
from reembed.encoders.probes import TEXTS, least_cosine
from reembed.errors import SetupError

if TYPE_CHECKING:
    from reembed.config.settings import EncoderConfig

log = logging.getLogger(__name__)

_LEAST_COSINE = {"float32": 0.999999, "float16": 0.99999, "bfloat16": 0.9999}
_LEAST_OF_PLAIN = 0.9999
# Few texts are as long as the longest; the empty text, which breaks some models, is not alone.
_TOGETHER = 4
_NAMED = 3
_MAY_BE_EMPTY = 2  # of the fixed texts: "" and " ", for which some models have no vector
_MOST_SAID = 300  # characters of an error in a note
_SHAPES = 8  # sizes of batches on a GPU
# From code that is not made for packed texts.
_NOT_MADE_FOR_IT = (
    NotImplementedError, TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError,
)  # fmt: skip


def load(
    config: EncoderConfig, device: str, dtype: str, batch_tokens: int, *, for_job: bool = False
) -> SentenceEncoder:
    """Return the model, ready to embed: `load_encoder` for the models of this folder.

    Raises:
        SetupError: as there, or no way through the model gives the vectors that sentence-transformers
            gives.
    """
    profile = read_profile(config)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    loader = _Loader(profile, device, batch_tokens, compile_layers=for_job)
    if profile.layout.has("StaticEmbedding"):
        model = loader.model()
        loader.reference(model)
        return SentenceEncoder(profile, model, device, batch_tokens, Flat())
    encoder = loader.fastest(_dtype(profile, device, dtype))
    if for_job:
        encoder.peak_flops = peak(device, DTYPES[encoder.dtype])
    for note in encoder.notes:
        log.warning("%s: %s", config.model, note)
    return encoder


class _Loader:
    """Ways through one model, the fastest first, each compared on the fixed texts."""

    _arithmetic: Arithmetic

    def __init__(
        self, profile: Profile, device: str, batch_tokens: int, *, compile_layers: bool = False
    ) -> None:
        self._profile = profile
        self._padded = Padded(profile.tokenizer.pad_id, profile.tokenizer.type_ids)
        self._device, self._batch_tokens = device, batch_tokens
        self._compile_layers = compile_layers
        self._notes: list[str] = []
        self._unloaded: list[str] = []

    def model(self) -> Any:
        """Load the modules in float32, as sentence-transformers does, with the configured pooling.

        Tensors that are not in the model's files are NaN.
        """
        from sentence_transformers import SentenceTransformer
        from transformers import AttentionInterface
        from transformers.utils import logging as transformers_logging

        quiet: Any = transformers_logging.disable_progress_bar
        quiet()
        AttentionInterface.register(attention.NAME, attention.packed_attention)
        layout, pooling = self._profile.layout, self._profile.config.pooling
        with refusing(f"{layout.root} cannot be loaded"), layout.staged() as folder:
            model = SentenceTransformer(
                str(folder),
                device=self._device,
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"dtype": torch.float32, "use_safetensors": True},
            )
        # It refers back to the model: the memory of a model that was replaced would be freed only by a full
        # garbage collection, which is rare.
        model.model_card_data.model = None
        model.truncate_dim = None  # the profile's dim says where vectors are cut
        pools: Any = next((m for m in model if type(m).__name__ == "Pooling"), None)
        if pooling is not None and pools is not None:
            pools.pooling_mode = pooling
        model.float().eval()
        self._unloaded = loaded.poison_unloaded(model, layout)
        return model

    def reference(self, model: Any) -> Vectors:
        """Return float32 [32, dim]: what `SentenceTransformer.encode` makes of the fixed texts.

        Raises:
            SetupError: it cannot embed them, or needs tensors that the model's files do not have.
        """
        layout, tokenizer = self._profile.layout, self._profile.tokenizer
        if layout.modules[0].kind == "Transformer":
            model.max_seq_length = tokenizer.max_length
        with refusing(f"{layout.root} cannot embed a text"):
            encoded = model.encode(
                list(TEXTS),
                batch_size=_TOGETHER,
                prompt=tokenizer.prompts["document"],  # "" keeps a model from adding one of its own
                normalize_embeddings=False,
                convert_to_numpy=True,
                show_progress_bar=False,
                truncate_dim=None,
            )
        vectors: Vectors = np.asarray(encoded, np.float32)[:, : self._profile.dim]
        lacking = int((~np.isfinite(vectors).all(axis=1)).sum())
        if self._unloaded and lacking > _MAY_BE_EMPTY:
            names = ", ".join(self._unloaded[:_NAMED])
            raise SetupError(
                f"{layout.root} lacks {len(self._unloaded)} tensors that its vectors"
                f" need: {names}{', ...' if len(self._unloaded) > _NAMED else ''}",
                "loading would fill them with random or constant values; the checkpoint is incomplete,"
                " holds NaN, or its tensors have other names than this architecture's",
                "download the model again, or save it again with save_pretrained()",
            )
        return vectors

    def fastest(self, wanted: str) -> SentenceEncoder:
        """Return the first way that keeps the vectors, of the wanted number type if possible."""
        model = self.model()
        golden = self.reference(model)
        self._arithmetic = Arithmetic(model[0].model)
        narrows = linears.is_available() and linears.has_bfloat16() and wanted == "bfloat16"
        if self._device == "cpu" and wanted != "float32" and not narrows:
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
        plain = self._encoder(model, self._padded, "float32")
        least = _cosine(golden, plain)
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
                self._padded.pad_id,
                _padding_idx(transformer),
                DTYPES[dtype],
                self._padded.type_ids,
                shapes=None if self._device == "cpu" else _SHAPES,
                name="compiled packed" if is_compiled else "packed",
            )
        else:
            self._notes.append(
                f"{type(transformer).__name__} has an attention that cannot be replaced:"
                " padded batches instead of packed ones"
            )
        if not is_compiled:
            transformer.set_attn_implementation(stock)
            yield self._padded

    def _with(self, model: Any, form: Form, dtype: str, golden: Vectors) -> SentenceEncoder | None:
        """Return an encoder of this form, or None and a note that says why it does not keep the vectors."""
        from torch._dynamo.exc import FailOnRecompileLimitHit

        encoder = self._encoder(model, form, dtype)
        try:
            least = _cosine(golden, encoder)
            why = f"cosine {least:.7f}, at least {_LEAST_COSINE[dtype]} is needed"
        except torch.OutOfMemoryError:
            raise
        except (*_NOT_MADE_FOR_IT, FailOnRecompileLimitHit) as error:
            least, why = -1.0, shorten(f"{type(error).__name__}: {error}", _MOST_SAID)
        if least >= _LEAST_COSINE[dtype]:
            return encoder
        self._notes.append(f"not {encoder.path}: {why}")
        return None

    def _encoder(self, model: Any, form: Form, dtype: str) -> SentenceEncoder:
        encoder = SentenceEncoder(
            self._profile, model, self._device, self._batch_tokens, form, dtype
        )
        encoder.notes = tuple(dict.fromkeys(self._notes))
        encoder.flop_of = self._arithmetic.of
        return encoder


def _cosine(golden: Vectors, encoder: SentenceEncoder) -> float:
    return least_cosine(golden, encoder.embed(encoder.tokenize(TEXTS, "document")))[0]


def _is_exchangeable(transformer: Any) -> bool:
    """Whether the model's attention can be replaced."""
    return bool(getattr(transformer, "is_backend_compatible", bool)())


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


def _dtype(profile: Profile, device: str, dtype: str) -> str:
    """Return the number type that `dtype` means here."""
    if dtype != "auto":
        return dtype
    if not device.startswith("cuda"):
        return "float32"
    stored = {tensor.dtype for tensor in profile.layout.modules[0].tensors().values()}
    return "bfloat16" if "BF16" in stored else "float16"

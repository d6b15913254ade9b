"""sentence-transformers models: batches by token count, the model's own modules, fp32 pooling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from reembed.encoders.base import Kind, Tokens, Vectors
from reembed.encoders.profile import Profile, read_profile
from reembed.errors import EncoderError

if TYPE_CHECKING:
    from reembed.config import EncoderConfig

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class SentenceEncoder:
    """A loaded model; one caller at a time."""

    def __init__(self, profile: Profile, model: Any, device: str, batch_tokens: int) -> None:
        """Take a model that is loaded, on `device` and in evaluation mode."""
        self.dim = profile.dim
        self.device = device
        self._profile = profile
        self._tokenizer = profile.tokenizer
        self._model = model
        self.batch_tokens = batch_tokens
        self._static = profile.layout.has("StaticEmbedding")

    def tokenize(self, texts: Sequence[str], kind: Kind) -> Tokens:
        """Prompt put before, special tokens added, cut at max_length."""
        return self._tokenizer.tokenize(texts, kind)

    def embed(self, tokens: Tokens) -> Vectors:
        """float32 [N, dim], C-contiguous, in the order given.

        A row is NaN where the vector before normalizing is zero (a static model's empty text) and,
        with attention, where a text has no tokens at all; other non-finite values stay as they are.

        Raises:
            torch.OutOfMemoryError: a batch of batch_tokens does not fit the device.
        """
        out = torch.full((len(tokens), self.dim), torch.nan, device=self.device)
        with torch.inference_mode():
            for rows in self._batches(tokens.lengths):
                features = self._flat(tokens, rows) if self._static else self._padded(tokens, rows)
                place = torch.from_numpy(rows).to(self.device)
                out[place] = self._finish(self._forward(features))
        return np.ascontiguousarray(out.cpu().numpy())

    def shrink(self, tokens: Tokens) -> bool:
        """Halve batch_tokens for good, and give back what the device holds in reserve.

        False when these texts go one by one already.
        """
        if len(tokens) <= 1 or self.batch_tokens <= int(tokens.lengths.max()):
            return False
        self.batch_tokens //= 2
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
        return True

    def _batches(self, lengths: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
        """Rows of each forward pass, longest texts first: the first batch is the largest."""
        order = np.argsort(-lengths, kind="stable")
        if not self._static:
            order = order[lengths[order] > 0]
        start = 0
        while start < len(order):
            count = max(1, self.batch_tokens // max(1, int(lengths[order[start]])))
            yield order[start : start + count]
            start += count

    def _flat(self, tokens: Tokens, rows: npt.NDArray[np.int64]) -> dict[str, Any]:
        batch = tokens.take(rows)
        return {
            "input_ids": torch.from_numpy(batch.ids).long().to(self.device),
            "offsets": torch.from_numpy(batch.offsets[:-1].copy()).to(self.device),
        }

    def _padded(self, tokens: Tokens, rows: npt.NDArray[np.int64]) -> dict[str, Any]:
        """Padding goes to the right always: so positions do not depend on a text's neighbours."""
        batch = tokens.take(rows)
        lengths = batch.lengths
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids = np.full(mask.shape, self._tokenizer.pad_id, np.int64)
        ids[mask] = batch.ids
        features: dict[str, Any] = {
            "input_ids": torch.from_numpy(ids).to(self.device),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)).to(self.device),
        }
        if self._tokenizer.type_ids:
            features["token_type_ids"] = torch.zeros_like(features["input_ids"])
        if tokens.prompt_length:
            features["prompt_length"] = tokens.prompt_length
        return features

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


def load(config: EncoderConfig, device: str, dtype: str, batch_tokens: int) -> SentenceEncoder:
    """The model of `config` on `device`.

    Raises:
        EncoderError: it is missing, unsafe, unsupported or damaged, or a setting does not fit it.
    """
    profile = read_profile(config)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = _load_modules(profile, device, _dtype(profile, device, dtype))
    pooling = next((module for module in model if type(module).__name__ == "Pooling"), None)
    if config.pooling is not None and pooling is not None:
        pooling.pooling_mode = config.pooling
    return SentenceEncoder(profile, model, device, batch_tokens)


def _load_modules(profile: Profile, device: str, dtype: torch.dtype) -> Any:
    from safetensors import SafetensorError
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    quiet: Any = logging.disable_progress_bar
    quiet()
    options = {"dtype": dtype, "use_safetensors": True}
    try:
        model = SentenceTransformer(
            str(profile.layout.root),
            device=device,
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs=options,
        )
    except torch.OutOfMemoryError:
        raise
    except (
        OSError, ValueError, TypeError, AttributeError, RuntimeError, KeyError, ImportError, SafetensorError,
    ) as error:  # fmt: skip
        raise EncoderError(
            f"{profile.layout.root} cannot be loaded", f"{type(error).__name__}: {error}"
        ) from error
    for module in model:
        if type(module).__name__ != "Transformer":
            module.float()
    return model.eval()


def _dtype(profile: Profile, device: str, dtype: str) -> torch.dtype:
    """Number type of the transformer's weights."""
    if dtype in _DTYPES:
        return _DTYPES[dtype]
    if dtype != "auto":
        raise EncoderError(f"embed.dtype {dtype} is none of {', '.join(['auto', *_DTYPES])}")
    if not device.startswith("cuda"):
        return torch.float32
    stored = {tensor["dtype"] for tensor in profile.layout.modules[0].header().values()}
    return torch.bfloat16 if "BF16" in stored else torch.float16

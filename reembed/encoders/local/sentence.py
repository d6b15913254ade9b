"""A loaded sentence-transformers model: packed batches through its own modules, pooled in float32."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from reembed.encoders.base import EncoderStats, Kind, Rows, Vectors
from reembed.encoders.local import compiled, linears
from reembed.encoders.local.batches import Features, Form, Packed, distinct, longest_first, off, on
from reembed.encoders.local.profile import Profile
from reembed.encoders.tokens import TokenEncoder, Tokens
from reembed.space import Space

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# A plain RuntimeError, where it is not a torch.OutOfMemoryError: the CPU's allocator, cuBLAS's.
_NO_MEMORY = ("DefaultCPUAllocator: ", "CUBLAS_STATUS_ALLOC_FAILED")


class SentenceEncoder(TokenEncoder):
    """A loaded model. Threads may share it; the stats of documents are then those of all threads."""

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
        self.peak_flops = 0.0
        self.flop_of: Callable[[Rows], float] = lambda lengths: 0.0
        self._profile = profile
        self._model = model
        self._form = form
        # Computing again in float32 converts the weights in place.
        self._alone: AbstractContextManager[object] = nullcontext()
        if dtype == "float16":
            self._alone = threading.Lock()

    @property
    def path(self) -> str:
        """Form and number type."""
        return f"{self._form.name} {self.dtype}"

    @property
    def about(self) -> EncoderStats:
        return EncoderStats(self.device, self.path, self.notes, self.batch_tokens, self.peak_flops)

    def describe(self) -> Space:
        return self._profile.space

    def tokenize(self, texts: Sequence[str], kind: Kind) -> Tokens:
        return self._profile.tokenizer.tokenize(texts, kind)

    def embed(self, tokens: Tokens) -> Vectors:
        """Return float32 [N, dim], C-contiguous, in the order given; equal texts are embedded once.

        A row is NaN where the vector before normalizing is zero (a static model's empty text) and,
        with attention, where a text has no tokens at all. Other non-finite values stay as they are,
        except that those of float16 are computed again in float32.

        A batch that does not fit the device's memory is split in two, and batch_tokens stays that
        small; a single text that does not fit raises torch.OutOfMemoryError.
        """
        once, like = distinct(tokens)
        with self._alone:
            vectors = self._embed(once)
            if self.dtype == "float16":
                bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1) & (once.lengths > 0))
                if len(bad):
                    with self._in_float32():
                        vectors[bad] = self._embed(once.take(bad))
        if len(once) == len(tokens):
            return vectors
        return vectors[like]

    def _embed(self, tokens: Tokens) -> Vectors:
        out = torch.full((len(tokens), self.dim), torch.nan, device=self.device)
        lengths = tokens.lengths
        todo = longest_first(lengths, self._form)
        with torch.inference_mode():
            while len(todo):
                rows = todo[: self._form.fit(lengths[todo], self.batch_tokens)]
                vectors = self._batch(tokens.take(rows))
                if vectors is None:
                    fitted = min(self.batch_tokens, int(lengths[rows].sum()))
                    self.batch_tokens = max(1, fitted // 2)
                    if self.device.startswith("cuda"):
                        torch.cuda.empty_cache()
                    continue
                out[on(self.device, rows)] = vectors
                todo = todo[len(rows) :]
        return off(out)

    def _batch(self, batch: Tokens) -> torch.Tensor | None:
        """Return the vectors, or None if the batch does not fit the device's memory but a part may."""
        try:
            features = self._form.features(batch, self.device, self.batch_tokens)
            if batch.prompt_length:
                features["prompt_length"] = batch.prompt_length
            computed = features["input_ids"].numel()
            vectors = self._finish(self._forward(features)[: len(batch)])
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error) or len(batch) == 1:
                raise
            return None
        lengths = batch.lengths
        self.counts += EncoderStats(
            model_tokens=int(lengths.sum()), computed_tokens=computed, flop=self.flop_of(lengths)
        )
        return vectors

    def _forward(self, features: Features) -> torch.Tensor:
        """Run the modules in order; those after the transformer compute in float32."""
        for module in self._model:
            features = module(features)
            for key in ("token_embeddings", "sentence_embedding"):
                if key in features:
                    features[key] = features[key].float()
        vectors: torch.Tensor = features["sentence_embedding"]
        return vectors

    def _finish(self, vectors: torch.Tensor) -> torch.Tensor:
        vectors = vectors[:, : self.dim]
        if self._profile.normalize:
            vectors = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        return vectors

    @contextmanager
    def _in_float32(self) -> Iterator[None]:
        """Compute in float32 for a while: activations may exceed float16's range, weights do not."""
        try:
            self._compute_in(torch.float32)
            with compiled.as_written(self._model[0]):
                yield
        finally:
            self._compute_in(DTYPES[self.dtype])

    def _compute_in(self, dtype: torch.dtype) -> None:
        for module in self._model[0].modules():
            if isinstance(module, linears.NarrowLinear):
                module.to(dtype)
        if isinstance(self._form, Packed):
            self._form.dtype = dtype


def _is_out_of_memory(error: BaseException) -> bool:
    said = str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        words in said for words in _NO_MEMORY
    )

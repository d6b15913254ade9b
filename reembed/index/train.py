"""Choose the kind of an index and train it on a sample, without filling it.

Shapes: N vectors in the table, D dimensions.
"""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from reembed.config.settings import IndexConfig
from reembed.errors import ReembedError, UsageError
from reembed.index.exact import VectorSource, check_vectors
from reembed.index.factories import (
    LEAST_PER_LIST,
    choose_factory,
    is_filled_on_gpu,
    lists_of,
    rows_trained_on,
)
from reembed.index.search import reason


def gpu_available() -> bool:
    """Return whether FAISS can use a GPU here; builds for GPUs run on machines without one."""
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


def require_gpu() -> None:
    """Raise ReembedError if FAISS cannot use a GPU here."""
    if not gpu_available():
        raise ReembedError(
            "index.device is gpu, but FAISS finds no GPU here",
            "either this machine has none or the faiss-cpu package is installed",
            "reembed run --set index.device=auto",
        )


def factory_of(config: IndexConfig, rows: int, dim: int) -> str:
    """Return the factory string that the settings mean for N vectors of D dimensions."""
    if config.factory != "auto":
        return config.factory
    # Only an explicit gpu changes the kind of index: auto gives the same one on every machine.
    return choose_factory(rows, dim, gpu=config.device == "gpu")


@dataclass(frozen=True)
class Device:
    """Where an index is trained and filled."""

    resources: Any
    """FAISS's GPU resources; None on a CPU."""
    whole: bool
    """Whether this kind of index is filled on the GPU, too."""

    @classmethod
    def choose(cls, factory: str, wanted: str) -> Device:
        """Return where an index is built here; `wanted` is the setting index.device.

        Raises:
            ReembedError: a GPU is wanted and FAISS finds none.
        """
        if wanted == "gpu":
            require_gpu()
        if wanted == "cpu" or not gpu_available():
            return cls(None, whole=False)
        return cls(faiss.StandardGpuResources(), is_filled_on_gpu(factory, wanted))

    def name(self, factory: str) -> str:
        """Return where an index of this kind is built, for people."""
        if self.whole:
            return "gpu"
        if self.resources is None or factory == "Flat":
            return "cpu"
        part = "its lists were trained on the GPU" if "IVF" in factory else "nothing ran there"
        return f"cpu ({factory} cannot be on a GPU; {part})"

    def moved_to(self, index: Any) -> Any:
        """Return the index where it is filled."""
        return faiss.index_cpu_to_gpu(self.resources, 0, index) if self.whole else index

    def moved_back(self, index: Any) -> Any:
        """Return the index on the CPU."""
        return faiss.downcast_index(faiss.index_gpu_to_cpu(index)) if self.whole else index


def train(source: VectorSource, factory: str, device: Device, lists: Any = None) -> Any:
    """Return a FAISS index without vectors that learned the distribution of a sample of `source`.

    `lists` is a trained index of other codes whose lists are taken; those of a GPU are trained there again.

    Raises:
        UsageError: the factory string is wrong, or does not fit the vectors.
        IntegrityError: a sampled vector is not finite or of another dimension.
    """
    index = _empty(factory, source.dim)
    if index.is_trained:
        return index
    sample = _sample(source, factory)
    if lists is not None and not device.whole:
        own: Any = faiss.try_extract_index_ivf(index)
        other: Any = faiss.try_extract_index_ivf(lists)
        centroids = other.quantizer.reconstruct_n(0, other.quantizer.ntotal)
        own.quantizer.add(centroids)  # FAISS trains none then
    index = device.moved_to(index)
    ivf: Any = None
    if device.resources is not None and not device.whole:
        ivf = faiss.try_extract_index_ivf(index)
    try:
        if ivf is not None:
            # Held in a name: FAISS keeps only a pointer to it.
            helper = faiss.index_cpu_to_gpu(device.resources, 0, faiss.IndexFlatIP(ivf.d))
            ivf.clustering_index = helper
        index.train(sample)
    except RuntimeError as error:
        raise _does_not_fit(factory, f"{source.rows:,} vectors", reason(error)) from error
    finally:
        if ivf is not None:
            ivf.clustering_index = None
    return device.moved_back(index)


def require_factory(factory: str, dim: int) -> None:
    """Check that FAISS can make an index of this kind for D dimensions; "auto" always can.

    Raises:
        UsageError: the factory string is wrong, or does not fit the dimensions.
    """
    if factory != "auto":
        _empty(factory, dim)


def require_trainable(factory: str, rows: int, dim: int) -> None:
    """Check that N vectors are enough to train the lists of a factory string.

    Raises:
        UsageError: they are not.
    """
    lists, read = lists_of(factory), rows_trained_on(factory, rows, dim)
    if read < LEAST_PER_LIST * lists:
        fit = 2 ** int(math.log2(max(1, read // LEAST_PER_LIST)))
        smaller = f"index.factory={factory.replace(f'IVF{lists}', f'IVF{fit}')}"
        raise UsageError(
            f"index.factory {factory!r} does not fit {rows:,} vectors",
            f"{lists:,} lists are trained on at least {LEAST_PER_LIST * lists:,} vectors, {read:,} can be read",
            f"reembed run --set {shlex.quote(smaller)}     # or auto",
        )


def _sample(source: VectorSource, factory: str) -> Any:
    """Return float32 [., D] to train on: 64 vectors a list as far as memory allows, at least 39."""
    require_trainable(factory, source.rows, source.dim)
    rows = rows_trained_on(factory, source.rows, source.dim)
    sample = np.ascontiguousarray(source.sample_ranges(rows, seed=0), dtype=np.float32)
    check_vectors(sample, source.dim)
    return sample


def _empty(factory: str, dim: int) -> Any:
    """Return a new index without vectors."""
    # Positions are the ids: a map to other ids would take 50 bytes per vector.
    inner = re.sub(r"^(IDMap2?,)+", "", factory)
    try:
        return faiss.index_factory(dim, inner, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise _does_not_fit(factory, f"{dim} dimensions", reason(error)) from error


def _does_not_fit(factory: str, data: str, why: str) -> UsageError:
    return UsageError(
        f"index.factory {factory!r} does not fit {data}",
        f"FAISS says: {why}",
        "reembed run --set index.factory=auto",
    )

"""The encoder on CUDA: the same vectors, texts independent of neighbours, memory that is too small.

Needs torch, transformers and sentence-transformers alone; not part of the usual run: pytest -m gpu.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from reembed.config.settings import EncoderConfig
from reembed.encoders.base import Vectors
from reembed.encoders.local.load import load
from reembed.encoders.local.sentence import SentenceEncoder

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny_models

pytestmark = pytest.mark.gpu
PACKED = [a for a in tiny_models.ARCHITECTURES if a not in ("mpnet", "deberta-v2", "t5")]
WORDS = ("the", "wing", "of", "a", "slip", "stream", "carries", "seven", "engines", "over")


@pytest.fixture(autouse=True)
def compiled_afresh() -> None:
    """What an earlier test compiled says nothing of this one."""
    torch.compiler.reset()
    counters.clear()


def texts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 90))) for _ in range(count)]


def vectors(encoder: SentenceEncoder, given: list[str]) -> Vectors:
    return encoder.embed(encoder.tokenize(given, "document"))


# They begin with a linear from 16 values; with random weights that loses more digits in float16 than
# the canary allows.
IN_FLOAT32 = ("electra", "albert")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("architecture", PACKED)
def test_vectors_are_those_of_the_cpu(tmp_path: Path, architecture: str, dtype: str) -> None:
    section = EncoderConfig(model=str(tiny_models.model_of(tmp_path / "m", architecture)))
    given = texts(200)
    golden = vectors(load(section, "cpu", "float32", 4_096), given)
    encoder = load(section, "cuda", dtype, 4_096, for_job=True)
    if dtype == "float32" or architecture in IN_FLOAT32:
        assert encoder.path == "packed float32", encoder.notes
        assert all("is needed" in note for note in encoder.notes)
    else:
        assert encoder.path == "compiled packed float16", encoder.notes
        assert counters["stats"]["unique_graphs"] > 0
    cosines = (vectors(encoder, given) * golden).sum(axis=1)
    assert cosines.min() > (0.999999 if dtype == "float32" else 0.9999)


def test_a_vector_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    section = EncoderConfig(model=str(tiny_models.model_of(tmp_path / "m", "bert")))
    encoder = load(section, "cuda", "float16", 4_096, for_job=True)
    given = texts(200)
    found = vectors(encoder, given)
    order = np.random.default_rng(1).permutation(len(given))
    away = np.abs(vectors(encoder, [given[i] for i in order]) - found[order]).max()
    assert away < 1e-3


def test_a_batch_too_large_for_the_memory_is_halved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = EncoderConfig(model=str(tiny_models.model_of(tmp_path / "m", "bert")))
    encoder = load(section, "cuda", "float16", 1 << 24, for_job=True)
    given = texts(2_000)
    found = vectors(encoder, given)
    plain = SentenceEncoder._forward

    def hungry(self: SentenceEncoder, features: dict[str, torch.Tensor]) -> torch.Tensor:
        needs = features["input_ids"].numel() / 20_000  # more than there is beyond 20,000 tokens
        free, _ = torch.cuda.mem_get_info()
        torch.empty(int(needs * free), dtype=torch.uint8, device="cuda")
        return plain(self, features)

    monkeypatch.setattr(SentenceEncoder, "_forward", hungry)
    halved = vectors(encoder, given)
    assert encoder.batch_tokens < 40_000
    assert (halved * found).sum(axis=1).min() > 0.9999


def test_batches_of_other_sizes_compile_nothing_more(tmp_path: Path) -> None:
    section = EncoderConfig(model=str(tiny_models.model_of(tmp_path / "m", "bert")))
    encoder = load(section, "cuda", "float16", 4_096, for_job=True)
    vectors(encoder, texts(50))
    with torch.compiler.set_stance("fail_on_recompile"):
        for count in (3, 200, 700):
            assert np.isfinite(vectors(encoder, texts(count))).all()


def test_values_beyond_float16_are_computed_again_as_the_modules_are_written(
    tmp_path: Path,
) -> None:
    section = EncoderConfig(model=str(tiny_models.model_of(tmp_path / "m", "bert")))
    encoder = load(section, "cuda", "float16", 4_096, for_job=True)
    given = texts(100)
    expected = vectors(encoder, given)
    layer = encoder._model[0].model.encoder.layer[0]
    with torch.no_grad():
        layer.intermediate.dense.bias[0] = 65_000  # what the next product makes of it is more
        layer.output.dense.weight[:, 0] = 2.0
    with torch.compiler.set_stance("fail_on_recompile"):
        found = vectors(encoder, given)
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() > 1e-3

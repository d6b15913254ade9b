"""Packed batches: the same vectors for every architecture, bit for bit whatever lies beside a text."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from reembed.config import EncoderConfig
from reembed.encoders import canary, linears
from reembed.encoders.base import Tokens, Vectors
from reembed.encoders.batches import Packed, Padded, distinct, plan
from reembed.encoders.sentence import SentenceEncoder, load

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny_models

PACKED = [a for a in tiny_models.ARCHITECTURES if a not in ("mpnet", "deberta-v2", "t5")]
WORDS = (
    "the",
    "wing",
    "of",
    "a",
    "slip",
    "stream",
    "carries",
    "seven",
    "engines",
    "over",
    "copper",
)


def texts(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 60))) for _ in range(count)]


def opened(folder: Path, dtype: str = "float32", budget: int = 400) -> SentenceEncoder:
    return load(EncoderConfig(model=str(folder)), "cpu", dtype, budget)


def embed(encoder: SentenceEncoder, given: list[str]) -> Vectors:
    return encoder.embed(encoder.tokenize(given, "document"))


def one_by_one(folder: Path, given: list[str]) -> Vectors:
    """What the stock modules make of each text alone, without padding."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    return np.stack([model.encode(text, normalize_embeddings=True) for text in given])


@pytest.mark.parametrize("architecture", PACKED)
def test_packed_vectors_are_those_of_each_text_alone(tmp_path: Path, architecture: str) -> None:
    folder = tiny_models.model_of(tmp_path / "m", architecture)
    given = texts(24)
    encoder = opened(folder)
    assert encoder.path == "packed float32", encoder.notes
    found = embed(encoder, given)
    assert np.abs(found - one_by_one(folder, given)).max() < 5e-6


@pytest.mark.parametrize("architecture", ["mpnet", "deberta-v2", "t5"])
def test_models_without_exchangeable_attention_are_padded_and_say_so(
    tmp_path: Path, architecture: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_models.model_of(tmp_path / "m", architecture)
    given = texts(12)
    encoder = opened(folder)
    assert encoder.path == "padded float32"
    assert len([r for r in caplog.records if "padded batches instead" in r.message]) == 1
    assert np.abs(embed(encoder, given) - one_by_one(folder, given)).max() < 5e-6


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "qwen3", "gemma3_text"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_vector_is_the_same_bit_for_bit_whatever_lies_beside_it(
    tmp_path: Path, architecture: str, dtype: str
) -> None:
    if dtype == "bfloat16" and not linears.has_bfloat16():
        pytest.skip("this processor does not compute in bfloat16")
    encoder = opened(tiny_models.model_of(tmp_path / "m", architecture), dtype)
    if dtype == "bfloat16" and encoder.dtype != dtype:
        pytest.skip(f"random weights of this size do not keep the canary: {encoder.notes}")
    given = texts(40)
    found = embed(encoder, given)
    order = np.random.default_rng(1).permutation(len(given))
    assert np.array_equal(embed(encoder, [given[i] for i in order]), found[order])
    alone = np.concatenate([embed(encoder, [text]) for text in given[:12]])
    assert np.array_equal(alone, found[:12])
    encoder.batch_tokens = 97
    assert np.array_equal(embed(encoder, given), found)


@pytest.mark.parametrize("architecture", PACKED)
def test_bfloat16_keeps_the_canarys_cosine_or_is_not_used(
    tmp_path: Path, architecture: str
) -> None:
    folder = tiny_models.model_of(tmp_path / "m", architecture)
    encoder = opened(folder, "bfloat16")
    given = texts(24)
    cosines = (embed(encoder, given) * one_by_one(folder, given)).sum(axis=1)
    if encoder.dtype == "bfloat16":
        assert cosines.min() >= 0.999
    else:
        assert encoder.notes
        assert cosines.min() >= 0.999999


def test_a_model_whose_packed_vectors_differ_is_padded_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reembed.encoders.sentence._first_position", lambda model: 7)
    folder = tiny_models.model_of(tmp_path / "m", "bert")
    encoder = opened(folder)
    assert encoder.path == "padded float32"
    assert any("not packed float32: cosine" in note for note in encoder.notes)
    given = texts(8)
    assert np.abs(embed(encoder, given) - one_by_one(folder, given)).max() < 5e-6


def test_without_the_operator_the_models_own_linears_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linears, "is_available", lambda: False)
    folder = tiny_models.model_of(tmp_path / "m", "bert")
    encoder = opened(folder, "bfloat16")
    assert "does not compute in bfloat16" in encoder.notes[0]
    assert encoder.path == "packed float32"
    given = texts(8)
    assert np.abs(embed(encoder, given) - one_by_one(folder, given)).max() < 5e-6


def test_prepacked_linears_are_bitwise_independent_of_the_rows_beside() -> None:
    linear = torch.nn.Linear(96, 160)
    x = torch.randn(257, 96)
    after = {
        ("none", ""): torch.nn.Identity(),
        ("gelu", "none"): torch.nn.GELU(),
        ("gelu", "tanh"): torch.nn.GELU("tanh"),
        ("swish", ""): torch.nn.SiLU(),
    }
    for activation, function in after.items():
        packed = linears.PrepackedLinear(linear, torch.float32, activation)
        with torch.inference_mode():
            whole = packed(x)
            expected = function(linear(x))
            assert torch.allclose(whole, expected, atol=1e-5)
            for rows in (1, 2, 17, 100):
                assert torch.equal(packed(x[:rows]), whole[:rows])


def test_values_beyond_float16_are_computed_again_in_float32(tmp_path: Path) -> None:
    folder = tiny_models.model_of(tmp_path / "m", "bert")
    encoder = opened(folder)
    given = texts(6)
    right = embed(encoder, given)
    from reembed.encoders.sentence import _Loader

    model = _Loader(encoder._profile, EncoderConfig(model=str(folder)), "cpu", 400).model()
    model[0].half()
    with torch.no_grad():
        model[0].model.encoder.layer[0].output.dense.bias[3] = 60_000.0
        model[0].model.encoder.layer[0].intermediate.dense.bias[3] = 60_000.0
        model[0].model.encoder.layer[0].output.dense.weight[3, 3] = 10.0
    half = SentenceEncoder(
        encoder._profile, model, "cpu", 400, Padded(0, type_ids=False), "float16"
    )
    assert np.isfinite(embed(half, given)).all()
    half.dtype = "float32 as it were"
    assert not np.isfinite(embed(half, given)).all()
    assert np.isfinite(right).all()


def test_equal_texts_are_embedded_once() -> None:
    tokens = Tokens(np.array([1, 2, 1, 2, 3, 3], np.int32), np.array([0, 2, 4, 5, 6, 6]))
    once, like = distinct(tokens)
    assert once.ids.tolist() == [1, 2, 3]
    assert once.offsets.tolist() == [0, 2, 3, 3]
    assert like.tolist() == [0, 0, 1, 1, 2]


def test_a_packed_batch_holds_at_most_its_tokens_and_every_text_once() -> None:
    lengths = np.random.default_rng(0).integers(0, 300, 500)
    form = Packed(0, 0, torch.float32, type_ids=False)
    batches = list(plan(lengths, form, 1_000))
    assert sorted(np.concatenate(batches).tolist()) == np.flatnonzero(lengths).tolist()
    sums = [int(lengths[rows].sum()) for rows in batches]
    assert max(sums) <= 1_000
    assert np.mean(sums[:-1]) > 850
    assert [r.tolist() for r in plan(np.array([2_000, 5]), form, 1_000)] == [[0], [1]]


def test_the_canarys_texts_are_what_they_are_meant_to_be() -> None:
    assert len(canary.TEXTS) == 32
    assert canary.TEXTS.count("Two words") == 2
    assert "" in canary.TEXTS
    assert max(map(len, canary.TEXTS)) > 3 * 512

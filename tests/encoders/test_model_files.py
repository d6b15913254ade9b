"""What a model folder does not hold, or hides, is refused: equal digests mean equal vectors."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import bert_model, static_model

from reembed import encoders
from reembed.config.settings import EncoderConfig
from reembed.encoders.local import files
from reembed.encoders.local.files import _default_modules, _foreign_files, read_layout
from reembed.encoders.local.json_files import read_json
from reembed.errors import EncoderError


def load(folder):
    return encoders.load_encoder(EncoderConfig(model=str(folder)))


def space(folder) -> str:
    return encoders.describe(EncoderConfig(model=str(folder)), "float32").id


def rewrite(folder, change, file="model.safetensors"):
    tensors = load_file(folder / file)
    save_file(change(tensors), folder / file, metadata={"format": "pt"})


def setting(file, **values):
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**content, **values}))


LACKING = {
    "a matrix": lambda t: {k: v for k, v in t.items() if "layer.1.attention.self.query.weight" not in k},
    "a bias": lambda t: {k: v for k, v in t.items() if "layer.0.output.dense.bias" not in k},
    "a norm": lambda t: {k: v for k, v in t.items() if "layer.1.output.LayerNorm.weight" not in k},
    "the embeddings of types": lambda t: {k: v for k, v in t.items() if "token_type" not in k},
    "everything": lambda t: {f"other.{k}": v for k, v in t.items()},
}  # fmt: skip
HARMLESS = {
    "no pooler": lambda t: {k: v for k, v in t.items() if "pooler" not in k},
    "another prefix that is known": lambda t: {f"bert.{k}": v for k, v in t.items()},
    "old names": lambda t: {
        k.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): v
        for k, v in t.items()
    },
    "half precision": lambda t: {k: v.half() for k, v in t.items()},
}


@pytest.mark.parametrize("what", LACKING)
def test_a_checkpoint_without_tensors_that_vectors_need_is_refused(tmp_path, what):
    folder = bert_model(tmp_path / "bert")
    rewrite(folder, LACKING[what])
    with pytest.raises(EncoderError, match=r"lacks \d+ tensors"):
        load(folder)


@pytest.mark.parametrize("what", HARMLESS)
def test_a_checkpoint_that_has_all_that_is_used_is_loaded(tmp_path, what):
    folder = bert_model(tmp_path / "bert")
    whole = load(folder)
    rewrite(folder, HARMLESS[what])
    again = load(folder)
    a, b = (e.embed(e.tokenize(["some words"], "document")) for e in (whole, again))
    assert float((a * b).sum()) > 0.9999


def test_a_model_with_a_tensor_of_more_values_than_float32_counts_is_loaded(tmp_path):
    rows = 29_004 * 24  # as many values as 29,004 words of 768: the vocabulary of a BERT-base
    name = "embeddings.word_embeddings.weight"
    bert_model(tmp_path)
    rewrite(tmp_path, lambda t: {**t, name: t[name].repeat(rows // len(t[name]) + 1, 1)[:rows]})
    setting(tmp_path / "config.json", vocab_size=rows)
    assert np.isfinite(load(tmp_path).embed(load(tmp_path).tokenize(["a wing"], "document"))).all()


def test_a_static_model_without_its_tokenizer_file_is_refused(tmp_path):
    folder = static_model(tmp_path / "static")
    assert np.isfinite(load(folder).embed(load(folder).tokenize(["word"], "document"))).all()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(EncoderError):
        load(folder)


def other_tokenizer(tmp_path):
    return bert_model(tmp_path / "elsewhere", lowercase_by_st=True)


@pytest.mark.parametrize("key", ["tokenizer_file", "vocab_file"])
def test_a_tokenizer_file_outside_the_folder_is_refused(tmp_path, key):
    folder = bert_model(tmp_path / "bert")
    setting(
        folder / "tokenizer_config.json", **{key: str(other_tokenizer(tmp_path) / "tokenizer.json")}
    )
    with pytest.raises(EncoderError, match=key):
        space(folder)


def test_a_path_of_the_machine_that_a_model_was_saved_on_is_left_out(tmp_path):
    folder = bert_model(tmp_path / "bert")
    before = load(folder)
    setting(
        folder / "tokenizer_config.json",
        special_tokens_map_file="/home/nobody/.cache/special_tokens_map.json",
        tokenizer_file="/home/nobody/.cache/tokenizer.json",
    )
    again = load(folder)
    a, b = (e.embed(e.tokenize(["some words"], "document")) for e in (before, again))
    assert np.array_equal(a, b)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("tokenizer_config.json", "fast_tokenizer_files", ["tokenizer.4.0.0.json"]),
        ("config.json", "transformers_weights", "other.safetensors"),
        ("sentence_bert_config.json", "model_kwargs", {"variant": "fp16"}),
        ("sentence_bert_config.json", "model_args", {"subfolder": "../other"}),
        ("sentence_bert_config.json", "processor_kwargs", {"tokenizer_file": "/etc/passwd"}),
        ("sentence_bert_config.json", "config_args", {"vocab_size": 3}),
    ],
)
def test_settings_that_choose_other_files_are_refused_by_name(tmp_path, file, key, value):
    folder = bert_model(tmp_path / "bert")
    setting(folder / file, **{key: value})
    named = key if file != "sentence_bert_config.json" else next(iter(value))
    with pytest.raises(EncoderError, match=named):
        space(folder)


@pytest.mark.parametrize(
    "name", ["tokenizer.5.0.0.json", "vocab.txt", "spiece.model", "extra.json"]
)
def test_every_file_that_loading_could_read_is_in_the_space(tmp_path, name):
    folder = bert_model(tmp_path / "bert")
    before = space(folder)
    (folder / name).write_text("{}")
    assert space(folder) != before


def test_notes_beside_a_model_do_not_make_it_another(tmp_path):
    folder = bert_model(tmp_path / "bert")
    before = space(folder)
    for name in ("README.md", "generation_config.json", "pytorch_model.bin", ".gitattributes"):
        (folder / name).write_text("{}")
    assert space(folder) == before


def test_loading_sees_only_files_that_the_space_covers(tmp_path):
    """A file that is no part of the digests is not there for the libraries either."""
    folder = bert_model(tmp_path / "bert")
    hidden = folder / "tokenizer.json.bak"
    shutil.copy(folder / "tokenizer.json", hidden)
    from reembed.encoders.local.files import read_layout

    with read_layout(folder).staged() as place:
        seen = {str(f.relative_to(place)) for f in place.rglob("*") if f.is_file()}
    assert seen == {
        "1_Pooling/config.json",
        "config.json",
        "config_sentence_transformers.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_a_folder_that_cuts_beyond_its_positions_is_refused(tmp_path):
    folder = bert_model(tmp_path / "bert", max_length=64)
    setting(folder / "sentence_bert_config.json", max_seq_length=100)
    with pytest.raises(EncoderError, match="cuts texts at 100 tokens") as refused:
        space(folder)
    assert refused.value.fix == "reembed run --set encoder.max_length=64"
    encoders.describe(EncoderConfig(model=str(folder), max_length=64), "float32")


def test_an_added_token_without_a_row_is_refused(tmp_path):
    folder = bert_model(tmp_path / "bert")
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    rows = load_file(folder / "model.safetensors")["embeddings.word_embeddings.weight"].shape[0]
    token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    content["added_tokens"].append({"id": rows, "content": "[NEW]", "special": True, **token})
    file.write_text(json.dumps(content))
    with pytest.raises(EncoderError, match=r"\[NEW\]"):
        space(folder)


def test_a_folder_that_is_named_like_a_file_is_not_read(tmp_path):
    folder = bert_model(tmp_path / "bert")
    before = space(folder)
    for name in ("notes.json", "more.txt", "tokens.model"):
        (folder / name).mkdir()
    assert space(folder) == before
    load(folder)


def test_only_settings_that_name_a_file_by_a_path_are_foreign(tmp_path):
    config = tmp_path / "tokenizer_config.json"
    values = {"vocab_file": "/home/a/vocab.txt", "merges_file": "b/merges.txt", "spm_file": "own.model",
              "name_or_path": "/home/a/model", "sep_token": "</s>", "other_file": None}  # fmt: skip
    config.write_text(json.dumps(values))
    assert _foreign_files(config).keys() == {"vocab_file", "merges_file"}


@pytest.mark.parametrize(
    ("settings", "pooling"),
    [
        ({"architectures": ["Qwen3ForCausalLM"]}, "lasttoken"),
        ({"architectures": ["Qwen3ForCausalLM"], "is_causal": False}, "mean"),
        ({"architectures": ["BertModel"]}, "mean"),
        ({}, "mean"),
    ],
)
def test_a_plain_folder_pools_as_sentence_transformers_would(tmp_path, settings, pooling):
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert _default_modules(tmp_path)[1].settings == {"pooling_mode": pooling}


def test_a_model_folder_is_not_written_to_when_settings_of_another_machine_are_left_out(tmp_path):
    folder = bert_model(tmp_path / "bert")
    config = folder / "tokenizer_config.json"
    setting(config, vocab_file="/home/someone/vocab.txt")
    before = config.read_bytes()
    load(folder)
    with read_layout(folder).staged() as staged:
        assert "vocab_file" not in json.loads((staged / config.name).read_text())
    assert config.read_bytes() == before


def test_a_module_may_lie_in_a_folder_of_a_folder(tmp_path):
    folder = bert_model(tmp_path / "bert")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = f"heads/{modules[1]['path']}"
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "heads").mkdir()
    (folder / "1_Pooling").rename(folder / modules[1]["path"])
    with read_layout(folder).staged() as place:
        assert (place / modules[1]["path"] / "config.json").is_file()


def test_a_second_module_that_reads_texts_is_refused(tmp_path):
    folder = bert_model(tmp_path / "bert")
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([modules[0], *modules]))
    with pytest.raises(EncoderError, match="do not start with one of"):
        load(folder)


def test_modules_may_lie_in_folders_of_folders(tmp_path):
    folder = bert_model(tmp_path / "bert")
    modules = json.loads((folder / "modules.json").read_text())
    before = load(folder)
    (folder / "parts/of/it").mkdir(parents=True)
    for module in modules[1:]:
        if (folder / module["path"]).exists():
            (folder / module["path"]).rename(folder / "parts/of/it" / module["path"])
        module["path"] = f"parts/of/it/{module['path']}"
    (folder / "modules.json").write_text(json.dumps(modules))
    after = load(folder)
    texts = ["one text", "another one"]
    ours, theirs = (e.embed(e.tokenize(texts, "document")) for e in (before, after))
    assert np.array_equal(ours, theirs)


OTHERS_CODE = [
    ("config.json", {"_attn_implementation": "kernels-community/flash-attn"}),
    ("config.json", {"attn_implementation": "flash_attention_2"}),
    ("config.json", {"text_config": {"attn_implementation": "someone/code:f"}}),
    ("config.json", {"attn_implementation": {"": "sdpa", "text_config": "someone/code"}}),
    ("config.json", {"_experts_implementation": "sonicmoe"}),
    ("config.json", {"quantization_config": {"quant_method": "mxfp4"}}),
    ("config.json", {"text_config": {"quantization_config": {"quant_method": "eetq"}}}),
    ("sentence_bert_config.json", {"model_args": {"attn_implementation": "kernels-community/x"}}),
    ("sentence_bert_config.json", {"model_kwargs": {"attn_implementation": "paged|someone/x"}}),
]


@pytest.mark.parametrize(("file", "values"), OTHERS_CODE)
def test_a_setting_that_fetches_code_is_refused_by_name(tmp_path, file, values):
    folder = bert_model(tmp_path / "bert")
    setting(folder / file, **values)
    with pytest.raises(EncoderError, match=r"sets _?\w+_(implementation|config) to") as refused:
        space(folder)
    assert str(folder / file) in str(refused.value)


@pytest.mark.parametrize("kind", ["mra", "rwkv", "yoso"])
def test_a_kind_of_model_that_fetches_code_is_refused(tmp_path, kind):
    folder = bert_model(tmp_path / "bert")
    setting(folder / "config.json", model_type=kind)
    with pytest.raises(EncoderError, match=f"a model of the kind {kind}"):
        space(folder)


@pytest.mark.parametrize("name", ["eager", "sdpa", None])
def test_attention_that_comes_with_the_library_may_be_chosen(tmp_path, name):
    folder = bert_model(tmp_path / "bert")
    setting(folder / "config.json", _attn_implementation=name)
    setting(folder / "sentence_bert_config.json", model_args={"attn_implementation": name})
    load(folder)


WRONG_FORMS = {
    "modules.json": ["{}", "5", "null", '["a"]', '[{"type": 5}]', '[{"path": 5}]'],
    "config.json": ["[1]", '{"hidden_size": "abc"}', '{"hidden_size": -1}', '{"hidden_size": [1]}',
                    '{"hidden_size": true}', '{"max_position_embeddings": "x"}', '{"text_config": [1]}',
                    '{"architectures": 5}'],
    "config_sentence_transformers.json": ["[1]", '{"prompts": [1]}', '{"prompts": {"query": 5}}',
                                          '{"truncate_dim": "x"}', '{"truncate_dim": -5}',
                                          '{"truncate_dim": 0}', '{"truncate_dim": 16.5}'],
    "sentence_bert_config.json": ["[1]", '{"max_seq_length": "x"}', '{"model_args": [1]}',
                                  '{"model_args": "dtype"}', '{"modality_config": 5}',
                                  '{"processor_kwargs": {"model_max_length": "x"}}'],
    "1_Pooling/config.json": ["[1]", '{"pooling_mode": 5}', '{"pooling_mode": [1, 2]}'],
    "2_Dense/config.json": ["5", '{"in_features": "x"}', '{"in_features": 32, "out_features": [1]}'],
    "tokenizer_config.json": ["[1]", '"x"', '{"tokenizer_class": 5}', '{"model_max_length": "x"}'],
    "tokenizer.json": ["{}", "[1]", "5", '{"model": 5, "added_tokens": []}'],
    "added_tokens.json": ["[1]", "5"],
    "special_tokens_map.json": ["5", '["a"]'],
    "preprocessor_config.json": ["5"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("file", "content"), [(file, one) for file, all_ in WRONG_FORMS.items() for one in all_]
)
def test_a_model_file_of_another_form_is_refused_by_name(tmp_path, file, content):
    folder = bert_model(tmp_path / "bert", dense=16)
    (folder / file).write_text(content)
    with pytest.raises(EncoderError) as refused:
        space(folder)
    assert str(folder) in str(refused.value)
    if file != "tokenizer.json" and content != "{}":
        assert file in str(refused.value)


def test_files_that_loading_does_not_take_apart_may_hold_anything(tmp_path):
    """all-MiniLM-L6-v2 has a data_config.json that is a list."""
    folder = bert_model(tmp_path / "bert")
    (folder / "data_config.json").write_text('[{"name": "a", "type": 5}]')
    (folder / "train_script.json").write_text("5")
    load(folder)
    tokens = tmp_path / "added_tokens.json"
    tokens.write_text('{"path": 5, "dim": 0, "architectures": 7}')
    assert read_json(tokens)["path"] == 5


def test_the_same_in_a_folder_of_a_static_model(tmp_path):
    folder = static_model(tmp_path / "static")
    (folder / "tokenizer.json").write_text('{"model": 5}')
    with pytest.raises(EncoderError, match="cannot load the tokenizer"):
        space(folder)


@pytest.mark.parametrize(
    "header", ["[1]", "5", "null", '{"a": "b"}', '{"a": {}}', '{"a": {"dtype": "F32", "shape": [-1]}}',
               '{"a": {"dtype": 5, "shape": [1]}}', '{"a": {"dtype": "F32", "shape": "4"}}'],
)  # fmt: skip
def test_a_safetensors_header_of_another_form_is_refused_by_name(tmp_path, header):
    folder = bert_model(tmp_path / "bert")
    body = header.encode()
    (folder / "model.safetensors").write_bytes(len(body).to_bytes(8, "little") + body)
    with pytest.raises(EncoderError, match=r"model\.safetensors"):
        space(folder)


@pytest.mark.parametrize("index", [[1], 5, {}, {"weight_map": [1]}, {"weight_map": None},
                                   {"weight_map": {"a": 5}}, {"weight_map": {"a": None}}])  # fmt: skip
def test_an_index_of_shards_of_another_form_is_refused_by_name(tmp_path, index):
    folder = bert_model(tmp_path / "bert")
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(EncoderError, match=r"model\.safetensors\.index\.json|shards are missing"):
        space(folder)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("tokenizer.json", {"model": {"type": "WordPiece", "vocab": {}}}),
        ("tokenizer_config.json", {"pad_token": None}),
        ("special_tokens_map.json", {"unk_token": ""}),
        ("config.json", {"num_attention_heads": 0}),
    ],
)
def test_files_that_a_library_takes_and_then_fails_on_are_refused(tmp_path, file, change):
    folder = bert_model(tmp_path / "bert")
    setting(folder / file, **change)
    with pytest.raises(EncoderError, match=str(folder)):
        load(folder)


def test_a_device_without_memory_is_not_a_model_that_cannot_be_used():
    with pytest.raises(torch.OutOfMemoryError), files.refusing("the model cannot be loaded"):
        raise torch.OutOfMemoryError("CUDA out of memory")

"""What comes from others: model folders (S2, S3), settings (S5), indexes (S6), names (S8), texts (S13)."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import random
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from pydantic import ValidationError
from releases import SOURCE, verified
from tiny_models import bert_model, static_model
from vectors import save

from reembed import encoders
from reembed.catalog.index_manifest import IndexManifest
from reembed.catalog.lines import Place, begin
from reembed.catalog.releases import Catalog, ManifestProof, Release
from reembed.catalog.runs import find_runs
from reembed.cli.verbs import cli as reembed_cli
from reembed.config.gate import FrozenGate
from reembed.config.settings import Config, EncoderConfig, load
from reembed.errors import ConfigError, EncoderError, IntegrityError, UsageError
from reembed.index import files as index_store
from reembed.lifecycle.promote import promote, rollback
from reembed.space import ContentIdentity, Space
from reembed.store.records import encode
from reembed.store.storage import Storage

COMMIT = "5c38ec7c405ec4b44b94cc5a9bb96e735b38267a"


# S2, S3: code and pickles in a model folder


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that any payload below would write."""
    return tmp_path / "was-run"


class Payload:
    """Writes the marker when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def rewrite(file: Path, **changes: Any) -> None:
    there = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(there | changes))


def with_code(folder: Path, marker: Path) -> Path:
    """A model folder whose every file asks for the code that lies beside it."""
    (folder / "modeling_evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: ...\n")
    (folder / "__init__.py").write_text(f"open({str(marker)!r}, 'w')\n")
    evil = dict.fromkeys(("AutoConfig", "AutoModel", "AutoTokenizer"), "modeling_evil.Evil")
    rewrite(folder / "config.json", auto_map=evil, trust_remote_code=True)
    rewrite(
        folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["modeling_evil.Evil"] * 2}
    )
    trust = {"trust_remote_code": True}
    keys = (
        "model_args",
        "config_args",
        "tokenizer_args",
        "model_kwargs",
        "config_kwargs",
        "processor_kwargs",
    )
    rewrite(folder / "sentence_bert_config.json", **dict.fromkeys(keys, trust))
    return folder


def embed(folder: Path) -> None:
    config = EncoderConfig(model=str(folder))
    encoders.describe(config, "float32")
    encoder = encoders.load_encoder(config, device="cpu")
    encoder.embed(encoder.tokenize(["a text"], "document"))


def test_s2_code_beside_a_known_model_is_not_run(tmp_path: Path, marker: Path) -> None:
    embed(with_code(bert_model(tmp_path / "model"), marker))
    assert not marker.exists()


def test_s2_a_setting_that_trusts_code_is_refused(tmp_path: Path, marker: Path) -> None:
    folder = with_code(bert_model(tmp_path / "model"), marker)
    rewrite(folder / "sentence_bert_config.json", trust_remote_code=True)
    with pytest.raises(EncoderError, match="trust_remote_code"):
        embed(folder)
    assert not marker.exists()


def test_s2_a_model_that_is_only_code_is_refused(tmp_path: Path, marker: Path) -> None:
    folder = with_code(bert_model(tmp_path / "model"), marker)
    rewrite(folder / "config.json", model_type="evil", architectures=["Evil"])
    with pytest.raises(EncoderError):
        embed(folder)
    assert not marker.exists()


@pytest.mark.parametrize(
    "kind", ["modeling_evil.Transformer", "evil.Pooling", "sentence_transformers.models.Evil"]
)
def test_s2_modules_of_the_folders_own_are_refused(tmp_path: Path, marker: Path, kind: str) -> None:
    folder = with_code(bert_model(tmp_path / "model"), marker)
    modules = json.loads((folder / "modules.json").read_text())
    modules[-1]["type"] = kind
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(EncoderError, match="code that comes with a model is never run"):
        embed(folder)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["os.abort", "modeling_evil.Evil", "torch.hub.list"])
def test_s2_an_activation_function_names_no_other_code(
    tmp_path: Path, marker: Path, name: str
) -> None:
    folder = with_code(bert_model(tmp_path / "model", dense=8), marker)
    rewrite(folder / "2_Dense" / "config.json", activation_function=name)
    with suppress(EncoderError):  # refused, or left out with the layer
        embed(folder)
    assert not marker.exists()


def test_s2_there_is_no_setting_that_trusts_code() -> None:
    assert "trust" not in json.dumps(Config.model_json_schema())
    with pytest.raises(ValidationError, match="trust_remote_code"):
        EncoderConfig(model="hashing:8", trust_remote_code=True)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "revision", [None, "main", "v1.5", COMMIT[:39], COMMIT.upper(), COMMIT + "0"]
)
def test_s2_a_hub_model_needs_a_whole_commit(revision: str | None) -> None:
    with pytest.raises(EncoderError, match="pinned to a commit of 40 hex digits"):
        encoders.describe(
            EncoderConfig(model="BAAI/bge-small-en-v1.5", revision=revision), "float32"
        )


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.pkl", "weights.pth", "model.ckpt"]
)
@pytest.mark.parametrize("make", [bert_model, static_model])
def test_s3_weights_in_a_pickle_are_refused_and_not_opened(
    tmp_path: Path, marker: Path, make: Callable[..., Path], name: str
) -> None:
    folder = make(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(EncoderError, match="weights"):
        embed(folder)
    assert not marker.exists()


def test_s3_pickles_beside_safetensors_are_left_alone(tmp_path: Path, marker: Path) -> None:
    folder = bert_model(tmp_path / "model", dense=8)
    for place in (folder, folder / "2_Dense"):
        for name in ("pytorch_model.bin", "optimizer.pt", "training_args.bin", "model.pkl"):
            (place / name).write_bytes(pickle.dumps(Payload(marker)))
    embed(folder)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Payload(marker)))  # the payload itself works
    assert marker.exists()


def test_s3_a_pickle_called_safetensors_is_refused(tmp_path: Path, marker: Path) -> None:
    folder = bert_model(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(EncoderError, match=r"cannot be loaded|not a safetensors"):
        embed(folder)
    assert not marker.exists()


def test_s3_shards_outside_the_folder_are_refused(tmp_path: Path) -> None:
    folder = bert_model(tmp_path / "model")
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    index = {"weight_map": {"a": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(EncoderError):
        embed(folder)


# S5: settings

BOMB = "a: &a [x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(20)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("alias: !!python/object/apply:os.system ['touch was-run']\n", "tags"),
        ("alias: !!python/object:os.path {}\n", "tags"),
        ("alias: !!python/name:os.system\n", "tags"),
        ("!!python/object/new:type {args: [x, [], {}]}\n", "tags"),
        ("alias: !custom x\n", "tags"),
        (BOMB, "aliases"),
        ("a: &a {<<: *a}\n", "aliases"),
        ("a: " + "[" * 5_000 + "]" * 5_000 + "\n", "nested too deeply"),
        ("a: " + "{b: " * 400 + "1" + "}" * 400 + "\n", "nested too deeply"),
        ("alias: " + "x" * 1_000_001 + "\n", "larger than 1,000,000 bytes"),
        ("alias: " + "9" * 900_000 + "\n", "alias"),
    ],
    ids=lambda v: v[:24],
)
def test_s5_hostile_settings_are_refused_quickly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text(text)
    started = time.process_time()
    with pytest.raises(ConfigError, match=said) as refused:
        load(["bad.yaml"], [])
    assert time.process_time() - started < 5
    assert len(str(refused.value)) < 5_000
    assert os.listdir() == ["bad.yaml"]


@pytest.mark.parametrize("value", ["!!python/object/apply:os.getcwd []", "&a [*a]", BOMB])
def test_s5_a_hostile_override_is_text_at_most(value: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load([], [f"embed.actors={value}"])
    assert len(str(refused.value)) < 5_000


def test_s5_an_endless_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="larger than"):
        load(["/dev/zero"], [])


# S6: index files


def saved(folder: Path) -> tuple[Storage, IndexManifest]:
    storage = Storage.open(str(folder))
    flat = faiss.IndexFlatIP(8)
    flat.add(np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32))
    names = pa.array([f"d{n}" for n in range(200)])
    where = {"space": SPACE.id, "table": "tables/t.lance", "table_version": 1}
    return storage, save(storage, flat, names, path="indexes/r", where=where)


def mutated(body: bytes, number: int) -> bytes:
    """Another file than `body`: a flipped bit, a cut, an addition, a block of zeros, swapped halves."""
    rng = random.Random(number)
    at = rng.randrange(len(body))
    kind = number % 5
    if kind == 0:
        return body[:at] + bytes([body[at] ^ 1 << rng.randrange(8)]) + body[at + 1 :]
    if kind == 1:
        return body[:at]
    if kind == 2:
        return body + rng.randbytes(1 + at % 64)
    if kind == 3:
        at = rng.randrange(len(body) - 16)
        return body[:at] + b"\xff" * 16 + body[at + 16 :]
    return body[len(body) // 2 :] + body[: len(body) // 2]


@pytest.mark.parametrize("ending", ["faiss", "arrow"])
def test_s6_no_mutation_of_an_index_reaches_faiss_or_arrow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    storage, manifest = saved(tmp_path)
    named = {"faiss": manifest.base.vectors, "arrow": manifest.base.ids}[ending]
    file, loads = tmp_path / named.path("indexes/r"), []
    body = file.read_bytes()
    readers = {"faiss": [(faiss, "read_index"), (faiss, "deserialize_index")]}
    for place, name in readers.get(ending, [(pa.ipc, "open_file")]):
        original = getattr(place, name)
        spy = lambda *args, original=original: (loads.append(args), original(*args))[1]  # noqa: E731
        monkeypatch.setattr(place, name, spy)
    for number in range(200):
        other = tmp_path / "other"
        other.write_bytes(mutated(body, number))
        other.replace(file)
        with pytest.raises(IntegrityError, match="is not the index that was saved"):
            index_store.load(storage, "indexes/r", manifest)
    assert loads == []
    file.write_bytes(body)
    assert index_store.load(storage, "indexes/r", manifest).rows == 200
    assert len(loads) == 1


SPACE = Space(
    "m", None, ContentIdentity("w", "t"), "mean", "", "", True, None, None, "none", "float32", 8
)


def a_release(**changes: Any) -> Release:
    fields: dict[str, Any] = {
        "id": "r", "alias": "docs", "space": SPACE, "encoder": EncoderConfig(model="hashing:8"),
        "table": "tables/t.lance", "table_version": 1, "table_tag": "reembed-r", "index": "indexes/r",
        "index_sha256": "0", "rows": 1, "documents": 1, "dead_letters": 0, "source": SOURCE,
        "verify": verified(), "gate": FrozenGate(), "sealed_sha256": "0",
        "table_manifest": ManifestProof("1.manifest", 1, "0"), "golden_sha256": "0",
        "place": Place("s", "r", 0, 1),
    }  # fmt: skip
    return Release(**{**fields, **changes})


# S8: names that become paths

TRAVERSALS = [
    "../../etc/passwd", "..", "../x", "/etc/passwd", "a/../../b", "..%2f..%2fx", "a\0b", "a/b", "a\\..\\b",
    ".hidden", "", " ", "a b", "x" * 300, "ä", "a\n", "-rf", "~", "$HOME", "C:\\x", "con\u202e",
]  # fmt: skip


@pytest.mark.parametrize("name", TRAVERSALS)
def test_s8_a_release_id_is_a_plain_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.json").write_text(json.dumps(encode(a_release())))
    catalog = Catalog(Storage.open(str(tmp_path / "root")), "docs")
    catalog.register(a_release())
    for use in (catalog.release, lambda n: promote(catalog, n)):
        with pytest.raises(UsageError, match="is not a valid release id"):
            use(name)
    promote_nothing = catalog.append(None, "promote", a_release())
    assert promote_nothing.generation == 1
    with pytest.raises(UsageError, match="never served"):
        rollback(catalog, name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["root", "x.json"]


@pytest.mark.parametrize("name", [*TRAVERSALS, "A", "a_b"])
def test_s8_an_alias_is_a_plain_name(name: str) -> None:
    settings = ["source.uri=s", "encoder.model=hashing:8", "storage.root=r"]
    with pytest.raises(ConfigError, match="alias"):
        load([], [*settings, f"alias={json.dumps(name)}"])


@pytest.mark.parametrize(
    "words",
    [
        ("verify", "--release"),
        ("compare", "--candidate"),
        ("promote",),
        ("rollback", "--to"),
        ("search", "q", "--release"),
    ],
    ids=lambda w: w[0],
)
def test_s8_on_the_command_line_too(
    tmp_path: Path, config_file: Callable[..., str], words: tuple[str, ...]
) -> None:
    catalog = Catalog(Storage.open(str(tmp_path / "root")), "passages")
    catalog.append(None, "promote", catalog.register(a_release(alias="passages")))
    before = sorted(tmp_path.rglob("*"))
    file = config_file("source.lance")
    said = CliRunner().invoke(reembed_cli, [*words, "../../x", "-c", file])
    assert said.exit_code == 2, said.output
    assert "../../x" in said.stderr
    assert "fix: reembed" in said.stderr
    assert sorted(set(tmp_path.rglob("*")) - {Path(file)}) == before


@pytest.mark.parametrize("path", ["../x", "tables/../../x", "/etc", "a\0b", ".."])
def test_s8_a_record_that_names_a_place_outside_the_root_is_refused(
    tmp_path: Path, path: str
) -> None:
    storage = Storage.open(str(tmp_path / "root"))
    precious = tmp_path / "x"
    precious.mkdir()
    (precious / "file").write_text("mine")
    for use in (storage.uri, storage.delete_tree, storage.require_own, storage.remove):
        with pytest.raises(IntegrityError, match="is not a path below"):
            use(path)
    assert (precious / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "where", ["indexes", "indexes/r", "indexes/r/index.faiss", "indexes/r/deep/link"]
)
def test_s8_deleting_does_not_follow_links(tmp_path: Path, where: str) -> None:
    storage = Storage.open(str(tmp_path / "root"))
    precious = tmp_path / "precious"
    (precious / "r").mkdir(parents=True)
    for file in (precious / "index.faiss", precious / "r" / "index.faiss"):
        file.write_text("mine")
    link = tmp_path / "root" / where
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(precious / "index.faiss" if link.suffix else precious)
    with pytest.raises(IntegrityError, match="symbolic link"):
        storage.delete_tree("indexes/r/")
    assert [p.read_text() for p in sorted(precious.rglob("*.faiss"))] == ["mine", "mine"]


def test_s8_a_root_that_is_a_link_is_fine(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "disk")
    storage = Storage.open(str(tmp_path / "root"))
    storage.write("indexes/r/manifest.json", {})
    assert storage.delete_tree("indexes/r/") > 0
    assert not list(storage.objects("indexes/"))


def test_s8_folders_among_the_runs_that_are_none_are_passed_over(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    for name in ("passages-x-y-z", "passages", "passages-1-v1-x", "x y", "passages-aa-v1-1"):
        storage.write(f"runs/{name}/plan.json", {})
    begin(storage, "passages", "passages-aa-v1-1", Place("aa", "passages-aa-v1-1", 0, 1))
    for place in ("lines/passages/aa/x/1-1", "lines/passages/aa", "lines/passages/a/b/c/d"):
        storage.write_bytes(f"{place}/run.started-00000001", b"")
    assert [run.id for run in find_runs(storage, "passages")] == ["passages-aa-v1-1"]
    assert [run.id for run in find_runs(storage)] == ["passages-aa-v1-1"]


# S17: a release is of one alias, one table and one index


def test_s17_a_release_copied_to_another_alias_is_refused(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    record = encode(a_release())
    storage.write("releases/other/r.json", record)
    storage.write("releases/docs/renamed.json", record)
    for alias, name in (("other", "r"), ("docs", "renamed")):
        with pytest.raises(IntegrityError, match="its record was copied"):
            Catalog(storage, alias).release(name)


@pytest.mark.parametrize("field", ["table", "table_version", "index_sha256"])
def test_s17_an_index_of_another_table_is_refused(tmp_path: Path, field: str) -> None:
    from reembed.table import provenance

    _, manifest = saved(tmp_path)
    release = a_release(index_sha256=manifest.sha256)
    provenance.require_index(release, manifest)
    other = {"table": "tables/u.lance", "table_version": 2, "index_sha256": "1" * 64}
    with pytest.raises(IntegrityError):
        provenance.require_index(dataclasses.replace(release, **{field: other[field]}), manifest)


# S13: very long texts

MIB = 2**20


@pytest.mark.parametrize("model", ["hashing:16", "bert", "static"])
@pytest.mark.parametrize(
    "text", ["word and " * (11 * MIB), "x" * (100 * MIB)], ids=["words", "one word"]
)
def test_s13_a_text_of_100_mb_costs_little(tmp_path: Path, model: str, text: str) -> None:
    makers = {"bert": bert_model, "static": static_model}
    of = str(makers[model](tmp_path / "m")) if model in makers else model
    tokenizer = encoders.load_tokenizer(EncoderConfig(model=of))
    tokenizer.tokenize(["warm"], "document")
    tracemalloc.start()
    started = time.process_time()
    tokens = tokenizer.tokenize([text, "short"], "document")
    seconds, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(tokens) == 2
    assert len(tokens.ids) < 3 * 10**6
    assert seconds < 20
    assert peak < 400 * MIB


@pytest.mark.parametrize("model", ["hashing:16", "static"])
def test_s13_texts_of_usual_length_keep_their_tokens(tmp_path: Path, model: str) -> None:
    of = str(static_model(tmp_path / "m")) if model == "static" else model
    tokenizer = encoders.load_tokenizer(EncoderConfig(model=of))
    words = [f"w{i}" for i in range(100_000)]
    texts = [" ".join(words[:n]) for n in (0, 1, 3, 1_000, 100_000)] * 6  # several groups
    together = tokenizer.tokenize(texts, "document")
    alone = [tokenizer.tokenize([text], "document").ids for text in texts]
    assert np.array_equal(together.ids, np.concatenate(alone))
    assert together.lengths.tolist() == [len(ids) for ids in alone]

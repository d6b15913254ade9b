"""The model of a line is held against vectors of its first run, wherever it is loaded later."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import lance
import numpy as np
import pyarrow as pa
import pytest
from inline import Inline
from tiny_models import bert_model

from reembed import api
from reembed.catalog.releases import Catalog, Release
from reembed.config.settings import EncoderConfig
from reembed.encoders import golden
from reembed.encoders.hashing import HashingEncoder
from reembed.encoders.probes import least_cosine
from reembed.errors import IntegrityError, SpaceMismatch
from reembed.lifecycle import verification
from reembed.lifecycle.promote import promote
from reembed.serving.live import OpenRelease
from reembed.store.storage import Storage
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild


@pytest.fixture
def built(corpus, make_config, quiet):
    """(config, release, source): one built line."""
    source = corpus(300)
    config = make_config(source)
    return config, full_rebuild(config, quiet, executor=Inline()), source


def put(source: str, *names: str) -> None:
    rows = [{"doc_id": n, "title": n, "text": f"text of {n}"} for n in names]
    lance.write_dataset(pa.Table.from_pylist(rows), source, mode="append")


def turn(monkeypatch, kinds=("document", "query")):
    """From now on the model makes other vectors of the same files."""
    tokenize, embed = HashingEncoder.tokenize, HashingEncoder.embed
    turned: list[int] = []

    def seen(self, texts, kind):
        tokens = tokenize(self, texts, kind)
        if kind in kinds:
            turned.append(id(tokens))
        return tokens

    def other(self, tokens):
        vectors = embed(self, tokens)
        return np.ascontiguousarray(vectors[:, ::-1]) if id(tokens) in turned else vectors

    monkeypatch.setattr(HashingEncoder, "tokenize", seen)
    monkeypatch.setattr(HashingEncoder, "embed", other)


def test_a_release_is_not_served_with_a_model_that_makes_other_vectors(built, monkeypatch):
    config, release, _ = built
    storage = Storage.open(config.storage.root)
    assert OpenRelease.open(storage, release).search(["a"], 1)
    turn(monkeypatch)
    with pytest.raises(SpaceMismatch, match="produces different vectors") as refused:
        OpenRelease.open(storage, release)
    assert f"the model of run {release.origin} on cpu" in refused.value.what
    assert "cosine" in refused.value.why
    assert refused.value.why.endswith(f"at least {golden.SAME} is needed"), (
        "equal versions are named"
    )


@pytest.mark.parametrize(
    ("other", "field", "measured"),
    [
        ({"pooling": "cls"}, "pooling 'mean' against 'cls'", r"cosine -?0\.\d+ for the document"),
        (
            {"prompts": {"query": "query: "}},
            "prompt_query '' against 'query: '",
            r"cosine -?0\.\d+ for the query",
        ),
        ({"seed": 1}, "weights_sha256 '", r"cosine -?0\.\d+ for the document"),
        ({"dim": 16}, "dim 32 against 16", "vectors of 16 dimensions, where 32 are needed"),
        ({"max_length": 63}, "max_length 64 against 63", ""),
    ],
)
def test_a_model_folder_that_was_changed_is_refused_with_what_changed_and_the_cosine(
    tmp_path, make_config, corpus, quiet, other, field, measured
):
    folder = tmp_path / "model"
    config = make_config(corpus(40), encoder={"model": str(bert_model(folder))})
    release = full_rebuild(config, quiet, executor=Inline())
    shutil.rmtree(folder)
    bert_model(folder, **other)
    with pytest.raises(SpaceMismatch) as refused:
        OpenRelease.open(Storage.open(config.storage.root), release)
    assert re.search(f"{field}.*; .*{measured}", refused.value.why), refused.value.why
    assert re.search("[0-9a-f]{13}", refused.value.why) is None, "digests are short"
    assert refused.value.fix.startswith("reembed config ")


def test_a_model_whose_queries_alone_changed_is_refused_too(built, monkeypatch):
    config, release, _ = built
    turn(monkeypatch, kinds=("query",))
    with pytest.raises(SpaceMismatch) as refused:
        OpenRelease.open(Storage.open(config.storage.root), release)
    assert "for the query" in refused.value.why


def test_a_model_whose_vectors_have_another_length_is_refused(built, monkeypatch):
    config, release, _ = built
    embed = HashingEncoder.embed
    monkeypatch.setattr(HashingEncoder, "embed", lambda self, tokens: 3 * embed(self, tokens))
    with pytest.raises(SpaceMismatch) as refused:
        OpenRelease.open(Storage.open(config.storage.root), release)
    assert "a vector 3.000 times as long" in refused.value.why


@pytest.mark.parametrize("side", ["live", "candidate"])
def test_neither_side_of_a_comparison_is_judged_with_a_model_that_makes_other_vectors(
    built, quiet, eval_folder, monkeypatch, side
):
    config, live, source = built
    catalog = Catalog(Storage.open(config.storage.root), config.alias)
    promote(catalog, live.id, initial_reason="a test")
    gate = config.gate.model_copy(update={"queries": (eval_folder(source),)})
    other = config.encoder.model_copy(update={"model": "hashing:32"})
    changed = config.model_copy(update={"encoder": other, "gate": gate})
    candidate = full_rebuild(changed, quiet, executor=Inline())
    changes = {"live": 64, "candidate": 32}[side]
    embed = HashingEncoder.embed

    def turned(self, tokens):
        vectors = embed(self, tokens)
        return vectors[:, ::-1].copy() if vectors.shape[1] == changes else vectors

    monkeypatch.setattr(HashingEncoder, "embed", turned)
    with pytest.raises(SpaceMismatch, match="produces different vectors") as refused:
        api.compare(changed, candidate.id)
    assert "cosine" in refused.value.why


@pytest.mark.parametrize("passes", [1, 2])
def test_every_catch_up_of_a_line_is_held_against_the_first_run(built, quiet, monkeypatch, passes):
    config, release, source = built
    for number in range(passes - 1):
        put(source, f"new-{number}")
        release = catch_up(config, release, quiet, executor=Inline())
    put(source, "last")
    turn(monkeypatch)
    with pytest.raises(SpaceMismatch, match="produces different vectors"):
        catch_up(config, release, quiet, executor=Inline())


def test_a_caught_up_release_is_served_by_the_golden_vectors_of_its_line(built, quiet, monkeypatch):
    config, release, source = built
    put(source, "new")
    newer = catch_up(config, release, quiet, executor=Inline())
    assert newer.origin == release.id != newer.id
    storage = Storage.open(config.storage.root)
    assert OpenRelease.open(storage, newer).search(["a"], 1)
    turn(monkeypatch)
    with pytest.raises(SpaceMismatch):
        OpenRelease.open(storage, newer)


def test_verify_does_not_blame_rows_for_another_model(built, monkeypatch):
    config, release, _ = built
    catalog = Catalog(Storage.open(config.storage.root), config.alias)
    turn(monkeypatch)
    with pytest.raises(SpaceMismatch):
        verification.verify_release(
            catalog, release.id, level=3, sample=20, resume=False, stall_s=60
        )


def replaced(storage: Storage, release: Release) -> None:
    """Other golden vectors in the place of a line's: a whole record, made by another model."""
    path = golden.path(release.origin)
    storage.remove(path)
    golden.leave(storage, release.origin, HashingEncoder(EncoderConfig(model="hashing:16")))
    assert storage.read(path)["queries"]


def test_golden_vectors_that_were_replaced_are_refused_wherever_they_are_read(built, quiet):
    config, release, _ = built
    catalog = Catalog(Storage.open(config.storage.root), config.alias)
    replaced(catalog.storage, release)
    why = "golden.json is not the file that the release was registered with"
    with pytest.raises(IntegrityError, match=why):
        OpenRelease.open(catalog.storage, release)
    with pytest.raises(IntegrityError, match=why):
        full_rebuild(config, quiet, executor=Inline(), fresh=True)  # copies its vectors
    with pytest.raises(IntegrityError, match=why):
        verification.verify_release(
            catalog, release.id, level=3, sample=20, resume=False, stall_s=60
        )


def test_a_catch_up_keeps_the_golden_vectors_that_its_line_was_registered_with(
    built, quiet, monkeypatch
):
    config, release, source = built
    put(source, "new")
    newer = catch_up(config, release, quiet, executor=Inline())
    assert newer.golden_sha256 == release.golden_sha256
    storage = Storage.open(config.storage.root)
    replaced(storage, release)
    with pytest.raises(IntegrityError, match="is not the file that the release was registered"):
        OpenRelease.open(storage, newer)
    put(source, "newer")
    monkeypatch.setattr(golden, "leave", lambda *_: [])  # as if nothing had to be embedded
    with pytest.raises(IntegrityError, match="is not the file that the release was registered"):
        catch_up(config, newer, quiet, executor=Inline())


def test_other_versions_of_the_libraries_are_named_where_the_vectors_differ(built, monkeypatch):
    config, release, _ = built
    storage = Storage.open(config.storage.root)
    record = storage.read(golden.path(release.origin))
    storage.write(
        golden.path(release.origin), {**record, "versions": {**record["versions"], "torch": "1.0"}}
    )
    release = replace(release, golden_sha256=golden.sha256_of(storage, release.origin))
    OpenRelease.open(storage, release)  # the same vectors: the versions do not matter
    turn(monkeypatch)
    with pytest.raises(SpaceMismatch) as refused:
        OpenRelease.open(storage, release)
    assert "torch 1.0 there" in refused.value.why
    assert refused.value.why.count(" there, ") == 1, "equal versions are named too"


def test_a_line_without_golden_vectors_is_not_served(built):
    config, release, _ = built
    storage = Storage.open(config.storage.root)
    storage.remove(golden.path(release.origin))
    with pytest.raises(IntegrityError, match="golden"):
        OpenRelease.open(storage, release)


def test_a_text_that_the_first_replica_had_no_vector_for_is_not_held_against_later_ones(
    tmp_path, monkeypatch
):
    storage, encoder = (
        Storage.open(str(tmp_path)),
        HashingEncoder(EncoderConfig(model="hashing:16")),
    )
    embed = HashingEncoder.embed

    def without_the_third(self, tokens):
        vectors = embed(self, tokens)
        vectors[2] = np.nan
        return vectors

    with monkeypatch.context() as patch:
        patch.setattr(HashingEncoder, "embed", without_the_third)
        golden.leave(storage, "docs-0-v1-1", encoder)
    golden.require(storage, "docs-0-v1-1", encoder)
    assert not any(storage.read(golden.path("docs-0-v1-1"))["documents"][2])


def test_a_model_that_has_no_vector_any_more_for_a_text_is_refused(tmp_path, monkeypatch):
    storage, encoder = (
        Storage.open(str(tmp_path)),
        HashingEncoder(EncoderConfig(model="hashing:16")),
    )
    golden.leave(storage, "docs-0-v1-1", encoder)
    embed = HashingEncoder.embed

    def without_the_third(self, tokens):
        vectors = embed(self, tokens)
        vectors[2] = np.nan
        return vectors

    monkeypatch.setattr(HashingEncoder, "embed", without_the_third)
    with pytest.raises(SpaceMismatch, match="produces different vectors"):
        golden.require(storage, "docs-0-v1-1", encoder)


def test_vectors_of_another_size_are_other_vectors_whatever_they_hold():
    assert least_cosine(np.ones((3, 2)), np.ones((3, 1))) == (-1.0, 0)

"""A text that has a proven vector in this root is not embedded again: it is copied, counted and said."""

from __future__ import annotations

from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from flow_tables import rows_of, vectors_of
from inline import Inline

from reembed import digests
from reembed.catalog.lines import Place
from reembed.catalog.releases import Catalog
from reembed.catalog.runs import Run
from reembed.encoders.hashing import HashingEncoder
from reembed.engine.reuse import Known
from reembed.errors import IntegrityError, SpaceMismatch
from reembed.events import ChangesFound, Embedded
from reembed.lifecycle import gc
from reembed.lifecycle.gc_reasons import needed_by_runs
from reembed.store.storage import Storage
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild


@pytest.fixture
def embedded(monkeypatch):
    """Number of tokens lists that the model was given, by call."""
    counts: list[int] = []
    honest = HashingEncoder.embed

    def embed(self, tokens):
        counts.append(len(tokens))
        return honest(self, tokens)

    monkeypatch.setattr(HashingEncoder, "embed", embed)
    return counts


def build(config, quiet):
    return full_rebuild(config, quiet, executor=Inline())


def copied(quiet) -> int:
    return quiet.of(Embedded)[-1].figures.copied


def table(config, release) -> pa.Table:
    return rows_of(Storage.open(config.storage.root), release)


def test_another_carried_column_costs_no_embedding(corpus, make_config, quiet):
    source = corpus(300)
    first = make_config(source)
    old = build(first, quiet)
    second = make_config(source, table={"carry": ["text", "title"]})
    new = build(second, quiet)
    assert new.id != old.id
    assert copied(quiet) == 300
    before, after = table(first, old), table(second, new)
    assert np.array_equal(vectors_of(before), vectors_of(after))
    known = lance.dataset(source).to_table().sort_by("doc_id")
    assert after["text"].to_pylist() == known["text"].to_pylist()
    assert after["title"].to_pylist() == known["title"].to_pylist()


def test_another_dataset_with_some_of_the_same_texts_embeds_only_the_others(
    corpus, make_config, quiet, tmp_path, embedded
):
    source = corpus(300)
    build(make_config(source), quiet)
    rows = lance.dataset(source).to_table().to_pylist()
    for i, row in enumerate(rows):
        row["doc_id"] = f"other-{i}"
        row["text"] = row["text"] if i % 3 else row["text"] + " changed"
    other = str(tmp_path / "other.lance")
    lance.write_dataset(pa.Table.from_pylist(rows), other, max_rows_per_file=90)
    plain = make_config(other, storage={"root": str(tmp_path / "plain")}, name="plain.yaml")
    alone = table(plain, build(plain, quiet))
    assert copied(quiet) == 0

    embedded.clear()
    config = make_config(other)
    release = build(config, quiet)
    assert copied(quiet) == 200
    assert table(config, release)["doc_id"].to_pylist() == alone["doc_id"].to_pylist()
    assert np.array_equal(vectors_of(table(config, release)), vectors_of(alone))
    assert table(config, release)["text_hash"] == alone["text_hash"]


def test_another_alias_of_the_root_gives_its_vectors_too(corpus, make_config, quiet):
    source = corpus(300)
    build(make_config(source), quiet)
    build(make_config(source, alias="second"), quiet)
    assert copied(quiet) == 300


def test_reuse_can_be_switched_off(corpus, make_config, quiet):
    source = corpus(300)
    build(make_config(source), quiet)
    build(make_config(source, alias="second", embed={"reuse": False}), quiet)
    assert copied(quiet) == 0


def test_another_space_gives_no_vector(corpus, make_config, quiet):
    source = corpus(300)
    build(make_config(source), quiet)
    build(make_config(source, encoder={"model": "hashing:64:salted"}), quiet)
    assert copied(quiet) == 0


def test_a_release_whose_newest_verification_failed_gives_no_vector(corpus, make_config, quiet):
    source = corpus(300)
    config = make_config(source)
    release = build(config, quiet)
    storage = Storage.open(config.storage.root)
    record = storage.read(f"runs/{release.id}/verify.json")
    storage.write(f"runs/{release.id}/verify.json", {**record, "why": "a test"})
    build(make_config(source, alias="second"), quiet)
    assert copied(quiet) == 0


@pytest.mark.parametrize(
    ("failed", "retired"), [("rebuild", False), ("rebuild", True), ("catch-up", False)]
)
def test_no_release_of_a_line_gives_vectors_once_one_of_them_failed_verification(
    corpus, make_config, quiet, failed, retired
):
    source = corpus(300)
    config = make_config(source)
    first = build(config, quiet)
    row = {"doc_id": "d-new", "title": "a", "text": "a text that is new"}
    lance.write_dataset(pa.Table.from_pylist([row]), source, mode="append")
    second = catch_up(config, first, quiet, executor=Inline())
    storage = Storage.open(config.storage.root)
    at = f"runs/{(first if failed == 'rebuild' else second).id}/verify.json"
    record = storage.read(at)
    storage.write(at, {**record, "why": "a test"})
    if retired:
        Catalog(storage, first.alias).mark_retired(first.id)
    build(make_config(source, table={"carry": ["title"]}), quiet)
    assert copied(quiet) == 0
    said = quiet.said()
    assert any(f"no vectors are copied from line {first.id}" in what for what in said)


def test_copies_of_copies_of_what_failed_verification_are_not_copied(corpus, make_config, quiet):
    source = corpus(300)
    config = make_config(source)
    apart = make_config(source, alias="apart", embed={"reuse": False})
    first, alone = build(config, quiet), build(apart, quiet)
    storage = Storage.open(config.storage.root)
    hidden = f"runs/{alone.id}/verify.json"
    sound = storage.read(hidden)
    storage.write(hidden, {**sound, "why": "a test"})  # so that it gives nothing for now
    lines = [first.id]
    for alias in ("second", "third"):
        lines.append(build(make_config(source, alias=alias), quiet).id)
        assert copied(quiet) == 300
    storage.write(hidden, sound)
    record = storage.read(f"runs/{first.id}/verify.json")
    storage.write(f"runs/{first.id}/verify.json", {**record, "why": "a test"})
    last = build(make_config(source, alias="last"), quiet)
    plan = Run(storage, last.id).plan()
    assert plan is not None
    assert [d.release for d in plan.donors] == [alone.id]
    assert copied(quiet) == 300
    said = "\n".join(quiet.said())
    for line in lines:
        assert f"no vectors are copied from line {line}: " in said


def test_vectors_are_not_copied_from_a_damaged_file(corpus, make_config, quiet):
    source = corpus(300)
    config = make_config(source)
    release = build(config, quiet)
    storage = Storage.open(config.storage.root)
    name, _ = list(storage.objects(f"{release.table}/data/"))[-1]
    body = bytearray(storage.read_bytes(name))
    body[len(body) // 3] ^= 1
    storage.write_bytes(name, bytes(body))
    with pytest.raises(IntegrityError, match="damaged") as refused:
        build(make_config(source, alias="second"), quiet)
    assert "embed.reuse=false" in refused.value.fix
    whole = make_config(source, alias="second", embed={"reuse": False})
    full_rebuild(whole, quiet, fresh=True, executor=Inline())
    assert copied(quiet) == 0


def test_a_document_without_text_takes_no_vector_of_an_empty_text(make_config, quiet, tmp_path):
    source = str(tmp_path / "empty.lance")
    texts = ["a b c", "", "d e f", None]
    rows = [{"doc_id": str(i), "text": t} for i, t in enumerate(texts)]
    lance.write_dataset(pa.Table.from_pylist(rows), source)
    config = make_config(source, embed={"max_dead_letters": 2})
    first = build(config, quiet)
    second = build(make_config(source, alias="second", embed={"max_dead_letters": 2}), quiet)
    assert (first.rows, first.dead_letters) == (second.rows, second.dead_letters)
    assert copied(quiet) == first.rows


def test_vectors_are_not_copied_beside_those_of_a_model_that_makes_others(
    corpus, make_config, quiet, monkeypatch
):
    source = corpus(300)
    build(make_config(source), quiet)
    honest = HashingEncoder.embed

    def other(self, tokens):
        return np.ascontiguousarray(honest(self, tokens)[:, ::-1])

    monkeypatch.setattr(HashingEncoder, "embed", other)
    with pytest.raises(SpaceMismatch, match="produces different vectors"):
        build(make_config(source, alias="second"), quiet)


def test_gc_keeps_a_release_that_an_unfinished_run_copies_from(corpus, make_config, quiet):
    source = corpus(300)
    config = make_config(source, storage={"keep": 1})
    donor = build(config, quiet)

    class Dies(Inline):
        def embed(self, *args):
            raise KeyboardInterrupt

    other = make_config(source, alias="second")
    with pytest.raises(KeyboardInterrupt):
        full_rebuild(other, quiet, executor=Dies())
    catalog = Catalog(Storage.open(config.storage.root), "passages")
    why = {k.release: k.why for k in gc.plan(catalog, 1).keep}
    assert donor.id in why
    assert [r for r, _ in needed_by_runs(catalog, None)] == [donor.id]
    full_rebuild(other, quiet, executor=Inline())
    assert copied(quiet) == 300
    assert list(needed_by_runs(catalog, None)) == []


def test_donors_are_fixed_in_the_plan(corpus, make_config, quiet):
    source = corpus(300)
    config = make_config(source)
    donor = build(config, quiet)
    second = make_config(source, alias="second")
    release = build(second, quiet)
    plan = Run(Storage.open(config.storage.root), release.id).plan()
    assert plan is not None
    assert [(d.release, d.rows) for d in plan.donors] == [(donor.id, 300)]


def test_a_catch_up_copies_the_vector_of_a_document_that_got_another_id(
    corpus, make_config, quiet, embedded
):
    source = corpus(300)
    config = make_config(source)
    release = build(config, quiet)
    before = dict(zip(*_texts_and_vectors(config, release), strict=True))
    dataset = lance.dataset(source)
    moved = dataset.to_table(filter="doc_id < 'd00010'").to_pylist()
    dataset.delete("doc_id < 'd00010'")
    rows = [{**r, "doc_id": "moved-" + r["doc_id"]} for r in moved]
    lance.write_dataset(pa.Table.from_pylist(rows), source, mode="append")
    newer = catch_up(config, release, quiet, executor=Inline())
    changes = quiet.of(ChangesFound)[0]
    assert (changes.embed, changes.copied, changes.removed) == (0, 10, 10)
    after = dict(zip(*_texts_and_vectors(config, newer), strict=True))
    assert after == before
    ids = table(config, newer)["doc_id"].to_pylist()
    assert sorted(i for i in ids if i.startswith("moved-")) == [r["doc_id"] for r in rows]


def _texts_and_vectors(config, release):
    rows = table(config, release)
    return rows["text_hash"].to_pylist(), [v.tobytes() for v in vectors_of(rows)]


def test_where_nothing_is_known_nothing_is_found():
    texts = digests.stack(digests.of_column(pa.array([b"a", b"b"])))
    assert Known.read(()).find(texts).tolist() == [-1, -1]


@pytest.mark.parametrize("other", ["notes.json", "later-00000000-v1-1.json"])
def test_what_cannot_be_read_of_another_alias_gives_no_vectors(corpus, make_config, quiet, other):
    source = corpus(40)
    first = build(make_config(source), quiet)
    root = make_config(source).storage.root
    Path(root, "releases/later").mkdir()
    Path(root, "releases/later", other).write_text("{}")
    if other.startswith("later"):
        name = other.removesuffix(".json")
        mark = Path(root, Place("settings", name, 0, 1).mark("later", name, "started-00000001"))
        mark.parent.mkdir(parents=True)
        mark.touch()
    build(make_config(source, table={"carry": ["text"]}), quiet)
    assert copied(quiet) == 40
    said = quiet.said()
    assert any("later-00000000-v1-1 of later: " in what for what in said) == ("later" in other)
    own = Path(root, "releases", first.alias, f"{first.id}.json")
    own.write_text("{}")
    with pytest.raises(IntegrityError, match=first.id):
        build(make_config(source, table={"carry": ["title"]}), quiet)

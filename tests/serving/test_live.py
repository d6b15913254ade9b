"""What a serving process holds: opened whole, then checked; asked only what can be answered."""

from __future__ import annotations

import gc as memory
import shutil
import threading
import weakref
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from inline import Inline, Silent
from tiny_models import static_model

from reembed import api, encoders
from reembed.catalog.releases import Catalog
from reembed.errors import EncoderError, IntegrityError, ReembedError, SpaceMismatch, UsageError
from reembed.lifecycle.promote import promote
from reembed.serving.index import Index
from reembed.serving.live import OpenRelease
from reembed.store.storage import Storage
from reembed.strategies.full_rebuild import full_rebuild
from reembed.table import provenance


class Place:
    """A corpus, its settings and its alias."""

    def __init__(self, uri: str, config: Any) -> None:
        self.uri, self.config = uri, config
        self.catalog = Catalog(Storage.open(config.storage.root), config.alias)

    def build(self, fresh: bool = False) -> Any:
        return full_rebuild(self.config, Silent(), fresh=fresh, executor=Inline())

    def replace_table(self, table: str) -> None:
        """What gc and a rebuild of other documents leave: the same path and version, other rows."""
        folder = Path(self.catalog.storage.uri(table))
        versions = lance.dataset(str(folder)).versions()
        rows = lance.dataset(str(folder)).to_table()
        other = rows.set_column(0, "doc_id", pa.array([f"x{i}" for i in range(len(rows))]))
        shutil.rmtree(folder)
        lance.write_dataset(rows.schema.empty_table(), str(folder), enable_stable_row_ids=True)
        for _ in versions[1:]:
            lance.write_dataset(other, str(folder), mode="overwrite", enable_stable_row_ids=True)


@pytest.fixture
def place(corpus, make_config):
    def make(**sections: Any) -> Place:
        uri = corpus(300)
        return Place(uri, make_config(uri, table={"carry": ["title"]}, **sections))

    return make


# What answers is what was checked


def test_a_reader_opened_before_its_table_was_replaced_answers_from_its_own_or_not_at_all(place):
    of = place()
    release = of.build()
    opened = OpenRelease.open(of.catalog.storage, release)
    before = opened.search(["bada"], 3)
    again = OpenRelease.open(of.catalog.storage, release)
    of.replace_table(release.table)
    with pytest.raises(IntegrityError, match="cannot be read any more"):
        again.search(["bada"], 3, ["title"])
    assert again.search(["bada"], 3) == before
    assert [h.doc_id for h in before[0]]
    with pytest.raises(IntegrityError):
        OpenRelease.open(of.catalog.storage, release)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_table_replaced_around_its_check_is_not_searched(place, monkeypatch, when):
    of = place()
    release = of.build()
    plain = provenance.require_manifest

    def replaced(*args: Any) -> None:
        if when == "before":
            of.replace_table(release.table)
        plain(*args)
        if when == "after":
            of.replace_table(release.table)

    monkeypatch.setattr(provenance, "require_manifest", replaced)
    try:
        found = OpenRelease.open(of.catalog.storage, release).search(["bada"], 3)
    except IntegrityError:
        return
    assert not [h for h in found[0] if str(h.doc_id).startswith("x")]


def test_a_model_replaced_after_its_check_does_not_encode_the_queries(place, tmp_path, monkeypatch):
    folder = static_model(tmp_path / "model")
    of = place(encoder={"model": str(folder)})
    release = of.build()
    before = OpenRelease.open(of.catalog.storage, release).encode_queries(["bada", "bide"])
    plain = encoders.describe

    def replaced(*args: Any) -> Any:
        described = plain(*args)
        for file in folder.rglob("*.safetensors"):
            body = bytearray(file.read_bytes())
            start = 8 + int.from_bytes(body[:8], "little")
            words = np.frombuffer(body[start:], np.float32)
            body[start:] = np.random.default_rng(0).permutation(words).tobytes()
            file.with_suffix(".new").write_bytes(body)
            file.with_suffix(".new").replace(file)
        return described

    monkeypatch.setattr(encoders, "describe", replaced)
    opened = OpenRelease.open(of.catalog.storage, release)
    np.testing.assert_array_equal(opened.encode_queries(["bada", "bide"]), before)
    monkeypatch.undo()
    with pytest.raises(SpaceMismatch):
        OpenRelease.open(of.catalog.storage, release)


def test_a_refresh_opens_the_table_that_it_checked(place, monkeypatch):
    of = place()
    promote(of.catalog, of.build().id, initial_reason="test")
    live = Index(of.catalog)
    old = live.current
    second = of.build(fresh=True)
    promote(of.catalog, second.id, force_reason="test")
    plain = provenance.require_manifest

    def replaced(*args: Any) -> None:
        plain(*args)
        of.replace_table(second.table)

    monkeypatch.setattr(provenance, "require_manifest", replaced)
    try:
        live.refresh()
        found = live.search(["bada"], 3)
    except IntegrityError:
        found = []
    assert not [h for hits in found for h in hits if str(h.doc_id).startswith("x")]
    assert old.release.id != second.id


# What is asked


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    from conftest import documents

    from reembed.config.settings import load

    folder = tmp_path_factory.mktemp("shared")
    uri = str(folder / "c.lance")
    lance.write_dataset(pa.Table.from_pylist(documents(130, 0)), uri, enable_stable_row_ids=True)
    settings = [
        "alias=docs", f"source.uri={uri}", "encoder.model=hashing:16", f"storage.root={folder / 'root'}",
        "table.carry=[title]",
    ]  # fmt: skip
    of = Place(uri, load([], settings)[0])
    promote(of.catalog, of.build().id, initial_reason="test")
    return of


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({"queries": "bada"}, UsageError, "must be a list of texts or an array"),
        ({"queries": [None]}, UsageError, "must be a list of texts or an array"),
        ({"queries": ["a", 7]}, UsageError, "must be a list of texts or an array"),
        ({"k": 0}, UsageError, "k must be a whole number"),
        ({"k": -1}, UsageError, "k must be a whole number"),
        ({"k": 2.5}, UsageError, "k must be a whole number"),
        ({"k": True}, UsageError, "k must be a whole number"),
        ({"columns": ["nobody"]}, UsageError, "nobody is not carried"),
        ({"columns": ["title", "vector"]}, UsageError, "vector is not a carried column"),
        ({"columns": "title"}, UsageError, "must be a list of names"),
        ({"columns": [3]}, UsageError, "must be a list of names"),
        ({"columns": [None]}, UsageError, "must be a list of names"),
        ({"columns": None}, UsageError, "must be a list of names"),
        ({"columns": ["doc_id"]}, UsageError, "each hit has its doc_id"),
        ({"queries": None}, UsageError, "must be a list of texts or an array"),
        ({"queries": 5}, UsageError, "must be a list of texts or an array"),
        ({"queries": {"a": 1}}, UsageError, "must be a list of texts or an array"),
        ({"queries": {"a"}}, UsageError, "must be a list of texts or an array"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_words(shared, asked, error, words):
    live = Index(shared.catalog)
    with pytest.raises(error, match=words) as said:
        live.search(**{"queries": ["bada"], **asked})
    assert isinstance(said.value, ReembedError)
    assert said.value.fix


@pytest.mark.parametrize("kind", [iter, tuple, np.array, lambda v: map(str, v)])
def test_texts_and_columns_that_can_be_read_once_are_answered_in_full(shared, kind):
    live = Index(shared.catalog)
    asked = live.search(["bada", "x"], 1, ["title"])
    assert live.search(kind(["bada", "x"]), 1, kind(["title"])) == asked
    assert asked[0][0].columns["title"]


def test_an_alias_that_leaves_its_folder_is_refused_in_words(shared):
    with pytest.raises(UsageError):
        Index(Catalog(shared.catalog.storage, "../x"))


@pytest.mark.parametrize(
    ("vectors", "error"),
    [
        (np.ones((1, 15), np.float32), SpaceMismatch),
        (np.ones(16, np.float32), SpaceMismatch),
        ([["a"] * 16], SpaceMismatch),
        ([[1.0], [1.0, 2.0]], SpaceMismatch),
        (np.full((1, 16), np.nan, np.float32), EncoderError),
        (np.full((2, 16), np.inf, np.float32), EncoderError),
        ([[1e300] * 16], EncoderError),
    ],
)
def test_vectors_that_fit_no_index_are_refused(shared, vectors, error):
    opened = OpenRelease.open(shared.catalog.storage, shared.catalog.require_live().release)
    with pytest.raises(error):
        opened.index.search(vectors, 3)
    if isinstance(vectors, np.ndarray):
        with pytest.raises(error):
            opened.search(vectors, 3)


def test_vectors_find_what_their_texts_find(shared):
    opened = OpenRelease.open(shared.catalog.storage, shared.catalog.require_live().release)
    texts = ["bada", "bide fo"]
    vectors = opened.encode_queries(texts)
    found = opened.search(texts, 5, ["title"])
    for given in (vectors, vectors.astype(np.float64)):
        assert opened.search(given, 5, ["title"]) == found
    assert opened.search(np.empty((0, 16), np.float32)) == []
    ids = opened.table.dataset().to_table(columns=["doc_id", "title"]).to_pylist()
    titles = {row["doc_id"]: row["title"] for row in ids}
    assert all(hit.columns == {"title": titles[hit.doc_id]} for hits in found for hit in hits)


def test_a_search_without_columns_ofs_no_table(shared, monkeypatch):
    opened = OpenRelease.open(shared.catalog.storage, shared.catalog.require_live().release)
    before, reads = opened.search(["bada", "bide"], 5), []
    dataset = opened.table.dataset()

    class Counted:
        def __getattr__(self, name):
            reads.append(name)
            return getattr(dataset, name)

    monkeypatch.setitem(vars(opened.table), "_opened", Counted())
    monkeypatch.setattr(Storage, "store", property(lambda self: reads.append("store")))
    assert opened.search(["bada", "bide"], 5) == before
    assert reads == []
    assert opened.search(["bada"], 5, ["title"])[0][0].columns
    assert reads == ["_take_rows"]


def test_what_is_few_or_much_is_answered(shared):
    live = Index(shared.catalog)
    assert live.search([]) == []
    assert live.current.encode_queries([]).shape == (0, 16)
    assert live.current.index.search([], 3)[0].shape == (0, 3)
    assert [len(hits) for hits in live.search(["bada", ""], 10**12)] == [130, 130]
    assert live.search(("bada",), np.int64(2), ("title",))[0][0].columns.keys() == {"title"}


# Who loads, and when


def moved(place: Any) -> Index:
    """A reader of a release that is not live any more."""
    promote(place.catalog, place.build().id, initial_reason="test")
    live = Index(place.catalog)
    promote(place.catalog, place.build(fresh=True).id, force_reason="test")
    return live


def test_of_threads_that_refresh_one_loads_and_the_others_go_on(place, monkeypatch):
    live = moved(place())
    plain, loads, inside, go = OpenRelease.open, [], threading.Event(), threading.Event()

    def slow(*args: Any) -> Any:
        loads.append(args)
        inside.set()
        go.wait(100)
        return plain(*args)

    monkeypatch.setattr(OpenRelease, "open", slow)
    said: list[bool] = []
    first = threading.Thread(target=lambda: said.append(live.refresh()))
    first.start()
    inside.wait(100)
    others = [threading.Thread(target=lambda: said.append(live.refresh())) for _ in range(4)]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join(20)
    assert said == [False] * 4
    assert live.search(["bada"])
    go.set()
    first.join(20)
    assert (said[-1], len(loads), live.refresh()) == (True, 1, False)


def test_a_load_that_fails_keeps_what_serves_and_the_next_one_works(place, monkeypatch):
    live = moved(place())
    before = live.current
    monkeypatch.setattr(OpenRelease, "open", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        live.refresh()
    assert live.current is before
    monkeypatch.undo()
    assert live.refresh()
    assert live.current is not before


def test_the_old_release_is_freed_when_its_last_search_ends(place):
    live = moved(place())
    index, table = weakref.ref(live.current.index), weakref.ref(live.current.table.dataset())
    under_way = live.current
    memory.disable()  # by their counts alone, not when the collector comes by
    try:
        assert live.refresh()
        assert index() is not None
        assert under_way.search(["bada"])
        del under_way
        assert (index(), table()) == (None, None)
    finally:
        memory.enable()


# Names that collide


def test_carried_columns_named_like_parts_of_the_answer_are_kept_apart(
    tmp_path, corpus, make_config
):
    rows = lance.dataset(corpus(130)).to_table().rename_columns(["id", "score", "text"])
    for name in ("query", "release", "hits"):
        rows = rows.append_column(name, rows["score"])
    uri = str(tmp_path / "named.lance")
    lance.write_dataset(
        rows.append_column("number", pa.array(range(130))), uri, enable_stable_row_ids=True
    )
    names = ["score", "query", "release", "hits", "number"]
    of = Place(uri, make_config(uri, source={"id_column": "id"}, table={"carry": names}))
    release = of.build()
    (found,) = api.search(of.config, ["bada"], 2, release.id, names).to_json()["results"]
    assert found["query"] == "bada"
    for hit in found["hits"]:
        assert isinstance(hit["score"], float)
        assert isinstance(hit["columns"]["score"], str)
        assert list(hit["columns"]) == names
        assert hit["doc_id"].startswith("d")


def test_what_adds_a_missing_column_names_those_that_are_carried_too(shared):
    with pytest.raises(UsageError) as said:
        Index(shared.catalog).search(["bada"], columns=["text", "title", "body"])
    wanted = """'table.carry=["title", "text", "body"]'"""
    assert said.value.fix == f"reembed run --set {wanted}"


def test_a_column_that_no_table_has_may_be_carried_whatever_it_is_called(corpus, make_config):
    assert make_config(corpus(3), table={"carry": ["norm"]}).table.carry == ("norm",)


def test_places_that_the_index_could_not_fill_are_no_hits(shared, monkeypatch):
    """An index of few lists finds fewer than k where the lists it looks into hold fewer."""
    opened = OpenRelease.open(shared.catalog.storage, shared.catalog.require_live().release)
    plain = type(opened.index).nearest

    def nearest(self, vectors, k):
        ids, scores = plain(self, vectors, k)
        ids[:, 2:], scores[:, 2:] = -1, -np.inf
        return ids, scores

    (whole,) = opened.search(["bada"], 4)
    monkeypatch.setattr(type(opened.index), "nearest", nearest)
    assert opened.search(["bada"], 4, ["title"])[0][0].doc_id == whole[0].doc_id
    assert [len(hits) for hits in opened.search(["bada", "bado"], 4)] == [2, 2]


@pytest.mark.parametrize(
    ("queries", "why"),
    [
        ("bada", "letter by letter"),
        (None, "it is of type NoneType"),
        ([1, 2], "item 0 of it is of type int"),
        ([[0.1] * 256], "item 0 of it is of type list"),
        (["a", None], "item 1 of it is of type NoneType"),
    ],
)
def test_queries_that_are_none_are_refused_for_what_they_are(shared, queries, why):
    with pytest.raises(UsageError, match="a list of texts or an array of vectors") as refused:
        Index(shared.catalog).search(queries)
    assert why in str(refused.value.why)


def test_columns_that_are_one_text_are_answered_with_those_that_are_carried(shared):
    with pytest.raises(UsageError, match="columns must be a list of names") as refused:
        Index(shared.catalog).search(["bada"], columns="year")
    assert refused.value.fix == "columns=['title']"


def test_a_query_without_a_word_that_the_model_knows_is_refused_by_name(place, tmp_path):
    of = place(encoder={"model": str(static_model(tmp_path / "model"))})
    opened = OpenRelease.open(of.catalog.storage, of.build())
    with pytest.raises(UsageError, match=r"query 2 of 3 has no vector: ''") as refused:
        opened.search(["bada", "", "bide"])
    assert "knows no word in it" in str(refused.value.why)
    assert len(opened.search(["bada", "bide"])) == 2

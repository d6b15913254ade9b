"""A search with a filter finds the best documents that meet it, as exact search over the table does."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from inline import Inline, Silent

from reembed import api
from reembed.catalog.releases import Catalog
from reembed.errors import IntegrityError, ReembedError, UsageError
from reembed.index.curve import curve
from reembed.index.exact import ann_recall, exact_search
from reembed.lifecycle.promote import promote
from reembed.serving import filters
from reembed.serving.index import Index
from reembed.serving.live import OpenRelease
from reembed.store.storage import Storage
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild
from reembed.table.read import TableVersion

ROWS = 900
KINDS: dict[str, dict[str, Any]] = {
    "flat": {"factory": "Flat"},
    "pq": {"factory": "IVF8,PQ8x4fs,RFlat"},
    "on_disk": {"kind": "faiss_ondisk", "factory": "IVF8,PQ8x4fs,RFlat"},
    "no_selection": {"factory": "PQ8x4fs,RFlat"},
    "lance": {"kind": "lance", "factory": "IVF4_FLAT"},
}
CONDITIONS = {
    "0 rows": "year > 3000",
    "1 row": "number = 77",
    "1 %": "number % 100 = 3",
    "10 %": "category = 'c3'",
    "half": "year >= 2010 AND NOT (category = 'c3' AND number < 100)",
    "nulls": "category IS NULL",
    "not null": "category != 'c3'",
    "all": "number >= 0",
    "text": "title LIKE '%a%' OR `an odd name` IN (1, 2)",
}


class Served:
    """A corpus with columns to filter by, and what serves it."""

    def __init__(self, uri: str, config: Any) -> None:
        self.uri, self.config = uri, config
        self.catalog = Catalog(Storage.open(config.storage.root), config.alias)
        self.release = full_rebuild(config, Silent(), executor=Inline())
        promote(self.catalog, self.release.id, initial_reason="a test")
        self.index = Index(self.catalog)

    def expected(self, condition: str | None, vectors: Any, k: int) -> list[list[str]]:
        """Exact search over the table's rows that meet the condition, in numpy."""
        table = self.index.current.table.dataset()
        rows = table.to_table(columns=["doc_id", "vector"], filter=condition)
        stored = np.array(rows["vector"].to_pylist()).reshape(-1, vectors.shape[1])
        best = np.argsort(-(vectors @ stored.T), axis=1, kind="stable")[:, :k]
        names = rows["doc_id"].to_pylist()
        return [[names[at] for at in row] for row in best.tolist()]

    def recall(self, condition: str | None, k: int = 10) -> float:
        vectors = self.vectors
        hits = self.index.search(vectors, k, ["number"], condition)
        expected = self.expected(condition, vectors, k)
        assert [len(found) for found in hits] == [len(wanted) for wanted in expected]
        wanted = sum(len(row) for row in expected)
        found = sum(
            len({h.doc_id for h in got} & set(row)) for got, row in zip(hits, expected, strict=True)
        )
        for hit in (hit for row in hits for hit in row):
            assert hit.columns["number"] == int(hit.doc_id[1:])
            assert hit.release == self.index.release.id
        return found / wanted if wanted else 1.0

    @property
    def vectors(self) -> Any:
        texts = lance.dataset(self.uri).to_table(columns=["text"], limit=25)["text"].to_pylist()
        return self.index.current.encode_queries([text[:60] for text in texts])


def with_columns(rows: pa.Table) -> pa.Table:
    numbers = range(len(rows))
    rows = rows.append_column("number", pa.array(numbers))
    rows = rows.append_column("year", pa.array([2000 + n % 20 for n in numbers]))
    kinds = [None if n % 7 == 0 else f"c{n % 10}" for n in numbers]
    rows = rows.append_column("category", pa.array(kinds))
    return rows.append_column("an odd name", pa.array([n % 9 for n in numbers], pa.int8()))


CARRY = ["title", "number", "year", "category", "an odd name"]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    from conftest import documents

    from reembed.config.settings import load

    made: dict[str, Served] = {}

    def serve(kind: str) -> Served:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            uri = str(folder / "c.lance")
            rows = with_columns(pa.Table.from_pylist(documents(ROWS, 0)))
            lance.write_dataset(rows, uri, enable_stable_row_ids=True, max_rows_per_file=400)
            settings = [
                "alias=docs", f"source.uri={uri}", "encoder.model=hashing:32",
                f"storage.root={folder / 'root'}", f"table.carry={CARRY}".replace("'", '"'),
                "index.ann_recall=.95", *(f"index.{k}={v}" for k, v in KINDS[kind].items()),
            ]  # fmt: skip
            made[kind] = Served(uri, load([], settings)[0])
        return made[kind]

    return serve


@pytest.fixture
def without_few(monkeypatch):
    """No filter is answered from vectors that were kept."""
    monkeypatch.setattr(filters, "FEW_BYTES", 0)


@pytest.mark.parametrize("condition", CONDITIONS.values(), ids=CONDITIONS)
def test_few_rows_are_searched_exactly_whatever_the_index(served, condition):
    assert served("pq").recall(condition) == 1


@pytest.mark.parametrize("condition", CONDITIONS.values(), ids=CONDITIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_index_finds_what_exact_search_finds(served, kind, condition, without_few):
    of = served(kind)
    of.index.refresh()
    of.index.current.__dict__.pop("filters", None)
    exact = kind in ("flat", "no_selection")
    assert of.recall(condition) >= (1 if exact else of.recall(None) - 0.05)


def test_a_filter_is_applied_before_k_and_k_may_exceed_what_meets_it(served):
    of = served("flat")
    (hits,) = of.index.search(["bada"], ROWS * 2, ["category"], "category = 'c3'")
    table = of.index.current.table.dataset()
    assert len(hits) == table.count_rows("category = 'c3'") > 50
    assert {h.columns["category"] for h in hits} == {"c3"}
    scores = [h.score for h in hits]
    assert scores == sorted(scores, reverse=True)


def test_a_filter_that_no_document_meets_gives_no_hits_and_still_checks_the_vectors(served):
    of = served("flat")
    assert of.index.search(["a", "b"], 5, filter="year = 1") == [[], []]
    with pytest.raises(ReembedError):
        of.index.search(np.ones((1, 3), np.float32), 5, filter="year = 1")


def test_rows_that_a_catch_up_replaced_or_removed_are_not_found(corpus, make_config, tmp_path):
    uri = str(tmp_path / "c.lance")
    rows = with_columns(lance.dataset(corpus(ROWS)).to_table())
    lance.write_dataset(rows, uri, enable_stable_row_ids=True, max_rows_per_file=400)
    index = {"factory": "IVF8,PQ8x4fs,RFlat", "ann_recall": 0.95}
    of = Served(uri, make_config(uri, index=index, table={"carry": CARRY}))
    source = lance.dataset(uri)
    source.delete("number < 40")
    moved = {"category": "'c3'", "text": "'other words now'"}
    source.update(moved, where="number >= 40 AND number < 60")
    release = catch_up(of.config, of.release, Silent(), executor=Inline())
    promote(of.catalog, release.id, force_reason="a test")
    assert of.index.refresh()
    assert len(of.index.current.index.opened) > 1
    for few in (filters.FEW_BYTES, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(filters, "FEW_BYTES", few)
            of.index.current.__dict__.pop("filters", None)
            for condition in ("category = 'c3'", "number < 50", "number >= 0"):
                assert of.recall(condition) >= of.recall(None) - 0.05
            assert of.index.search(["bada"], 5, filter="number < 40") == [[]]


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("color = 'red'", "No field named color"),
        ("text = 'x'", "No field named text"),
        ("doc_id = 'd00001'", "No field named doc_id"),
        ("vector IS NOT NULL", "No field named vector"),
        ("_rowid > 3", "_rowid is not a carried column"),
        ("`_rowaddr` > 3", "_rowaddr is not a carried column"),
        ("category =", "an expression"),
        ("", "an expression"),
        ("number", "does not return a boolean"),
        ("number = 1; number = 2", "semicolon"),
        ("nope(number) = 1", "Invalid function"),
        ("\"category\" = 'c3'", '"category" is a text'),
        ("year < now()", "not the same at every evaluation"),
        ("CAST(title AS INT) = 3", "Cannot cast"),
        ("number = $1", "no value for $1"),
        ("number = ?", "no value for ?"),
        ("year > " + "1+" * 1000 + "1", "2,003 words and signs; up to 128"),
        ("title = " + "||".join(["title"] * 700), "2,100 words and signs; up to 128"),
        ("(" * 90 + "year > 1" + ")" * 90, "90 brackets"),
        (" OR ".join(["number = 1"] * 9_000), "characters"),
        (3, "type int"),
        (["year = 1"], "type list"),
        (b"year = 1", "type bytes"),
    ],
)
def test_what_is_not_a_filter_is_refused_with_the_carried_columns(served, condition, words):
    index = served("flat").index
    with pytest.raises(UsageError) as said:
        index.search(["bada"], 3, filter=condition)
    assert words in said.value.why
    assert "carried: title, number, year, category" in said.value.why
    assert said.value.fix == "reembed search 'some words' --filter '`title` IS NOT NULL'"
    assert len(said.value.what) < 400


def test_a_release_that_carries_nothing_says_how_to_carry(corpus, make_config):
    config = make_config(corpus(130))
    of = Served(config.source.uri, config)
    with pytest.raises(UsageError, match="carried: nothing") as said:
        of.index.search(["bada"], 3, filter="title = 'x'")
    assert "table.carry" in said.value.fix


def test_texts_may_hold_anything(served):
    (found,) = served("flat").index.search(
        ["bada"], 3, filter="title != 'a; \"category\" now() _rowid' AND number < 9"
    )
    assert len(found) == 3


# What is kept


@pytest.fixture
def scans(served, monkeypatch):
    """Conditions whose rows were read, once for each reading; and a release without any kept."""
    opened = served("flat").index.current
    opened.__dict__.pop("filters", None)
    read: Counter[str] = Counter()
    plain = TableVersion.where

    def where(self: Any, condition: str, columns: Any) -> Any:
        read[condition] += 1
        return plain(self, condition, columns)

    monkeypatch.setattr(TableVersion, "where", where)
    return opened, read


def test_a_filter_is_resolved_once_and_searches_with_it_read_nothing(scans, monkeypatch):
    opened, read = scans
    before = opened.search(["bada"], 3, filter="year > 2005")
    monkeypatch.setitem(vars(opened.table), "_opened", None)
    assert opened.search(["bada"], 3, filter="year > 2005") == before
    assert read == {"year > 2005": 1}


def test_the_filters_used_last_are_kept_within_a_bound(scans, monkeypatch):
    opened, read = scans
    one = opened.filters.among("number > 1").size_bytes
    monkeypatch.setattr(filters, "KEPT_BYTES", 3 * one + 100)
    for number in (1, 2, 3, 1, 4, 1, 2):
        opened.search(["bada"], 3, filter=f"number > {number}")
    assert read == {"number > 1": 1, "number > 2": 2, "number > 3": 1, "number > 4": 1}
    assert opened.filters.size_bytes <= filters.KEPT_BYTES
    monkeypatch.setattr(filters, "KEPT", 2)
    opened.search(["bada"], 3, filter="number > 9")
    assert len(opened.filters._kept) == 2


def test_a_filter_larger_than_the_bound_is_answered(scans, monkeypatch):
    opened, _ = scans
    monkeypatch.setattr(filters, "KEPT_BYTES", 1)
    for condition in ("number > 1", "number > 2"):
        assert len(opened.search(["bada"], 3, filter=condition)[0]) == 3
    assert len(opened.filters._kept) == 1


def test_threads_that_ask_the_same_read_it_once_and_answer_alike(scans):
    opened, read = scans
    conditions = [f"number % 5 = {n}" for n in range(3)]
    expected = {c: opened.search(["bada"], 5, filter=c) for c in conditions}
    opened.__dict__.pop("filters")
    read.clear()
    filled, start, wrong = opened.filters, threading.Barrier(8), []
    assert not filled._kept

    def ask(number: int) -> None:
        start.wait(20)
        for turn in range(12):
            condition = conditions[(number + turn) % 3]
            if opened.search(["bada"], 5, filter=condition) != expected[condition]:
                wrong.append(condition)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert read == dict.fromkeys(conditions, 1)


@pytest.fixture
def slow(scans, monkeypatch):
    """A release whose filters with a 7 are read only when told to; which of them began, in order."""
    opened, _ = scans
    began: queue.SimpleQueue[str] = queue.SimpleQueue()
    go, plain = threading.Event(), TableVersion.where

    def where(self: Any, condition: str, columns: Any) -> Any:
        if "7" in condition:
            began.put(condition)
            assert go.wait(30)
        return plain(self, condition, columns)

    monkeypatch.setattr(TableVersion, "where", where)
    yield opened, began, go
    go.set()


def test_a_slow_filter_keeps_no_other_search_waiting(slow):
    opened, began, go = slow
    with ThreadPoolExecutor(3) as pool:
        late = [pool.submit(opened.search, ["bada"], 3, (), "number > 7") for _ in range(2)]
        assert began.get(timeout=20) == "number > 7"
        others = pool.submit(
            lambda: [opened.search(["bada"], 3, filter=c) for c in ("number > 5", None)]
        )
        assert [len(rows) for (rows,) in others.result(20)] == [3, 3]
        assert not any(asked.done() for asked in late)
        go.set()
        assert late[0].result(20) == late[1].result(20)
    assert began.empty()  # two threads asked the same: one read
    assert not opened.filters._resolving


def test_few_filters_are_resolved_at_a_time_and_searches_without_one_do_not_wait(slow):
    opened, began, go = slow
    many = filters.AT_ONCE + 3
    with ThreadPoolExecutor(many) as pool:
        asked = [pool.submit(opened.search, ["bada"], 3, (), f"number > 7{n}") for n in range(many)]
        first = {began.get(timeout=20) for _ in range(filters.AT_ONCE)}
        assert len(opened.search(["bada"], 3)[0]) == 3
        with pytest.raises(queue.Empty):
            began.get(timeout=0.2)
        go.set()
        assert all(len(found.result(20)[0]) == 3 for found in asked)
    assert len(first | {began.get() for _ in range(3)}) == many


def test_a_filter_asked_after_gc_removed_the_table_says_so(corpus, make_config):
    config = make_config(corpus(130), table={"carry": ["title"]})
    of = Served(config.source.uri, config)
    kept = of.index.search(["bada"], 3, filter="title != ''")
    of.catalog.storage.delete_tree(f"{of.release.table}/")
    assert of.index.search(["bada"], 3, filter="title != ''") == kept
    with pytest.raises(IntegrityError, match="cannot be read any more"):
        of.index.search(["bada"], 3, filter="title = 'x'")


def test_the_verb_and_the_api_take_a_filter(served):
    of = served("flat")
    found = api.search(of.config, ["bada"], 4, columns=["year"], filter="year = 2003")
    assert [h.columns["year"] for h in found.hits[0]] == [2003] * 4
    assert isinstance(OpenRelease.open(of.catalog.storage, of.release).filters, filters.Filters)


def test_the_curve_of_lances_index_is_what_searches_in_so_many_lists_find(served):
    lent = served("lance")
    opened, queries = lent.index.current, lent.vectors
    index, exact = opened.index, exact_search(opened.table, lent.vectors, 40)
    before = index.setting
    found = curve(index, queries, exact, 60)
    assert found is not None
    setting, points = found
    assert (setting, setting.name, setting.least, setting.most) == (before, "nprobe", 1, 4)
    assert [points[0].value, points[-1].value] == [1, 4]
    assert points[0].recall < points[-1].recall == 1.0
    for point in points:
        with index.set_to(point.value) as adjusted:
            assert adjusted.setting.value == point.value
            assert ann_recall(adjusted, queries, *exact).mean() == point.recall
    assert index.setting == before

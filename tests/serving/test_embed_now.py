"""Documents of an answer that are not migrated are embedded while it waits, as many as are ready in time."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from lazy_states import LazyState

import reembed
from reembed import encoders
from reembed.cli.verbs.queries import serve
from reembed.errors import UsageError
from reembed.serving import embed_now, in_time
from reembed.serving.embed_now import EmbedNow
from reembed.serving.http import server
from reembed.serving.http.options import ServeOptions
from reembed.serving.in_time import InTime
from reembed.serving.index import Index
from reembed.serving.lazy_counts import Counts
from reembed.serving.live import OpenRelease

QUERIES = ["bada bide", "koke mizu bada"]


@pytest.fixture
def lazy(corpus, make_config) -> LazyState:
    """No document is migrated; the live table has the texts."""
    state = LazyState(corpus(300), make_config, carry=["title", "text"])
    state.start()
    return state


@pytest.fixture
def tenth(lazy) -> LazyState:
    """Every tenth document is migrated."""
    lazy.migrate(sorted(lazy.rows())[::10])
    return lazy


def opened(lazy: LazyState, first: int, budget: float = 30) -> Index:
    root, alias = lazy.config.storage.root, lazy.config.alias
    return reembed.open(root, alias, lazy_budget=budget, lazy_embed=first)


def ids(answers: Any) -> list[list[str]]:
    return [[hit.doc_id for hit in hits] for hits in answers]


def alone(lazy: LazyState) -> OpenRelease:
    return OpenRelease.open(lazy.storage, lazy.catalog.require_live().release)


def by_definition(lazy: LazyState, query: str, first: int, asked: list[str] = QUERIES) -> list[str]:
    """The first 100 of the old model, in which the migrated ones and the first of all that was asked change places."""
    rows = lazy.rows()
    old, new = ({}, {})
    for scores, config in ((old, lazy.config), (new, lazy.side_config)):
        encoder = encoders.load_encoder(config.encoder)
        vectors = encoder.embed_documents([row["text"] for row in rows.values()]).vectors
        of_all = vectors @ encoder.embed_queries([query])[0]
        scores |= dict(zip(rows, of_all.tolist(), strict=True))
    listed = ids(alone(lazy).search([query], 100))[0]
    assert [old[d] for d in listed] == sorted((old[d] for d in listed), reverse=True)
    firsts = [hits[:first] for hits in ids(alone(lazy).search(asked, 100))]
    moving = {d for hits in firsts for d in hits} | set(sorted(rows)[::10])
    best = iter(sorted((d for d in listed if d in moving), key=lambda d: -new[d]))
    return [next(best) if d in moving else d for d in listed]


def slowed(index: Index, monkeypatch: pytest.MonkeyPatch, passes: int) -> threading.Event:
    """Let the new model embed documents so many times, and then wait for the event."""
    encoder: Any = index.current.side.opened.release.encoder
    plain, go, asked = type(encoder).embed_documents, threading.Event(), []

    def slow(self: Any, texts: Any) -> Any:
        if self is encoder:
            asked.append(texts)
            if len(asked) > passes:
                go.wait(60)
        return plain(self, texts)

    monkeypatch.setattr(type(encoder), "embed_documents", slow)
    return go


@pytest.mark.parametrize("first", [10, 100])
def test_the_first_documents_of_each_list_count_as_migrated(tenth, first):
    with opened(tenth, first) as index:
        found = ids(index.search(QUERIES, 20))
        assert found == [by_definition(tenth, q, first)[:20] for q in QUERIES]
        assert index.lazy.fused == 2
        assert first < index.lazy.embedded <= 2 * first
        assert index.lazy.hits_new < index.lazy.hits, "they still wait for their batch"
        assert ids(index.search(QUERIES, 20)) == found
    assert found != ids(alone(tenth).search(QUERIES, 20))
    queued = set(tenth.queue.read(tenth.queue.files()))
    assert queued >= {d for hits in found for d in hits} - set(sorted(tenth.rows())[::10])


def test_before_the_first_batch_there_is_no_new_side_to_embed_with(lazy):
    with opened(lazy, 50) as index:
        assert ids(index.search(QUERIES, 10)) == ids(alone(lazy).search(QUERIES, 10))
        assert index.lazy.embedded == 0


def test_what_is_ready_in_time_counts_and_the_next_answer_has_it_at_once(tenth, monkeypatch):
    monkeypatch.setattr(embed_now, "AT_ONCE", 8)
    with opened(tenth, 100, budget=0.5) as index:
        go = slowed(index, monkeypatch, passes=1)
        try:
            started = time.perf_counter()
            (found,) = ids(index.search(QUERIES[:1], 20))
            assert 0.5 <= time.perf_counter() - started < 10
            assert (index.lazy.fused, index.lazy.late, index.lazy.embedded) == (1, 0, 8)
        finally:
            go.set()
        # The first 8 that are not migrated are among the first so many.
        listed, there = ids(alone(tenth).search(QUERIES[:1], 20))[0], sorted(tenth.rows())[::10]
        eighth = [at for at, d in enumerate(listed) if d not in there][7]
        assert found == by_definition(tenth, QUERIES[0], eighth + 1, QUERIES[:1])[:20]
        monkeypatch.undo()
    with opened(tenth, 100) as index:
        index.search(QUERIES, 10)
        before = index.lazy.embedded
        slowed(index, monkeypatch, passes=0)
        index.search(QUERIES, 10)
        assert index.lazy.embedded == before > 0


@pytest.mark.parametrize("migrated", [True, False])
def test_a_model_that_fails_costs_the_answer_nothing_else(lazy, monkeypatch, migrated):
    tenth = lazy
    far = sorted(
        set(lazy.rows()) - {d for hits in ids(alone(lazy).search(QUERIES, 100)) for d in hits}
    )
    lazy.migrate(sorted(lazy.rows())[::10] if migrated else far[:5])
    with opened(tenth, 0) as index:
        expected = ids(index.search(QUERIES, 20))
    with opened(tenth, 50) as index:
        encoder: Any = index.current.side.opened.release.encoder

        def broken(self: Any, texts: Any) -> Any:
            raise OSError("out of memory")

        monkeypatch.setattr(type(encoder), "embed_documents", broken)
        for _ in range(in_time.IN_A_ROW + 2):
            assert ids(index.search(QUERIES, 20)) == expected
        assert (index.lazy.failed, index.lazy.skipped, index.lazy.embedded) == (0, 0, 0)
        assert index.lazy.last_error == "OSError: out of memory"


def test_a_text_that_is_not_the_one_embedded_is_left_out(tenth):
    old, new = alone(tenth), OpenRelease.open(tenth.storage, tenth.new)
    counts = Counts()
    now = EmbedNow(10, InTime("passages", counts, 30), counts)
    rows, until = np.arange(10), time.perf_counter() + 30
    assert len(now.vectors(old, new, rows, until).rows) == 10
    source = replace(old.release.source, text="title")
    other = replace(old, release=replace(old.release, source=source))
    assert len(now.vectors(other, new, rows, until).rows) == 0
    assert counts.now().last_error is None


def test_memory_of_what_is_kept_is_bounded(tenth, monkeypatch):
    monkeypatch.setattr(embed_now, "KEPT_BYTES", 5 * (4 * 32 + 250))
    with opened(tenth, 50) as index:
        index.search(QUERIES, 10)
        assert index.lazy.embedded > 5
        assert len(index.current.shared.embed_now._kept) == 5


def test_a_release_without_its_text_is_refused_with_the_run_that_carries_it(corpus, make_config):
    lazy = LazyState(corpus(300), make_config)
    with pytest.raises(UsageError, match="does not carry text") as error:
        opened(lazy, 10)
    assert "--set 'table.carry=[title,text]'" in str(error.value.fix)


@pytest.mark.parametrize("first", [-1, 1.5, True, "10"])
def test_a_number_that_cannot_be_is_refused(lazy, first):
    with pytest.raises(UsageError, match="lazy_embed"):
        opened(lazy, first)
    with pytest.raises(UsageError, match="lazy_embed"):
        ServeOptions(lazy_embed=first)


def test_a_server_embeds_what_it_is_told_to(tenth):
    options = ServeOptions(lazy_budget=30, lazy_embed=10)
    with server._opened(tenth.config, options) as index:
        assert ids(index.search(QUERIES, 20)) == [
            by_definition(tenth, query, 10)[:20] for query in QUERIES
        ]
    of_command = {p.name: p.default for p in serve.params}
    assert {n: of_command[n] for n in ("lazy_budget", "lazy_embed")} == {
        "lazy_budget": in_time.BUDGET_S,
        "lazy_embed": 0,
    }

"""What a simulation says against what is computed here by hand, and against a migration of the same documents."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inline import Inline, Silent
from lazy_states import NEW, OLD, LazyState

import reembed
from reembed.cli.simulated import simulated
from reembed.cli.verbs.lazy import rate
from reembed.config.settings import Config
from reembed.encoders import load_encoder
from reembed.errors import UsageError
from reembed.evaluation.replay import asked_of
from reembed.strategies import lazy_side
from reembed.strategies.simulate import Rate, Simulated, Wanted, simulate

DEPTH, K, FIRST, QUERIES, JUDGED = 100, 10, 20, 60, 40


@pytest.fixture
def lazy(corpus, make_config, monkeypatch) -> LazyState:
    monkeypatch.setattr(lazy_side, "DOCUMENTS", FIRST)
    return LazyState(corpus(300), make_config)


@pytest.fixture
def log(lazy, tmp_path) -> str:
    """Queries, some of which are asked often, an hour apart and not in their order."""
    rng = np.random.default_rng(1)
    rows = list(lazy.rows().values())
    texts = [" ".join(row["text"].split()[:3]) for row in rows[:25]]
    odds = 1 / (1 + np.arange(25))
    asked = rng.choice(25, QUERIES, p=odds / odds.sum())
    lines = [
        {"text": texts[at], "timestamp": f"2026-11-{1 + n // 24:02}T{n % 24:02}:00:00"}
        for n, at in enumerate(asked)
    ]
    file = tmp_path / "log.jsonl"
    file.write_text("".join(json.dumps(lines[n]) + "\n" for n in rng.permutation(QUERIES)))
    return str(file)


@pytest.fixture
def config(lazy, make_config, eval_folder, log) -> Config:
    gate = {"queries": eval_folder(lazy.uri, JUDGED), "logged": log}
    return make_config(
        lazy.uri, name="new.yaml", encoder={"model": NEW}, gate=gate, lazy={"depth": DEPTH}
    )


def asked(lazy: LazyState, config: Config, **wanted: Any) -> Simulated:
    return simulate(lazy.catalog, config, Wanted(**wanted), Silent(), executor=Inline())


class Truth:
    """Both models on all documents, searched exactly."""

    def __init__(self, lazy: LazyState, config: Config) -> None:
        self.rows = lazy.rows()
        self.ids = list(self.rows)
        texts = [row["text"] for row in self.rows.values()]
        self.models = {name: load_encoder(c) for name, c in
                       (("old", lazy.config.encoder), ("new", config.encoder))}  # fmt: skip
        self.vectors = {n: m.embed_documents(texts).vectors for n, m in self.models.items()}
        folder = Path(config.gate.queries[0])
        self.judged = list(map(json.loads, (folder / "queries.jsonl").read_text().splitlines()))
        lines = map(json.loads, Path(str(config.gate.logged)).read_text().splitlines())
        self.log = [row["text"] for row in sorted(lines, key=lambda row: row["timestamp"])]
        self.drawn = set(lazy_side.drawn(lazy.catalog, lazy.old)["doc_id"].to_pylist())

    def scores(self, side: str, text: str) -> dict[str, float]:
        found = self.vectors[side] @ self.models[side].embed_queries([text])[0]
        return dict(zip(self.ids, found.tolist(), strict=True))

    def listed(self, text: str, k: int) -> list[str]:
        scores = self.scores("old", text)
        return sorted(self.ids, key=lambda d: (scores[d], d), reverse=True)[:k]

    def sets(self, per_query: int | None) -> list[set[str]]:
        """What is migrated after each number of queries."""
        shown = {text: self.listed(text, K) for text in set(self.log)}
        times = {d: sum(d in shown[text] for text in self.log) for d in self.ids}
        others = sorted(self.ids, key=lambda d: -times[d])
        migrated, found, waiting = set(self.drawn), [set(self.drawn)], list[str]()
        for text in self.log:
            if per_query is None:
                migrated |= set(shown[text])
            else:
                waiting += [d for d in shown[text] if d not in waiting]
                left = [d for d in (*waiting, *others) if d not in migrated]
                migrated |= set(list(dict.fromkeys(left))[:per_query])
            found.append(set(migrated))
        return found

    def answers(self, migrated: set[str]) -> float:
        results = [d for text in self.log for d in self.listed(text, K)]
        return sum(d in migrated for d in results) / len(results)

    def slots(self, text: str, migrated: set[str]) -> list[str]:
        ranked, new = self.listed(text, DEPTH), self.scores("new", text)
        better = iter(sorted((d for d in ranked if d in migrated), key=lambda d: -new[d]))
        return [next(better) if d in migrated else d for d in ranked]

    def ndcg(self, lists: list[list[str]]) -> float:
        """Each query has one relevant document."""
        found = []
        for query, ids in zip(self.judged, lists, strict=True):
            relevant = query["_id"].removeprefix("q-")
            found.append(1 / math.log2(ids.index(relevant) + 2) if relevant in ids[:K] else 0.0)
        return float(np.mean(found))


@pytest.mark.parametrize("per_query", [None, 3])
def test_coverage_and_quality_are_those_computed_by_hand(lazy, config, per_query):
    sweep = Rate(per_query, "query") if per_query else None
    found, truth = asked(lazy, config, sweep=sweep), Truth(lazy, config)
    assert (found.replayed, found.logged, found.documents) == (QUERIES, QUERIES, 300)
    sets = truth.sets(per_query)
    course = found.courses[-1]
    for point in course.points:
        migrated = sets[point.queries]
        assert point.documents == len(migrated) / 300
        assert point.answers == pytest.approx(truth.answers(migrated))
        lists = [truth.slots(query["text"], migrated) for query in truth.judged]
        assert point.quality == {"slots": pytest.approx(truth.ndcg(lists), abs=1e-9)}
    values = [point.quality["slots"] for point in course.points]
    assert len(set(values)) > 3, "the migration changes nothing here, so that nothing was tested"
    ended = next((n for n, some in enumerate(sets) if len(some) == 300), None)
    assert course.complete == ended


def test_a_migration_of_the_same_documents_answers_as_well_as_predicted(lazy, config):
    point = asked(lazy, config).courses[0].points[-2]
    truth = Truth(lazy, config)
    lazy.start()
    lazy.migrate(sorted(truth.sets(None)[point.queries]))
    texts = [query["text"] for query in truth.judged]
    with reembed.open(lazy.config.storage.root, "passages", lazy_budget=30) as index:
        lists = [[hit.doc_id for hit in hits] for hits in index.search(texts, K)]
        assert index.lazy.fused == JUDGED
    assert point.quality["slots"] == pytest.approx(truth.ndcg(lists), abs=1e-9)
    assert truth.ndcg(lists) != truth.ndcg([truth.listed(text, K) for text in texts])


def test_with_all_documents_in_the_pool_the_other_rules_end_with_the_list_of_the_new_model(
    lazy, config
):
    found = asked(lazy, config, fusions=("slots", "zscore", "rrf"), sweep=Rate(10, "query"))
    truth = Truth(lazy, config)
    lists = []
    for query in truth.judged:
        scores = truth.scores("new", query["text"])
        lists.append(sorted(scores, key=lambda d: -scores[d])[:K])
    assert found.judged.embedded == 300
    last = found.courses[1].points[-1]
    assert last.documents == 1
    for rule in ("zscore", "rrf"):
        assert last.quality[rule] == pytest.approx(truth.ndcg(lists))
        assert found.judged.in_the_end[rule] == last.quality[rule]
        assert found.courses[1].points[0].quality[rule] > 0
    said = "\n".join(simulated(found))
    assert "with a sweep of 10 documents a query, what turned up included:" in said
    assert "every document is migrated after" in said
    assert "zscore and rrf also find documents" in said


def test_without_judged_queries_only_coverage_is_said(lazy, config, monkeypatch):
    gate = config.gate.model_copy(update={"queries": ()})
    monkeypatch.delattr("reembed.evaluation.rescore.embed")
    found = asked(lazy, config.model_copy(update={"gate": gate}))
    assert (found.judged, found.no_quality) == (None, "no judged queries: set gate.queries")
    assert {tuple(p.quality) for p in found.courses[0].points} == {()}
    said = "\n".join(simulated(found))
    assert "quality: not known (no judged queries: set gate.queries)" in said
    assert "not all" in said
    assert found.to_json()["courses"][0]["complete"] is None
    monkeypatch.setattr(lazy_side, "DOCUMENTS", 300)
    said = "\n".join(simulated(asked(lazy, config.model_copy(update={"gate": gate}))))
    assert "the start alone migrates every document" in said
    assert (said.count("100.0%"), "after 0 queries" in said) == (2, False)


def test_only_the_last_queries_are_replayed_and_a_sweep_by_time_follows_the_log(lazy, config):
    found = asked(lazy, config, queries=25, sweep=Rate(48, "hour"))
    assert (found.replayed, found.logged) == (25, QUERIES)
    last = found.courses[1].points[-1]
    assert last.days == pytest.approx(found.courses[0].points[-1].days)
    migrated = last.documents * 300
    file = Path(config.gate.logged)
    rows = sorted(file.read_text().splitlines(), key=lambda line: json.loads(line)["timestamp"])
    file.write_text("\n".join(reversed(rows)) + "\n")
    replayed = asked_of(str(file), {}, 25)
    assert [replayed.texts[at] for at in replayed.text] == [
        json.loads(row)["text"] for row in rows[-25:]
    ]
    assert FIRST + 48 * 24 * last.days >= migrated >= min(300, FIRST + 40 * 24 * last.days)


def test_what_cannot_be_simulated_is_refused_with_the_reason(lazy, config, tmp_path, make_config):
    def without(**gate: Any) -> Config:
        return config.model_copy(update={"gate": config.gate.model_copy(update=gate)})

    with pytest.raises(UsageError, match="no query log is named"):
        asked(lazy, without(logged=None))
    with pytest.raises(UsageError, match="cannot read logged queries"):
        asked(lazy, without(logged=str(tmp_path / "none.jsonl")))
    number = tmp_path / "number.jsonl"
    number.write_text('{"text": null}\n{"text": "bada"}\n{"text": 7}\n')
    with pytest.raises(UsageError, match=r"number\.jsonl:3: not usable"):
        asked(lazy, without(logged=str(number)))
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"text": " "}\n')
    with pytest.raises(UsageError, match="no query has a text"):
        asked(lazy, without(logged=str(empty)))
    untimed = tmp_path / "untimed.jsonl"
    untimed.write_text('{"text": "bada bide"}\n')
    with pytest.raises(UsageError, match="queries of the log have no time") as caught:
        asked(lazy, without(logged=str(untimed)), sweep=Rate(5, "day"))
    assert caught.value.fix.startswith("reembed simulate --sweep 5/q")
    with pytest.raises(UsageError, match="has this model already"):
        asked(lazy, make_config(lazy.uri, encoder={"model": OLD}, gate={"logged": str(untimed)}))
    assert str(rate("20/h")) == "20 documents an hour"

"""Run files, logged queries, cut-offs and the values of each query, in comparisons of real releases."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_models
from conftest import documents
from pairs import DOCUMENTS, QUERIES, Pair, built, lent, options

from reembed import api, faults
from reembed.cli.text import text
from reembed.config.settings import EncoderConfig
from reembed.encoders import load_encoder
from reembed.encoders.hashing import HashingEncoder
from reembed.encoders.tokens import require_tokens
from reembed.errors import DocumentError, GateFailed, IntegrityError, UsageError
from reembed.evaluation import comparisons, queries
from reembed.evaluation.answers import truncated
from reembed.evaluation.comparisons import Comparison
from reembed.evaluation.gate import change_rule
from reembed.evaluation.metrics import named
from reembed.evaluation.page.document import beginning
from reembed.evaluation.per_query import PerQuery
from reembed.evaluation.terms import Asked
from reembed.lifecycle.promote import promote


@pytest.fixture(scope="module")
def built_pair(tmp_path_factory) -> Pair:
    return built(tmp_path_factory.mktemp("evidence"), judged=True)


@pytest.fixture
def pair(built_pair: Pair, tmp_path: Path) -> Iterator[Pair]:
    yield from lent(built_pair, tmp_path)


IDS = [row["doc_id"] for row in documents(DOCUMENTS, 0)]


def values(pair: Pair, record: Comparison) -> PerQuery:
    path = next(p for p in pair.kept() if p.endswith(f"{record.number:08d}.json"))
    return PerQuery.read(pair.catalog.storage, path, record)


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows_in(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


# --- the values of each query ---


def test_the_values_of_each_query_are_kept_and_give_the_same_verdict_again(pair):
    record = pair.compare()
    kept = values(pair, record)
    table = kept.table
    assert len(table) == QUERIES
    assert "text" not in table.column_names
    for key, change in record.metrics.items():
        live_Q, candidate_Q = kept.judged.pairs[key]
        assert live_Q.mean() == pytest.approx(change.live)
        assert candidate_Q.mean() == pytest.approx(change.candidate)
    rule = next(r for r in record.rules if r.metric == "ndcg@10")
    again = change_rule("ndcg@10", *kept.judged.pairs["ndcg@10"], record.gate.margin)
    assert (again.verdict, again.bound, again.margin) == (rule.verdict, rule.bound, rule.margin)
    both = {name: table.column(f"both:{name}").to_numpy().mean() for name in ("overlap@10", "rbo")}
    assert both == pytest.approx({"overlap@10": record.overlap_at_10, "rbo": record.rbo})


def test_the_results_of_each_query_are_what_a_search_gives(pair):
    table = values(pair, pair.compare(Asked(texts=True))).table
    row = table.to_pylist()[7]
    for side, release in (("live", pair.live), ("candidate", pair.candidate)):
        (hits,) = api.search(pair.config(), [row["text"]], release=release.id).hits
        assert row[f"{side}_ids"] == [hit.doc_id for hit in hits]
        assert row[f"{side}_scores"] == pytest.approx([hit.score for hit in hits])


def test_the_file_is_named_by_its_content_and_a_change_of_it_is_found(pair):
    record = pair.compare()
    (place,) = [p for p, _ in pair.catalog.storage.objects("comparisons/") if "parquet" in p]
    body = pair.catalog.storage.read_bytes(place)
    assert hashlib.sha256(body).hexdigest() == record.per_query_sha256
    assert record.per_query_sha256 in place
    pair.catalog.storage.write_bytes(place, body[:-1] + b"x")
    with pytest.raises(IntegrityError, match="not the file that was written"):
        values(pair, record)


def test_the_file_does_not_count_as_a_comparison_and_gc_leaves_it(pair):
    first, second = pair.compare(), pair.compare(Asked(texts=True))
    assert (first.number, second.number, len(second.earlier)) == (1, 2, 1)
    api.gc(pair.config(), delete=True)
    assert len(values(pair, second).table) == QUERIES
    assert list(comparisons.pairs(pair.catalog)) == [(pair.candidate.origin, pair.live.origin)]


def test_a_comparison_that_is_killed_after_the_values_is_made_again(pair, monkeypatch):
    def killed(point: str) -> None:
        if point == "compare.after_queries":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(faults, "point", killed)
        with pytest.raises(KeyboardInterrupt):
            pair.compare()
    assert pair.kept() == []
    record = pair.compare()
    assert (record.number, len(values(pair, record).table)) == (1, QUERIES)


def test_gc_takes_values_that_no_comparison_names_once_one_is_a_day_younger(pair):
    record = pair.compare()
    named = comparisons.values_path(pair.kept()[0], record)
    folder = Path(pair.catalog.storage.uri(named)).parent
    killed, half = folder / f"{'0' * 64}.parquet", folder / f"{'1' * 64}.parquet#1"
    for file in (killed, half):
        file.write_bytes(b"of a comparison that was killed")
    assert api.gc(pair.config()).plan.orphans == [], "one that is being made now"
    for file in (killed, half, folder / Path(named).name):
        os.utime(file, (0, 0))
    found = api.gc(pair.config(), delete=True)
    assert {o.path.rpartition("/")[2] for o in found.plan.orphans} == {killed.name, half.name}
    assert not killed.exists()
    assert not half.exists()
    assert len(values(pair, record).table) == QUERIES


def test_gc_takes_no_values_where_a_comparison_cannot_be_read(pair):
    pair.compare()
    place = Path(pair.catalog.storage.uri(pair.kept()[0]))
    stray = place.parent / f"{'0' * 64}.parquet"
    stray.write_bytes(b"x")
    os.utime(stray, (0, 0))
    place.write_text("{")
    assert api.gc(pair.config()).plan.orphans == []


def test_slices_and_groups_are_kept_with_the_values(late_rows, pair):
    config = pair.config(queries=late_rows, slices=["kind"], group="user")
    asked = Asked(changed_queries=True, reason="with slices")
    record = api.compare(config, pair.candidate.id, **options(asked), emit=lambda _: None)
    table = values(pair, record).table
    assert table.column("slice:kind").to_pylist() == ["even", "odd"] * 15
    assert table.column("group").to_pylist() == [f"u{n // 2}" for n in range(30)]
    assert record.queries.place.slices == ("kind",)
    assert record.metrics["ndcg@10"].change.independent == 15
    for said in (text("compare", record), Path(record.report).read_text()):
        assert "2 of 2 slices: kind = even (n 15), kind = odd (n 15)" in said


@pytest.fixture
def late_rows(tmp_path) -> str:
    rows = [
        {
            "query_id": f"q{n}", "text": row["title"], "doc_ids": [row["doc_id"]],
            "kind": ("even", "odd")[n % 2], "user": f"u{n // 2}", "same": "yes",
        }
        for n, row in enumerate(documents(30, 0))
    ]  # fmt: skip
    return jsonl(tmp_path / "late.jsonl", rows)


def test_what_is_left_out_or_odd_among_queries_is_told(pair, late_rows):
    rows = rows_in(late_rows)
    odd = {**rows[0], "query_id": "again"}
    lost = {**rows[1], "query_id": "lost", "doc_ids": ["no such document"]}
    place = jsonl(Path(late_rows), [*rows, odd, lost])
    config = pair.config(queries=place, slices=["kind", "same"])
    asked = Asked(changed_queries=True, reason="odd ones")
    record = api.compare(config, pair.candidate.id, **options(asked), emit=lambda _: None)
    assert record.queries.judged_present == pytest.approx(31 / 32)
    assert record.queries.not_held == 1
    for said in (text("compare", record), Path(record.report).read_text()):
        assert "4 queries have a text that another query has as well" in said
        assert "slice same: all queries have one value, left out" in said
        assert "96.9% of the relevant documents can be found" in said
        assert (
            "1 judgement of relevant documents that the candidate does not have: they count" in said
        )


# --- run files ---


def run_file(path: Path, lists: dict[str, list[str]]) -> str:
    lines = [
        f"{query_id} Q0 {doc_id} {rank} {1 - rank / 1000} mine"
        for query_id, found in lists.items()
        for rank, doc_id in enumerate(found)
    ]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def perfect(share: float = 1.0) -> dict[str, list[str]]:
    """Lists with the relevant document first in this share of the queries, and last in the others."""
    found = {}
    for n, doc_id in enumerate(IDS[:QUERIES]):
        others = [d for d in IDS[100:120] if d != doc_id]
        found[f"q-{doc_id}"] = [doc_id, *others] if n < share * QUERIES else [*others, doc_id]
    return found


def test_run_files_are_judged_instead_of_searches(pair, tmp_path):
    old = run_file(tmp_path / "old.trec", perfect(0.5))
    new = run_file(tmp_path / "new.trec", perfect())
    record = pair.compare(Asked(runs=(old, new)))
    change = record.metrics["mrr@10"]
    assert (change.live, change.candidate) == (0.5, 1.0)
    assert record.verdict == "pass"
    assert record.runs is not None
    assert record.runs.live.sha256 == hashlib.sha256(Path(old).read_bytes()).hexdigest()
    assert record.summary().runs == (old, new)
    kept = values(pair, record).table.to_pylist()[0]
    assert kept["candidate_ids"] == perfect()[kept["query_id"]][:10]
    for said in (text("compare", record), Path(record.report).read_text()):
        assert "the metrics come from run files" in said
        assert new in said


def test_run_files_of_the_releases_own_results_give_the_metrics_of_a_search(pair, tmp_path):
    searched = pair.compare()
    judged = queries.load_eval_set(pair.judged, "test", {})
    places = []
    for release in (pair.live, pair.candidate):
        found = api.search(pair.config(), judged.texts, k=100, release=release.id)
        lines = [
            f"{query_id} Q0 {hit.doc_id} 1 {hit.score:.9f} x"
            for query_id, hits in zip(judged.query_ids, found.hits, strict=True)
            for hit in hits
        ]
        places.append(tmp_path / f"{release.id}.trec")
        places[-1].write_text("\n".join(lines))
    record = pair.compare(Asked(runs=tuple(map(str, places))))
    for key, change in searched.metrics.items():
        assert record.metrics[key].live == pytest.approx(change.live, abs=1e-6)
        assert record.metrics[key].candidate == pytest.approx(change.candidate, abs=1e-6)


def test_a_query_that_only_the_candidate_lacks_counts_as_without_results(pair, tmp_path):
    lists = perfect()
    old = run_file(tmp_path / "old.trec", lists)
    new = run_file(tmp_path / "new.trec", dict(list(lists.items())[2:]))
    record = pair.compare(Asked(runs=(old, new)))
    assert record.queries.count == QUERIES
    assert record.metrics["mrr@10"].candidate == pytest.approx(1 - 2 / QUERIES)
    assert record.zero_results.candidate == pytest.approx(2 / QUERIES)
    assert "without results: 2 judged queries that the candidate's file lacks" in text(
        "compare", record
    )


def test_a_query_that_live_lacks_is_left_out_and_gains_nothing(pair, tmp_path):
    lists = perfect(0.5)
    old = run_file(tmp_path / "old.trec", dict(list(lists.items())[2:]))
    new = run_file(tmp_path / "new.trec", lists)
    record = pair.compare(Asked(runs=(old, new)))
    assert record.queries.count == QUERIES - 2
    assert record.metrics["mrr@10"].change.mean == 0
    assert "left out: 2 queries that live's file does not have" in text("compare", record)


def test_unknown_ids_in_run_files_are_counted_and_told(pair, tmp_path):
    lists = perfect()
    strange = {**lists, "q-nobody-asked": ["x"]}
    strange[f"q-{IDS[0]}"] = ["made up", *lists[f"q-{IDS[0]}"]]
    old = run_file(tmp_path / "old.trec", lists)
    path = tmp_path / "new.trec"
    run_file(path, {k: [d.replace(" ", "-") for d in found] for k, found in strange.items()})
    record = pair.compare(Asked(runs=(old, str(path))))
    assert record.runs is not None
    assert (record.runs.candidate.unknown, record.runs.candidate.unjudged) == (1, 1)
    assert record.runs.live.unknown == 0
    said = text("compare", record)
    assert "not in the release: 1 document of its results" in said
    assert "not looked at: 1 other query in it" in said


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("q-d00000 Q0 d00001 1 0.5", "5 fields"),
        ("q-d00000 Q0 d00001 1 nan x", "not a finite number"),
        ("q-d00000 Q0 d00001 1 inf x", "not a finite number"),
        ("q-d00000 Q0 d00001 1 high x", "not a finite number"),
        ("q Q0 d 1 0.5 x\nq Q0 d 2 0.4 x", "document 'd' twice"),
    ],
)
def test_a_bad_line_of_a_run_file_is_named(line, why, pair, tmp_path):
    old = run_file(tmp_path / "old.trec", perfect())
    new = tmp_path / "new.trec"
    new.write_text(line + "\n")
    with pytest.raises(UsageError, match=r"new\.trec:\d+: not usable") as refused:
        pair.compare(Asked(runs=(old, str(new))))
    assert why in str(refused.value)
    assert pair.kept() == []


@pytest.mark.parametrize("which", [0, 1])
def test_a_run_file_that_lacks_many_queries_is_refused(which, pair, tmp_path):
    lists = perfect()
    few = dict(list(lists.items())[: QUERIES // 2])
    places = [run_file(tmp_path / f"{n}.trec", few if n == which else lists) for n in (0, 1)]
    with pytest.raises(UsageError, match=f"{which}.trec lacks 26 of 52 judged queries"):
        pair.compare(Asked(runs=tuple(places)))


def test_a_run_file_with_ids_of_another_kind_is_refused(pair, tmp_path):
    old = run_file(tmp_path / "old.trec", perfect())
    new = run_file(tmp_path / "new.trec", {k: [f"x{d}" for d in v] for k, v in perfect().items()})
    with pytest.raises(UsageError, match="the release has none of the"):
        pair.compare(Asked(runs=(old, new)))


def test_a_run_file_that_is_not_there_is_named_with_what_to_do(pair, tmp_path):
    with pytest.raises(UsageError, match="cannot read a run file") as refused:
        pair.compare(Asked(runs=(str(tmp_path / "none"), str(tmp_path / "none"))))
    assert "--runs OLD NEW" in (refused.value.fix or "")


def printed_commands(said: str) -> list[list[str]]:
    lines = [re.match(r"(?:Next|  or): reembed (.*)", line) for line in said.splitlines()]
    return [shlex.split(line[1], comments=True) for line in lines if line]


def test_what_follows_a_comparison_by_run_files_judges_the_same_files(pair, tmp_path):
    folder = tmp_path / "with space"
    folder.mkdir()
    new = run_file(folder / "new.trec", perfect(0.5))
    old = run_file(folder / "old.trec", perfect(0.6))
    said = pair.said("compare", "--runs", os.path.relpath(old), new, code=3)
    again = [words for words in printed_commands(said) if words[0] == "compare"]
    assert again
    for words in again:
        at = words.index("--runs")
        assert words[at + 1 : at + 3] == [old, new]
    qrels = Path(pair.judged, "qrels", "test.tsv")
    qrels.write_text("\n".join(qrels.read_text().splitlines()[:-3]))
    with pytest.raises(UsageError, match="the judged queries are not those") as refused:
        pair.compare(Asked(runs=(old, new)))
    assert f"--runs {shlex.join([old, new])}" in (refused.value.fix or "")


def test_searches_do_not_take_the_place_of_run_files_that_did_not_pass(pair, tmp_path):
    old = run_file(tmp_path / "old.trec", perfect())
    new = run_file(tmp_path / "new.trec", perfect(0.2))
    assert pair.compare(Asked(runs=(old, new))).verdict == "fail"
    with pytest.raises(GateFailed) as refused:
        promote(pair.catalog, pair.candidate.id)
    assert f"--runs {old} {new}" in (refused.value.fix or "")

    searched = pair.compare(Asked(margin=0.9, reason="searches may lose"))
    assert searched.verdict == "pass"
    said = text("compare", searched)
    for place in (said, Path(searched.report).read_text()):
        assert "promote does not accept this comparison, which is by searches" in place
    assert [words[0] for words in printed_commands(said)] == ["compare", "promote"]
    assert f"--runs {old} {new}" in said
    with pytest.raises(GateFailed, match="passed by searches, but not by run files before"):
        promote(pair.catalog, pair.candidate.id)
    assert [n.named for n in comparisons.pairs(pair.catalog).values()] == ["fail"]
    (waiting,) = api.status(pair.config()).candidates
    assert (waiting.verdict, waiting.runs) == ("fail", (old, new))
    assert "reembed promote" not in pair.said("status")

    better = run_file(tmp_path / "better.trec", perfect())
    worse = run_file(tmp_path / "worse.trec", perfect(0.5))
    assert pair.compare(Asked(runs=(worse, better))).verdict == "pass"
    pair.compare(Asked(margin=0.9, reason="searches may lose"))
    assert promote(pair.catalog, pair.candidate.id).release.id == pair.candidate.id


def test_what_status_prints_after_run_files_that_decided_nothing_names_them(pair, tmp_path):
    old = run_file(tmp_path / "old.trec", perfect(0.5))
    new = run_file(tmp_path / "new.trec", perfect(0.52))
    assert pair.compare(Asked(runs=(old, new))).verdict == "inconclusive"
    (words,) = printed_commands(pair.said("status"))
    assert words[:3] == ["compare", "-c", words[2]]
    assert words[3:8] == ["--candidate", pair.candidate.id, "--runs", old, new]


def test_equal_run_files_are_refused(pair, tmp_path):
    one = run_file(tmp_path / "one.trec", perfect())
    other = run_file(tmp_path / "other.trec", perfect())
    for files in ((one, one), (one, other)):
        with pytest.raises(UsageError, match="hold the same results") as refused:
            pair.compare(Asked(runs=files))
        assert "sha256" in (refused.value.why or "")
        assert "--runs OLD NEW" in (refused.value.fix or "")
    assert pair.kept() == []


def test_equal_lists_with_other_scores_are_told(pair, tmp_path):
    old = run_file(tmp_path / "old.trec", perfect())
    new = tmp_path / "new.trec"
    new.write_text(Path(old).read_text().replace(" 0.9", " 0.8"))
    record = pair.compare(Asked(runs=(old, str(new))))
    assert record.same_lists == QUERIES
    for said in (text("compare", record), Path(record.report).read_text()):
        assert "ATTENTION: live and candidate have the same list of documents" in said
    assert pair.compare().same_lists < QUERIES


def test_an_empty_run_file_and_a_folder_are_told_as_what_they_are(pair, tmp_path):
    old = run_file(tmp_path / "old.trec", perfect())
    (tmp_path / "empty.trec").write_text("\n")
    with pytest.raises(UsageError) as refused:
        pair.compare(Asked(runs=(old, str(tmp_path / "empty.trec"))))
    assert refused.value.why == "it has no line"
    with pytest.raises(UsageError) as refused:
        pair.compare(Asked(runs=(old, str(tmp_path))))
    assert refused.value.why == "it is a folder, not a file"


# --- logged queries ---


def log_rows(count: int) -> list[dict[str, Any]]:
    return [{"text": row["title"], "user": f"u{n}"} for n, row in enumerate(documents(count, 0))]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_logged_queries_show_how_different_the_answers_are(kind, pair, tmp_path):
    rows = [*log_rows(40), *log_rows(5), {"text": " ", "user": "u"}, {"text": None, "user": "u"}]
    place = jsonl(tmp_path / "log.jsonl", rows)
    if kind == "parquet":
        place = str(tmp_path / "log.parquet")
        pq.write_table(pa.Table.from_pylist(rows), place)
    record = pair.compare(logged=place)
    found = record.logged
    assert found is not None
    assert (found.rows, found.empty, found.distinct, found.asked) == (47, 2, 40, 40)
    assert found.clicked is None
    assert 0 < found.overlap_at_10 < 1
    table = values(pair, record).table
    assert table.column("evidence").to_pylist().count("none") == 40
    said = text("compare", record)
    assert "logged queries: 40 of 40 different texts in 47 rows" in said
    assert "left out: 2 rows without a text" in said


def test_nothing_is_decided_by_logged_queries_and_naming_them_changes_no_plan(pair, tmp_path):
    said: list[Any] = []
    place = jsonl(tmp_path / "log.jsonl", [{**r, "clicks": [IDS[5]]} for r in log_rows(30)])
    plain = pair.compare()
    record = api.compare(pair.config(logged=place), pair.candidate.id, emit=said.append)
    assert said == []
    untimed, as_before = ([r for r in c.rules if r.name != "latency"] for c in (record, plain))
    assert (untimed, record.changes) == (as_before, ())


def test_the_sample_depends_on_the_texts_alone(pair, tmp_path):
    rows = log_rows(60)
    there = pair.compare(logged=jsonl(tmp_path / "a.jsonl", rows), logged_sample=20).logged
    turned = pair.compare(logged=jsonl(tmp_path / "b.jsonl", rows[::-1]), logged_sample=20).logged
    assert there is not None
    assert turned is not None
    assert (there.asked, there.distinct) == (20, 60)
    assert there.sha256 == turned.sha256
    other = pair.compare(logged=jsonl(tmp_path / "c.jsonl", rows[:30]), logged_sample=20).logged
    assert other is not None
    assert other.sha256 != there.sha256


def test_clicks_are_pseudo_judgements_and_are_called_so(pair, tmp_path):
    rows = [{**row, "clicks": [IDS[n]]} for n, row in enumerate(log_rows(30))]
    rows[0]["clicks"].append("gone")
    rows += [{**row, "clicks": None} for row in log_rows(35)[30:]]
    record = pair.compare(logged=jsonl(tmp_path / "log.jsonl", rows))
    assert record.logged is not None
    clicked = record.logged.clicked
    assert clicked is not None
    assert (record.logged.asked, clicked.queries, clicked.clicks, clicked.unknown) == (
        35,
        30,
        31,
        1,
    )
    assert clicked.outside >= 1
    kept = values(pair, record)
    of_clicks = PerQuery(kept.table.filter(np.array(kept.table.column("evidence")) == "clicks"))
    judged = queries.load_eval_set(jsonl(tmp_path / "j.jsonl", rows), "test", {})
    found = api.search(pair.config(), judged.texts, k=100, release=pair.candidate.id).hits
    expected = named("mrr@10").of(judged, [[str(h.doc_id) for h in hits] for hits in found])
    _, ours = of_clicks.pairs["mrr@10"]
    assert sorted(ours) == pytest.approx(sorted(expected))
    assert clicked.metrics["mrr@10"].candidate == pytest.approx(expected.mean())
    said = text("compare", record)
    assert "30 of them with clicks, which favour what live showed" in said
    assert "not in the candidate: 1 clicked document" in said
    assert "clicks on documents that neither release finds" in said


def test_a_log_that_judges_is_labelled(pair, tmp_path):
    rows = [{**row, "clicks": [IDS[n]]} for n, row in enumerate(log_rows(30))]
    rows[0]["clicks"].append("gone")
    place = jsonl(tmp_path / "log.jsonl", [*rows, *rows[:3], {"text": "nothing", "clicks": []}])
    asked = Asked(changed_queries=True, reason="only clicks are known")
    record = api.compare(
        pair.config(queries=place), pair.candidate.id, **options(asked), emit=lambda _: None
    )
    (found,) = record.queries.sets
    assert (found.evidence, found.count, found.dropped) == ("clicks", 30, 1)
    said = text("compare", record)
    assert "relevance by clicks, not by judges: log" in said
    outside = sum(
        len({doc_id} - {*row["live_ids"], *row["candidate_ids"]})
        for row, doc_id in zip(values(pair, record).table.to_pylist(), IDS, strict=False)
    )
    assert record.queries.clicks == 31
    assert 1 <= record.queries.clicks_outside <= 1 + outside  # lists of a hundred, rows have ten
    told = f"{record.queries.clicks_outside} of 31 clicks on documents that neither release finds"
    for place in (said, Path(record.report).read_text()):
        assert told in place


def test_a_logged_text_that_a_model_cannot_embed_has_no_results(pair, tmp_path, monkeypatch):
    """A live static model gives NaN for a text of unknown words; a tokenizer may refuse one."""
    honest, refused = HashingEncoder.embed_queries, {"refused": 0}

    def embed(self: Any, texts: Any) -> Any:
        if "refuse this" in texts:
            refused["refused"] += 1
            raise DocumentError("it cannot be tokenized")
        vectors = honest(self, texts)
        vectors[[n for n, t in enumerate(texts) if t == "unknown words"]] = np.nan
        return vectors

    monkeypatch.setattr(HashingEncoder, "embed_queries", embed)
    rows = [*log_rows(8), {"text": "unknown words"}, {"text": "refuse this"}]
    found = pair.compare(logged=jsonl(tmp_path / "log.jsonl", rows)).logged
    assert found is not None
    assert refused["refused"] > 1
    assert (found.zero_results.live, found.zero_results.candidate) == (0.2, 0.2)


def test_a_judged_query_that_a_model_cannot_embed_has_no_results(pair, monkeypatch):
    honest = HashingEncoder.embed_queries
    judged = [row["text"] for row in rows_in(f"{pair.judged}/queries.jsonl")]
    first, other = judged[:2]

    def embed(self: Any, texts: Any) -> Any:
        if other in texts:
            raise DocumentError("it cannot be tokenized")
        vectors = honest(self, texts)
        if self.describe().dim == 16:
            vectors[[n for n, t in enumerate(texts) if t == first]] = np.nan
        return vectors

    plain = pair.compare()
    with monkeypatch.context() as patch:
        patch.setattr(HashingEncoder, "embed_queries", embed)
        record = pair.compare()
    assert (record.not_embedded.live, record.not_embedded.candidate) == (1, 2)
    assert record.zero_results.candidate == pytest.approx(2 / QUERIES)
    assert record.metrics["mrr@10"].live < plain.metrics["mrr@10"].live
    rule = next(r for r in record.rules if r.name == "ann_recall@10")
    assert (rule.n, rule.verdict) == (QUERIES - 2, "pass")
    for said in (text("compare", record), Path(record.report).read_text()):
        assert "not embedded by the model of candidate: 2 queries" in said

    def nothing(self: Any, texts: Any) -> Any:
        return honest(self, texts) * (np.nan if texts[0] in judged else 1)

    monkeypatch.setattr(HashingEncoder, "embed_queries", nothing)
    with pytest.raises(UsageError, match="its model can embed none of 52 queries"):
        pair.compare()


def test_run_files_cannot_tell_equal_ids_of_two_sets_apart(pair, tmp_path, late_rows):
    runs = tuple(run_file(tmp_path / f"{n}.trec", perfect(n)) for n in (0, 1))
    again = jsonl(
        tmp_path / "again.jsonl",
        [row | {"text": f"again {row['text']}"} for row in rows_in(late_rows)],
    )
    asked = Asked(changed_queries=True, reason="two sets", runs=runs)
    config = pair.config(queries=[late_rows, again])
    with pytest.raises(UsageError, match="30 ids of judged queries are in more than one set"):
        api.compare(config, pair.candidate.id, **options(asked), emit=lambda _: None)


def test_two_sets_are_judged_together_and_told_apart(pair, tmp_path, late_rows):
    other = jsonl(
        tmp_path / "other.jsonl",
        [row | {"text": f"other {row['text']}"} for row in rows_in(late_rows)[:10]],
    )
    asked = Asked(changed_queries=True, reason="two sets")
    record = api.compare(
        pair.config(queries=[late_rows, other]),
        pair.candidate.id,
        **options(asked),
        emit=lambda _: None,
    )
    assert [(s.name, s.count) for s in record.queries.sets] == [("late", 30), ("other", 10)]
    assert values(pair, record).table.column("set").to_pylist() == ["late"] * 30 + ["other"] * 10


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"text": 5}, "is empty or not a string"),
        ({"query": "t"}, "no 'text'"),
        ({"text": "t", "clicks": "d1"}, "clicks is not a list"),
        ({"text": "t", "clicks": [1.5]}, "neither a string nor an integer"),
        ({"text": "t", "timestamp": "soon"}, "is not a time"),
    ],
)
def test_a_bad_row_of_a_log_is_named(row, why, pair, tmp_path):
    place = jsonl(tmp_path / "log.jsonl", [*log_rows(2), row])
    with pytest.raises(UsageError, match=r"log\.jsonl:3: not usable") as refused:
        pair.compare(logged=place)
    assert why in str(refused.value)


@pytest.mark.parametrize("content", ["", '{"text": ""}\n'])
def test_a_log_without_texts_is_refused(content, pair, tmp_path):
    place = tmp_path / "log.jsonl"
    place.write_text(content)
    with pytest.raises(UsageError, match="no query has a text"):
        pair.compare(logged=str(place))


def test_a_log_of_another_kind_is_refused_with_those_that_are_known(pair, tmp_path):
    with pytest.raises(UsageError, match="cannot read logged queries"):
        pair.compare(logged=str(tmp_path / "none.jsonl"))
    (tmp_path / "log.csv").write_text("text\n")
    with pytest.raises(UsageError, match="jsonl"):
        pair.compare(logged=str(tmp_path / "log.csv"))


# --- cut-offs and operation ---


def test_cut_offs_are_in_the_record_the_log_of_the_alias_and_the_text(pair):
    record = pair.compare(Asked(cutoff=0.2))
    found = record.cutoffs
    assert found is not None
    assert found.same_share.score is not None
    assert found.same_share.low is not None
    assert found.same_share.low <= found.same_share.score
    assert record.evidence().cutoffs == found
    assert "cut-off 0.2 of live shows" in text("compare", record)
    forced = api.promote(pair.config(), pair.candidate.id, force="a test", catch_up=False)
    assert forced.grounds.comparison is not None
    assert forced.grounds.comparison.cutoffs == found
    assert "cut-off 0.2 of live shows" in text("promote", forced)


def test_status_tells_the_cut_offs_of_a_candidate_and_of_what_became_live_with_or_without_a_catch_up(
    pair,
):
    found = pair.compare(Asked(cutoff=0.2)).cutoffs
    assert found is not None
    before = api.status(pair.config())
    (candidate,) = before.candidates
    assert (before.cutoffs, candidate.cutoffs) == (None, found)
    api.promote(pair.config(), pair.candidate.id, force="a test", catch_up=False)
    after = api.status(pair.config())
    assert after.cutoffs == found
    pair.catalog.append(pair.catalog.live(), "rollback", pair.live)
    pair.catalog.append(
        pair.catalog.live(), "promote", pair.candidate
    )  # without grounds, as a catch-up
    followed = api.status(pair.config())
    assert followed.cutoffs == found
    for told in (before, after, followed):
        said = text("status", told)
        assert (
            f"cut-off 0.2 of the release that it was compared with: {found.same_recall.score:.4f}"
            in said
        )
        assert '"cutoff": 0.2' in json.dumps(told.to_json())


@pytest.mark.parametrize("cutoff", [math.nan, math.inf])
def test_a_cut_off_that_is_no_number_is_refused_and_nothing_is_kept(cutoff, pair):
    with pytest.raises(UsageError, match="cutoff is"):
        pair.compare(Asked(cutoff=cutoff))
    assert pair.kept() == []


def test_the_size_of_an_index_is_that_of_its_files(pair):
    record = pair.compare()
    for release, size in ((pair.live, record.index.live), (pair.candidate, record.index.candidate)):
        paths = pair.catalog.storage.objects(f"{release.index}/")
        assert size.disk_bytes == sum(n for path, n in paths if not path.endswith(".json"))
        assert size.memory_bytes is not None
        assert 0 < size.memory_bytes < size.disk_bytes


@pytest.mark.parametrize("most", [6, 9, 16])
def test_queries_longer_than_a_sentence_transformer_reads_are_counted_exactly(most, tmp_path):
    folder = str(tiny_models.bert_model(tmp_path, dim=16))
    texts = [row["text"][:n] for n, row in enumerate(documents(60, 3), start=1)]
    whole, cut = (
        load_encoder(EncoderConfig(model=folder, max_length=length)) for length in (64, most)
    )
    release = SimpleNamespace(query_model=SimpleNamespace(space=cut.describe()))
    opened = SimpleNamespace(encoder=cut, release=release)
    found = SimpleNamespace(opened=opened, texts=texts, known=range(len(texts)))
    expected = int((require_tokens(whole).tokenize(texts, "query").lengths > most).sum())
    assert 0 < expected < len(texts)
    assert truncated(found) == expected


@pytest.mark.parametrize("most", [4, 9, 16])
def test_queries_longer_than_the_model_reads_are_counted(most):
    whole = HashingEncoder(EncoderConfig(model="hashing:64"))
    texts = [row["text"][:n] for n, row in enumerate(documents(60, 3))] + ["a", "no-spaces-" * 3]
    cut = HashingEncoder(EncoderConfig(model="hashing:64", max_length=most))
    release = SimpleNamespace(query_model=SimpleNamespace(space=cut.describe()))
    opened = SimpleNamespace(encoder=cut, release=release)
    found = SimpleNamespace(opened=opened, texts=texts, known=range(len(texts)))
    expected = int((whole.tokenize(texts, "query").lengths > most).sum())
    assert 0 < expected < len(texts)
    assert abs(truncated(found) - expected) <= 2  # a word cut in two has other letter triples


def test_a_provider_that_tokenizes_tells_nothing_of_long_queries():
    encoder = SimpleNamespace()
    assert truncated(SimpleNamespace(opened=SimpleNamespace(encoder=encoder), texts=["t"])) is None


# --- what the report shows beside the metrics ---


def test_the_values_have_the_judgements_of_each_result(pair):
    table = values(pair, pair.compare()).table
    for row in table.to_pylist():
        judged = row["query_id"].removeprefix(
            "q-"
        )  # each title is judged for its own document alone
        assert row["relevant"] == 1
        for side in ("live", "candidate"):
            ids, grades = row[f"{side}_ids"], row[f"{side}_grades"]
            assert grades == [1 if doc_id == judged else None for doc_id in ids]


def test_scores_are_counted_by_what_is_relevant_and_the_machine_is_told(pair):
    record = pair.compare()
    assert record.scores is not None
    table = values(pair, record).table.to_pylist()
    for side in ("live", "candidate"):
        of = getattr(record.scores.of, side)
        grades = [g for row in table for g in row[f"{side}_grades"]]
        assert sum(of.relevant) == grades.count(1)
        assert sum(of.others) == grades.count(None)
    assert record.environment.packages["faiss-cpu"]
    assert record.environment.cpus >= 1
    assert vars(record.curve) == {"live": None, "candidate": None}, "both look at all vectors"
    assert record.latency is not None
    assert record.latency.live.queries == QUERIES - 5


def test_a_report_is_written_beside_the_kept_one_and_a_bad_place_is_told_before_anything_is_done(
    pair, tmp_path
):
    places = [tmp_path / f"report{ending}" for ending in (".html", ".md", ".json")]
    arguments = [word for place in places for word in ("--report", str(place))]
    pair.said("compare", *arguments, code=3)
    page, words, record = (place.read_text() for place in places)
    (kept,) = [p for p, _ in pair.catalog.storage.objects("comparisons/") if p.endswith(".html")]
    assert page == pair.catalog.storage.read_bytes(kept).decode()
    assert words.startswith("# passages: candidate against live **✗ fail**")
    assert json.loads(record)["verdict"] == "fail"
    before = pair.kept()
    with pytest.raises(UsageError, match="unknown kind of report"):
        api.compare(pair.config(), pair.candidate.id, reports=["report.pdf"])
    with pytest.raises(UsageError, match="reports must be"):
        api.compare(pair.config(), pair.candidate.id, reports="report.html")
    assert pair.kept() == before


def test_how_documents_begin_is_in_the_report_where_that_is_asked_for(pair, tmp_path):
    place = tmp_path / "report.json"
    record = pair.compare(Asked(document_texts=True, reports=(str(place),)))
    texts = {row["doc_id"]: row["text"] for row in documents(DOCUMENTS, 0)}
    most = json.loads(place.read_text())["changed_most"]["ndcg@10"]
    shown = [d for q in (*most["lost"], *most["won"]) for side in q["found"].values() for d in side]
    assert len(shown) >= 20
    assert all(d["text"] == beginning(texts[d["doc_id"]]) for d in shown)
    assert shown[0]["text"] in Path(record.report).read_text()
    assert shown[0]["text"] not in Path(pair.compare().report).read_text()
    assert "text" not in values(pair, record).table.column_names, "the queries' were not asked for"

"""What is said of a model before any document is migrated: live's first results, ranked again by it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from conftest import Quiet, documents
from inline import Inline
from judged_lists import eval_set
from pairs import DOCUMENTS, QUERIES, Pair, built, lent
from tiny_models import static_model

from reembed import digests
from reembed.catalog.releases import Release
from reembed.cli.predicted import predicted
from reembed.encoders import describe
from reembed.encoders.hashing import HashingEncoder
from reembed.errors import DocumentError, GateFailed, Inconclusive, UsageError
from reembed.evaluation import rescore
from reembed.evaluation.candidates import DEPTH, Candidates
from reembed.evaluation.metrics import Ranked
from reembed.evaluation.rerank import Prediction, predict
from reembed.evaluation.rescore import Asked, Scored
from reembed.source.dataset import Source
from reembed.store.records import decode

IDS = [row["doc_id"] for row in documents(DOCUMENTS, 0)]


@pytest.fixture(scope="module")
def built_pair(tmp_path_factory) -> Pair:
    """Live has 256 dimensions, the candidate 16."""
    return built(tmp_path_factory.mktemp("rerank"), judged=True)


@pytest.fixture
def pair(built_pair: Pair, tmp_path: Path) -> Iterator[Pair]:
    yield from lent(built_pair, tmp_path)


def asked(pair: Pair, live: Release, dim: int = 16, **how: Any) -> Prediction:
    evidence = how.pop("without_evidence", None)
    executor = how.pop("executor", None)
    config = pair.config(dim, **how)
    return predict(
        pair.catalog, live, config, Quiet(), executor=executor, without_evidence=evidence
    )


def change(found: Prediction, metric: str = "ndcg@10") -> Any:
    return next(m for m in found.metrics if m.metric == metric)


def said(found: Prediction) -> str:
    return "\n".join(predicted(found))


def with_groups(pair: Pair, size: int) -> str:
    """The judged queries again, so many of them in each group."""
    folder = Path(str(pair.judged))
    lines = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    rows = [{**line, "asks": f"g{at // size}"} for at, line in enumerate(lines)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "asks"


def change_the_source(pair: Pair, changed: int, deleted: int) -> None:
    """Other texts and fewer documents, in a version after which the older ones are cleaned up."""
    dataset = lance.dataset(pair.source)
    rows = documents(DOCUMENTS, 0)
    table = pa.Table.from_pylist(
        [{**row, "text": f"other {at}"} for at, row in enumerate(rows[:changed])]
    )
    dataset.merge_insert("doc_id").when_matched_update_all().execute(table)
    for name in IDS[changed : changed + deleted]:
        dataset.delete(f"doc_id = '{name}'")
    for tag in dataset.tags.list():
        dataset.tags.delete(tag)
    lance.dataset(pair.source).cleanup_old_versions(older_than=None, retain_versions=1)


# --- the verdict ---


def test_a_better_model_passes_and_nothing_is_written(pair):
    before = sorted(path for path, _ in pair.catalog.storage.objects(""))
    found = asked(pair, pair.candidate, 256)
    assert found.verdict == "pass"
    assert change(found).change > 0.1
    assert change(found).low <= change(found).change <= change(found).high
    found.require()
    assert sorted(path for path, _ in pair.catalog.storage.objects("")) == before


def test_a_worse_model_fails_and_is_refused(pair):
    found = asked(pair, pair.live, 8)
    assert found.verdict == "fail"
    assert change(found).high < 0
    with pytest.raises(GateFailed, match=r"not shown to be as good.*hashing:256"):
        found.require()


def test_the_same_model_changes_nothing(pair):
    found = asked(pair, pair.live, 256)
    assert [m.change for m in found.metrics] == [0.0, 0.0]


def test_another_model_of_the_name_that_live_has_is_told_apart_by_its_space(pair):
    stored = pair.live.space.vector_dtype
    live = replace(pair.live, space=replace(pair.live.space, prompt_query="query: "))
    ours = describe(pair.config(256).encoder, stored)
    unjudged = {"queries": [], "without_evidence": "a test"}
    assert asked(pair, live, 256, **unjudged).model == f"hashing:256 (space {ours.id})"
    assert asked(pair, pair.live, 256, **unjudged).model == "hashing:256"


def test_live_is_measured_as_a_comparison_measures_it(pair):
    record = pair.compare()
    found = asked(pair, pair.live, 16)
    for m in found.metrics:
        assert m.live == pytest.approx(record.metrics[m.metric].live)
        assert m.queries == QUERIES
        rule = next(r for r in found.rules if r.metric == m.metric)
        theirs = next(r for r in record.rules if r.metric == m.metric)
        assert rule.margin == theirs.margin


def test_where_all_documents_are_ranked_again_it_is_what_a_migration_gives(pair, monkeypatch):
    monkeypatch.setattr("reembed.evaluation.candidates.DEPTH", DOCUMENTS)
    monkeypatch.setattr("reembed.evaluation.answers.DEPTH", DOCUMENTS)
    record = pair.compare()
    found = asked(pair, pair.live, 16)
    for m in found.metrics:
        assert m.change == pytest.approx(record.metrics[m.metric].change.mean)
        assert m.low == pytest.approx(record.metrics[m.metric].change.low)
    assert found.documents.embedded == DOCUMENTS


def test_too_few_queries_are_inconclusive_and_it_says_how_many_decide(pair):
    few = pair.judge(12)
    found = asked(pair, pair.live, 256, queries=few)
    assert found.verdict == "inconclusive"
    assert found.if_unchanged is not None
    assert found.if_unchanged.queries > 12
    with pytest.raises(Inconclusive, match="would decide"):
        found.require()
    assert f"{found.if_unchanged.queries:,} queries" in said(found)


def test_queries_that_belong_together_widen_the_interval(pair):
    alone = change(asked(pair, pair.live, 16))
    group = with_groups(pair, 4)
    grouped = asked(pair, pair.live, 16, group=group)
    together = change(grouped)
    assert together.change == alone.change
    assert together.high - together.low > alone.high - alone.low
    assert next(r for r in grouped.rules if r.metric).independent == QUERIES / 4


def test_queries_of_one_group_say_nothing(pair):
    found = asked(pair, pair.live, 8, group=with_groups(pair, QUERIES))
    assert found.verdict == "inconclusive"
    assert (change(found).low, change(found).high) == (-1, 1)


def test_a_margin_that_is_set_is_applied(pair):
    found = asked(pair, pair.live, 16, margin=0.9)
    assert found.verdict == "pass"
    assert {r.margin for r in found.rules if r.metric} == {0.9}


def test_several_sets_and_slices_are_judged_as_the_gate_judges_them(pair, tmp_path):
    folder = Path(str(pair.judged))
    rows = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    other = tmp_path / "other.jsonl"
    lines = [
        {
            "query_id": f"o-{r['_id']}",
            "text": f"{r['text']} too",
            "doc_ids": [r["_id"].removeprefix("q-")],
        }
        for r in rows
    ]
    other.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = asked(pair, pair.live, 8, queries=[str(folder), str(other)])
    assert found.queries is not None
    assert [s.name for s in found.queries.sets] == [folder.name, "other"]
    assert found.queries.count == 2 * QUERIES
    assert next(r for r in found.rules if r.name == "slices").verdict == "fail"


def test_a_metric_that_counts_too_many_results_is_not_predicted(pair):
    found = asked(pair, pair.live, 8, metrics=["ndcg@10", "recall@50"])
    assert [m.metric for m in found.metrics] == ["ndcg@10"]
    assert found.not_predicted == ("recall@50",)
    assert "not predicted: recall@50" in said(found)
    with pytest.raises(UsageError, match="none can be predicted"):
        asked(pair, pair.live, 8, metrics=["recall@50"])


# --- what it is based on ---


def test_a_document_that_several_queries_find_is_embedded_once(pair, monkeypatch):
    texts: list[str] = []
    mine = {row["text"] for row in documents(DOCUMENTS, 0)}
    honest = HashingEncoder.embed_documents

    def counted(self: HashingEncoder, some: list[str]) -> Any:
        texts.extend(t for t in some if t in mine)  # not the golden texts
        return honest(self, some)

    monkeypatch.setattr(HashingEncoder, "embed_documents", counted)
    found = asked(pair, pair.live, 16)
    assert len(texts) == found.documents.embedded == len(set(texts))
    assert found.documents.embedded < QUERIES * DEPTH
    assert found.tokens > found.documents.embedded


def test_texts_are_held_in_batches_that_do_not_change_the_result(pair, monkeypatch):
    whole = asked(pair, pair.live, 16)
    most: list[int] = []
    honest = Source.take

    def taken(self: Source, rows: list[int]) -> Any:
        most.append(len(rows))
        return honest(self, rows)

    monkeypatch.setattr(rescore, "_BATCH", 7)
    monkeypatch.setattr(Source, "take", taken)
    found = asked(pair, pair.live, 16)
    assert max(most) == 7
    assert found.metrics == whole.metrics
    assert found.documents == whole.documents


def test_the_texts_are_those_that_live_embedded_although_the_source_moved_on(pair):
    before = asked(pair, pair.live, 16)
    dataset = lance.dataset(pair.source)
    dataset.update({"text": "'other'"})
    found = asked(pair, pair.live, 16)
    assert (found.metrics, found.documents) == (before.metrics, before.documents)
    assert found.documents.changed == found.documents.gone == 0


def test_changed_and_deleted_documents_are_counted_and_left_out(pair):
    before = asked(pair, pair.live, 16).documents
    change_the_source(pair, changed=5, deleted=3)
    found = asked(pair, pair.live, 16)
    documents = found.documents
    assert 0 < documents.changed <= 5
    assert 0 < documents.gone <= 3
    assert documents.embedded + documents.changed + documents.gone == before.embedded
    assert f"{documents.changed} documents whose text changed" in said(found)
    assert f"{documents.gone} documents that the source no longer has" in said(found)
    assert next(r for r in found.rules if r.name == "same texts").verdict == "pass"


def test_it_is_inconclusive_where_most_texts_are_gone(pair):
    change_the_source(pair, changed=DOCUMENTS // 2, deleted=0)
    found = asked(pair, pair.live, 256)
    assert found.verdict == "inconclusive"
    assert next(r for r in found.rules if r.name == "same texts").verdict == "inconclusive"


def test_what_the_new_model_cannot_embed_is_not_found(pair, monkeypatch):
    lost = {IDS[0], IDS[1]}
    titles = {row["title"] for row in documents(DOCUMENTS, 0) if row["doc_id"] in lost}
    texts = {row["text"] for row in documents(DOCUMENTS, 0) if row["doc_id"] in lost}
    honest = HashingEncoder.tokenize

    def refusing(self: HashingEncoder, some: Any, kind: Any) -> Any:
        if self.dim == 16 and (texts.intersection(some) or titles.intersection(some)):
            raise DocumentError("it cannot")
        return honest(self, some, kind)

    monkeypatch.setattr(HashingEncoder, "tokenize", refusing)
    found = asked(pair, pair.live, 16)
    assert found.documents.failed == 2
    assert found.queries is not None
    assert found.queries.not_embedded == 2
    assert "not embedded by the new model: 2 documents" in said(found)
    assert "not embedded by the new model: 2 queries" in said(found)


def test_ids_that_are_numbers_are_found(tmp_path, pair):
    rows = [{**row, "doc_id": 10**18 + at} for at, row in enumerate(documents(DOCUMENTS, 0))]
    lance.write_dataset(
        pa.Table.from_pylist(rows), pair.source, mode="overwrite", enable_stable_row_ids=True
    )
    judged = tmp_path / "numbers.jsonl"
    lines = [
        {"query_id": f"q{r['doc_id']}", "text": r["title"], "doc_ids": [r["doc_id"]]} for r in rows
    ]
    judged.write_text("".join(json.dumps(line) + "\n" for line in lines[:QUERIES]))
    live = pair.build(256, fresh=True, queries=str(judged))
    found = asked(pair, live, 8, queries=str(judged))
    assert found.verdict == "fail"
    assert found.documents.gone == 0


def test_a_model_of_another_kind_is_loaded_and_its_vectors_have_their_own_length(pair, tmp_path):
    model = static_model(tmp_path / "static", dim=24)
    config = pair.config()
    config = config.model_copy(
        update={"encoder": config.encoder.model_copy(update={"model": str(model)})}
    )
    found = predict(pair.catalog, pair.live, config, Quiet())
    assert found.model == str(model)
    assert found.documents.embedded > 0


def test_the_executor_that_is_given_does_the_work_in_one_task(pair):
    class Counting(Inline):
        calls = 0

        def call(self, function: Any, *args: Any, needs: Any = None) -> Any:
            self.calls += 1
            return function(*args)

    executor = Counting()
    assert (
        asked(pair, pair.live, 16, executor=executor).metrics == asked(pair, pair.live, 16).metrics
    )
    assert executor.calls == 1


def test_other_texts_than_lives_are_refused(pair):
    config = pair.config()
    other = config.source.model_copy(update={"text": "{title} {text}"})
    with pytest.raises(
        UsageError, match=r"source\.text is '\{title\} \{text\}', release .* has 'text'"
    ):
        predict(pair.catalog, pair.live, config.model_copy(update={"source": other}), Quiet())


# --- without judged queries ---


def test_without_judged_queries_it_refuses_unless_a_reason_is_given(pair):
    with pytest.raises(UsageError, match="nothing shows that the new model is better"):
        asked(pair, pair.live, 16, queries=None)
    found = asked(pair, pair.live, 16, queries=None, without_evidence="a test of the machine")
    assert (found.metrics, found.verdict, found.reason) == (
        (),
        "inconclusive",
        "a test of the machine",
    )
    found.require()
    assert "a test of the machine" in said(found)


def test_judged_queries_cannot_be_passed_over_with_a_reason(pair):
    with pytest.raises(GateFailed, match="there are judged queries"):
        asked(pair, pair.live, 16, without_evidence="in a hurry")


# --- what is said of it ---


def test_a_prediction_is_printed_with_what_it_is_not(pair):
    found = asked(pair, pair.live, 8)
    text = said(found)
    assert "ranked again what live finds: the first 50 results" in text
    assert "what only the new model would find is not in it" in text
    assert f"nDCG@10    {change(found).live:.3f}" in text
    assert f"{found.documents.embedded} documents embedded" in text


def test_a_prediction_is_stored_and_read_back(pair):
    found = asked(pair, pair.live, 8)
    assert decode(Prediction, found.to_json()) == found


# --- the lists ---


def reranked(
    ids: list[str],
    scores: dict[str, float],
    gone: Collection[str] = (),
    failed: Collection[str] = (),
) -> list[str]:
    """The list of one query, whose documents get these scores."""
    queries = eval_set([{"d0": 1}])
    kept = {name: at for at, name in enumerate(n for n in ids[:DEPTH] if n not in gone)}
    hashes = {name: bytes(digests.BYTES) for name in ids[:DEPTH]}
    found = Candidates(queries, Ranked([ids], [[0.0] * len(ids)]), hashes, kept, None, 1.0, DEPTH)
    n = len(kept)
    rows = np.arange(n)
    request = Asked(
        None, None, "float32", None, rows, digests.stack(bytes(16 * n)), (), rows, 0 * rows
    )
    given = np.array([scores.get(name, np.nan) for name in kept], np.float32)
    lost = np.array([name in failed for name in kept], bool)
    changed = np.isnan(given) & ~lost
    return found.reranked(
        request, Scored(given, changed, lost, np.zeros(1, bool), 0, 0.0)
    ).lists.ids[0]


def test_documents_without_their_text_keep_their_places():
    assert reranked(["a", "b", "c", "d"], {"a": 1, "c": 3, "d": 2}, gone={"b"}) == [
        "c",
        "b",
        "d",
        "a",
    ]
    assert reranked(["a", "b", "c", "d"], {"a": 1, "c": 3, "d": 2}) == ["c", "b", "d", "a"]


def test_documents_without_a_vector_leave_the_list():
    assert reranked(["a", "b", "c"], {"a": 1, "c": 3}, failed={"b"}) == ["c", "a"]


def test_of_equal_scores_the_larger_id_comes_first_as_everywhere():
    assert reranked(["a", "b", "c"], {"a": 1, "b": 1, "c": 1}) == ["c", "b", "a"]


def test_what_lies_below_the_depth_stays_there():
    ids = [f"d{at:03d}" for at in range(DEPTH + 2)]
    found = reranked(ids, {name: float(at) for at, name in enumerate(ids[:DEPTH])})
    assert found == [*reversed(ids[:DEPTH]), *ids[DEPTH:]]

"""What `compare` measures is what BEIR's own evaluator measures on the same folder.

The oracle reads, retrieves and scores as BEIR does: csv.reader over the qrels, a query's own document
left out of its results, pytrec_eval. Only the vectors and their inner products are the same.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import faiss
import lance
import numpy as np
import pyarrow as pa
import pytest
import pytrec_eval
from conftest import documents
from inline import Inline, Silent

from reembed import api as check
from reembed import encoders
from reembed.catalog.releases import Catalog
from reembed.cli import text as report
from reembed.config.settings import Config, EncoderConfig
from reembed.errors import UsageError
from reembed.evaluation.comparisons import Comparison
from reembed.evaluation.metrics import ranking
from reembed.evaluation.queries import load_eval_set
from reembed.store.storage import Storage
from reembed.strategies.full_rebuild import full_rebuild

MEASURES = {"ndcg@10": "ndcg_cut_10", "recall@10": "recall_10", "recall@100": "recall_100"}
DOCUMENTS, OWN = 160, 30
ODD = ["007", 'say "x"', "two words", "d;1,2", "'q'", "æøå", '"whole"']


def quoted(value: str) -> str:
    """As csv.writer writes a cell that begins with a quote or holds one."""
    return '"' + value.replace('"', '""') + '"' if '"' in value else value


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> Path:
    """As ArguAna, and odder: queries that are documents, odd ids, equal texts, all kinds of grades."""
    folder = tmp_path_factory.mktemp("beir")
    rows = [{"doc_id": r["doc_id"], "text": r["text"]} for r in documents(DOCUMENTS, 3)]
    for row, odd in zip(rows, ODD, strict=False):
        row["doc_id"] = odd
    for row, twin in zip(rows[60:80], rows[80:100], strict=True):
        twin["text"] = row["text"]
    lance.write_dataset(
        pa.Table.from_pylist(rows), str(folder / "source.lance"), max_rows_per_file=60
    )
    queries = [{"_id": r["doc_id"], "text": r["text"]} for r in rows[:OWN]]
    queries += [
        {"_id": f"q{i}", "text": " ".join(rows[50 + i]["text"].split()[:6])} for i in range(40)
    ]
    queries += [{"_id": "unjudged", "text": "nobody looked"}]
    (folder / "queries.jsonl").write_text("".join(json.dumps(q) + "\n" for q in queries))
    rng = np.random.default_rng(0)
    lines = ["query-id\tcorpus-id\tscore"]
    for number, query in enumerate(queries[:-1]):
        judged = rng.choice(DOCUMENTS, 12, replace=False).tolist()
        grades = {rows[50 + number % 100]["doc_id"]: 2, query["_id"]: 1} if number % 3 else {}
        grades |= {rows[j]["doc_id"]: int(rng.integers(-1, 4)) for j in judged}
        grades[rows[judged[0]]["doc_id"]] = 1
        if number % 10 == 0:
            grades = {d: -abs(g) for d, g in grades.items()}
        lines += [f"{quoted(query['_id'])}\t{quoted(d)}\t{g}" for d, g in grades.items()]
    none = [f"{quoted(queries[0]['_id'])}\tnot-there\t0", lines[-1], ""]
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("\n".join([*lines, *none]), newline="")
    return folder


@pytest.fixture(scope="module")
def compared(collection, tmp_path_factory) -> Comparison:
    return compare(collection, collection, tmp_path_factory.mktemp("root"))


def compare(folder: Path, judged: Path, root: Path) -> Comparison:
    """The comparison of two releases of a folder's source: 256 and 32 dimensions."""

    def config(dim: int) -> Config:
        return Config.model_validate(
            {
                "alias": "a",
                "source": {"uri": str(folder / "source.lance")},
                "encoder": {"model": f"hashing:{dim}"},
                "storage": {"root": str(root)},
                "gate": {"queries": str(judged)},
            }
        )

    catalog = Catalog(Storage.open(str(root)), "a")
    catalog.append(None, "promote", full_rebuild(config(256), Silent(), executor=Inline()))
    candidate = full_rebuild(config(32), Silent(), executor=Inline())
    return check.compare(config(32), candidate.id, emit=Silent())


def beir_qrels(folder: Path) -> dict[str, dict[str, int]]:
    """GenericDataLoader._load_qrels."""
    with (folder / "qrels" / "test.tsv").open(encoding="utf-8") as file:
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_MINIMAL)
        next(reader)
        qrels: dict[str, dict[str, int]] = {}
        for query_id, doc_id, score in filter(None, reader):
            qrels.setdefault(query_id, {})[doc_id] = int(score)
    return qrels


def beir_results(folder: Path, dim: int, k: int) -> dict[str, dict[str, float]]:
    """DenseRetrievalExactSearch.search: the best k + 1, without the query's own document."""
    queries = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    rows = lance.dataset(str(folder / "source.lance")).to_table().to_pylist()
    encoder = encoders.load_encoder(EncoderConfig(model=f"hashing:{dim}"))
    asked, held = (
        encoder.embed(encoder.tokenize([r["text"] for r in texts], kind))
        for texts, kind in ((queries, "query"), (rows, "document"))
    )
    scores, places = faiss.knn(asked, held, DOCUMENTS, metric=faiss.METRIC_INNER_PRODUCT)
    results: dict[str, dict[str, float]] = {}
    for query, row, found in zip(queries, places, scores, strict=True):
        named = [(float(s), rows[p]["doc_id"]) for p, s in zip(row, found, strict=True)]
        best = sorted(named, reverse=True)[: k + 1]
        results[query["_id"]] = dict([(d, s) for s, d in best if d != query["_id"]][:k])
    return results


def beir_scores(folder: Path, dim: int) -> dict[str, dict[str, float]]:
    """EvaluateRetrieval.evaluate, per query."""
    qrels = beir_qrels(folder)
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.10", "recall.100"})
    return evaluator.evaluate(beir_results(folder, dim, 100))


@pytest.mark.parametrize(("name", "dim"), [("live", 256), ("candidate", 32)])
def test_every_mean_is_that_of_the_format_s_own_evaluator(compared, collection, name, dim):
    scores, qrels = beir_scores(collection, dim), beir_qrels(collection)
    relevant = [q for q, grades in qrels.items() if any(g > 0 for g in grades.values())]
    assert compared.queries.count == len(relevant) >= 60
    for ours, theirs in MEASURES.items():
        mean = np.mean([scores[q][theirs] for q in relevant])
        assert getattr(compared.metrics[ours], name) == pytest.approx(mean, abs=1e-6), ours


def test_queries_that_are_documents_are_counted_and_told(compared):
    counted = compared.queries
    own = OWN - 3  # three of them have no relevant document
    assert counted.own_documents == own
    assert 0 < counted.own_judged < own
    for said in (report.text("compare", compared), Path(compared.report).read_text()):
        assert f"{own} queries have a document" in said
        assert "left out of their results, as BEIR does" in said
        assert f"{counted.own_judged} of these documents are judged relevant" in said


def test_queries_without_a_relevant_document_are_left_out_and_told(compared, collection):
    dropped = compared.queries.dropped
    assert dropped == len(beir_qrels(collection)) - compared.queries.count
    assert f"{dropped:,} queries without a relevant document" in report.text("compare", compared)


def test_a_query_that_is_a_document_would_find_itself_first(collection):
    """Or the test above would pass with it among the results."""
    found = beir_results(collection, 256, 100)
    assert all(q not in docs and len(docs) == 100 for q, docs in found.items())
    queries = load_eval_set(str(collection), "test", {})
    assert set(ODD) <= set(queries.query_ids) | {d for q in queries.qrels for d in q}


@pytest.mark.parametrize(("judged", "found"), [("{}", True), ("{:03}", False)], ids=["7", "007"])
def test_integer_ids_are_those_of_their_digits_and_no_other_s(tmp_path, judged, found):
    """As in BEIR, whose ids are strings: "007" is not document 7."""
    rows = [{"doc_id": i, "text": r["text"]} for i, r in enumerate(documents(30, 1))]
    lance.write_dataset(pa.Table.from_pylist(rows), str(tmp_path / "source.lance"))
    lines = [
        {"query_id": i, "text": r["text"], "doc_ids": [judged.format((i + 1) % 30)]}
        for i, r in enumerate(rows)
    ]
    (tmp_path / "judged.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    judged_file, root = tmp_path / "judged.jsonl", tmp_path / "root"
    if found:
        counted = compare(tmp_path, judged_file, root).queries
        assert (counted.own_documents, counted.judged_present) == (30, 1.0)
        return
    with pytest.raises(UsageError, match="no judged document of") as refused:
        compare(tmp_path, judged_file, root)
    assert "documents like '000', the table has ids like '0'" in refused.value.why


def test_queries_whose_ids_equal_those_of_their_documents_by_chance_let_nothing_pass(tmp_path):
    """Each judges the document of its own id alone, which is left out of its results."""
    rows = [{"doc_id": i, "text": r["text"]} for i, r in enumerate(documents(40, 1))]
    lance.write_dataset(pa.Table.from_pylist(rows), str(tmp_path / "source.lance"))
    lines = [{"query_id": i, "text": r["text"], "doc_ids": [str(i)]} for i, r in enumerate(rows)]
    (tmp_path / "judged.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = compare(tmp_path, tmp_path / "judged.jsonl", tmp_path / "root")
    assert (found.queries.own_judged, found.queries.judged_present) == (40, 0.0)
    assert found.verdict == "inconclusive"


@pytest.mark.parametrize("seed", range(5))
def test_equal_scores_are_ranked_as_trec_eval_does(seed):
    rng = np.random.default_rng(seed)
    docs = [f"{p}{i}" for p in ("d", "D", "é", "007", " ") for i in range(12)]
    scores = rng.integers(0, 4, len(docs)) / 4
    grades = {d: int(rng.integers(0, 3)) for d in docs}
    run = {"q": {d: float(s) for d, s in zip(docs, scores, strict=True)}}
    found = [d for d, _ in ranking(docs, scores.tolist(), "q", 10)]
    dcg = sum(grades[d] / np.log2(rank + 2) for rank, d in enumerate(found))
    best = sorted(grades.values(), reverse=True)[:10]
    ideal = sum(g / np.log2(rank + 2) for rank, g in enumerate(best))
    theirs = pytrec_eval.RelevanceEvaluator({"q": grades}, {"ndcg_cut.10"}).evaluate(run)
    assert dcg / ideal == pytest.approx(theirs["q"]["ndcg_cut_10"], abs=1e-6)

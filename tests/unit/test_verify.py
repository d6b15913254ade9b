"""Every way a table can differ from its source is named, counted and shown."""

from __future__ import annotations

import lance
import numpy as np
import pyarrow as pa
import pytest

from reembed import encoders, table
from reembed.config import Config
from reembed.digests import digest as text_hash
from reembed.source import Source
from reembed.storage import Storage
from reembed.table_version import TableVersion, from_vectors
from reembed.verify import ROWS, Journal, Subject, verify

IDS = [f"d{i}" for i in range(30)]
TEXTS = {d: f"the text of document number {d}" for d in IDS}


@pytest.fixture
def subject(tmp_path):
    """subject(rows) -> what verify takes, for a table of (id, text hash, space, vector) rows."""
    uri = str(tmp_path / "source.lance")
    lance.write_dataset(pa.table({"doc_id": IDS, "text": [TEXTS[d] for d in IDS]}), uri)
    config = Config(
        alias="a",
        source={"uri": uri},
        encoder={"model": "hashing:16"},
        storage={"root": str(tmp_path / "root")},
    )
    space = encoders.describe(config.encoder, "float32")
    storage = Storage.open(config.storage.root)

    def make(rows, dead=(), index_ids=None):
        columns = table.schema(space, pa.string(), [])
        names, hashes, spaces, vectors = zip(*rows, strict=True)
        data = [
            list(names),
            from_vectors(np.stack(vectors), pa.float32()),
            list(spaces),
            list(hashes),
            [1] * len(rows),
        ]
        written = lance.write_dataset(
            pa.table(data, columns),
            storage.uri("tables/t.lance"),
            mode="overwrite",
            enable_stable_row_ids=True,
        )
        version = TableVersion(storage, "tables/t.lance", written.version, space.dim)
        return Subject(Source.open(config), version, space, config.encoder, tuple(dead), index_ids)

    def rows():
        encoder = encoders.load_encoder(config.encoder)
        vectors = encoder.embed(encoder.tokenize([TEXTS[d] for d in IDS], "document"))
        return [
            [d, text_hash(TEXTS[d].encode()), space.id, v]
            for d, v in zip(IDS, vectors, strict=True)
        ]

    make.rows = rows
    return make


def found(report):
    return {k: (d.count, d.examples) for k, d in report.differences.items() if d.count}


def test_an_exact_table_passes_and_says_how_much_was_looked_at(subject):
    report = verify(subject(subject.rows()))
    assert report.passed
    assert report.confidence == "every vector was re-embedded"
    assert (report.documents, report.rows, report.sampled) == (30, 30, 30)


def test_a_sample_states_its_confidence(subject):
    assert verify(subject(subject.rows()), sample=10).confidence.startswith(
        "10 re-embedded: with 99 % confidence under 46"
    )


def test_a_sample_with_wrong_vectors_says_how_many_and_promises_nothing(subject):
    rows = subject.rows()
    for row in rows[:15]:
        row[3] = -row[3]
    report = verify(subject(rows), sample=20, seed=1)
    wrong = report.differences["wrong_vector"].count
    assert 5 <= wrong <= 15
    assert report.confidence == f"{wrong} of 20 re-embedded have another vector"
    assert report.to_json()["confidence"] == report.confidence
    assert verify(subject(rows)).confidence == "15 of 30 re-embedded have another vector"


def test_every_verification_draws_other_rows_and_says_by_which_seed(subject):
    rows = subject.rows()
    for row in rows:
        row[3] = -row[3]
    table = subject(rows)
    one, other = (verify(table, sample=5) for _ in range(2))
    assert one.seed != other.seed
    again = verify(table, sample=5, seed=one.seed)
    assert again.differences == one.differences
    assert again.to_json()["seed"] == one.seed
    assert len({verify(table, sample=5, seed=s).differences["wrong_vector"] for s in range(9)}) > 1
    assert verify(table, level=ROWS, seed=1).seed is None


def test_a_resumed_verification_names_the_seed_of_the_rows_it_took_over(subject):
    table, done = subject(subject.rows()), {}
    first = verify(table, sample=5, journal=Journal(done))
    assert verify(table, sample=5, journal=Journal(done)).seed == first.seed


def test_missing_and_extra_documents(subject):
    rows = subject.rows()
    rows[3][0] = "ghost"
    assert found(verify(subject(rows), sample=0)) == {
        "missing": (1, ("d3",)),
        "extra": (1, ("ghost",)),
    }


def test_a_document_twice(subject):
    rows = subject.rows()
    assert found(verify(subject([*rows, rows[7]]), sample=0)) == {"duplicate": (1, ("d7",))}


def test_two_documents_swapped_for_each_other(subject):
    rows = subject.rows()
    rows[1][1:], rows[2][1:] = rows[2][1:], rows[1][1:]
    kinds = found(verify(subject(rows)))
    assert set(kinds) == {"stale", "wrong_vector"}
    assert set(kinds["stale"][1]) == {"d1", "d2"}


def test_vectors_shuffled_under_their_ids_are_only_seen_by_embedding_again(subject):
    rows = subject.rows()
    rows[1][3], rows[2][3] = rows[2][3], rows[1][3]
    assert verify(subject(rows), sample=0).passed
    kinds = found(verify(subject(rows)))
    assert kinds["wrong_vector"][0] == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_vectors_that_no_search_would_find(subject, value):
    rows = subject.rows()
    rows[4][3] = np.full(16, value, np.float32)
    assert found(verify(subject(rows), sample=0)) == {"corrupt": (1, ("d4",))}


def test_a_row_of_another_space(subject):
    rows = subject.rows()
    rows[9][2] = "000000000000"
    assert found(verify(subject(rows), sample=0)) == {"mismatched": (1, ("d9",))}


def test_dead_letters_excuse_a_missing_document_and_only_that(subject):
    rows = subject.rows()
    assert verify(subject(rows[1:], dead=["d0"]), sample=0).passed
    assert found(verify(subject(rows, dead=["d0"]), sample=0)) == {"extra": (1, ("d0",))}


def test_an_index_that_lacks_a_row_or_has_one_too_many(subject):
    make = subject(subject.rows())
    ids = np.sort(np.concatenate([i for i, _ in make.table.batches()]))
    whole = subject(subject.rows(), index_ids=ids)
    ids = np.sort(np.concatenate([i for i, _ in whole.table.batches()]))
    assert verify(Subject(**{**vars(whole), "index_ids": ids}), sample=0).passed
    short = Subject(**{**vars(whole), "index_ids": np.append(ids[1:], ids[-1] + 1)})
    assert found(verify(short, sample=0))["unindexed"][0] == 2

"""Every way a table can differ from its source is named, counted and shown."""

from __future__ import annotations

import dataclasses

import lance
import numpy as np
import pyarrow as pa
import pytest

from reembed import encoders
from reembed.catalog.receipts import FileProof
from reembed.catalog.reports import FILES, ROWS, Difference, VerifyReport
from reembed.catalog.reports import IDS as IDS_LEVEL
from reembed.catalog.runs import Run
from reembed.config.settings import Config
from reembed.digests import digest as text_hash
from reembed.engine.patience import Patience
from reembed.lifecycle import reading
from reembed.lifecycle import verify as verify_module
from reembed.lifecycle.scratch import Scratch
from reembed.lifecycle.verify import Subject
from reembed.source.dataset import Source
from reembed.store.storage import Storage
from reembed.table import write as table
from reembed.table.read import TableVersion, from_vectors, proof_of

IDS = [f"d{i}" for i in range(30)]
TEXTS = {d: f"the text of document number {d}" for d in IDS}


def verify(subject, sample=verify_module.SAMPLE, seed=None, *, level=3, place=None):
    """A verification with a folder of its own, or with that of another."""
    place = place or Scratch.of(Run(subject.table.storage, "r"))
    return verify_module.verify(subject, place, sample, seed, level=level)


@dataclasses.dataclass(frozen=True)
class Held:
    """As HeldIds, in memory."""

    table: pa.Table
    segments: int = 1

    def batches(self, segment, look=None):
        rows, ids = self.table["row_id"].to_numpy(), self.table["doc_id"].combine_chunks()
        for at in range(0, len(rows), 7):
            yield np.arange(at, min(at + 7, len(rows))), rows[at : at + 7], ids[at : at + 7]

    def doc_ids(self, positions):
        return self.table["doc_id"].take(positions).to_pylist() if positions else []


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

    def make(rows, dead=()):
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
        return Subject(
            Source.open(config), version, space, config.encoder, tuple(dead), patience=Patience(60)
        )

    def rows():
        encoder = encoders.load_encoder(config.encoder)
        vectors = encoder.embed(encoder.tokenize([TEXTS[d] for d in IDS], "document"))
        return [
            [d, text_hash(TEXTS[d].encode()), space.id, v]
            for d, v in zip(IDS, vectors, strict=True)
        ]

    make.rows = rows
    return make


def indexed(made):
    """Row ids and document ids of a table, as its index has them."""
    rows = made.table.dataset().to_table(columns=["doc_id"], with_row_id=True)
    return rows["_rowid"].to_numpy().astype(np.int64), rows["doc_id"].to_numpy().astype(object)


def with_index(made, row_ids, doc_ids):
    ids = pa.table({"row_id": row_ids, "doc_id": pa.array(doc_ids, pa.large_string())})
    return dataclasses.replace(made, index=Held(ids))


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


@pytest.mark.parametrize(
    ("level", "said"),
    [
        (0, "files only, by name and size"),
        (1, "files and ids only"),
        (2, "no vector was re-embedded"),
    ],
)
def test_a_level_below_vectors_says_what_was_looked_at(subject, level, said):
    assert verify(subject(subject.rows()), level=level).confidence == said


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


def test_a_resumed_verification_draws_its_own_sample_and_names_its_seed(subject):
    rows = subject.rows()
    for row in rows:
        row[3] = -row[3]
    table = subject(rows)
    place = Scratch.of(Run(table.table.storage, "r"))
    verify(table, sample=5, place=place)
    resumed = verify(table, sample=5, place=place)
    assert resumed.differences == verify(table, sample=5, seed=resumed.seed).differences


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


@pytest.mark.parametrize(("level", "documents"), [(FILES, 31), (IDS_LEVEL, 30), (ROWS, 30)])
def test_rows_and_documents_of_the_table_are_counted_apart(subject, level, documents):
    rows = subject.rows()
    report = verify(subject([*rows, rows[7]]), level=level)
    assert (report.rows, report.table_documents) == (31, documents)
    assert report.to_json()["table_documents"] == documents


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
    ids, names = indexed(make := subject(subject.rows()))
    assert verify(with_index(make, ids, names), sample=0).passed
    turned = np.arange(len(ids))[::-1]
    assert verify(with_index(make, ids[turned], names[turned]), sample=0).passed
    short = with_index(make, np.append(ids[1:], ids[-1] + 1), names)
    assert found(verify(short, sample=0))["unindexed"][0] == 2
    twice = with_index(make, np.append(ids, ids[3]), np.append(names, names[3]))
    assert found(verify(twice, sample=0)) == {"unindexed": (1, (-1,))}


def test_an_index_that_gives_a_row_the_id_of_another_document(subject):
    ids, names = indexed(make := subject(subject.rows()))
    names[[4, 7]] = names[[7, 4]]
    wrong = found(verify(with_index(make, ids, names), sample=0))
    assert wrong == {"misnamed": (2, (names[4], names[7]))}


def test_carried_values_and_types_are_compared_with_the_source(tmp_path):
    uri = str(tmp_path / "carried.lance")
    years = [float("nan") if i == 5 else i / 4 for i in range(30)]
    source = pa.table(
        {"doc_id": IDS, "text": [TEXTS[d] for d in IDS], "year": years, "at": [{"a": 1}] * 30}
    )
    lance.write_dataset(source, uri)
    config = Config(
        alias="a",
        source={"uri": uri},
        encoder={"model": "hashing:16"},
        table={"carry": ["year", "at"]},
        storage={"root": str(tmp_path / "root")},
    )
    space = encoders.describe(config.encoder, "float32")
    storage = Storage.open(config.storage.root)

    def differences(found, kind, level=ROWS):
        columns = table.schema(
            space, pa.string(), [pa.field("year", kind), source.schema.field("at")]
        )
        data = [
            IDS,
            from_vectors(np.ones((30, 16), np.float32), pa.float32()),
            [space.id] * 30,
            [text_hash(TEXTS[d].encode()) for d in IDS],
            [1] * 30,
            found,
            source["at"],
        ]
        version = lance.write_dataset(
            pa.table(data, columns), storage.uri("t.lance"), mode="overwrite"
        ).version
        subject = Subject(
            Source.open(config),
            TableVersion(storage, "t.lance", version, 16),
            space,
            config.encoder,
            (),
            patience=Patience(60),
        )
        return {k: d for k, d in verify(subject, level=level).differences.items() if d.count}

    assert differences(years, pa.float64()) == {}
    other = [99.0, *years[1:7], 98.0, *years[8:]]
    changed = differences(other, pa.float64())["carried"]
    assert (changed.count, set(changed.examples)) == (2, {"d0", "d7"})
    assert differences(other, pa.float64(), level=IDS_LEVEL) == {}
    retyped = differences(years, pa.float32())["carried"]
    assert retyped.count == 30
    assert retyped.examples == ("year is float in the table and double in the source",)


@pytest.fixture
def pieces(subject, monkeypatch):
    """A table of 70 fragments, each a file with a receipt, in 24 pieces of three at most."""
    monkeypatch.setattr(reading, "PIECE_ROWS", 3)
    whole = subject(subject.rows())
    dataset = whole.table.dataset()
    columns, rows = dataset.schema, dataset.to_table()
    made = lance.write_dataset(
        rows.slice(0, 0), whole.table.storage.uri("many.lance"), mode="create"
    )
    fragments = [
        lance.fragment.write_fragments(rows.slice(i % 30, 1), made.uri, schema=columns)[0]
        for i in range(70)
    ]
    made = lance.LanceDataset.commit(
        made.uri, lance.LanceOperation.Overwrite(columns, fragments), read_version=1
    )
    version = TableVersion(whole.table.storage, "many.lance", made.version, 16)
    names = sorted(f.path for m in made.get_fragments() for f in m.data_files())
    proofs = {n: proof_of(version.storage, version.path, n) for n in names}
    return dataclasses.replace(whole, table=version, proofs=proofs)


def test_every_file_is_hashed_whichever_piece_it_is_in_also_one_that_no_fragment_has(pieces):
    storage, names = pieces.table.storage, sorted(pieces.proofs)
    storage.write_bytes("many.lance/data/more.lance", b"more")
    proofs = {**pieces.proofs, "more.lance": FileProof(4, "0" * 64)}
    damaged = names[3::17]
    proofs |= {n: FileProof(proofs[n].size_bytes, "0" * 64) for n in damaged}
    report = verify(dataclasses.replace(pieces, proofs=proofs), sample=0)
    assert report.differences["damaged"].count == len(damaged) + 1 == 5
    assert set(report.differences["damaged"].examples) == {*damaged, "more.lance"}
    assert report.documents == 0, "rows are not compared"


def test_a_resumed_verification_hashes_and_reads_the_pieces_that_were_not_done(pieces, monkeypatch):
    place = Scratch.of(Run(pieces.table.storage, "r"))
    first = verify(pieces, sample=0, place=place)
    hashed = []
    honest = reading.damaged_files

    def damaged_files(storage, path, some):
        hashed.append(sorted(some))
        return honest(storage, path, some)

    monkeypatch.setattr(reading, "damaged_files", damaged_files)
    again = verify(pieces, sample=0, place=place)
    assert hashed == []
    assert (again.differences, again.rows) == (first.differences, first.rows)
    for name in ("table-000000", "table-000007", "table-000023"):
        pieces.table.storage.remove(f"{place.path}/{name}.json")
    again = verify(pieces, sample=0, place=place)
    assert [len(some) for some in hashed] == [3, 3, 1]
    assert again.differences == first.differences
    # What was damaged is hashed again, as it may have been put back.
    changed = {n: FileProof(1, "0" * 64) for n in hashed[0]}
    pieces.table.storage.remove(f"{place.path}/table-000000.json")
    broken = dataclasses.replace(pieces, proofs={**pieces.proofs, **changed})
    assert verify(broken, sample=0, place=place).differences["damaged"].count == 3
    assert verify(pieces, sample=0, place=place).differences == first.differences


def test_verify_finds_a_damaged_file_in_each_piece_and_a_file_without_a_receipt(pieces):
    names = sorted(pieces.proofs)
    assert verify(pieces, sample=0).differences["damaged"].count == 0
    for name in (names[0], names[35], names[69]):
        proofs = {**pieces.proofs, name: FileProof(pieces.proofs[name].size_bytes, "0" * 64)}
        report = verify(dataclasses.replace(pieces, proofs=proofs), sample=0)
        assert report.differences["damaged"].examples == (name,)
        unproven = {n: p for n, p in pieces.proofs.items() if n != name}
        report = verify(dataclasses.replace(pieces, proofs=unproven), level=FILES)
        assert report.differences["damaged"].examples == (name,)
        report = verify(dataclasses.replace(pieces, proofs=unproven), sample=0)
        assert report.differences["damaged"].examples == (name,)
        assert report.documents == 0, "rows are not compared"


def test_a_row_of_no_document_is_extra_and_is_not_embedded_again(subject):
    rows = subject.rows()
    rows[3][0], rows[20][0] = "ghost", "spirit"
    report = verify(subject(rows), sample=30)
    assert found(report) == {"missing": (2, ("d20", "d3")), "extra": (2, ("ghost", "spirit"))}
    assert (report.rows, report.sampled) == (30, 28)


def test_a_table_without_rows_lacks_every_document_at_any_level(subject):
    whole = subject(subject.rows())
    made = lance.write_dataset(
        whole.table.dataset().schema.empty_table(), whole.table.storage.uri("empty.lance")
    )
    version = TableVersion(whole.table.storage, "empty.lance", made.version, 16)
    empty = Subject(**{**vars(whole), "table": version})
    for level in (IDS_LEVEL, ROWS, 3):
        assert verify(empty, level=level).differences["missing"].count == 30


def test_a_document_is_lacking_where_it_is_not_there_or_other_and_counts_once():
    behind = {"missing": 1, "extra": 2, "stale": 4, "carried": 8, "duplicate": 16, "corrupt": 32}
    differences = {k: Difference(n) for k, n in behind.items()}
    report = VerifyReport("t", 1, 1, ROWS, 9, 9, 9, 0, {}, differences, 0)
    assert report.lacking == 1 + 2 + 4 + 8
    assert dataclasses.replace(report, behind=None).lacking is None
    assert dataclasses.replace(report, level=IDS_LEVEL).lacking is None, "texts were not compared"


@pytest.mark.parametrize(("level", "columns"), [(IDS_LEVEL, 1), (ROWS, 4)])
def test_a_level_reads_no_column_that_it_does_not_compare(subject, monkeypatch, level, columns):
    made, scanned = subject(subject.rows()), []
    plain = TableVersion.scan
    monkeypatch.setattr(
        TableVersion,
        "scan",
        lambda self, names, *of: scanned.append(names) or plain(self, names, *of),
    )
    assert verify(made, level=level).passed
    assert [len(names) for names in scanned] == [columns]

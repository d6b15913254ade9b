"""A catch-up is verified by what is new in it, and anything that does not fit makes it compare everything."""

from __future__ import annotations

import dataclasses
import random

import lance
import pyarrow as pa
import pytest
from inline import Inline, Silent

from reembed.catalog.index_manifest import read_manifest
from reembed.catalog.releases import Catalog
from reembed.catalog.reports import Difference
from reembed.catalog.runs import Run
from reembed.config.settings import Config
from reembed.digests import digest
from reembed.engine.executor import HERE
from reembed.engine.patience import Patience
from reembed.index.held import HeldIds
from reembed.lifecycle import grown, reading, verify
from reembed.lifecycle.grown import Before, CompareAll, verify_new
from reembed.lifecycle.scratch import Scratch
from reembed.lifecycle.verify import Subject
from reembed.source.dataset import Source
from reembed.store.storage import Storage
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild
from reembed.table import provenance
from reembed.table.read import TableVersion, files_of, proof_of

DOCUMENTS = 200


def documents(first, count):
    names = [f"d{n:04d}" for n in range(first, first + count)]
    years = [n % 7 for n in range(count)]
    return pa.table({"doc_id": names, "text": [f"text of {n}" for n in names], "year": years})


def config_of(tmp_path, **source):
    return Config(
        alias="a",
        source={"uri": str(tmp_path / "source.lance"), **source},
        encoder={"model": "hashing:16"},
        table={"carry": ["year"]},
        embed={"unit_documents": 10, "max_dead_letters": 3},
        storage={"root": str(tmp_path / "root")},
    )


def write_source(tmp_path, **how):
    uri = str(tmp_path / "source.lance")
    lance.write_dataset(documents(0, DOCUMENTS), uri, max_rows_per_file=40, **how)
    return uri


def side(storage, release):
    """What a release was verified as."""
    table = TableVersion(storage, release.table, release.table_version, release.space.dim)
    manifest = read_manifest(storage, release.index, release.index_sha256)
    sealed = provenance.require_sealed(storage, release)
    dead = tuple(d.doc_id for d in sealed.dead_letters)
    return table, HeldIds(storage, release.index, manifest), sealed.files, dead


def pair(config, first, second):
    storage = Storage.open(config.storage.root)
    table, index, files, dead = side(storage, first)
    before = Before(Source(first.source, ()), table, index, files, dead, first.verify)
    table, index, files, dead = side(storage, second)
    subject = Subject(
        Source(second.source, ()),
        table,
        second.space,
        second.encoder,
        dead,
        index,
        files,
        origin=second.origin,
        patience=Patience(60),
    )
    return subject, before, Scratch.of(Run(storage, second.id))


@pytest.fixture
def line(tmp_path):
    """subject, before and scratch of a catch-up over few changes."""
    uri, config = write_source(tmp_path, enable_stable_row_ids=True), config_of(tmp_path)
    first = full_rebuild(config, Silent(), executor=Inline())
    source = lance.dataset(uri)
    source.delete("doc_id = 'd0003'")
    source.update({"text": "'another text'"}, where="doc_id = 'd0005'")
    source.update({"year": "99"}, where="doc_id = 'd0045'")
    lance.write_dataset(documents(1000, 8), uri, mode="append")
    second = catch_up(config, first, Silent(), executor=Inline())
    assert second.verify.new_rows is not None
    return pair(config, first, second)


def full(subject, scratch):
    return verify.verify(subject, dataclasses.replace(scratch, path=f"{scratch.path}-full"))


def test_what_is_new_gives_the_report_of_a_full_verification_and_reads_little(line, monkeypatch):
    subject, before, scratch = line
    hashed, scanned, honest, scan = [], [], reading.damaged_files, TableVersion.scan
    for module in (grown, reading):
        monkeypatch.setattr(
            module, "damaged_files", lambda s, p, some: hashed.extend(some) or honest(s, p, some)
        )
    monkeypatch.setattr(
        TableVersion, "scan", lambda t, c, f=None: scanned.append((t.version, f)) or scan(t, c, f)
    )
    report = verify_new(subject, before, scratch, seed=1)
    files = {v: files_of(t.dataset()) for v, t in (("old", before.table), ("new", subject.table))}
    assert set(hashed) == files["old"] ^ files["new"]
    assert len(files["old"] & files["new"]) > len(files["old"]) / 2
    assert len(set(hashed)) == len(hashed), "each is hashed once"
    read = sum(len(f) for _, f in scanned)
    assert read == sum(n.endswith(".lance") for n in hashed), "each is read once, and no other"
    whole = full(subject, scratch)
    assert whole.passed
    assert report.passed
    assert report.new_rows < report.rows / 2
    assert 0 < report.sampled <= report.new_rows
    for name in ("documents", "rows", "table_documents", "dead_letters", "level", "table_version"):
        assert getattr(report, name) == getattr(whole, name), name
    assert report.differences.keys() == whole.differences.keys()


def test_the_sample_is_of_new_rows_and_a_wrong_vector_among_them_is_told(line, monkeypatch):
    subject, before, scratch = line
    monkeypatch.setattr(verify, "SAME_VECTOR", 2.0)  # none is the same
    report = verify_new(subject, before, scratch)
    assert not report.passed
    wrong = report.differences["wrong_vector"]
    assert wrong.count == report.sampled == 10, (
        "eight are new, one has another text, one another year"
    )
    assert set(wrong.examples) <= {"d0005", "d0045", *documents(1000, 8)["doc_id"].to_pylist()}


@pytest.mark.parametrize("stable", [True, False])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("condition", [None, "year < 6"])
def test_every_catch_up_gives_the_counts_of_a_full_verification(
    tmp_path, seed, stable, condition, monkeypatch
):
    monkeypatch.setattr(grown, "MOST", 2.0)
    chance = random.Random(seed)
    uri = write_source(tmp_path, enable_stable_row_ids=stable)
    config = config_of(tmp_path, filter=condition)
    release = full_rebuild(config, Silent(), executor=Inline())
    new = 0
    for n in range(3):
        source, at = lance.dataset(uri), chance.randrange(DOCUMENTS)
        match chance.choice(["append", "delete", "update", "year", "empty", "compact"]):
            case "append":
                lance.write_dataset(documents(1000 * (n + 1), 9), uri, mode="append")
            case "delete":
                source.delete(f"doc_id >= 'd{at:04d}' and doc_id < 'd{at + 3:04d}'")
            case "update":
                source.update({"text": f"'text {n}'"}, where=f"doc_id = 'd{at:04d}'")
            case "year":
                source.update({"year": "5"}, where=f"doc_id = 'd{at:04d}'")
            case "empty":
                source.update({"text": "null"}, where=f"doc_id = 'd{at:04d}'")
            case "compact":
                source.optimize.compact_files()
        before, release = release, catch_up(config, release, Silent(), executor=Inline())
        if release is before:
            continue
        new += release.verify.new_rows is not None
        subject, _, scratch = pair(config, before, release)
        whole = full(subject, scratch)
        assert whole.passed
        for name in ("documents", "rows", "table_documents", "dead_letters"):
            assert getattr(release.verify, name) == getattr(whole, name), name
    assert new, "nothing was verified by what is new"


def with_table(subject, dataset):
    """The subject with another version of its table, whose files are all proven."""
    table = dataclasses.replace(subject.table, version=dataset.version)
    proofs = {n: proof_of(table.storage, table.path, n) for n in files_of(dataset)}
    return dataclasses.replace(subject, table=table, proofs=proofs, index=None)


def latest(subject):
    return lance.dataset(subject.table.storage.uri(subject.table.path))


LIES = {
    "a new row is lost": lambda t: t.delete("doc_id = 'd1003'"),
    "an old row is lost": lambda t: t.delete("doc_id = 'd0150'"),
    "a row has another text": lambda t: t.update(
        {"text_hash": f"X'{digest(b'lie').hex()}'"}, where="doc_id = 'd1003'"
    ),
    "an old row has another text": lambda t: t.update(
        {"text_hash": f"X'{digest(b'lie').hex()}'"}, where="doc_id = 'd0150'"
    ),
    "a row has another carried value": lambda t: t.update({"year": "7"}, where="doc_id = 'd0045'"),
    "a row has another space": lambda t: t.update({"space": "'x'"}, where="doc_id = 'd0150'"),
    "a row is of another document": lambda t: t.update(
        {"doc_id": "'d1'"}, where="doc_id = 'd0150'"
    ),
    "a row is there twice": lambda t: lance.write_dataset(
        t.to_table(filter="doc_id = 'd0150'"), t.uri, mode="append"
    ),
    "a deleted document is there": lambda t: lance.write_dataset(
        pa.Table.from_pylist([{**t.to_table(limit=1).to_pylist()[0], "doc_id": "d0003"}], t.schema),
        t.uri,
        mode="append",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_table_that_differs_is_compared_as_a_whole_which_names_it(line, lie):
    subject, before, scratch = line
    LIES[lie](latest(subject))
    other = with_table(subject, latest(subject))
    with pytest.raises(CompareAll):
        verify_new(other, dataclasses.replace(before), scratch)
    assert not full(other, scratch).passed


def test_a_vector_that_no_search_would_find_is_compared_as_a_whole(line):
    subject, before, scratch = line
    table = latest(subject)
    zero = pa.array([[0.0] * 16], pa.list_(pa.float32(), 16))
    row = table.to_table(filter="doc_id = 'd0150'")
    table.delete("doc_id = 'd0150'")
    at = row.schema.get_field_index("vector")
    lance.write_dataset(row.set_column(at, row.schema.field(at), zero), table.uri, mode="append")
    other = with_table(subject, latest(subject))
    with pytest.raises(CompareAll, match="damaged"):
        verify_new(other, before, scratch)


def test_the_table_of_before_is_not_what_the_source_has_now(line):
    subject, before, scratch = line
    other = dataclasses.replace(subject, table=before.table, proofs=before.proofs, index=None)
    with pytest.raises(CompareAll):
        verify_new(other, before, scratch)


def test_an_index_that_lacks_what_is_new_is_compared_as_a_whole(line):
    subject, before, scratch = line
    other = dataclasses.replace(subject, index=before.index)
    with pytest.raises(CompareAll, match="moved differently"):
        verify_new(other, before, scratch)
    whole = full(other, scratch)
    assert whole.differences["unindexed"].count


@pytest.mark.parametrize(
    ("why", "change"),
    [
        ("files are not the proven ones", {"proofs": {}}),
        ("other documents have no vector", {"dead_letters": ("d0001",)}),
    ],
)
def test_what_was_proven_otherwise_is_not_trusted(line, why, change):
    subject, before, scratch = line
    with pytest.raises(CompareAll, match=why):
        verify_new(dataclasses.replace(subject, **change), before, scratch)


def test_a_release_that_did_not_pass_or_was_looked_at_less_is_not_built_on(line):
    subject, before, scratch = line
    for change in ({"level": 2}, {"why": "x"}, {"differences": {"stale": Difference(1)}}):
        report = dataclasses.replace(before.report, **change)
        with pytest.raises(CompareAll, match="verified for something else"):
            verify_new(subject, dataclasses.replace(before, report=report), scratch)


def test_a_file_of_either_side_that_was_changed_is_not_read(line):
    subject, before, scratch = line
    old, new = before.proofs.keys() - subject.proofs.keys(), subject.proofs.keys() - before.proofs
    shared = subject.proofs.keys() & before.proofs
    for names, match in ((old, "damaged"), (new, "damaged"), (shared, "another size")):
        path = f"{subject.table.path}/data/{min(names)}"
        whole = subject.table.storage.read_bytes(path)
        for body in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-1]):
            if names is shared and len(body) == len(whole):
                continue  # its bytes are for `reembed verify`
            subject.table.storage.write_bytes(path, body)
            place = dataclasses.replace(scratch, path=f"{scratch.path}-{min(names)}-{len(body)}")
            with pytest.raises(CompareAll, match=match + "|of another size"):
                verify_new(subject, before, place)
        subject.table.storage.write_bytes(path, whole)


def test_a_source_version_that_is_gone_or_a_change_of_most_rows_compares_everything(
    line, monkeypatch
):
    subject, before, scratch = line
    gone = dataclasses.replace(before.source.ref, fingerprint="0" * 16)
    with pytest.raises(CompareAll, match="is gone"):
        verify_new(subject, dataclasses.replace(before, source=Source(gone, ())), scratch)
    monkeypatch.setattr(grown, "MOST", 0.01)
    with pytest.raises(CompareAll, match="rows moved"):
        verify_new(subject, before, scratch)


def test_partitions_hold_what_moved_and_not_the_segments_that_are_shared(line, monkeypatch):
    subject, before, scratch = line
    monkeypatch.setattr(verify, "PARTITION_ROWS", 10)

    def parts(index):
        growth = grown._Growth(dataclasses.replace(subject, index=index), before, scratch, HERE)
        moved = max(growth.table.rows, growth.source.rows)
        return growth.reading.parts, verify.parts_of(moved)

    shared, of_what_moved = parts(before.index)
    assert shared == of_what_moved
    built_again, _ = parts(subject.index)
    assert built_again == verify.parts_of(subject.index.rows)


def test_rows_that_left_are_read_a_few_at_once(line, monkeypatch):
    subject, before, scratch = line
    expected = grown.verify_new(subject, before, scratch, seed=1)
    asked = []

    def noted(owner):
        honest = owner.take

        def take(self, rows, *more):
            asked.append(len(rows))
            return honest(self, rows, *more)

        monkeypatch.setattr(owner, "take", take)

    for owner in (TableVersion, Source):
        noted(owner)
    monkeypatch.setattr(reading, "_TAKEN_ROWS", 1)
    again = dataclasses.replace(scratch, path=f"{scratch.path}-again")
    assert grown.verify_new(subject, before, again, sample=0, seed=1).rows == expected.rows
    searched = [n for n in asked if n > 1]  # rows of the delta, by their own vectors
    assert len(asked) - len(searched) == 4
    assert len(searched) == 1


def test_partitions_and_pieces_of_any_size_give_the_same(line, monkeypatch):
    subject, before, scratch = line
    once = verify_new(subject, before, scratch, seed=3)
    for size in (1, 7):
        monkeypatch.setattr(reading, "PIECE_ROWS", size)
        monkeypatch.setattr(verify, "PARTITION_ROWS", size)
        place = dataclasses.replace(scratch, path=f"{scratch.path}-{size}")
        assert dataclasses.replace(verify_new(subject, before, place, seed=3), at=once.at) == once


def test_a_catch_up_that_was_not_right_is_found_and_named_by_the_full_comparison(
    tmp_path, monkeypatch
):
    from reembed.errors import IntegrityError
    from reembed.strategies import changes

    uri, config = write_source(tmp_path, enable_stable_row_ids=True), config_of(tmp_path)
    first = full_rebuild(config, Silent(), executor=Inline())
    lance.dataset(uri).delete("doc_id in ('d0003', 'd0100')")
    honest = changes.versions.ids_left
    monkeypatch.setattr(changes.versions, "ids_left", lambda *given: honest(*given)[:1])
    with pytest.raises(IntegrityError, match="1 extra"):
        catch_up(config, first, Silent(), executor=Inline())
    assert Catalog(Storage.open(config.storage.root), "a").ids() == [first.id]

"""Receipts by the hundred: what seal reads in few requests is what the units left."""

from __future__ import annotations

import pytest
from inline import Inline

from reembed.catalog import runs
from reembed.catalog.receipts import Receipt
from reembed.catalog.runs import ReceiptCopies, Run
from reembed.errors import IntegrityError
from reembed.store.records import encode
from reembed.store.storage import Storage
from reembed.strategies.full_rebuild import full_rebuild


@pytest.fixture
def run(tmp_path):
    return Run(Storage.open(str(tmp_path)), "docs-0-v1-1")


def receipt(number: int) -> Receipt:
    return Receipt(f"u{number:04d}", "s", "c", 1, 1, (), (), {}, None)


def stage(run, numbers, copies=None):
    for number in numbers:
        run.storage.create(run.path(f"units/u{number:04d}.json"), encode(receipt(number)))
        if copies is not None:
            copies.add(receipt(number))


def reads_of(run, monkeypatch) -> list[str]:
    reads, plain = [], Storage.read
    monkeypatch.setattr(
        Storage, "read", lambda self, path: (reads.append(path), plain(self, path))[1]
    )
    return reads


def test_receipts_are_read_by_the_hundred_and_the_last_ones_one_by_one(run, monkeypatch):
    stage(run, range(250), ReceiptCopies(run))
    stage(run, range(250, 253))
    reads = reads_of(run, monkeypatch)
    assert run.receipts() == [receipt(n) for n in range(253)]
    assert len(reads) == 2 + 53


def test_drivers_that_heard_of_the_same_units_keep_each_others_copies(run):
    one, other = ReceiptCopies(run, 10), ReceiptCopies(run, 10)
    stage(run, range(20), one)
    for number in range(5, 25):
        other.add(receipt(number))
    stage(run, range(20, 25))
    assert len(run.numbered("receipts/")) == 4
    assert run.receipts() == [receipt(n) for n in range(25)]


def test_a_copy_of_a_receipt_that_is_gone_does_not_count(run):
    stage(run, range(10), ReceiptCopies(run, 10))
    run.storage.remove(run.path("units/u0004.json"))
    assert [r.unit for r in run.receipts()] == [f"u{n:04d}" for n in range(10) if n != 4]


def test_copies_that_were_changed_are_noticed(run):
    stage(run, range(10), ReceiptCopies(run, 10))
    path = run.path("receipts/00000001.json")
    run.storage.write_bytes(path, run.storage.read_bytes(path).replace(b"u0004", b"u0005"))
    with pytest.raises(IntegrityError, match="was changed"):
        run.receipts()


def test_a_rebuild_copies_what_its_units_leave(corpus, make_config, quiet, monkeypatch):
    monkeypatch.setattr(runs.ReceiptCopies.__init__, "__defaults__", (7,))
    config = make_config(corpus(60), embed={"unit_documents": 3})
    release = full_rebuild(config, quiet, executor=Inline())
    run = Run(Storage.open(config.storage.root), release.id)
    assert len(run.numbered("receipts/")) == 2
    reads = reads_of(run, monkeypatch)
    assert len(run.receipts()) == 20
    assert len(reads) == 2 + 6

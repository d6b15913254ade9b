"""A verification in pieces and partitions finds what a plain comparison of everything at once finds."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter

import lance
import numpy as np
import pyarrow as pa
import pytest

from reembed import encoders
from reembed.catalog.reports import IDS, ROWS, Difference
from reembed.catalog.runs import Run
from reembed.config.settings import Config
from reembed.digests import NULL, digest, of_id
from reembed.engine.patience import Patience
from reembed.lifecycle import reading, scratch, verify
from reembed.lifecycle.scratch import Scratch
from reembed.lifecycle.verify import Subject
from reembed.source.dataset import Source
from reembed.store.storage import Storage
from reembed.table import write as table
from reembed.table.read import TableVersion, from_vectors

DIM = 8


@dataclasses.dataclass(frozen=True)
class Held:
    """Two segments of an index: (row id, document id) by position."""

    entries: tuple[tuple[int, str], ...]
    segments: int = 2

    def batches(self, segment, look=None):
        half = len(self.entries) // 2
        start, stop = [(0, half), (half, len(self.entries))][segment]
        rows, ids = zip(*self.entries[start:stop], strict=True)
        yield np.arange(start, stop), np.array(rows, np.int64), pa.array(ids, pa.large_string())

    def doc_ids(self, positions):
        return [self.entries[p][1] for p in positions]


def documents_of(chance, count):
    """(id, text, year) of documents; some without a text."""
    texts = [
        None if chance.random() < 0.05 else f"text {chance.randrange(40)}" for _ in range(count)
    ]
    return [[f"d{n}", text, chance.randrange(5)] for n, text in enumerate(texts)]


def damaged(chance, documents):
    """Rows for documents: some lost, added, repeated, or with another text, year or id."""
    rows = [[name, text, year, "same", 1.0] for name, text, year in documents]
    for _ in range(chance.randrange(12)):
        at = chance.randrange(len(rows))
        what = chance.choice(["lose", "add", "repeat", "text", "year", "id", "space", "vector"])
        match what:
            case "lose":
                del rows[at]
            case "add":
                rows.insert(at, [f"more{chance.randrange(99)}", "t", 1, "same", 1.0])
            case "repeat":
                rows.insert(chance.randrange(len(rows)), list(rows[at]))
            case "text":
                rows[at][1] = "another"
            case "year":
                rows[at][2] += 1
            case "id":
                rows[at][0] = f"d{chance.randrange(len(documents))}"
            case "space":
                rows[at][3] = "other"
            case "vector":
                rows[at][4] = 0.0
    return rows


def text_hash(text):
    return NULL if text is None else digest(text.encode())


def by_ids(rows, documents, dead, level):
    """The plain comparison: dictionaries of all ids."""
    first_row, first_document = {}, {}
    for row in rows:
        first_row.setdefault(row[0], row)
    for document in documents:
        first_document.setdefault(document[0], document)
    there, held, dead = set(first_document), set(first_row), set(dead)
    found = {
        "missing": there - held - dead,
        "extra": (held - there) | (dead - there) | (dead & held & there),
        "duplicate": {name for name, n in Counter(r[0] for r in rows).items() if n > 1},
    }
    if level >= ROWS:
        both = there & held
        hashes = {n: (text_hash(first_row[n][1]), text_hash(first_document[n][1])) for n in both}
        found["stale"] = {n for n in both if hashes[n][0] != hashes[n][1]}
        other = {n for n in both if first_row[n][2] != first_document[n][2]}
        found["carried"] = other - found["stale"]
    return {k: shown(sorted(ids, key=of_id)) for k, ids in found.items()}


def by_index(stored, held):
    """`stored` and `held`: (row id, document id) of the table and of the index."""
    mine, its = dict(stored), [row for row, _ in held]
    gap = sorted(set(mine) ^ set(its))
    gap += [-1] * (len(its) - len(set(its)))
    last = dict(zip(reversed(its), range(len(its) - 1, -1, -1), strict=True))  # the first of a row
    wrong = sorted(p for row, p in last.items() if row in mine and mine[row] != held[p][1])
    misnamed = shown([held[p][1] for p in wrong])
    return {"unindexed": shown(gap), "misnamed": misnamed, "misplaced": Difference(0)}


def shown(found):
    return Difference(len(found), tuple(found[:5]))


def write_table(storage, rows, space):
    columns = table.schema(space, pa.string(), [pa.field("year", pa.int64())])
    names, texts, years, spaces, lengths = zip(*rows, strict=True)
    vectors = np.ones((len(rows), DIM), np.float32) * np.array(lengths, np.float32)[:, None]
    data = [
        list(names),
        from_vectors(vectors, pa.float32()),
        [space.id if s == "same" else s for s in spaces],
        [text_hash(t) for t in texts],
        [1] * len(rows),
        list(years),
    ]
    uri = storage.uri("t.lance")
    made = lance.write_dataset(
        pa.table(data, columns), uri, enable_stable_row_ids=True, max_rows_per_file=11
    )
    return TableVersion(storage, "t.lance", made.version, DIM)


@pytest.mark.parametrize("seed", range(24))
def test_pieces_and_partitions_of_any_size_find_what_a_plain_comparison_finds(
    tmp_path, monkeypatch, seed
):
    chance = random.Random(seed)
    documents, storage = documents_of(chance, chance.randrange(1, 120)), Storage.open(tmp_path)
    newer = documents_of(chance, chance.randrange(1, 120))
    uri = str(tmp_path / "source.lance")
    for made, mode in ((documents, "create"), (newer, "overwrite")):
        names, texts, years = zip(*made, strict=True)
        data = {"doc_id": names, "text": pa.array(texts, pa.string()), "year": years}
        lance.write_dataset(pa.table(data), uri, mode=mode, max_rows_per_file=13)
    config = Config(
        alias="a",
        source={"uri": uri, "version": 1},
        encoder={"model": f"hashing:{DIM}"},
        table={"carry": ["year"]},
        storage={"root": str(tmp_path)},
    )
    space = encoders.describe(config.encoder, "float32")
    rows = damaged(chance, documents)
    dead = chance.sample([d[0] for d in documents], min(len(documents), chance.randrange(4)))
    dead += ["gone"] * chance.randrange(2)
    stored = write_table(storage, rows, space)
    row_ids = stored.dataset().scanner(columns=["doc_id"], with_row_id=True).to_table()
    pairs = list(zip(row_ids["_rowid"].to_pylist(), row_ids["doc_id"].to_pylist(), strict=True))
    held = [(r, n) if chance.random() < 0.95 else (r + 1, n) for r, n in pairs] + pairs[:1]
    chance.shuffle(held)
    source = Source.open(config)
    subject = Subject(
        source,
        stored,
        space,
        config.encoder,
        tuple(dead),
        Held(tuple(held)),
        newest=source.newest(),
        patience=Patience(60),
    )
    for level in (IDS, ROWS):
        expected = by_ids(rows, documents, dead, level)
        if level >= ROWS:
            other = [r[0] for r in rows if r[3] != "same"]
            zero = [r[0] for r in rows if r[4] == 0]
            expected |= {"mismatched": shown(other), "corrupt": shown(zero)}
            expected |= by_index(pairs, held)
        expected["damaged"] = Difference(0)
        for size in (10_000, chance.randrange(1, 40)):
            for module, name in (
                (reading, "PIECE_ROWS"),
                (scratch, "ENTRY_ROWS"),
                (verify, "PARTITION_ROWS"),
            ):
                monkeypatch.setattr(module, name, size)
            place = Scratch.of(Run(storage, "r"))
            report = verify.verify(subject, place, level=level)
            assert report.differences == expected
            assert report.behind == by_ids(rows, newer, dead, level)
            counts = (report.documents, report.rows, report.table_documents)
            assert counts == (len(documents), len(rows), len({r[0] for r in rows}))

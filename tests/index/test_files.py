"""What is saved is what is loaded, byte for byte, or nothing is."""

from __future__ import annotations

import dataclasses
import gc
import json
import re
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pytest
from vectors import PATH, build, random_source, save

from reembed.catalog.index_manifest import IndexManifest, StoredFile, read_manifest
from reembed.config.settings import IndexConfig
from reembed.errors import IntegrityError, UsageError
from reembed.index import files
from reembed.index.files import load, lower_bound, part_bytes
from reembed.index.search import SearchIndex, read
from reembed.store.records import decode, encode, to_bytes
from reembed.store.storage import Storage

MAPPED = [
    "Flat", "SQ8", "SQfp16", "IVF16,Flat", "IVF16,SQ8", "IVF16,PQ8", "IVF16,PQ8x4fs", "IVF16,PQ8x4fs,RFlat",
    "IVF16,PQ8x4fs,Refine(SQfp16)", "IVF16,PQ8x4fs,Refine(SQ8)", "PQ8x4fs,RFlat", "HNSW8", "HNSW8_SQ8",
    "IVF16_HNSW8,SQ8", "PCA8,IVF16,SQ8", "OPQ4,IVF16,PQ4x4fs,RFlat",
]  # fmt: skip


def flat() -> faiss.Index:
    index = faiss.IndexFlatIP(16)
    index.add(np.random.default_rng(0).normal(size=(500, 16)).astype(np.float32))
    return index


NAMES = pa.array(range(500))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.open(tmp_path / "root")


def test_saved_and_loaded_is_the_same_index(storage: Storage) -> None:
    source = random_source(3000, 16)
    built = build(source, IndexConfig(device="cpu", factory="IVF16,Flat"), storage=storage)
    manifest = built.manifest
    assert manifest == read_manifest(storage, PATH, manifest.sha256)
    assert manifest.ann_recall_lower <= manifest.ann_recall_at_10
    assert (manifest.rows, manifest.dim, manifest.num_queries) == (3000, 16, 200)
    named = [f.path(PATH) for f in manifest.files]
    there = [path for path, _ in storage.objects(PATH)]
    assert sorted([*named, f"{PATH}/{manifest.sha256}.json"]) == there
    assert len(named) == 3
    loaded = load(storage, PATH, manifest)
    queries = np.random.default_rng(1).normal(size=(40, 16)).astype(np.float32)
    for got, want in zip(loaded.search(queries, 20), built.index.search(queries, 20), strict=True):
        np.testing.assert_array_equal(got, want)
    positions = np.array([7, 2999, 7])
    assert loaded.doc_ids(positions) == source.row_ids[positions].tolist()
    np.testing.assert_array_equal(loaded.row_ids(positions), source.row_ids[positions])
    assert loaded.ids()["row_id"].to_pylist() == source.row_ids.tolist()


def test_an_open_index_keeps_what_was_checked_when_its_files_are_replaced_or_removed(
    storage: Storage,
) -> None:
    """A file is mapped where it is: what writes below the root puts a new file in its place, and gc unlinks."""
    loaded = load(storage, PATH, save(storage, flat(), NAMES))
    query = np.random.default_rng(1).normal(size=(5, 16)).astype(np.float32)
    before, _ = loaded.nearest(query, 10)
    for path, size in storage.objects(PATH):
        storage.write_bytes(path, bytes(size))
    np.testing.assert_array_equal(loaded.nearest(query, 10)[0], before)
    storage.delete_tree(f"{PATH}/")
    np.testing.assert_array_equal(loaded.nearest(query, 10)[0], before)
    assert loaded.doc_ids(np.arange(500)) == NAMES.to_pylist()


@pytest.mark.parametrize("factory", MAPPED)
def test_an_index_answers_from_its_file_as_from_memory(storage: Storage, factory: str) -> None:
    vectors = np.random.default_rng(0).normal(size=(4_000, 16)).astype(np.float32)
    index = faiss.index_factory(16, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    manifest = save(storage, index, pa.array(range(4_000)))
    for found, expected in zip(
        load(storage, PATH, manifest).nearest(vectors[:50], 10),
        SearchIndex(files.get_index(storage, PATH, manifest.base.vectors)).nearest(
            vectors[:50], 10
        ),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("factory", ["Flat", "IVF16,SQ8", "HNSW4,Flat", "IVF16,PQ16x4fs,RFlat"])
def test_an_open_index_takes_little_memory_of_its_own(storage: Storage, factory: str) -> None:
    rng = np.random.default_rng(0)
    index = faiss.index_factory(256, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(rng.normal(size=(2_000, 256)).astype(np.float32))
    for _ in range(4):
        index.add(rng.normal(size=(20_000, 256)).astype(np.float32))
    manifest = save(storage, index, pa.array(range(80_000)))
    del index
    before = own_memory()
    loaded = load(storage, PATH, manifest)
    loaded.nearest(rng.normal(size=(100, 256)), 10)
    assert manifest.base.vectors.size_bytes > 20e6
    assert own_memory() - before < 0.25 * manifest.base.vectors.size_bytes


def own_memory() -> int:
    """Bytes of this process that are not pages of files."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", status)[1])


def test_segments_that_two_indexes_have_are_opened_once(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = save(storage, flat(), NAMES)
    first = load(storage, PATH, manifest)
    grown = dataclasses.replace(manifest, segments=(manifest.base, manifest.base), table_version=5)
    fetched, read_again = files.fetched, []
    monkeypatch.setattr(files, "fetched", lambda *of: read_again.append(of) or fetched(*of))
    both = load(storage, PATH, grown, first)
    assert not read_again
    assert [o.index for o in both.opened] == [first.opened[0].index] * 2
    queries = np.random.default_rng(1).normal(size=(5, 16)).astype(np.float32)
    found, _ = both.nearest(queries, 10)
    assert sorted({p % 500 for p in found[0].tolist()}) == sorted(
        set(first.nearest(queries, 5)[0][0].tolist())
    )


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.int32(), pa.int64()])
def test_document_ids_keep_their_kind(storage: Storage, kind: pa.DataType) -> None:
    named = NAMES.cast(kind)
    loaded = load(storage, PATH, save(storage, flat(), named))
    assert loaded.doc_ids(np.arange(500)) == named.to_pylist()


def test_ids_are_mapped_and_outlive_the_removal_of_their_file(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    manifest = save(storage, flat(), NAMES)
    before = pa.total_allocated_bytes()
    loaded = load(storage, PATH, manifest)
    assert pa.total_allocated_bytes() == before
    storage.delete_tree(f"{PATH}/")
    assert loaded.doc_ids(np.arange(500)) == NAMES.to_pylist()


def test_a_document_without_an_id_is_refused(storage: Storage) -> None:
    named = pa.array([None, *map(str, range(1, 500))])
    with pytest.raises(IntegrityError, match="500 rows have 499 document ids"):
        save(storage, flat(), named)


def test_manifest_survives_json(storage: Storage) -> None:
    manifest = save(storage, flat(), NAMES)
    assert decode(IndexManifest, json.loads(json.dumps(encode(manifest)))) == manifest


@pytest.mark.parametrize("ending", ["faiss", "arrow"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "grow", "remove"])
def test_a_tampered_index_is_refused(storage: Storage, damage: str, ending: str) -> None:
    manifest = save(storage, flat(), NAMES)
    named = {"faiss": manifest.base.vectors, "arrow": manifest.base.ids}[ending]
    file = Path(storage.uri(named.path(PATH)))
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    file.write_bytes({"truncate": data[:-1], "grow": data + b"x"}.get(damage, data))
    if damage == "remove":
        file.unlink()
    with pytest.raises(IntegrityError, match=rf"\.{ending}") as caught:
        load(storage, PATH, manifest)
    assert "reembed status" in (caught.value.fix or "")


@pytest.mark.parametrize(
    "change",
    [{"dim": "16"}, {"schema_version": 1}, {"unknown": 1}, {"space": "other"}, {"segments": []}],
)
def test_a_tampered_manifest_is_refused(storage: Storage, change: dict[str, object]) -> None:
    saved = save(storage, flat(), NAMES)
    storage.write_bytes(f"{PATH}/{saved.sha256}.json", to_bytes(encode(saved) | change))
    with pytest.raises((IntegrityError, UsageError)):
        read_manifest(storage, PATH, saved.sha256)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 499},
        {"operating_point": {"nprobe": 4}},
        {"vectors": {"size_bytes": 7}},
        {"vectors": {"sha256": "../../x"}},
        {"ids": {"sha256": "0" * 64}},
        {"ids": {"size_bytes": 7}},
        {"dim": 8},
    ],
)
def test_a_manifest_that_names_other_files_is_refused(
    storage: Storage, change: dict[str, Any]
) -> None:
    saved = save(storage, flat(), NAMES)
    base, dim = saved.base, change.get("dim", saved.dim)
    fields = {
        name: dataclasses.replace(getattr(base, name), **value)
        if name in ("vectors", "ids")
        else value
        for name, value in change.items()
        if name != "dim"
    }
    other = dataclasses.replace(saved, dim=dim, segments=(dataclasses.replace(base, **fields),))
    storage.create(f"{PATH}/{other.sha256}.json", encode(other))
    with pytest.raises(IntegrityError):
        load(storage, PATH, read_manifest(storage, PATH, other.sha256))


@pytest.mark.parametrize("text", [None, "{", "[]", "{}"])
def test_a_missing_or_broken_manifest_is_refused(storage: Storage, text: str | None) -> None:
    if text is not None:
        storage.write_bytes(f"{PATH}/{'0' * 64}.json", text.encode())
    with pytest.raises(
        IntegrityError,
        match=r"no manifest|not a valid|was changed after it was written",
    ):
        read_manifest(storage, PATH, "0" * 64)


def test_a_file_that_is_not_an_index_by_position_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "index"
    numbered = faiss.IndexIDMap2(faiss.IndexFlatIP(4))
    faiss.write_index(numbered, str(file))
    with pytest.raises(IntegrityError, match="by ids of its own"):
        read(file)
    file.write_bytes(b"not an index")
    with pytest.raises(IntegrityError, match="is not a FAISS index"):
        read(file)


def stored(folder: Path, batch: pa.RecordBatch) -> Path:
    file = folder / "written.arrow"
    files.write_batch(batch, file)
    return file


@pytest.mark.parametrize(
    "columns",
    [
        {"row_id": [1], "doc_id": [2.5]},
        {"row_id": [1]},
        {"doc_id": ["a"], "row_id": [1]},
        {"row_id": ["a"], "doc_id": ["a"]},
    ],
)
def test_a_file_of_other_columns_is_refused(tmp_path: Path, columns: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match="is not a file of ids"):
        files.map_ids(stored(tmp_path, pa.record_batch(columns)))


def test_ids_whose_offsets_lead_out_of_the_file_are_refused(tmp_path: Path) -> None:
    file = stored(tmp_path, files.batch_of(np.arange(2), pa.array(["abc", "de"])))
    offsets = [np.array([0, middle, 5], np.int64).tobytes() for middle in (3, 2**40)]
    assert file.read_bytes().count(offsets[0]) == 1
    hostile = tmp_path / "hostile.arrow"
    hostile.write_bytes(file.read_bytes().replace(*offsets))
    with pytest.raises(IntegrityError, match="is not a file of ids"):
        files.map_ids(hostile)


def test_a_file_that_is_not_arrow_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.arrow"
    file.write_bytes(b"not arrow at all")
    with pytest.raises(IntegrityError, match="is not a file of ids"):
        files.map_ids(file)


def test_sorted_tombstones_come_back_and_unsorted_ones_are_refused(tmp_path: Path) -> None:
    batch = pa.record_batch([pa.array([1, 5])], schema=files._TOMBSTONES)
    assert files.map_tombstones(stored(tmp_path, batch)).tolist() == [1, 5]
    for turned in ([5, 1], [1, 1], [-1, 1]):
        batch = pa.record_batch([pa.array(turned)], schema=files._TOMBSTONES)
        with pytest.raises(IntegrityError, match="not sorted"):
            files.map_tombstones(stored(tmp_path, batch))


def test_a_local_root_shares_a_file_of_any_size_as_a_link(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "COPY_BYTES", 10)
    file = files.put_index(storage, "indexes/a", flat())
    files.share(storage, "indexes/a", file, "indexes/b")
    one, other = (Path(storage.uri(file.path(f"indexes/{n}"))) for n in "ab")
    assert one.samefile(other)
    assert not files.too_large(storage, [file])


def test_an_object_store_copies_files_of_up_to_5_gib_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage = Storage.open("memory:///root")
    file = files.put_index(storage, "indexes/a", flat())
    fetched: list[StoredFile] = []
    honest = files.fetched

    def seen(storage: Storage, path: str, folder: Path, file: StoredFile) -> Path:
        fetched.append(file)
        return honest(storage, path, folder, file)

    monkeypatch.setattr(files, "fetched", seen)
    for limit, downloaded in ((file.size_bytes, []), (file.size_bytes - 1, [file])):
        monkeypatch.setattr(files, "COPY_BYTES", limit)
        files.share(storage, "indexes/a", file, f"indexes/{limit}")
        assert fetched == downloaded == files.too_large(storage, [file])
        assert storage.size(file.path(f"indexes/{limit}")) == file.size_bytes


def test_a_file_of_any_size_is_uploaded_in_parts_that_s3_takes() -> None:
    assert part_bytes(0) == part_bytes(5 * 2**20 * 9_000) == 5 * 2**20
    for size in (10**11, 10**12, 45 * 10**12):
        assert 5 * 2**20 <= part_bytes(size) <= 5 * 2**30
        assert size / part_bytes(size) <= 10_000


def test_lower_bound_is_the_student_t_bound() -> None:
    assert lower_bound(np.array([0.9, 1.0, 0.8, 1.0])) == pytest.approx(
        0.925 - 2.353363 * 0.0478714
    )
    assert lower_bound(np.ones(50)) == 1.0
    assert lower_bound(np.ones(1)) == 0.0

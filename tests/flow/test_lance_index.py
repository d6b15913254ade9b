"""A release with Lance's own index through every verb, on a folder and on S3."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import lance
import pyarrow as pa
import pytest
from conftest import Bucket, documents

from reembed.catalog.index_manifest import read_manifest
from reembed.catalog.releases import Catalog
from reembed.store.storage import Storage

DOCUMENTS = 600
LANCE = {"kind": "lance", "factory": "IVF4_PQ", "ann_recall": 0.8, "shard_rows": 300}


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.s3)])
def storage_section(request: pytest.FixtureRequest, tmp_path: Any, monkeypatch: Any) -> Any:
    if request.param == "folder":
        return {"root": str(tmp_path / "root")}
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    bucket: Bucket = request.getfixturevalue("bucket")
    return {"root": f"{bucket.uri}/root", "options": bucket.options}


def write_corpus(folder: Any) -> dict[str, str]:
    """Write a source and judged queries; return the texts by id."""
    texts = {d["doc_id"]: d["text"] for d in documents(DOCUMENTS, 0)}
    lance.write_dataset(pa.Table.from_pylist(documents(DOCUMENTS, 0)), str(folder / "corpus.lance"))
    asked = list(texts)[::20]
    lines = [{"query_id": f"q{d}", "text": texts[d], "doc_ids": [d]} for d in asked]
    judged = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "judged.jsonl").write_text(judged)
    return texts


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_every_verb_works_with_an_index_that_lance_keeps(
    storage_section: Any, config_file: Callable[..., str], cli: Any, tmp_path: Any
) -> None:
    source, texts = str(tmp_path / "corpus.lance"), write_corpus(tmp_path)
    common = {
        "source": {"uri": source, "options": {}},
        "storage": {**storage_section, "keep": 1},
        "table": {"carry": ["title"]},
        "gate": {
            "queries": str(tmp_path / "judged.jsonl"),
            "ann_recall": 0.5,
            "margin": 0.2,  # that of .02 needs 100 queries, and each is slow on S3
            "options": {},
            "latency_ratio": 1_000_000,  # live is in memory, and another machine may be busy
        },
    }
    old = config_file(source, "old.yaml", encoder={"model": "hashing:32"}, **common)
    new = config_file(source, "new.yaml", encoder={"model": "hashing:64"}, index=LANCE, **common)
    storage = Storage.open(storage_section["root"], storage_section.get("options", {}))
    first = cli("run", "-c", old)["id"]
    cli("promote", "-c", old, "--initial", "--reason", "a test")
    second = cli("run", "-c", new)["id"]
    assert cli("run", "-c", new)["id"] == second, "it is built already"
    assert cli("compare", "-c", new)["verdict"] == "pass"
    cli("promote", "-c", new)
    (found,) = cli("search", "-c", new, texts["d00007"], "--show", "title")["results"]
    assert found["hits"][0]["doc_id"] == "d00007"
    assert found["hits"][0]["columns"]["title"]
    cli("rollback", "-c", new)
    assert cli("search", "-c", new, "anything")["release"] == first
    cli("promote", second, "-c", new, "--force", "--reason", "back again")

    lance.dataset(source).delete("doc_id = 'd00007'")
    added = [{**documents(DOCUMENTS, 0)[3], "doc_id": "d90000", "text": "an entirely new text"}]
    lance.write_dataset(pa.Table.from_pylist(added), source, mode="append")
    cli("catch-up", "-c", new)
    grown = Catalog(storage, "passages").require_live().release
    assert grown.origin == second != grown.id
    manifest = read_manifest(storage, grown.index, grown.index_sha256)
    assert [s.kind for s in manifest.segments] == ["base"] * 3 + ["delta"]
    assert manifest.buried == 1
    found = cli("search", "-c", new, texts["d00007"], "an entirely new text")["results"]
    assert "d00007" not in {h["doc_id"] for h in found[0]["hits"]}
    assert found[1]["hits"][0]["doc_id"] == "d90000"
    assert cli("verify", "-c", new)["passed"]
    assert cli("status", "-c", new)["live"]["release"] == grown.id
    stray = f"{grown.table}/_indices/00000000-0000-0000-0000-000000000000/index.idx"
    storage.write_bytes(stray, b"left by a task")
    cli("gc", "-c", new, "--yes")
    left = {p.split("/")[3] for p, _ in storage.objects(f"{grown.table}/_indices/")}
    assert left == {s.uuid for s in manifest.segments}
    assert cli("verify", "-c", new)["passed"]
    found = cli("search", "-c", new, "an entirely new text")["results"]
    assert found[0]["hits"][0]["doc_id"] == "d90000"

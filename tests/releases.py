"""Releases and comparisons that are registered without being built."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import lance
import pyarrow as pa

from reembed.catalog.index_manifest import IndexManifest, Segment, StoredFile, read_manifest
from reembed.catalog.releases import Catalog, Release, SourceRef
from reembed.config.settings import EncoderConfig, FrozenGate, IndexConfig
from reembed.evaluation import comparisons
from reembed.evaluation.comparison import (
    Compared,
    Comparison,
    DocumentsCompared,
    Place,
    QueriesUsed,
    Sides,
)
from reembed.evaluation.gate import Rule, combine
from reembed.space import ContentIdentity, Space
from reembed.store.records import encode
from reembed.store.storage import Storage
from reembed.table.read import manifest_proof

GATE = FrozenGate(queries="q", sha256="0", count=30)
SOURCE = SourceRef("s", 1, "f", "i", "t", None, ())
SPACE = Space(
    "m", None, ContentIdentity("w", "t"), "mean", "", "", True, None, 128, "none", "float32", 8
)


def sha256(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def index_manifest(name: str) -> IndexManifest:
    """What goes with an index whose files hold the release's name alone."""
    vectors, ids = (StoredFile(sha256(name), len(name), e) for e in ("faiss", "arrow"))
    segment = Segment("base", vectors, ids, 1, "Flat", {}, "cpu", "1", 0.0, 0)
    return IndexManifest(
        segments=(segment,), tombstones=None, metric="inner_product", dim=SPACE.dim, space=SPACE.id,
        table=f"tables/{name}.lance", table_version=1, ann_recall_at_10=1.0, ann_recall_lower=1.0,
        tuned_on="documents", num_queries=1, settings=IndexConfig(),
    )  # fmt: skip


def index_file(storage: Storage, release: Release, ending: str = "faiss") -> str:
    """Path under the root of the vectors of a release's index, or of its ids."""
    manifest = read_manifest(storage, release.index, release.index_sha256)
    (file,) = [f for f in manifest.files if f.ending == ending]
    return file.path(release.index)


def make_release(catalog: Catalog, name: str, **changes: object) -> Release:
    manifest = index_manifest(name)
    for file in manifest.files:
        catalog.storage.write_bytes(file.path(f"indexes/{name}"), name.encode())
    catalog.storage.write(f"indexes/{name}/{manifest.sha256}.json", encode(manifest))
    uri = catalog.storage.uri(f"tables/{name}.lance")
    dataset = lance.write_dataset(pa.table({"doc_id": ["a"]}), uri, mode="overwrite")
    dataset.tags.create(f"reembed-{name}", 1)
    fields = {
        "id": name, "alias": "docs", "run_id": name, "space": SPACE, "encoder": EncoderConfig(model="m"),
        "table": f"tables/{name}.lance", "table_version": 1, "table_tag": f"reembed-{name}",
        "index": f"indexes/{name}", "index_sha256": manifest.sha256,
        "rows": 1, "dead_letters": 0,
        "source": SOURCE, "verify": {"passed": True, "table_version": 1},
        "gate": GATE,
        "table_manifest": manifest_proof(catalog.storage, f"tables/{name}.lance", 1),
        "sealed_sha256": "s",
        "number": catalog.next_number(),
    }  # fmt: skip
    return catalog.register(Release(**{**fields, **changes}))


def comparison(
    catalog: Catalog, new: Release, live: Release, verdict: str = "pass", **changes: object
) -> None:
    record = Comparison(
        **vars(combine(Rule("nDCG@10 change", verdict, "d"))),
        alias=catalog.alias,
        live=Compared.of(live),
        candidate=Compared.of(new),
        candidate_index_sha256=new.index_sha256,
        queries=QueriesUsed("q", Place("q", "test"), "0", 30, 0, 1.0, 0, 0),
        documents=DocumentsCompared((), None),
        gate=GATE,
        planned_gate=GATE,
        gate_is_late=False,
        changes=(),
        metrics={},
        ann_recall_at_10=Sides(1.0, 1.0),
        overlap_at_10=1.0,
        judged_at_10=Sides(1.0, 1.0),
        latency=None,
        by="me",
        at="now",
    )
    comparisons.keep(catalog, live, new, replace(record, **changes))


FIRST = {"initial_reason": "the first"}

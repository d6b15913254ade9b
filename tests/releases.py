"""Releases and comparisons that are registered without being built."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from typing import Any

import lance
import pyarrow as pa
from inline import Inline, Silent

from reembed.catalog import lines
from reembed.catalog.index_manifest import IndexManifest, Segment, StoredFile, read_manifest
from reembed.catalog.lines import Place as LinePlace
from reembed.catalog.releases import Catalog, Release, SourceRef
from reembed.catalog.reports import QueriesPlace, VerifyReport
from reembed.config.gate import FrozenGate
from reembed.config.settings import EncoderConfig, IndexConfig
from reembed.evaluation import comparisons
from reembed.evaluation.comparisons import Comparison, Rule
from reembed.evaluation.figures import (
    DocumentsCompared,
    Environment,
    IndexUsed,
    KnownItems,
    QueriesUsed,
    Sides,
)
from reembed.evaluation.gate import combine
from reembed.lifecycle.promote import promote
from reembed.space import ContentIdentity, Space
from reembed.store.records import encode
from reembed.store.storage import Storage
from reembed.strategies.full_rebuild import full_rebuild
from reembed.table.read import manifest_proof

GATE = FrozenGate(queries=("q",), sha256="0", count=30)
SOURCE = SourceRef("s", 1, "f", "i", "t", None, ())
SPACE = Space(
    "m", None, ContentIdentity("w", "t"), "mean", "", "", True, None, 128, "none", "float32", 8
)


def sha256(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def index_manifest(name: str) -> IndexManifest:
    """What goes with an index whose files hold the release's name alone."""
    vectors, ids = (StoredFile(sha256(name), len(name), e) for e in ("faiss", "arrow"))
    segment = Segment("base", vectors, vectors, ids, 1, "Flat", {}, "cpu", "1", 0.0, 0)
    return IndexManifest(
        segments=(segment,), tombstones=None, metric="inner_product", dim=SPACE.dim, space=SPACE.id,
        table=f"tables/{name}.lance", table_version=1, ann_recall_at_10=1.0, ann_recall_lower=1.0,
        tuned_on="documents", num_queries=1, settings=IndexConfig(),
    )  # fmt: skip


def index_file(storage: Storage, release: Release, ending: str = "faiss") -> str:
    """Path under the root of the vectors of a release's index, or of its ids."""
    manifest = read_manifest(storage, release.index, release.index_sha256)
    file = {"faiss": manifest.base.vectors, "arrow": manifest.base.ids}[ending]
    return file.path(release.index)


def verified(version: int = 1, why: str | None = None) -> VerifyReport:
    """Return the report of a verification that passed, or could not finish for this reason."""
    return VerifyReport("t", version, 1, 3, 1, 1, 1, 0, {}, None, 0, None, why)


def make_release(catalog: Catalog, name: str, **changes: object) -> Release:
    manifest = index_manifest(name)
    for file in manifest.files:
        catalog.storage.write_bytes(file.path(f"indexes/{name}"), name.encode())
    catalog.storage.write(f"indexes/{name}/{manifest.sha256}.json", encode(manifest))
    uri = catalog.storage.uri(f"tables/{name}.lance")
    dataset = lance.write_dataset(pa.table({"doc_id": ["a"]}), uri, mode="overwrite")
    dataset.tags.create(f"reembed-{name}", 1)
    place = place_of(name)
    fields = {
        "id": name, "alias": catalog.alias, "place": place,
        "space": SPACE, "encoder": EncoderConfig(model="m"),
        "table": f"tables/{name}.lance", "table_version": 1, "table_tag": f"reembed-{name}",
        "index": f"indexes/{name}", "index_sha256": manifest.sha256,
        "rows": 1, "documents": 1, "dead_letters": 0,
        "source": replace(SOURCE, version=place.version), "verify": verified(),
        "gate": GATE,
        "table_manifest": manifest_proof(catalog.storage, f"tables/{name}.lance", 1),
        "sealed_sha256": "s", "golden_sha256": "g",
    }  # fmt: skip
    release = Release(**{**fields, **changes})
    lines.begin(catalog.storage, catalog.alias, release.id, release.place)
    return catalog.register(release)


def place_of(name: str) -> LinePlace:
    """Return the place that a test's name for a release means.

    "a" begins a line; "a-u7-2" is its second catch-up, of version 7 of the source.
    """
    found = re.fullmatch(r"(.+)-u(\d+)-(\d+)", name)
    if found is None:
        return LinePlace("settings", name, 0, 1)
    return LinePlace("settings", found[1], int(found[3]), int(found[2]))


INDEX_USED = IndexUsed("Flat", {}, "0", 1, 1)
ENVIRONMENT = Environment("3.11", {}, "here", 1, {})


def comparison(
    catalog: Catalog, new: Release, live: Release, verdict: str = "pass", **changes: object
) -> None:
    record = replace(compared(new, live, verdict), **changes)
    comparisons.keep(catalog, live, new, record, b"values")


def compared(new: Release, live: Release, verdict: str = "pass") -> Comparison:
    """Return a comparison of which the verdict is all that was found."""
    return Comparison(
        **vars(combine(Rule("nDCG@10 change", verdict, "d"))),
        alias=new.alias,
        live=live.summary(),
        candidate=new.summary(),
        candidate_index_sha256=new.index_sha256,
        queries=QueriesUsed("q", QueriesPlace(("q",), "test"), "0", 30, 0, 1.0, 0, 0),
        documents=DocumentsCompared((), None),
        gate=GATE,
        planned_gate=GATE,
        gate_is_late=False,
        changes=(),
        metrics={},
        slices=(),
        likely_groups=None,
        known_items=KnownItems(0, None),
        ann_recall_at_10=Sides(1.0, 1.0),
        overlap_at_10=1.0,
        rbo=1.0,
        same_lists=0,
        judged_at_10=Sides(1.0, 1.0),
        zero_results=Sides(0.0, 0.0),
        latency=None,
        encoding=None,
        index=Sides(INDEX_USED, INDEX_USED),
        curve=Sides(None, None),
        scores=None,
        not_embedded=Sides(0, 0),
        truncated=Sides(0, 0),
        runs=None,
        shadow=None,
        cutoffs=None,
        logged=None,
        environment=ENVIRONMENT,
        by="me",
        at="now",
    )


FIRST = {"initial_reason": "the first"}


def promoted(config: Any, **reason: str) -> tuple[Release, Catalog]:
    """A release of the config's documents, built here and made live, and the alias's catalog."""
    release = full_rebuild(config, Silent(), fresh=True, executor=Inline())
    catalog = Catalog(Storage.open(config.storage.root, config.storage.options), config.alias)
    promote(catalog, release.id, **(reason or {"initial_reason": "a test"}))
    return release, catalog

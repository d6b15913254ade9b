"""Queries by a new model on documents that stay as they are: proven or refused, promoted, caught up, rolled back."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
import torch
from flow_tables import rows_of
from inline import Inline, Silent
from releases import promoted
from safetensors.torch import load_file, save_file
from scipy.linalg import orthogonal_procrustes
from tiny_models import static_model

import reembed
from reembed import Config, EncodedQueries, api
from reembed.catalog.releases import Catalog, Release
from reembed.cli.text import text
from reembed.config.gate import GateSection
from reembed.encoders import bridge, load_encoder
from reembed.engine.executor import Executor
from reembed.engine.ray_executor import RayExecutor
from reembed.errors import GateFailed, IntegrityError, SpaceMismatch, UsageError
from reembed.evaluation.comparisons import Comparison
from reembed.events import Event, Notice
from reembed.lifecycle import gc
from reembed.lifecycle.promote import promote, rollback
from reembed.strategies import steps
from reembed.strategies.catch_up import catch_up
from reembed.strategies.query_only import query_only

DIM = 24


@dataclass(frozen=True)
class World:
    """A live release by one model, and judged queries of its documents."""

    config: Config
    live: Release
    catalog: Catalog
    folder: Path

    def by(self, model: Path | str) -> Config:
        encoder = self.config.encoder.model_copy(update={"model": str(model)})
        return self.config.model_copy(update={"encoder": encoder})

    def candidate(
        self, model: Path | str, pairs: int | None = None, executor: Executor | None = None
    ) -> Release:
        where = executor or Inline()
        return query_only(self.by(model), Silent(), executor=where, pairs=pairs)

    def judged(self, release: Release) -> Comparison:
        return api.compare(self.config, release.id)


@pytest.fixture
def world(
    tmp_path: Path,
    corpus: Callable[..., str],
    eval_folder: Callable[..., str],
    make_config: Callable[..., Config],
) -> World:
    source = corpus(300)
    config = make_config(
        source,
        encoder={"model": str(static_model(tmp_path / "old", dim=DIM))},
        # 48 queries show no less, and no test depends on how busy the machine is.
        gate={"queries": eval_folder(source), "margin": 0.05, "latency_ratio": 1_000},
        index={"device": "cpu"},
    )
    live, catalog = promoted(config)
    return World(config, live, catalog, tmp_path)


def changed(world: World, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """The old model with other weights."""
    folder = world.folder / name
    shutil.copytree(world.folder / "old", folder)
    weights = load_file(folder / "model.safetensors")
    save_file({k: change(v).contiguous() for k, v in weights.items()}, folder / "model.safetensors")
    return folder


def half(world: World) -> Path:
    return changed(world, "half", lambda w: w.half().float())


def rotated(world: World) -> Path:
    """A model whose space is the old one turned."""
    turn = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(7)))[0]
    return changed(world, "rotated", lambda w: w @ turn)


def test_a_model_of_the_same_space_is_proven_goes_live_and_back_and_embeds_no_document(world):
    model = half(world)
    found = world.candidate(model)
    assert (found.space, found.documents) == (world.live.space, world.live.documents)
    assert found.queries.encoder.model == str(model)
    old, new = (rows_of(world.catalog.storage, r) for r in (world.live, found))
    assert new.select(["doc_id", "vector", "space"]).equals(
        old.select(["doc_id", "vector", "space"])
    )
    plan = world.catalog.storage.read(f"runs/{found.id}/plan.json")
    assert (plan["documents"], plan["units"]) == (0, [])
    assert world.candidate(model).id == found.id, "it was complete"
    compared = api.compare(world.by(model))
    assert (compared.candidate.release, compared.verdict) == (found.id, "pass")
    with reembed.open(world.config.storage.root, "passages") as index:
        before = index.encode_queries(["some words"])
        promote(world.catalog, found.id)
        index.refresh()
        assert index.release.id == found.id
        by = f"queries of release {found.id} are by {model}, {found.query_model.id}"
        with pytest.raises(SpaceMismatch, match=re.escape(by)) as refused:
            index.search(before)
        assert "query_model.id" in refused.value.why
        marked = EncodedQueries(index.encode_queries(["x"]).vectors, index.release.query_model.id)
        assert index.search(marked, k=3)
        asked = load_encoder(found.queries.encoder).embed_queries(["some words"])
        ours = index.encode_queries(["some words"])
        assert (ours.vectors == asked).all()
        assert index.search(ours, k=3) == index.search(["some words"], k=3)
        status = api.status(world.config)
        said = text("status", status)
        assert (
            f"documents by {world.live.space.model}, queries by {model}:"
            f" pass in comparison 1 of {found.id} with {world.live.id}"
        ) in said
        assert api.status(world.config).to_json()["live"]["query_space"] == found.queries.space.id
        rollback(world.catalog, reason="a test")
        index.refresh()
        assert index.release.id == world.live.id
        assert index.search(before, k=3)
    assert "documents by" not in text("status", api.status(world.config)).split("candidate")[0]


def test_other_models_are_refused(world):
    other = static_model(world.folder / "other", dim=DIM, seed=1)
    found = world.candidate(other)
    compared = world.judged(found)
    assert compared.verdict == "fail"
    assert compared.metrics["recall@10"].candidate < 0.5 * compared.metrics["recall@10"].live
    with pytest.raises(GateFailed, match="failed the comparison"):
        promote(world.catalog, found.id)
    with pytest.raises(GateFailed, match="have 16 dimensions, those of the documents") as refused:
        world.candidate("hashing:16")
    assert "--bridge" in refused.value.fix
    with pytest.raises(UsageError, match="has this model for its queries already"):
        world.candidate(world.folder / "old")
    with pytest.raises(UsageError, match="a bridge brings queries"):
        api.run(world.config, bridge=100)
    unjudged = replace(world, config=world.config.model_copy(update={"gate": GateSection()}))
    with pytest.raises(UsageError, match="no judged queries are named"):
        unjudged.candidate(other)
    with pytest.raises(GateFailed, match="it needs no promotion without evidence"):
        promote(world.catalog, found.id, without_evidence_reason="a test")
    assert [r.id for r in world.catalog.releases()] == [world.live.id, found.id]
    for_titles = world.config.source.model_copy(update={"text": "{title}"})
    retold = replace(world, config=world.config.model_copy(update={"source": for_titles}))
    with pytest.raises(UsageError, match="which other settings decide") as differs:
        retold.candidate(other)
    assert differs.value.why.startswith("source.text is '{title}', of live ")
    heard: list[Event] = []
    by_wide = world.by(static_model(world.folder / "wide", dim=40, seed=3))
    wide = query_only(by_wide, heard.append, executor=Inline(), pairs=20)
    (said,) = (e.what for e in heard if isinstance(e, Notice) and "bridge" in e.what)
    assert said == "a bridge of 20 documents is weak: 40 dimensions need more documents"
    assert world.judged(wide).verdict == "fail"
    vectors = bridge.load(world.catalog.storage, wide.query_model).embed_queries(["some words"])
    assert vectors.shape == (1, DIM)
    assert np.linalg.norm(vectors) == pytest.approx(1)


def test_what_changes_in_the_source_is_embedded_by_the_model_of_the_documents(world):
    model = half(world)
    found = world.candidate(model)
    world.judged(found)
    promote(world.catalog, found.id)
    row = {"doc_id": "new", "title": "zebra", "text": "zebra crossing zebra"}
    lance.write_dataset(pa.Table.from_pylist([row]), world.config.source.uri, mode="append")
    grown = catch_up(world.by(model), found, Silent(), executor=Inline())
    assert (grown.origin, grown.space, grown.queries) == (found.id, world.live.space, found.queries)
    rows = rows_of(world.catalog.storage, grown).to_pylist()
    (new,) = (r for r in rows if r["doc_id"] == "new")
    asked = load_encoder(world.live.encoder).embed_documents([row["text"]]).vectors[0]
    assert np.allclose(new["vector"], asked)
    promote(world.catalog, grown.id)
    with reembed.open(world.config.storage.root, "passages") as index:
        assert index.search(["zebra zebra"], k=1)[0][0].doc_id == "new"
    assert "documents by" in text("status", api.status(world.config))
    assert api.verify(world.config, grown.id).passed
    # What it came from can go: it shares files, and names none of them.
    promote(world.catalog, world.candidate(rotated(world), 200).id, force_reason="a test")
    planned = gc.plan(world.catalog, 1)
    assert world.live.id in [r.release for r in planned.remove]
    gc.apply(world.catalog, planned, 1)
    assert api.verify(world.config, grown.id, level=2).passed
    gone = gc.plan(world.catalog, 1)
    assert gone.bytes == 0


def test_a_bridge_to_a_turned_space_passes_where_its_vectors_as_they_are_mean_nothing(
    world, ray_local, monkeypatch
):
    model = rotated(world)
    plain = world.candidate(model)
    assert world.judged(plain).verdict == "fail", "its vectors mean nothing here"
    with monkeypatch.context() as dying:
        dying.setattr(steps, "seal", lambda context: sys.exit(context.run.id))
        with pytest.raises(SystemExit):
            world.candidate(model, 200, RayExecutor())
    (run,) = api.status(world.config).runs
    assert run.resume.startswith("reembed run --query-only --bridge 200 -c ")
    found = world.candidate(model, 200)
    assert found.id == run.run
    assert (found.queries.bridge.pairs, found.queries.bridge.fitted) == (200, 200)
    compared = world.judged(found)
    assert compared.verdict == "pass"
    assert [c.verdict for c in compared.earlier] == ["fail"], "it was tried before"
    assert compared.metrics["ndcg@10"].candidate == pytest.approx(
        compared.metrics["ndcg@10"].live, abs=1e-6
    )
    promote(world.catalog, found.id)
    with reembed.open(world.config.storage.root, "passages") as index:
        assert index.encode_queries(["x"]).space == found.query_model.id != plain.query_model.id
    assert world.candidate(model).queries.bridge is None, "its query vectors are others"
    said = text("status", api.status(world.config))
    assert f"queries by {model} over a bridge of 200 documents" in said
    world.catalog.storage.write_bytes(found.queries.bridge.path, b"another")
    with pytest.raises(IntegrityError, match="not the bridge that the release was judged with"):
        reembed.open(world.config.storage.root, "passages")


def test_a_rotation_is_recovered_and_is_that_of_scipy():
    rng = np.random.default_rng(0)
    theirs = rng.standard_normal((100, 12)).astype(np.float32)
    turn, _ = np.linalg.qr(rng.standard_normal((12, 12)))
    documents = (theirs @ turn).astype(np.float32)
    assert np.allclose(bridge.fitted(theirs, documents), turn, atol=1e-5)
    noisy = documents + rng.standard_normal(documents.shape).astype(np.float32)
    assert np.allclose(
        bridge.fitted(theirs, noisy), orthogonal_procrustes(theirs, noisy)[0], atol=1e-5
    )
    wide = rng.standard_normal((100, 20)).astype(np.float32)
    filled = np.hstack([theirs, np.zeros((100, 8), np.float32)])
    padded = orthogonal_procrustes(filled, wide)[0]
    assert np.allclose(bridge.fitted(theirs, wide), padded[:12], atol=1e-5)

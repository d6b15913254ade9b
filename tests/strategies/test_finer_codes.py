"""`auto` that misses its recall tries finer codes, says each, and keeps what it came to; a named factory is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import lance
import numpy as np
import pyarrow as pa
import pytest
from conftest import Quiet
from inline import Inline

from reembed.catalog.index_manifest import IndexManifest, read_manifest
from reembed.catalog.releases import Catalog, Release
from reembed.config.settings import Config
from reembed.index import build as index_build
from reembed.index import train
from reembed.index.target import TargetMissed
from reembed.store.storage import Storage
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild

COARSE = "IVF2,PQ8x4fs,Refine(SQ8)"
FINE = "IVF2,PQ8x4fs,RFlat"
ROWS = 1_500


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(train, "choose_factory", lambda rows, dim, gpu: COARSE)
    rows = [{"doc_id": f"d{n:05d}", "text": f"the text of {n}"} for n in range(ROWS)]
    uri = str(tmp_path / "source.lance")
    lance.write_dataset(pa.Table.from_pylist(rows), uri, enable_stable_row_ids=True)
    return Config.model_validate(
        {
            "alias": "a",
            "source": {"uri": uri},
            "encoder": {"model": "hashing:16"},
            "index": {"ann_recall": 1.0, "device": "cpu"},
            "storage": {"root": str(tmp_path / "root")},
        }
    )


def manifest(config: Config, release: Release) -> IndexManifest:
    storage = Storage.open(config.storage.root)
    return read_manifest(storage, release.index, release.index_sha256)


def test_each_finer_kind_is_said_and_the_first_that_reaches_the_target_is_kept(
    place: Config, quiet: Quiet, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, taken = train.train, []

    def noted(source: Any, factory: str, device: Any, lists: Any) -> Any:
        made, alone = honest(source, factory, device, lists), honest(source, factory, device)
        np.testing.assert_array_equal(faiss.serialize_index(made), faiss.serialize_index(alone))
        taken.append(lists is not None)
        return made

    monkeypatch.setattr(index_build, "train", noted)
    release = full_rebuild(place, quiet, executor=Inline())
    assert taken == [False, True, True], "lists are trained once"
    built = manifest(place, release)
    said = [line for line in quiet.said() if "is built instead" in line]
    assert built.base.factory == FINE
    assert built.ann_recall_at_10 == 1.0
    assert built.settings.factory == "auto"
    assert [line.rsplit(": ", 1)[1].split()[0] for line in said] == [
        "IVF2,PQ8x4fs,Refine(SQfp16)",
        FINE,
    ]


def test_a_catch_up_goes_on_with_the_kind_that_was_built(place: Config, quiet: Quiet) -> None:
    release = full_rebuild(place, quiet, executor=Inline())
    added = pa.Table.from_pylist([{"doc_id": "new", "text": "another text"}])
    lance.write_dataset(added, place.source.uri, mode="append")
    newer = catch_up(place, release, quiet, executor=Inline())
    assert newer.id != release.id
    grown = manifest(place, newer)
    assert [s.kind for s in grown.segments] == ["base", "delta"]
    assert {s.factory for s in grown.segments} == {FINE}


def test_a_factory_that_was_named_is_refused(place: Config, quiet: Quiet) -> None:
    named = place.model_copy(update={"index": place.index.model_copy(update={"factory": COARSE})})
    with pytest.raises(TargetMissed, match="does not reach") as missed:
        full_rebuild(named, quiet, executor=Inline())
    fix = str(missed.value.fix)
    assert fix.startswith("reembed run --set index.factory=Flat     # exact")
    assert fix.count("Flat") == 1  # one byte a dimension finds nearly all, not all
    assert Catalog(Storage.open(place.storage.root), "a").releases() == []

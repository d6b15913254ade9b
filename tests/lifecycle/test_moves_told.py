"""A listener hears of each step of an alias, once, and of none that was not made."""

from __future__ import annotations

import lance
import pyarrow as pa
import pytest
from inline import Inline

from reembed import api
from reembed.engine import ray_executor
from reembed.events import AliasMoved


@pytest.fixture
def config(corpus, make_config, monkeypatch):
    monkeypatch.setattr(ray_executor, "RayExecutor", Inline)
    return make_config(corpus(60))


def test_every_step_is_told_once(config, quiet):
    first = api.run(config, emit=quiet).release.id
    api.promote(config, first, initial="a test", emit=quiet)
    new = pa.table({"doc_id": ["new"], "title": ["new"], "text": ["a new text"]})
    lance.write_dataset(new, config.source.uri, mode="append")
    second = api.catch_up(config, "live", emit=quiet).release.id
    api.catch_up(config, "live", emit=quiet)
    api.rollback(config, first, "is wrong", emit=quiet)
    assert quiet.of(AliasMoved) == [
        AliasMoved(config.alias, "promote", 1, None, first),
        AliasMoved(config.alias, "catch-up", 2, first, second),
        AliasMoved(config.alias, "rollback", 3, second, first),
    ]

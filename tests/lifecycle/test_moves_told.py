"""A listener hears of each step of an alias, once, and of none that was not made."""

from __future__ import annotations

import lance
import pyarrow as pa
import pytest
from inline import Inline

from reembed import api
from reembed.api.opened import catalog_of
from reembed.cli.text import text
from reembed.engine import ray_executor
from reembed.errors import Conflict
from reembed.events import AliasMoved
from reembed.lifecycle.promote import Reasons
from reembed.strategies import up_to_date
from reembed.strategies.up_to_date import promote_up_to_date


@pytest.fixture
def config(corpus, make_config, monkeypatch):
    monkeypatch.setattr(ray_executor, "RayExecutor", Inline)
    return make_config(corpus(60))


def test_every_step_is_told_once(config, quiet):
    first = api.run(config, emit=quiet).release.id
    api.promote(config, first, initial="a test", emit=quiet)
    add(config, "new")
    second = api.catch_up(config, "live", emit=quiet).release.id
    api.catch_up(config, "live", emit=quiet)
    api.rollback(config, first, "is wrong", emit=quiet)
    assert quiet.of(AliasMoved) == [
        AliasMoved(config.alias, "promote", 1, None, first),
        AliasMoved(config.alias, "catch-up", 2, first, second),
        AliasMoved(config.alias, "rollback", 3, second, first),
    ]


def add(config, name: str) -> None:
    row = pa.table({"doc_id": [name], "title": [name], "text": [f"the text of {name}"]})
    lance.write_dataset(row, config.source.uri, mode="append")


@pytest.fixture
def other(config):
    """The config with another model, and its candidate."""
    encoder = config.encoder.model_copy(update={"model": "hashing:32"})
    config = config.model_copy(update={"encoder": encoder})
    return config, api.run(config).release


def meanwhile(monkeypatch, does) -> None:
    """Let another process do something while a promotion catches up."""
    honest = up_to_date.strategy.catch_up

    def catch_up(*args, **options):
        found = honest(*args, **options)
        monkeypatch.setattr(up_to_date.strategy, "catch_up", honest)
        does()
        return found

    monkeypatch.setattr(up_to_date.strategy, "catch_up", catch_up)


def test_a_promotion_names_the_release_that_it_replaced(config, other, quiet, monkeypatch):
    """Live moved on to newer documents while the promotion embedded: that is what to go back to."""
    config_b, b = other
    first = api.promote(config, api.run(config).release.id, initial="a test").release
    newer = []

    def live_moves_on() -> None:
        add(config, "new")
        newer.append(api.catch_up(config, "live").release.id)

    meanwhile(monkeypatch, live_moves_on)
    moved = api.promote(config_b, b.id, force="a test", emit=quiet)
    assert newer != [first.id]
    assert moved.before == quiet.of(AliasMoved)[-1].before == newer[0]
    assert text("promote", moved).endswith(f"Back: reembed rollback --to {newer[0]}")


def test_a_step_that_another_process_made_is_not_told_as_ones_own(
    config, other, quiet, monkeypatch
):
    config_b, b = other
    api.promote(config, api.run(config).release.id, initial="a test")
    meanwhile(monkeypatch, lambda: api.promote(config_b, b.id, force="first", catch_up=False))
    with pytest.raises(Conflict, match="meanwhile"):
        api.promote(config_b, b.id, force="second", emit=quiet)
    assert quiet.of(AliasMoved) == []


def test_a_promotion_of_what_is_live_in_a_newer_release_moves_nothing(config, quiet):
    first = api.run(config).release
    api.promote(config, first.id, initial="a test")
    add(config, "new")
    newer = api.catch_up(config, "live").release
    moved = promote_up_to_date(
        catalog_of(config), config, first.id, Reasons("a test"), quiet, executor=Inline()
    )
    assert (moved.before, moved.release) == (newer.id, newer)
    assert "is live already; nothing moved" in text("promote", moved)
    assert quiet.of(AliasMoved) == []

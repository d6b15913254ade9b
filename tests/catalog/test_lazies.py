from __future__ import annotations

from dataclasses import replace

import pytest

from reembed.catalog import lazies
from reembed.catalog.lazies import LazyPlan
from reembed.catalog.lazy_queue import MOST_IDS, Queue, age_s
from reembed.catalog.releases import Catalog, SourceRef
from reembed.config.settings import EncoderConfig
from reembed.encoders import describe
from reembed.errors import Conflict, IntegrityError
from reembed.store.storage import Storage


@pytest.fixture
def catalog(tmp_path):
    return Catalog(Storage.open(str(tmp_path / "root")), "docs")


def plan_of(number=1, **more):
    encoder = EncoderConfig(model="hashing:32")
    made = LazyPlan(
        number=number,
        alias="docs",
        live="docs-1",
        side=f"docs-lazy-{number}",
        space=describe(encoder, "float32"),
        encoder=encoder,
        source=SourceRef("/data/docs.lance", 3, "f" * 16, "doc_id", "text", None, ("title",)),
        documents=400,
        fusion="slots",
        depth=100,
        predicted=(),
        background_sha256="0" * 64,
        reason=None,
        by="me@here",
        at="2026-11-27T20:00:00+00:00",
    )
    return replace(made, **more)


def test_a_plan_serves_from_its_first_step_until_it_is_stopped(catalog):
    assert lazies.current(catalog) is None
    lazies.begin(catalog, plan_of())
    assert lazies.current(catalog) is None  # its process may have died here
    step = lazies.move(catalog, plan_of(), None, "running")
    found = lazies.current(catalog)
    assert found == lazies.Lazy(plan_of(), step)
    assert found.serves
    step = lazies.move(catalog, plan_of(), step, "paused")
    assert lazies.current(catalog).serves
    lazies.move(catalog, plan_of(), step, "stopped", keep=False, reason="users complain")
    found = lazies.current(catalog)
    assert not found.serves
    assert (found.step.number, found.step.keep, found.step.reason) == (3, False, "users complain")


def test_of_two_decisions_at_once_one_is_refused(catalog):
    lazies.begin(catalog, plan_of())
    with pytest.raises(Conflict, match="another lazy migration of docs"):
        lazies.begin(catalog, plan_of(depth=50))
    step = lazies.move(catalog, plan_of(), None, "running")
    lazies.move(catalog, plan_of(), step, "stopped")
    with pytest.raises(Conflict, match="was stopped by"):
        lazies.move(catalog, plan_of(), step, "paused")
    assert lazies.current(catalog).step.state == "stopped"


def test_the_newest_migration_counts_and_a_record_that_was_removed_is_said(catalog):
    for number in (1, 2):
        assert lazies.next_number(catalog) == number
        plan = plan_of(number)
        lazies.begin(catalog, plan)
        lazies.move(catalog, plan, None, "running")
    assert lazies.current(catalog).plan.number == 2
    catalog.storage.remove("lazy/docs/plans/00000001.json")
    with pytest.raises(IntegrityError, match="records were removed"):
        lazies.current(catalog)


def test_the_queue_gives_each_document_once_and_keeps_it_until_it_is_removed(catalog):
    queue = Queue(catalog.storage, plan_of())
    assert queue.files() == []
    queue.put(["b", "a"])
    queue.put([7, "a"])
    files = queue.files()
    assert set(queue.read(files)) == {"a", "b", 7}
    assert len(queue.read(files)) == 3
    queue.put(["late"])
    queue.remove(files)
    queue.remove(files)  # by another process
    assert queue.read(files) == []
    assert queue.read(queue.files()) == ["late"]
    assert 0 <= age_s(queue.files()[0]) < 60


def test_many_documents_go_into_several_files(catalog):
    queue = Queue(catalog.storage, plan_of())
    queue.put(range(MOST_IDS + 1))
    assert len(queue.files()) == 2
    assert sorted(queue.read(queue.files())) == list(range(MOST_IDS + 1))


def test_a_damaged_file_of_the_queue_is_said(catalog):
    queue = Queue(catalog.storage, plan_of())
    queue.put(["a"])
    (name,) = queue.files()
    catalog.storage.write_bytes(f"lazy/docs/1/queue/{name}", b"{}")
    with pytest.raises(IntegrityError):
        queue.read([name])

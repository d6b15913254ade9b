"""Which release or run a verb takes when none is named."""

from __future__ import annotations

import lance
import pyarrow as pa
import pytest
from inline import Inline, Silent

from reembed import promote
from reembed.catalog import Catalog
from reembed.check import dead_letters, verify_release
from reembed.errors import IntegrityError, RunFailed, UsageError
from reembed.runs import find_runs
from reembed.storage import Storage
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild


@pytest.fixture
def build(tmp_path, make_config):
    """build(model dimensions, dead letters allowed) -> a release, of 20 documents, 2 without text."""
    uri = str(tmp_path / "nulls.lance")
    texts = [None if i in (4, 9) else f"text {i}" for i in range(20)]
    lance.write_dataset(pa.table({"doc_id": [f"d{i}" for i in range(20)], "text": texts}), uri)

    def config(dim=16, allowed=2):
        embed = {"unit_documents": 8, "max_dead_letters": allowed}
        return make_config(uri, encoder={"model": f"hashing:{dim}"}, embed=embed)

    def full(dim=16, allowed=2):
        return full_rebuild(config(dim, allowed), Silent(), executor=Inline())

    full.config, full.uri = config, uri
    full.catalog = Catalog(Storage.open(config().storage.root), config().alias)
    return full


def checked(catalog):
    return verify_release(catalog, None, level=0, sample=0, resume=False)["release"]


def listed(catalog, which=None):
    return dead_letters(catalog, which)["of"]


def test_with_nothing_built_both_say_to_build(build):
    for verb in (checked, listed):
        with pytest.raises(UsageError, match="has no release yet") as refused:
            verb(build.catalog)
        assert refused.value.fix == "reembed run"


def test_dead_letters_are_of_the_run_that_they_stopped(build):
    with pytest.raises(RunFailed):
        build(allowed=0)
    (run,) = find_runs(build.catalog.storage)
    found = dead_letters(build.catalog, None)
    assert (found["of"], found["count"], found["finished"]) == (run.id, 2, False)


def test_an_unfinished_run_without_dead_letters_is_passed_over(build):
    first = build(16)
    with pytest.raises(RunFailed):
        build(24, allowed=0)
    (stopped,) = (r for r in find_runs(build.catalog.storage) if r.result() is None)
    assert listed(build.catalog) == stopped.id
    build.catalog.storage.delete_tree(stopped.path("units/"))
    assert listed(build.catalog) == first.id
    assert dead_letters(build.catalog, stopped.id)["count"] == 0


def test_left_out_both_take_the_newest_candidate_then_live_and_never_what_served_before(build):
    catalog = build.catalog
    first, second = build(16), build(24)
    assert checked(catalog) == listed(catalog) == second.id
    promote.promote(catalog, first.id)
    promote.promote(catalog, second.id, force_reason="a test")
    assert checked(catalog) == listed(catalog) == second.id
    assert listed(catalog, "previous") == first.id
    lance.dataset(build.uri).delete("doc_id = 'd1'")
    newer = catch_up(build.config(16), first, Silent(), executor=Inline())
    assert newer.number > second.number
    assert checked(catalog) == listed(catalog) == listed(catalog, "live") == second.id


def test_dead_letters_are_of_the_record_that_the_release_was_registered_with(build):
    release = build()
    path = f"releases/{release.alias}/{release.id}.json"
    build.catalog.storage.write(path, {**release.to_json(), "sealed_sha256": "0" * 64})
    with pytest.raises(IntegrityError, match="registered with another record"):
        dead_letters(build.catalog, release.id)

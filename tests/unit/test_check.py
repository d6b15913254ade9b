"""What the verbs do beyond building: which release they take when none is named, and odd moments."""

from __future__ import annotations

from pathlib import Path

import lance
import pyarrow as pa
import pytest
from inline import Inline, Silent

from reembed import gc, promote, report
from reembed.catalog import Catalog
from reembed.check import dead_letters, verify_release
from reembed.errors import IntegrityError, RunFailed, UsageError
from reembed.live import LiveAlias
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


def test_a_dead_letter_that_was_deleted_is_forgotten(build):
    first = build()
    assert (first.rows, first.dead_letters) == (18, 2)
    lance.dataset(build.uri).delete("doc_id = 'd4'")
    second = catch_up(build.config(), first, Silent(), executor=Inline())
    assert (second.rows, second.dead_letters, second.origin) == (18, 1, first.id)
    assert catch_up(build.config(), second, Silent(), executor=Inline()) == second


def test_a_pass_over_a_version_that_was_mended_meanwhile_gives_way_to_the_newer_one(build):
    first = build()
    promote.promote(build.catalog)
    broken, mended = (
        pa.table({"doc_id": ["new"], "text": pa.array([t], pa.string())}) for t in (None, "better")
    )
    merge = lance.dataset(build.uri).merge_insert("doc_id")
    merge.when_matched_update_all().when_not_matched_insert_all().execute(broken)
    with pytest.raises(RunFailed) as failed:
        catch_up(build.config(), first, Silent(), executor=Inline())
    assert failed.value.what == "3 of 3 documents could not be embedded, 2 are allowed"
    command = f"reembed catch-up {first.id} --set embed.max_dead_letters=3 "
    assert failed.value.fix.startswith(command)
    merge = lance.dataset(build.uri).merge_insert("doc_id")
    merge.when_matched_update_all().execute(mended)
    second = catch_up(build.config(), first, Silent(), executor=Inline())
    assert (second.rows, second.dead_letters) == (19, 2)


@pytest.mark.parametrize("place", range(100, 1100, 50))
def test_a_damaged_file_is_a_difference_and_never_a_crash(build, place):
    release = build()
    storage = build.catalog.storage
    file = next(Path(storage.root, release.table, "data").glob("*.lance"))
    body = bytearray(file.read_bytes())
    body[place % len(body)] ^= 1 << place % 8
    file.write_bytes(body)
    found = verify_release(build.catalog, release.id, level=2, sample=0, resume=False)
    assert not found["passed"]
    assert found["differences"]["damaged"]["examples"] == (file.name,)
    with pytest.raises(IntegrityError, match="is not verified"):
        promote.promote(build.catalog)


def test_a_serving_process_survives_a_table_that_gc_removed_and_a_rebuild_made_again(build):
    promote.promote(build.catalog, build(16).id)
    served = LiveAlias(build.catalog)
    assert served.search(["text 3"], k=1)
    for dim in (24, 32):
        promote.promote(build.catalog, build(dim).id, force_reason="a test")
    served.refresh()
    (removed,) = gc.apply(build.catalog, gc.plan(build.catalog, 1), 1)
    assert removed.whole_table
    again = build(16)
    assert again.table == removed.table
    promote.promote(build.catalog, again.id, force_reason="a test")
    served.refresh()
    assert served.search(["text 3"], k=1)[0][0].doc_id == "d3"


def test_commands_in_an_error_name_the_config_wherever_they_stand():
    said = report.error(
        RunFailed("w", "a, b (`reembed dead-letters r` lists all)", "reembed run"), ["-c f"]
    )
    assert "`reembed dead-letters -c f r` lists all" in said
    assert said.endswith("fix: reembed run -c f")

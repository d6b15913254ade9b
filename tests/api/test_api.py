"""What the verbs do beyond building: which release they take when none is named, and odd moments."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from inline import Inline, Silent

import reembed
from reembed import api
from reembed.api import dead_letters, search
from reembed.api.opened import catalog_of
from reembed.catalog.releases import Catalog
from reembed.catalog.reports import Difference, VerifyReport
from reembed.catalog.runs import find_runs
from reembed.cli import paste
from reembed.cli.text import text
from reembed.config.settings import Config, ResolvedConfig
from reembed.errors import IntegrityError, RunFailed, SourceError, UsageError
from reembed.lifecycle import gc, promote, verify
from reembed.lifecycle.verification import verify_release
from reembed.serving.index import Index
from reembed.store.records import decode, encode
from reembed.store.storage import Storage
from reembed.strategies import preflight
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild
from reembed.table import provenance

ROOT = Path(__file__).parents[2]


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


def checked(build, dim=16):
    return api.verify(build.config(dim), level=0, sample=0).release


def listed(build, which=None, dim=16):
    return dead_letters(build.config(dim), which).of


def test_with_nothing_built_both_say_to_build(build):
    for verb in (checked, listed):
        with pytest.raises(UsageError, match="has no release that was built") as refused:
            verb(build)
        assert refused.value.fix == "reembed run"


@pytest.fixture
def found_late(monkeypatch):
    """Missing texts are not counted before the run: they stop it at the end, as failing ones do."""
    monkeypatch.setattr(preflight, "require_texts", lambda *args: None)
    monkeypatch.setattr(preflight, "require_changed_texts", lambda *args: None)


def test_dead_letters_are_of_the_run_that_they_stopped(build, found_late):
    with pytest.raises(RunFailed):
        build(allowed=0)
    (run,) = find_runs(build.catalog.storage)
    found = dead_letters(build.config(), None)
    assert (found.of, len(found.dead_letters), found.finished) == (run.id, 2, False)


def test_an_unfinished_run_without_dead_letters_is_passed_over(build, found_late):
    first = build(16)
    with pytest.raises(RunFailed):
        build(24, allowed=0)
    (stopped,) = (r for r in find_runs(build.catalog.storage) if r.result() is None)
    assert listed(build) == stopped.id
    build.catalog.storage.delete_tree(stopped.path("units/"))
    assert listed(build) == first.id
    assert dead_letters(build.config(), stopped.id).dead_letters == ()


def test_left_out_both_take_the_configs_own_release_until_it_serves_and_then_what_is_live(build):
    catalog = build.catalog
    first, second = build(16), build(24)
    assert checked(build, 16) == listed(build, dim=16) == first.id
    assert checked(build, 24) == listed(build, dim=24) == second.id
    promote.promote(catalog, first.id, initial_reason="a test")
    assert checked(build, 24) == second.id
    promote.promote(catalog, second.id, force_reason="a test")
    assert checked(build, 16) == listed(build, dim=16) == second.id
    assert listed(build, "previous") == first.id
    lance.dataset(build.uri).delete("doc_id = 'd1'")
    newer = catch_up(build.config(16), first, Silent(), executor=Inline())
    assert build.catalog.releases()[-1] == newer
    assert checked(build, 16) == checked(build, 24) == listed(build, "live") == second.id


def test_dead_letters_are_of_the_record_that_the_release_was_registered_with(build):
    release = build()
    path = f"releases/{release.alias}/{release.id}.json"
    build.catalog.storage.write(path, {**encode(release), "sealed_sha256": "0" * 64})
    with pytest.raises(IntegrityError, match="registered with another record"):
        dead_letters(build.config(), release.id)


def test_a_dead_letter_that_was_deleted_is_forgotten(build):
    first = build()
    assert (first.rows, first.dead_letters) == (18, 2)
    lance.dataset(build.uri).delete("doc_id = 'd4'")
    second = catch_up(build.config(), first, Silent(), executor=Inline())
    assert (second.rows, second.dead_letters, second.origin) == (18, 1, first.id)
    assert catch_up(build.config(), second, Silent(), executor=Inline()) == second


def test_a_pass_over_a_version_that_was_mended_meanwhile_gives_way_to_the_newer_one(
    build, found_late
):
    first = build()
    promote.promote(build.catalog, first.id, initial_reason="a test")
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
    found = verify_release(build.catalog, release.id, level=2, sample=0, resume=False, stall_s=60)
    assert not found.passed
    assert found.report.differences["damaged"].examples == (file.name,)
    with pytest.raises(IntegrityError, match="is not verified"):
        promote.promote(build.catalog, release.id, initial_reason="a test")


def test_a_damaged_record_of_a_verification_is_replaced_by_the_next_one(build):
    release, storage = build(), build.catalog.storage
    path = provenance.verification_path(release.id)
    storage.write_bytes(path, b"{")
    with pytest.raises(IntegrityError):
        promote.promote(build.catalog, release.id, initial_reason="a test")
    assert verify_release(
        build.catalog, release.id, level=3, sample=5, resume=False, stall_s=60
    ).passed
    assert decode(VerifyReport, storage.read(path)).passed
    assert promote.promote(build.catalog, release.id, initial_reason="a test").release == release


def test_a_fix_that_quotes_several_lines_is_completed_as_one_command():
    why = shlex.quote("two\nlines with `reembed run` in them")
    error = UsageError("what", "why", f"reembed promote r --force --reason {why}     # or not")
    fix = paste.error_record(error, ["-c x.yaml"])["fix"]
    assert fix == f"reembed promote -c x.yaml r --force --reason {why}     # or not"


def test_a_serving_process_survives_a_table_that_gc_removed_and_a_rebuild_made_again(build):
    promote.promote(build.catalog, build(16).id, initial_reason="a test")
    served = Index(build.catalog)
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
    said = paste.error(
        RunFailed("w", "a, b (`reembed dead-letters r` lists all)", "reembed run"), ["-c f"]
    )
    assert "`reembed dead-letters -c f r` lists all" in said
    assert said.endswith("fix: reembed run -c f")


def test_a_wrong_vector_that_was_found_stays_found(build, monkeypatch):
    release = build()
    seeds = iter([1, 2, 3])
    monkeypatch.setattr(verify.secrets, "randbits", lambda bits: next(seeds))
    wrong = Difference(1, ("d3",))
    honest = verify.embed_again

    def found_with_seed_1(*given):
        return wrong if drawn[-1] == 1 else honest(*given)

    drawn = []
    compare = verify._Verification.compare
    monkeypatch.setattr(
        verify._Verification,
        "compare",
        lambda self, read, sample, seed: drawn.append(seed) or compare(self, read, sample, seed),
    )
    monkeypatch.setattr(verify, "embed_again", found_with_seed_1)
    for _ in range(3):
        report = verify_release(
            build.catalog, release.id, level=3, sample=5, resume=False, stall_s=60
        )
        assert not report.passed, "others were looked at"
    lower = verify_release(build.catalog, release.id, level=2, sample=0, resume=False, stall_s=60)
    assert lower.passed
    with pytest.raises(IntegrityError, match="is not verified"):
        promote.promote(build.catalog, release.id, initial_reason="a test")
    assert lower.larger == f"reembed verify --release {release.id} --level 3 --sample 5"
    said = text("verify", lower)
    assert "the release counts as failed" in said
    assert said.endswith(f"Next: {lower.larger}")


def upsert(uri, texts):
    table = pa.table({"doc_id": list(texts), "text": pa.array(list(texts.values()), pa.string())})
    merge = lance.dataset(uri).merge_insert("doc_id")
    merge.when_matched_update_all().when_not_matched_insert_all().execute(table)


def unfinished(build):
    return [r for r in find_runs(build.catalog.storage) if r.result() is None]


def test_a_failed_pass_keeps_what_it_staged_for_the_command_that_was_named(build, found_late):
    first = build()
    upsert(build.uri, {"new": None, "other": "text"})
    with pytest.raises(RunFailed):
        catch_up(build.config(), first, Silent(), executor=Inline())
    upsert(build.uri, {"later": "text"})
    (run,) = unfinished(build)
    assert run.staged()
    second = catch_up(build.config(allowed=3), first, Silent(), executor=Inline())
    assert run.result().release, "it was given up"
    assert (second.rows, second.dead_letters) == (20, 3)


def test_a_source_that_is_away_for_a_moment_gives_up_no_pass(build, found_late):
    first = build()
    upsert(build.uri, {"new": None})
    with pytest.raises(RunFailed):
        catch_up(build.config(), first, Silent(), executor=Inline())
    away = f"{build.uri}.away"
    Path(build.uri).rename(away)
    with pytest.raises(SourceError):
        catch_up(build.config(), first, Silent(), executor=Inline())
    Path(away).rename(build.uri)
    assert len(unfinished(build)) == 1


def test_gc_refuses_a_table_whose_manifest_is_another_than_was_registered(build):
    release = build()
    promote.promote(build.catalog, release.id, initial_reason="a test")
    storage = build.catalog.storage
    before = {p for p, _ in storage.objects("")}
    manifest = Path(storage.root, release.table, "_versions", release.table_manifest.name)
    body = manifest.read_bytes()
    name = next(
        f.path
        for m in lance.dataset(storage.uri(release.table)).get_fragments()
        for f in m.data_files()
    )
    manifest.write_bytes(body.replace(name[:8].encode(), b"2" + name[1:8].encode()))
    with pytest.raises(IntegrityError):
        gc.plan(build.catalog, 1)
    manifest.write_bytes(body)
    assert {p for p, _ in storage.objects("")} == before
    assert gc.plan(build.catalog, 1).orphans == []


def test_dropping_a_run_lists_what_it_removes(build, found_late):
    first = build()
    promote.promote(build.catalog, first.id, initial_reason="a test")
    second = catch_up_to(build, first, {"a": "text"})
    upsert(build.uri, {"b": None})
    with pytest.raises(RunFailed):
        catch_up(build.config(), second, Silent(), executor=Inline())
    (run,) = unfinished(build)
    listed = gc.plan(build.catalog, 1, dropping=run.id)
    run.abandon()
    done = gc.plan(build.catalog, 1)
    assert listed == done
    gc.apply(build.catalog, done, 1)
    assert gc.plan(build.catalog, 1).dropped_runs == []
    assert run.pin_tag not in lance.dataset(build.uri).tags.list()


def catch_up_to(build, release, texts):
    upsert(build.uri, texts)
    newer = catch_up(build.config(), release, Silent(), executor=Inline())
    promote.follow(build.catalog, newer)
    return newer


def test_a_release_that_is_gone_is_no_reason_to_keep_its_table(build):
    for dim, reason in ((16, "initial"), (24, "force"), (32, "force")):
        promote.promote(build.catalog, build(dim).id, **{f"{reason}_reason": "a test"})
    gc.apply(build.catalog, gc.plan(build.catalog, 1), 1)
    planned = gc.plan(build.catalog, 3)
    assert all("16" not in k.why for k in planned.keep)
    assert len(planned.keep) == 2, "live and previous; the third is gone"


@pytest.mark.parametrize(("verb", "code"), [("run", 75), ("rollback", -signal.SIGTERM)])
def test_only_what_the_same_command_resumes_ends_with_75(build, tmp_path, verb, code):
    (tmp_path / "sitecustomize.py").write_text(
        "import reembed.config.settings, time\n"
        "load = reembed.config.settings.load\n"
        "def slow(*a, **k):\n    print('loading', flush=True)\n    time.sleep(200)\n"
        "reembed.config.settings.load = slow\n"
    )
    file = tmp_path / "reembed.yaml"
    program = "from reembed.cli.verbs import main; main()"
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    process = subprocess.Popen(
        [sys.executable, "-c", program, verb, "-c", str(file)],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    line = process.stderr.readline() or process.stdout.readline()
    assert "loading" in line
    process.terminate()
    assert process.wait(100) == code


def test_a_result_is_json_whatever_numbers_its_columns_hold(tmp_path, make_config):
    nan, inf = float("nan"), float("inf")
    columns = {
        "plain": pa.array([nan, 1.5]),
        "listed": pa.array([[nan, 1.0], [inf, 2.0]]),
        "object": pa.array([{"x": {"y": [-inf]}}, {"x": {"y": [3.0]}}]),
        "map": pa.array([[("k", nan)], [("k", 4.0)]], pa.map_(pa.string(), pa.float64())),
    }
    uri = str(tmp_path / "s.lance")
    lance.write_dataset(pa.table({"doc_id": ["a", "b"], "text": ["one", "two"], **columns}), uri)
    config = make_config(uri, table={"carry": list(columns)})
    release = full_rebuild(config, Silent(), executor=Inline())
    catalog = catalog_of(config)
    promote.promote(catalog, release.id, initial_reason="a test")
    found = search(config, ["one"], 2, columns=list(columns)).to_json()
    json.dumps(found, allow_nan=False)
    (hits,) = (r["hits"] for r in found["results"])
    shown = {h["doc_id"]: h["columns"] for h in hits}
    assert shown["a"] == {
        "plain": None,
        "listed": [None, 1.0],
        "object": {"x": {"y": [None]}},
        "map": [["k", None]],
    }
    assert shown["b"]["listed"] == [None, 2.0]
    assert shown["b"]["object"] == {"x": {"y": [3.0]}}


REFUSED_ARGUMENTS = {
    "alias": lambda of: reembed.open(of, 3),
    "root": lambda of: reembed.open(None, "docs"),
    "options": lambda of: reembed.open(of, "docs", options={"timeout": 3}),
    "level": lambda of: api.verify(settings_at(of), level=9),
    "sample": lambda of: api.verify(settings_at(of), sample=-1),
    "config": lambda of: api.status(ResolvedConfig(settings_at(of), {})),
    "Config": lambda of: api.run(ResolvedConfig(settings_at(of), {})),
    "files": lambda of: api.config("new.yaml"),
    "overrides": lambda of: api.config(["new.yaml"], "alias=a"),
    "a list of texts": lambda of: api.import_documents("docs.jsonl", f"{of}/s.lance"),
    "columns": lambda of: api.import_documents(["d.jsonl"], f"{of}/s.lance", columns="text"),
    "timeout": lambda of: api.import_documents(["d"], f"{of}/s.lance", options={"timeout": 3}),
}


def settings_at(root):
    given = {"alias": "docs", "source": {"uri": "s"}, "encoder": {"model": "hashing:16"}}
    return Config.model_validate({**given, "storage": {"root": str(root)}})


@pytest.mark.parametrize("named", REFUSED_ARGUMENTS)
def test_an_argument_of_another_kind_is_refused_by_its_name(named, tmp_path):
    with pytest.raises(UsageError, match=named) as refused:
        REFUSED_ARGUMENTS[named](tmp_path)
    assert refused.value.fix

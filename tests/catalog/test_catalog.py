from __future__ import annotations

import dataclasses
import datetime as dt
import getpass
import os
import pickle
import platform
import time

import pytest
from releases import (
    FIRST,
    SPACE,
    comparison,
    index_manifest,
    make_release,
    place_of,
    sha256,
    verified,
)

from reembed import errors
from reembed.catalog import lines
from reembed.catalog.alias import who
from reembed.catalog.lease import Worker, driving, is_driven, read_lease, workers
from reembed.catalog.releases import Catalog
from reembed.catalog.runs import Run
from reembed.cli import text as report
from reembed.config.gate import FrozenGate
from reembed.errors import Conflict, GateFailed, IntegrityError, UsageError
from reembed.evaluation import comparisons
from reembed.evaluation.comparisons import Rule
from reembed.evaluation.figures import RunFile, Sides
from reembed.evaluation.gate import combine
from reembed.evaluation.report import choices
from reembed.lifecycle import gc
from reembed.lifecycle.candidates import candidates, named
from reembed.lifecycle.promote import promote, rollback
from reembed.lifecycle.status import status
from reembed.space import Space, with_id
from reembed.store.records import SCHEMA_VERSION, encode, from_bytes, to_bytes
from reembed.store.storage import Storage


@pytest.fixture
def catalog(tmp_path):
    return Catalog(Storage.open(str(tmp_path)), "docs")


def standing(catalog: Catalog) -> list[str]:
    """From the first promoted to the live one."""
    return [s.release for s in catalog.standing(catalog.require_live())][::-1]


def test_a_release_comes_back_as_it_was_registered(catalog):
    release = make_release(catalog, "a")
    assert catalog.release("a") == release
    assert catalog.register(dataclasses.replace(release, rows=99)) == release


def test_an_unknown_release_names_those_there_are(catalog):
    make_release(catalog, "a")
    with pytest.raises(UsageError, match="it has: a"):
        catalog.release("b")


def test_the_first_release_needs_a_reason_and_the_second_a_comparison(catalog):
    make_release(catalog, "a")
    with pytest.raises(
        GateFailed, match="a first promotion has nothing to be compared with"
    ) as refused:
        promote(catalog, "a", force_reason="no queries yet")
    assert refused.value.fix == "reembed promote a --initial --reason 'the first release'"
    first = promote(catalog, "a", **FIRST)
    assert (first.generation, first.grounds.reason, first.grounds.forced) == (1, "the first", False)
    assert "nothing was live" in first.grounds.unknown[0]
    assert "judged queries (q) were not run" in first.grounds.unknown[1]
    make_release(catalog, "b")
    with pytest.raises(GateFailed, match="was never compared with a"):
        promote(catalog, "b")
    with pytest.raises(Conflict, match="is not the first"):
        promote(catalog, "b", **FIRST)


@pytest.mark.parametrize(
    ("verdict", "error"), [("fail", errors.GateFailed), ("inconclusive", errors.Inconclusive)]
)
def test_only_a_passing_comparison_promotes(catalog, verdict, error):
    a = make_release(catalog, "a")
    promote(catalog, "a", **FIRST)
    b = make_release(catalog, "b")
    comparison(catalog, b, a, verdict)
    with pytest.raises(error):
        promote(catalog, "b")
    comparison(catalog, b, a)
    record = promote(catalog, "b")
    assert (record.release.id, record.grounds.forced) == ("b", False)
    assert record.grounds.comparison.verdict == "pass"


def test_a_comparison_with_what_is_no_longer_live_does_not_count(catalog):
    a = make_release(catalog, "a")
    promote(catalog, "a", **FIRST)
    b, c = make_release(catalog, "b"), make_release(catalog, "c")
    comparison(catalog, b, a)
    comparison(catalog, c, a)
    promote(catalog, "c")
    with pytest.raises(Conflict, match="was compared with a, but c is live now"):
        promote(catalog, "b")


def test_a_comparison_of_another_index_does_not_count(catalog):
    a = make_release(catalog, "a")
    promote(catalog, "a", **FIRST)
    b = make_release(catalog, "b")
    comparison(catalog, dataclasses.replace(b, index_sha256="other"), a)
    with pytest.raises(IntegrityError, match="of another index"):
        promote(catalog, "b")


def test_force_is_recorded_with_its_reason(catalog):
    make_release(catalog, "a")
    promote(catalog, "a", **FIRST)
    make_release(catalog, "b")
    grounds = promote(catalog, "b", force_reason="no queries yet").grounds
    assert (grounds.forced, grounds.reason) == (True, "no queries yet")
    assert grounds.unknown[0] == "whether it is better than a"


def test_a_promotion_without_evidence_is_recorded_by_that_name(catalog):
    make_release(catalog, "a")
    with pytest.raises(GateFailed, match="serves nothing yet"):
        promote(catalog, "a", without_evidence_reason="nobody judged")
    promote(catalog, "a", **FIRST)
    make_release(catalog, "b", gate=FrozenGate())
    grounds = promote(catalog, "b", without_evidence_reason="nobody judged").grounds
    assert (grounds.without_evidence, grounds.forced) == (True, False)
    assert (grounds.reason, grounds.comparison) == ("nobody judged", None)
    assert grounds.unknown[1] == "how good its results are: it has no judged queries"


def test_the_newest_verdict_on_the_line_of_a_caught_up_release_counts(catalog):
    live = make_release(catalog, "live")
    promote(catalog, "live", **FIRST)
    built = make_release(catalog, "built")
    compared, again = (make_release(catalog, f"built-u{n}-{n}") for n in (2, 3))
    with pytest.raises(GateFailed, match="never compared"):
        promote(catalog, again.id)
    comparison(catalog, built, live, "fail")
    comparison(catalog, compared, live)
    assert promote(catalog, again.id).grounds.comparison.candidate == compared.id


def test_a_verification_of_another_table_version_does_not_count(catalog):
    release = make_release(catalog, "a")
    catalog.storage.write(f"runs/{release.id}/verify.json", encode(verified(version=2)))
    with pytest.raises(IntegrityError, match="is not verified"):
        promote(catalog, "a", **FIRST)


def test_an_unverified_release_is_not_promoted(catalog):
    make_release(catalog, "a", verify=verified(why="a test"))
    with pytest.raises(IntegrityError, match="not verified"):
        promote(catalog, "a", **FIRST)


@pytest.mark.parametrize(
    "lost",
    [
        "manifest",
        f"indexes/a/{sha256('a')}.faiss",
        f"indexes/a/{sha256('a')}.arrow",
        "tables/a.lance",
    ],
)
def test_a_release_without_its_data_is_not_promoted(catalog, lost):
    release = make_release(catalog, "a")
    if lost.startswith("tables"):
        catalog.storage.delete_tree(lost)
    else:
        manifest = f"{release.index}/{release.index_sha256}.json"
        catalog.storage.remove(manifest if lost == "manifest" else lost)
    with pytest.raises(IntegrityError):
        promote(catalog, "a", **FIRST)


def test_after_a_rollback_the_same_comparison_promotes_again(catalog):
    a = make_release(catalog, "a")
    promote(catalog, "a", **FIRST)
    b = make_release(catalog, "b")
    comparison(catalog, b, a)
    promote(catalog, "b")
    assert rollback(catalog).release.id == "a"
    assert [c.id for c in candidates(catalog, catalog.live())] == ["b"]
    assert promote(catalog, "b").release.id == "b"
    assert standing(catalog) == ["a", "b"]


@pytest.mark.parametrize("days", [-15, 15])
def test_a_host_whose_clock_is_wrong_changes_no_order(catalog, monkeypatch, days):
    monkeypatch.setattr(gc, "_require_own_places", lambda *_: None)  # each has a table of its own
    make_release(catalog, "a")
    promote(catalog, "a", **FIRST)
    wrong = (dt.datetime.now(dt.UTC) + dt.timedelta(days=days)).isoformat(timespec="seconds")
    b = make_release(catalog, "b", created_at=wrong)
    assert [c.id for c in candidates(catalog, catalog.live())] == ["b"]
    assert gc.plan(catalog, 1).remove == []
    catalog.append(catalog.live(), "promote", b)
    make_release(catalog, "c")
    assert [c.id for c in candidates(catalog, catalog.live())] == ["c"]
    assert [r.id for r in catalog.releases()] == ["a", "b", "c"]
    assert {r.release for r in gc.plan(catalog, 1).remove} == set()


def test_the_release_before_the_live_one_is_previous_also_when_it_served_twice(catalog):
    a, b, c = (make_release(catalog, n) for n in "abc")
    for release in (a, b, a, c):
        catalog.append(catalog.live(), "promote", release)
    catalog.append(catalog.live(), "rollback", a)
    assert standing(catalog) == ["a", "b", "a"]


def test_status_names_the_release_that_a_rollback_goes_to(catalog):
    """What served before the live release was caught up since."""
    old, grown = make_release(catalog, "a"), make_release(catalog, "a-u2-1")
    new = make_release(catalog, "b")
    for release in (old, new):
        catalog.append(catalog.live(), "promote", release)
    assert status(catalog).previous == catalog.release(grown.id)
    assert named(catalog, "previous").id == grown.id
    assert rollback(catalog).release.id == grown.id


def test_a_first_promotion_names_an_index_that_finds_less_than_its_gate_needs(catalog):
    whole = index_manifest("a")
    manifest = dataclasses.replace(whole, ann_recall_at_10=0.94, ann_recall_lower=0.93)
    catalog.storage.write(f"indexes/a/{manifest.sha256}.json", encode(manifest))
    low = make_release(catalog, "a", index_sha256=manifest.sha256)
    with pytest.raises(GateFailed, match=r"ann_recall@10 of 0\.9300, gate\.ann_recall is 0\.9500"):
        promote(catalog, low.id)
    grounds = promote(catalog, low.id, **FIRST).grounds
    assert "of 0.9300, gate.ann_recall is 0.9500" in str(grounds.below_gate)
    assert not any("ann_recall" in words for words in grounds.unknown)
    assert status(catalog).to_json()["below_gate"] == grounds.below_gate
    said = report.text("status", status(catalog))
    assert "  below its gate: its index has a lower bound of ann_recall@10 of 0.9300" in said


def test_the_swap_refuses_a_state_that_moved_on(catalog):
    release = make_release(catalog, "a")
    first = catalog.append(None, "promote", release)
    catalog.append(first, "promote", release)
    with pytest.raises(Conflict, match="was moved to a by"):
        catalog.append(first, "promote", release)


def test_a_log_with_a_gap_is_not_believed(catalog):
    release = make_release(catalog, "a")
    for _ in range(3):
        catalog.append(catalog.live(), "promote", release)
    catalog.storage.remove("aliases/docs/00000002.json")
    with pytest.raises(IntegrityError, match="gap"):
        catalog.log()


def test_a_release_marked_by_gc_at_the_same_moment_does_not_stay_live(catalog):
    release = make_release(catalog, "a")
    promote(catalog, "a", **FIRST)
    make_release(catalog, "b")
    plain = Catalog.is_retired
    answers = iter([False, True])  # gc marks between our look and our write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Catalog, "is_retired", lambda self, r: next(answers, plain(self, r)))
        with pytest.raises(Conflict, match="was being removed by gc"):
            promote(catalog, "b", force_reason="race")
    assert catalog.require_live().release.id == release.id


def test_create_only_records_have_one_winner_and_know_their_own_lost_answer(catalog):
    assert catalog.storage.create("x.json", {"token": 1})
    assert not catalog.storage.create("x.json", {"token": 2})
    assert catalog.storage.create("x.json", {"token": 1})


@pytest.mark.parametrize("version", [SCHEMA_VERSION - 1, SCHEMA_VERSION + 1])
def test_a_record_of_another_format_is_refused_in_words(catalog, version):
    body = to_bytes({"schema_version": version, "what_is_this": 1})
    with pytest.raises(UsageError, match="by another version of reembed") as refused:
        from_bytes(body, "runs/x/plan.json")
    assert (refused.value.why, refused.value.exit_code) == (
        f"format {version}, this one knows {SCHEMA_VERSION}",
        2,
    )


def test_a_record_without_a_format_is_refused():
    with pytest.raises(IntegrityError, match=r"r\.json is not a valid") as refused:
        from_bytes(to_bytes({"what_is_this": 1}), "r.json")
    assert refused.value.why == "it has no field schema_version"


def test_every_write_of_a_lease_names_the_format(tmp_path, monkeypatch):
    monkeypatch.setattr("reembed.catalog.lease.BEAT_S", 0.01)
    run = Run(Storage.open(str(tmp_path)), "docs-0-v1-1")
    with driving(run):
        while not (lease := run.storage.read(run.path("leases/00000001.json")))["beat"]:
            time.sleep(0.01)
        assert lease["schema_version"] == SCHEMA_VERSION
    lease = run.storage.read(run.path("leases/00000001.json"))
    assert (lease["schema_version"], lease["released"]) == (SCHEMA_VERSION, True)


def test_a_space_record_with_an_edited_field_is_refused():
    record = {**SPACE.to_json(), "pooling": "cls"}
    with pytest.raises(errors.SpaceMismatch):
        with_id(record, lambda fields: Space(**fields))


def test_every_error_is_picklable_with_all_it_says():
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.ReembedError):
            error = kind(2) if kind is errors.Interrupted else kind("what", "why", "fix")
            copy = pickle.loads(pickle.dumps(error))
            assert (type(copy), str(copy), copy.exit_code) == (kind, str(error), error.exit_code)
    assert str(errors.ReembedError("what", "why", "fix")) == "what\n  why\n  fix: fix"


def test_the_lease_of_a_dead_process_is_taken_over_and_a_live_one_is_not(tmp_path):
    run = Run(Storage.open(str(tmp_path)), "docs-0-v1-1")
    with driving(run):
        assert is_driven(run)
        with pytest.raises(Conflict), driving(run):
            pass
    assert not is_driven(run)
    with driving(run):
        lease = dataclasses.replace(read_lease(run), pid_started="1")
        run.storage.write(run.path("leases/00000002.json"), encode(lease))
        assert not is_driven(run), "the pid belongs to another process now"


FAR = {
    "schema_version": SCHEMA_VERSION,
    "number": 1,
    "host": "far",
    "machine": "far/1",
    "pid": os.getpid(),
    "pid_started": "1",
    "beat": 1,
    "released": False,
}
"""The lease of a driver on another machine."""


def test_status_names_every_candidate_with_its_verdict_however_many_there_are(catalog):
    live = make_release(catalog, "a")
    promote(catalog, live.id, **FIRST)
    for name, verdict in zip("bcdefgh", ["pass", *["fail"] * 5, "inconclusive"], strict=True):
        comparison(catalog, make_release(catalog, name), live, verdict)
    not_compared = make_release(catalog, "i")
    found = status(catalog)
    named = [*found.older_candidates, *found.candidates]
    assert [c.verdict for c in named] == ["pass", *["fail"] * 5, "inconclusive", None]
    text = report.text("status", found, ())
    assert "candidate  b  compared: pass" in text
    assert text.endswith("Next: reembed promote b")
    catalog.storage.remove(next(p for p in kept(catalog) if p.endswith(".pass")))
    assert status(catalog).older_candidates[0].verdict == "pass", "a writer killed before it"
    assert named[-1].release.id == not_compared.id


@pytest.mark.parametrize("others", [0, 6])
def test_run_files_of_an_inconclusive_comparison_are_in_what_status_prints_next(catalog, others):
    """`others`: so many failed after it that it is among those that are only named."""
    live = make_release(catalog, "a")
    promote(catalog, live.id, **FIRST)
    by_runs = Sides(*(RunFile(place, "0", 30, 0, 0, 0) for place in ("old.trec", "new.trec")))
    comparison(catalog, make_release(catalog, "b"), live, "inconclusive", runs=by_runs)
    for n in range(others):
        comparison(catalog, make_release(catalog, f"o{n}"), live, "fail", runs=by_runs)
    said = report.text("status", status(catalog), ())
    assert "Next: reembed compare --candidate b --runs old.trec new.trec " in said


@pytest.mark.parametrize("others", [0, 6])
def test_after_a_comparison_with_an_undecided_latency_alone_comes_another_one(catalog, others):
    live = make_release(catalog, "a")
    promote(catalog, live.id, **FIRST)
    new = make_release(catalog, "b")
    found = combine(Rule("latency", "inconclusive", "d"), Rule("verify", "pass", "d"))
    comparison(catalog, new, live, "inconclusive", rules=found.rules)
    for n in range(others):
        comparison(catalog, make_release(catalog, f"o{n}"), live, "fail")
    command = (
        "reembed compare --candidate b     # on a quiet machine: only the latency is undecided"
    )
    assert report.text("status", status(catalog), ()).endswith(f"Next: {command}")
    made = comparisons.newest(catalog, live, new)
    assert made is not None
    assert choices(made)[0] == command


@pytest.mark.parametrize("others", [0, 6])
def test_an_older_build_of_what_is_live_is_listed_and_not_what_comes_next(catalog, others):
    """`others`: so many that it is among those whose records are not read."""
    old = make_release(catalog, "old")
    for n in range(others):
        other = make_release(
            catalog, f"o{n}", place=dataclasses.replace(place_of(f"o{n}"), settings="x")
        )
        waiting = other.id
    live = make_release(catalog, "new")
    promote(catalog, live.id, **FIRST)
    found = status(catalog)
    text = report.text("status", found, ())
    assert "candidate  old" in text
    if others:
        assert text.endswith(f"Next: reembed compare --candidate {waiting}")
    else:
        assert text.endswith("Next: reembed search 'some words'")
        assert found.candidates[0].to_json()["superseded"]
    make_release(catalog, "fresh")
    assert report.text("status", status(catalog), ()).endswith("compare --candidate fresh")
    comparison(catalog, old, live)
    assert report.text("status", status(catalog), ()).endswith("compare --candidate fresh")


def kept(catalog: Catalog) -> list[str]:
    return [path for path, _ in catalog.storage.objects("comparisons/")]


def begun(catalog: Catalog, name: str) -> Run:
    lines.begin(catalog.storage, catalog.alias, name, place_of(name))
    return Run(catalog.storage, name)


def test_status_does_not_call_a_run_stopped_that_another_machine_may_drive(catalog):
    run = begun(catalog, "docs-0-v1-1")
    run.storage.write(run.path("leases/00000001.json"), FAR)
    found = status(catalog)
    (told,) = found.runs
    assert (told.driven, told.host) == (None, "far")
    said = report.text("status", found)
    assert f"last driven from far; if that process is gone: `{told.resume}`" in said
    assert "stopped" not in said
    assert said.splitlines()[-1].startswith("Next: reembed status     # on far")
    run.storage.write(run.path("leases/00000001.json"), {**FAR, "released": True})
    assert status(catalog).runs == (), "it had no plan yet"


def test_status_knows_at_once_of_a_run_on_this_machine(catalog):
    run = begun(catalog, "docs-0-v1-1")
    with driving(run):
        (told,) = status(catalog).runs
    assert (told.driven, told.host) == (True, platform.node())


def test_a_lease_on_another_machine_counts_while_its_beat_moves(tmp_path):
    run = Run(Storage.open(str(tmp_path)), "docs-0-v1-1")
    run.storage.write(run.path("leases/00000001.json"), FAR)
    assert not is_driven(run, watch_s=0.3)
    import threading

    threading.Timer(
        0.2, lambda: run.storage.write(run.path("leases/00000001.json"), {**FAR, "beat": 2})
    ).start()
    assert is_driven(run, watch_s=0.6)


def test_a_lease_that_vanishes_while_its_beat_is_watched_drives_nothing(tmp_path, monkeypatch):
    run = Run(Storage.open(str(tmp_path)), "docs-0-v1-1")
    run.storage.write(run.path("leases/00000001.json"), FAR)
    answers = iter([["00000001.json"]])
    monkeypatch.setattr(Run, "numbered", lambda self, folder: next(answers, []))
    assert not is_driven(run, watch_s=0.2)


def test_a_worker_that_ends_while_workers_are_listed_is_none_of_them(tmp_path, monkeypatch):
    run = Run(Storage.open(str(tmp_path)), "docs-0-v1-1")
    names = [f"{n:032x}.json" for n in range(2)]
    monkeypatch.setattr(Storage, "names", lambda self, prefix: names)
    mine = Worker(names[0][:32], "u", 1, (), 0, "", "", "", os.getpid(), "now")
    run.storage.write(run.path(f"workers/{names[0]}"), encode(mine))
    assert workers(run) == [mine]


def test_a_refusal_names_the_rules_that_failed_and_no_other(catalog):
    a = make_release(catalog, "a")
    promote(catalog, "a", **FIRST)
    b = make_release(catalog, "b")
    rules = (Rule("nDCG@10 change", "fail", "it lost .3"), Rule("recall@10", "pass", "it is fine"))
    comparison(catalog, b, a, "fail", rules=rules)
    with pytest.raises(GateFailed) as refused:
        promote(catalog, "b")
    assert refused.value.why == "it lost .3"


def test_a_release_that_gc_marked_is_listed_once(catalog):
    made = [make_release(catalog, name) for name in ("docs-0-v1-1", "docs-0-v1-2")]
    catalog.mark_retired(made[0].id)
    assert [r.id for r in catalog.releases()] == [r.id for r in made]
    assert catalog.ids() == [made[1].id]


def test_a_record_says_who_and_where():
    assert who() == f"{getpass.getuser()}@{platform.node()}"

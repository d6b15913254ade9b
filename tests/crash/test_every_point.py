"""SIGKILL at every named point; the same command again; the same table, row for row."""

from __future__ import annotations

import json
import re
from pathlib import Path

import lance
import pytest
from flow_tables import rows_of

from reembed import faults
from reembed.catalog import lazies
from reembed.catalog.index_manifest import read_manifest
from reembed.catalog.lazy_queue import Queue
from reembed.catalog.releases import Catalog
from reembed.catalog.runs import Run
from reembed.engine.ray_executor import RayExecutor
from reembed.lifecycle.promote import promote
from reembed.store.storage import Storage
from reembed.strategies.full_rebuild import full_rebuild

pytestmark = [pytest.mark.deep, pytest.mark.ray, pytest.mark.timeout(300)]

DRIVER = (
    "run.after_plan",
    "table.after_sealed",
    "table.before_commit",
    "table.after_commit",
    "table.after_tag",
    "index.before_manifest",
    "verify.before_remove",
    "run.before_register",
    "run.after_register",
)
# One run meets them all: a killed Ray worker is replaced, and the unit or task is done again.
WORKERS = (
    "embed.before_write",
    "table.after_fragments",
    "table.after_receipt",
    "index.after_train",
    "index.before_save",
    "index.before_shard",
    "verify.after_piece",
)
# Met by a catch-up alone, before it has a plan.
PLANNING = ("plan.after_row_ids",)
FOLLOW = ("promote.before_follow",)
# Met by a catch-up alone: in its tasks, and after another run committed to the table.
GROWING = ("index.before_delta", "index.before_grown")
# Met where Lance keeps the index alone, in its tasks.
IN_LANCE = ("index.before_proof", "index.before_commit", "index.after_commit")
RESTORING = ("table.after_restore",)
COMPARING = ("compare.after_queries",)
SHADOW = (
    "shadow.after_plan",
    "shadow.after_queries",
    "shadow.after_look",
    "shadow.before_cut_over",
)
LAZY_START = (
    "lazy.after_draft",
    "lazy.after_look",
    "lazy.after_commit",
    "lazy.after_members",
    "lazy.after_side",
    "lazy.after_plan",
)
LAZY_BATCH = (
    *LAZY_START[1:4],
    "lazy.before_side",
    "lazy.after_merge",
    "lazy.after_side",
    "lazy.after_queue",
)
LAZY_END = ("lazy.before_finish", "lazy.after_mark", "lazy.after_removal")
ALIAS = (
    "promote.before_swap",
    "promote.after_swap",
    "gc.after_mark",
    "gc.after_table",
    "gc.before_orphans",
)


def catalog_of(config):
    return Catalog(Storage.open(config.storage.root), config.alias)


def test_every_point_in_the_code_is_killed_here():
    source = "".join(p.read_text() for p in Path(faults.__file__).parent.rglob("*.py"))
    used = set(re.findall(r'faults\.point\("([^"]+)"\)', source))
    of_a_run = DRIVER + WORKERS + PLANNING + FOLLOW + GROWING + IN_LANCE + RESTORING
    points = of_a_run + COMPARING + SHADOW + ALIAS + LAZY_START + LAZY_BATCH + LAZY_END
    assert used == {p.partition(":")[0] for p in points}


@pytest.fixture
def uninterrupted(corpus, make_config, quiet, ray_local, tmp_path):
    config = make_config(corpus(300), storage={"root": str(tmp_path / "calm")})
    return rows_of(
        Storage.open(config.storage.root), full_rebuild(config, quiet, executor=RayExecutor())
    )


def test_the_driver_killed_at_each_of_its_points_loses_and_repeats_nothing(
    config_file, make_config, cli, uninterrupted, tmp_path
):
    source = str(tmp_path / "corpus-300-0.lance")
    file, config = config_file(source), make_config(source)
    for point in DRIVER:
        killed = cli.process("run", "-c", file, REEMBED_CRASH_AT=point)
        assert killed.returncode == -9, f"{point}: {killed.stderr}"
    finished = cli.process("run", "-c", file, "--json")
    assert finished.returncode == 0, finished.stderr
    storage, catalog = Storage.open(config.storage.root), catalog_of(config)
    (release,) = catalog.releases()
    assert rows_of(storage, release).equals(uninterrupted)
    attempts = [path for path, _ in storage.objects(f"runs/{release.id}/attempts/")]
    assert len(attempts) == len(Run(storage, release.id).receipts()), (
        "a finished unit was embedded again"
    )


def test_a_catch_up_killed_at_each_of_its_points_loses_and_repeats_nothing(
    corpus, config_file, make_config, cli, quiet, ray_local
):
    source = corpus(300)
    file, config = config_file(source), make_config(source)
    first = full_rebuild(config, quiet, executor=RayExecutor())
    promote(catalog_of(config), first.id, initial_reason="a test")
    lance.dataset(source).delete("doc_id = 'd00007'")
    lance.dataset(source).update({"text": "'another text'"}, where="doc_id = 'd00130'")
    for point in (*PLANNING, *DRIVER, *FOLLOW):
        if point == "index.before_manifest":
            continue  # of an index that is built; this one grows
        killed = cli.process("catch-up", "-c", file, REEMBED_CRASH_AT=point)
        assert killed.returncode == -9, f"{point}: {killed.stderr}"
        assert catalog_of(config).require_live().release.id == first.id
    finished = cli.process("catch-up", "-c", file, "--json")
    assert finished.returncode == 0, finished.stderr
    (_, release) = catalog_of(config).releases()
    assert catalog_of(config).require_live().release.id == release.id
    ids = rows_of(Storage.open(config.storage.root), release)["doc_id"].to_pylist()
    assert ids == [f"d{i:05d}" for i in range(300) if i != 7]
    assert release.verify.passed


@pytest.mark.parametrize(
    ("kind", "factory", "growing"),
    [
        ("faiss", "auto", GROWING),
        ("faiss_ondisk", "IVF4,PQ8x4fs,RFlat", GROWING),
        ("lance", "IVF4_FLAT", ("index.before_proof", *GROWING)),
    ],
)
def test_a_catch_up_killed_while_its_index_grows_or_its_base_is_restored_ends_the_same(
    kind, factory, growing, corpus, config_file, make_config, cli, quiet, ray_local, tmp_path
):
    source = corpus(300)
    index = {"kind": kind, "factory": factory, "ann_recall": 0.5}
    file, config = config_file(source, index=index), make_config(source, index=index)
    first = full_rebuild(config, quiet, executor=RayExecutor())
    promote(catalog_of(config), first.id, initial_reason="a test")
    full_rebuild(config, quiet, fresh=True, executor=RayExecutor())  # the table's newest version
    lance.dataset(source).delete("doc_id = 'd00007'")
    lance.dataset(source).update({"text": "'another text'"}, where="doc_id = 'd00130'")
    for point in RESTORING:
        killed = cli.process("catch-up", "-c", file, REEMBED_CRASH_AT=point)
        assert killed.returncode == -9, f"{point}: {killed.stderr}"
        assert catalog_of(config).require_live().release.id == first.id
    once = tmp_path / "once"
    once.mkdir()
    done = cli.process(
        "catch-up", "-c", file, REEMBED_CRASH_AT=",".join(growing), REEMBED_CRASH_ONCE=str(once)
    )
    assert done.returncode == 0, done.stderr
    assert {p.name for p in once.iterdir()} == set(growing)
    release = catalog_of(config).require_live().release
    assert release.origin == first.origin
    manifest = read_manifest(Storage.open(config.storage.root), release.index, release.index_sha256)
    assert [s.kind for s in manifest.segments] == ["base", "delta"]
    assert manifest.buried == 2
    ids = rows_of(Storage.open(config.storage.root), release)["doc_id"].to_pylist()
    assert ids == [f"d{i:05d}" for i in range(300) if i != 7]
    assert release.verify.passed


def test_workers_killed_at_each_of_their_points_do_not_stop_the_run(
    config_file, make_config, cli, uninterrupted, tmp_path
):
    source = str(tmp_path / "corpus-300-0.lance")
    file, config = config_file(source), make_config(source)
    once = tmp_path / "once"
    once.mkdir()
    done = cli.process(
        "run", "-c", file, REEMBED_CRASH_AT=",".join(WORKERS), REEMBED_CRASH_ONCE=str(once)
    )
    assert done.returncode == 0, done.stderr
    assert {p.name for p in once.iterdir()} == {p.partition(":")[0] for p in WORKERS}
    (release,) = catalog_of(config).releases()
    assert rows_of(Storage.open(config.storage.root), release).equals(uninterrupted)


def test_workers_killed_while_they_build_an_index_in_lance_double_no_segment(
    config_file, make_config, cli, uninterrupted, tmp_path
):
    source = str(tmp_path / "corpus-300-0.lance")
    index = {"kind": "lance", "factory": "IVF4_FLAT", "ann_recall": 0.5, "shard_rows": 100}
    file, config = config_file(source, index=index), make_config(source, index=index)
    points = (*IN_LANCE, "index.after_train", "index.before_shard", "index.before_manifest")
    once = tmp_path / "once"
    once.mkdir()
    done = cli.process(
        "run", "-c", file, REEMBED_CRASH_AT=",".join(points), REEMBED_CRASH_ONCE=str(once)
    )
    assert done.returncode == 0, done.stderr
    assert {p.name for p in once.iterdir()} == set(points)
    (release,) = catalog_of(config).releases()
    storage = Storage.open(config.storage.root)
    assert rows_of(storage, release).equals(uninterrupted)
    manifest = read_manifest(storage, release.index, release.index_sha256)
    table = lance.dataset(storage.uri(release.table), version=release.table_version)
    (described,) = table.describe_indices()
    assert {str(s.uuid) for s in described.segments} == {s.uuid for s in manifest.segments}
    assert sum(s.rows for s in manifest.segments) == manifest.rows == 300
    assert release.verify.passed


def test_compare_promote_and_gc_killed_at_each_of_their_points_finish_when_run_again(
    corpus, config_file, make_config, cli, quiet, ray_local, eval_folder
):
    source = corpus(120)
    sections = {"gate": {"queries": eval_folder(source)}, "storage": {"keep": 1}}
    config = make_config(source, encoder={"model": "hashing:16"}, **sections)
    first = full_rebuild(config, quiet, executor=RayExecutor())
    file = config_file(source, encoder={"model": "hashing:64"}, **sections)
    command = ("promote", first.id, "-c", file, "--initial", "--reason", "a test")
    assert cli.process(*command, REEMBED_CRASH_AT="promote.before_swap").returncode == -9
    assert catalog_of(config).live() is None
    assert cli.process(*command, REEMBED_CRASH_AT="promote.after_swap").returncode == -9
    assert catalog_of(config).require_live().release.id == first.id
    for dim in (64, 128):
        config = make_config(source, encoder={"model": f"hashing:{dim}"}, **sections)
        release = full_rebuild(config, quiet, executor=RayExecutor())
        compare = ("compare", "--candidate", release.id, "-c", file, "--json")
        assert cli.process(*compare, REEMBED_CRASH_AT=COMPARING[0]).returncode == -9
        assert json.loads(cli.process(*compare).stdout)["number"] == 1
        cli("promote", release.id, "-c", file, "--force", "--reason", "crash test")
    for point in ("gc.after_mark", "gc.after_table"):
        assert cli.process("gc", "-c", file, "--yes", REEMBED_CRASH_AT=point).returncode == -9
        assert "removed by gc" in cli("rollback", "-c", file, "--to", first.id, code=2)["what"]
    killed = cli.process("gc", "-c", file, "--yes", REEMBED_CRASH_AT="gc.before_orphans")
    assert killed.returncode == -9
    assert not cli("gc", "-c", file)["remove"]
    assert not list(Storage.open(config.storage.root).objects(f"indexes/{first.id}/"))
    assert cli("search", "-c", file, "anything")["release"] == release.id


def test_a_shadow_killed_at_each_of_its_points_counts_each_query_once_and_cuts_over_once(
    corpus, config_file, make_config, cli, quiet, ray_local, eval_folder
):
    source = corpus(120)
    sections = {
        "gate": {"queries": eval_folder(source, 100), "ann_recall": 0.5, "latency_ratio": 1000},
        "strategy": "dual_index",
    }
    config = make_config(source, encoder={"model": "hashing:16"}, **sections)
    first = full_rebuild(config, quiet, executor=RayExecutor())
    promote(catalog_of(config), first.id, initial_reason="a test")
    better = {"encoder": {"model": "hashing:256"}, **sections}
    full_rebuild(make_config(source, **better), quiet, executor=RayExecutor())
    command = ("shadow", "-c", config_file(source, **better), "--promote-if-pass", "--json")
    for point in SHADOW:
        killed = cli.process(*command, REEMBED_CRASH_AT=point)
        assert killed.returncode == -9, f"{point}: {killed.stderr}"
    ended = cli.process(*command)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert (found["stage"], found["holdover_until"] is None) == ("holdover", False)
    steps = catalog_of(config).log()
    assert [s.action for s in steps] == ["promote", "promote"]
    assert (steps[-1].grounds.shadow.look, steps[-1].grounds.shadow.queries) == (1, 100)
    records = [p for p, _ in catalog_of(config).storage.objects("shadows/passages/1/looks/")]
    assert len([p for p in records if p.endswith(".json")]) == 1


def test_a_lazy_migration_killed_at_each_of_its_points_loses_and_doubles_no_document(
    corpus, config_file, make_config, cli, quiet, ray_local
):
    source = corpus(420)
    first = full_rebuild(make_config(source), quiet, executor=RayExecutor())
    catalog = catalog_of(make_config(source))
    promote(catalog, first.id, initial_reason="a test")
    file = config_file(source, encoder={"model": "hashing:32"}, strategy="lazy")

    def killed_at(points, *command):
        for point in points:
            done = cli.process(*command, "-c", file, REEMBED_CRASH_AT=point)
            assert done.returncode == -9, f"{point}: {done.stderr}"
            yield point

    def served():
        release = Catalog(catalog.storage, "passages-lazy-1").require_live().release
        ids = rows_of(catalog.storage, release)["doc_id"].to_pylist()
        assert len(ids) == len(set(ids))
        return set(ids)

    for _ in killed_at(LAZY_START, "lazy", "start", "--reason", "a test"):
        assert lazies.current(catalog) is None
    assert cli("lazy", "start", "-c", file, "--reason", "a test")["state"] == "running"
    plan = lazies.current(catalog).plan
    wanted = {f"d{i:05d}" for i in range(60)}
    queue = Queue(catalog.storage, plan)
    queue.put(sorted(wanted))
    lance.dataset(source).delete("doc_id = 'd00419'")
    lance.dataset(source).update({"text": "'another text'"}, where="doc_id = 'd00007'")
    for _ in killed_at(LAZY_BATCH, "sweep", "--budget", "60"):
        assert wanted <= served() | set(queue.read(queue.files()))
    assert cli("sweep", "-c", file)["complete"]
    assert served() == {f"d{i:05d}" for i in range(419)}
    release = cli("run", "-c", file)["id"]
    forced = ("promote", release, "--force", "--reason", "a test")
    assert [*killed_at(LAZY_END[:1], *forced)] == ["lazy.before_finish"]
    assert catalog.require_live().release.id == release
    assert cli("lazy", "status", "-c", file)["state"] == "finished"
    assert [*killed_at(LAZY_END[1:], "gc", "--yes")] == [*LAZY_END[1:]]
    cli("gc", "-c", file, "--yes")
    assert cli("gc", "-c", file)["lazies"] == []
    assert not [p for p, _ in catalog.storage.objects("") if "passages-lazy-1" in p]

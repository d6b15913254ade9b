"""What is removed is reembed's own: nothing at or behind a symbolic link, through any of its doors."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import lance
import obstore
import pyarrow as pa
import pytest
from inline import Inline

import reembed
from reembed import api as check
from reembed.catalog.releases import Catalog
from reembed.errors import IntegrityError
from reembed.lifecycle import gc, promote, verification
from reembed.store.storage import Storage
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild

PACKAGE = Path(reembed.__file__).parent


@pytest.fixture
def catalog(corpus, make_config, quiet):
    """Three lines that were promoted one after the other, so that gc with keep=1 removes the first."""
    source = corpus(60)
    for dim in (16, 24, 32):
        config = make_config(source, encoder={"model": f"hashing:{dim}"})
        catalog = Catalog(Storage.open(config.storage.root), config.alias)
        catalog.append(catalog.live(), "promote", full_rebuild(config, quiet, executor=Inline()))
    return catalog


@pytest.fixture
def precious(tmp_path):
    """A folder of the user's, with a file whose name Lance and FAISS use, too."""
    folder = tmp_path / "precious"
    for name in ("0000.lance", "0000.json", "deep/0000.lance"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def moved(place: Path, to: Path) -> Path:
    """Replace a folder by a link to where it now lies, as an operator with a full disk would."""
    shutil.move(place, to)
    place.symlink_to(to)
    return place


def linked(catalog: Catalog, kind: str, precious: Path) -> Path:
    """The link of this kind, put where gc is to remove something of the first release."""
    first, root = catalog.log()[0].release, Path(catalog.storage.root)
    data, other = root / first.table / "data", catalog.log()[-1].release
    links = {
        "a folder of a table": (data / "more", precious),
        "a file of a table": (data / "more.lance", precious / "0000.lance"),
        "a folder of another release": (data / "more", root / other.table / "data"),
        "a folder of an index": (root / first.index / "more", precious),
        "a file of an index": (root / first.index / "more.faiss", precious / "0000.lance"),
        "a folder of a run": (root / f"runs/{first.id}/units/more", precious),
        "a file of a run": (root / f"runs/{first.id}/units/more.json", precious / "0000.json"),
    }
    if kind in links:
        link, to = links[kind]
        link.symlink_to(to)
        return link
    places = {
        "the data of a table": data,
        "a table": root / first.table,
        "all tables": root / "tables",
        "an index": root / first.index,
        "a run": root / f"runs/{first.id}",
        "the receipts of a run": root / f"runs/{first.id}/units",
    }
    return moved(places[kind], precious / "moved")


KINDS = (
    "a folder of a table",
    "a file of a table",
    "a folder of another release",
    "a folder of an index",
    "a file of an index",
    "a folder of a run",
    "a file of a run",
    "the data of a table",
    "a table",
    "all tables",
    "an index",
    "a run",
    "the receipts of a run",
)


@pytest.mark.parametrize("listed_before", [False, True])
def test_gc_removes_nothing_where_a_link_lies(catalog, precious, tmp_path, listed_before):
    planned = gc.plan(catalog, 1)
    assert [r.whole_table for r in planned.remove] == [True]
    root = Path(catalog.storage.root)
    for kind in KINDS:
        shutil.copytree(root, tmp_path / "whole")
        link = linked(catalog, kind, precious)
        before = files(precious), files(root)
        with pytest.raises(IntegrityError, match="is a symbolic link to") as refused:
            gc.apply(catalog, planned if listed_before else gc.plan(catalog, 1), 1)
        assert str(link) in refused.value.what, kind
        assert (files(precious), files(root)) == before, kind
        shutil.rmtree(root)
        shutil.rmtree(precious / "moved", ignore_errors=True)
        shutil.move(tmp_path / "whole", root)
    gc.apply(catalog, planned, 1)
    assert not (root / planned.remove[0].table / "data").exists()


def test_a_link_that_appears_while_gc_removes_is_not_followed(catalog, precious, monkeypatch):
    """Each removal alone: the look at everything before the first is out of the way."""
    planned = gc.plan(catalog, 1)
    monkeypatch.setattr(gc, "_require_own", lambda *_: None)
    for kind in ("the receipts of a run", "a folder of an index", "a file of a table"):
        link = linked(catalog, kind, precious)
        before = files(precious)
        with pytest.raises(IntegrityError, match=f"{link} is a symbolic link"):
            gc.apply(catalog, planned, 1)
        assert files(precious) == before, kind
        link.unlink()
        if (precious / "moved").exists():
            shutil.move(precious / "moved", link)


def test_giving_up_a_run_does_not_follow_links(catalog, corpus, make_config, quiet, precious):
    class Stopped(Inline):
        def embed(self, job, units, on_receipt, stop):
            super().embed(job, units[:1], on_receipt, stop)
            raise KeyboardInterrupt

    config = make_config(corpus(60, seed=1), encoder={"model": "hashing:16"})
    with pytest.raises(KeyboardInterrupt):
        full_rebuild(config, quiet, executor=Stopped())
    (held,) = gc.plan(catalog, 3).held_runs
    run = gc.droppable(catalog, held)
    for folder in ("units", "leases"):
        moved(Path(catalog.storage.uri(run.path(folder))), precious / folder)
        before = files(precious)
        planned = gc.plan(catalog, 3, dropping=held)
        with pytest.raises(IntegrityError, match=f"{folder} is a symbolic link"):
            gc.apply(catalog, planned, 3)
        assert files(precious) == before
        Path(catalog.storage.uri(run.path(folder))).unlink()


def test_cleaning_up_versions_does_not_follow_links(corpus, make_config, quiet, precious):
    """What Lance itself removes: files of versions that no release names."""
    source = corpus(60)
    config = make_config(source)
    catalog = Catalog(Storage.open(config.storage.root), config.alias)
    first = full_rebuild(config, quiet, executor=Inline())
    lance.write_dataset(
        pa.table({"doc_id": ["n"], "title": ["n"], "text": ["new"]}), source, mode="append"
    )
    newer = catch_up(config, first, quiet, executor=Inline())
    catalog.append(None, "promote", newer)
    lance.dataset(catalog.storage.uri(newer.table)).tags.delete(first.table_tag)
    data = Path(catalog.storage.uri(newer.table)) / "data"
    moved(data, precious / "data")
    before = files(precious)
    with pytest.raises(IntegrityError, match=f"{data} is a symbolic link"):
        gc._trim(catalog, newer.table)
    assert files(precious) == before


@pytest.mark.parametrize(
    "path", ["data/more.lance", "data/more/0000.lance", "data/more.lance#1", "more/a#1"]
)
def test_one_object_behind_a_link_is_not_removed(tmp_path, precious, path):
    storage = Storage.open(str(tmp_path / "root"))
    (precious / "more.lance#1").write_text("mine")
    (precious / "a#1").write_text("mine")
    link = tmp_path / "root" / path
    if path.startswith("data/more.lance"):
        link.parent.mkdir()
        link.symlink_to(precious / "0000.lance")
    else:
        link = link.parent
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(precious)
    before = files(precious)
    with pytest.raises(IntegrityError, match=f"{link} is a symbolic link"):
        storage.remove(path)
    assert files(precious) == before
    assert link.is_symlink()


def test_everything_is_removed_through_one_door():
    """Any call that removes by path lies in `Storage`, or is of a place that this process made itself."""
    own = {
        ("engine/ray_auth.py", "rmtree"): "a session folder by mkdtemp",
        ("encoders/local/files.py", "unlink"): "a link itself",
        ("source/importer.py", "rmdir"): "an empty folder, which a link is not",
        ("lifecycle/gc.py", "cleanup_old_versions"): "after require_own",
        ("source/members.py", "cleanup_old_versions"): "after require_own",
    }
    removing = {"rmtree", "unlink", "rmdir", "removedirs", "cleanup_old_versions", "rename"}
    found = set()
    for file in PACKAGE.rglob("*.py"):
        name = str(file.relative_to(PACKAGE))
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            called = ast.unparse(node.func)
            if node.func.attr in removing or called in (
                "os.remove",
                "os.replace",
                "obstore.delete",
            ):
                found.add((name, node.func.attr))
    assert {f for f in found if f[0] != "store/storage.py"} == set(own)


def test_verbs_delete_only_where_the_table_of_rights_says(
    corpus, eval_folder, make_config, quiet, monkeypatch
):
    """Run with exactly these rights: what is refused elsewhere would end a verb."""
    plain, allowed = obstore.delete, ["runs/", "tables/"]

    def delete(store, paths):
        for path in [paths] if isinstance(paths, str) else paths:
            if not path.startswith(tuple(allowed)):
                raise PermissionError(f"AccessDenied: delete {path}")
        return plain(store, paths)

    monkeypatch.setattr(obstore, "delete", delete)
    source = corpus(60)
    first, other = (
        make_config(
            source,
            name=f"{dim}.yaml",
            encoder={"model": f"hashing:{dim}"},
            gate={"queries": eval_folder(source, queries)},
        )
        for dim, queries in ((64, 24), (128, 23))
    )
    catalog = Catalog(Storage.open(first.storage.root), first.alias)
    released, candidate = (full_rebuild(c, quiet, executor=Inline()) for c in (first, other))
    promote.promote(catalog, released.id, initial_reason="first")
    lance.dataset(source).delete("doc_id = 'd00007'")
    newer = catch_up(first, released, quiet, executor=Inline())
    promote.follow(catalog, newer)
    allowed.remove("tables/")
    assert verification.verify_release(
        catalog, newer.id, level=3, sample=5, resume=False, stall_s=60
    ).passed
    check.compare(other, candidate.id, margin=0.9, reason="a test", emit=quiet)
    allowed.clear()
    promote.promote(catalog, candidate.id, force_reason="a test")
    assert promote.rollback(catalog).release.id == newer.id

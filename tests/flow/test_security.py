"""Security of whole migrations: hostile ids (S7), secrets (S9), a read-only source (S12), deleted documents
(S11), records of another release (S17), what listens (S18)."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest
from click.testing import CliRunner
from flow_tables import rows_of
from inline import Inline

from reembed.catalog.releases import Catalog, Release
from reembed.cli.verbs import cli as reembed_cli
from reembed.config.settings import Config
from reembed.engine.ray_executor import RayExecutor
from reembed.errors import IntegrityError, ReembedError
from reembed.events import Planned
from reembed.lifecycle import gc, verification
from reembed.lifecycle.promote import follow, promote
from reembed.store.records import encode
from reembed.store.storage import Storage
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild
from reembed.table.read import open_table

pytestmark = pytest.mark.ray

# S7: ids that mean something to a filter, a shell, a path or a parser

HOSTILE = [
    "x' OR '1'='1", "' OR 1=1 --", "'; DROP TABLE docs; --", "\" OR \"\"=\"", "') OR ('1'='1", "1 OR 1=1",
    "true", "NULL", "null", "doc_id", "*", "%", "_", "'", "''", "'''", '"', '""', "`", "\\", "\\\\", "\\'",
    "\\\"", "\\0", "\\n", "\\x00", "\\u0000", "--", "/*", "*/", "/* x */ OR 1=1", "#", ";", "; rm -rf /",
    "$(touch x)", "`touch x`", "| cat", "&&", "${HOME}", "{{7*7}}", "{0}", "{doc_id}", "%s", "%n", "%00",
    "../../etc/passwd", "/etc/passwd", "..", ".", "a/b", "C:\\x", "CON", "file:///etc/passwd", "http://evil/",
    "<script>", "]]>", "&amp;", "<!--", "=1+1", "+1", "-1", "@x", "0", "-0", "1e309", "NaN", "inf", "0x10",
    "1_000", "٣", "ß", "ﬀ", "é", "e\u0301", "İ", "\u0131", "Å", "\u212b", "漢字", "🧨", "\u202eevil", "\u200b",
    "\ufeff", "\u2028", "\u2029", "\x1b[31m", "\x07", "\t", "\n", "\r\n", "a\nb", "a\0b", "\0", "\x7f", "\x85",
    " ", "  ", " a", "a ", "a'b\"c`d\\e", "x" * 5_000, "BETWEEN 1 AND 2", "IN ('a')", "LIKE '%'", "IS NOT NULL",
    "_rowid", "_rowid > 0", "id)", "(", "[]", "'||'", "CAST(1 AS INT)", "E'\\x41'", "U&'\\0041'", "\uffff",
    "\U0010ffff", "a\u0300\u0301\u0302",
]  # fmt: skip


@pytest.mark.deep
def test_s7_hostile_ids_go_through_a_whole_migration_and_nothing_else_goes(
    tmp_path: Path, config_file: Callable[..., str], ray_local: None, cli: Any
) -> None:
    assert len(set(HOSTILE)) == len(HOSTILE) >= 100
    rows = [{"doc_id": d, "text": f"word{i} document", "number": i} for i, d in enumerate(HOSTILE)]
    file, source = tmp_path / "a.jsonl", str(tmp_path / "docs.lance")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli("import", str(file), "--to", source)["rows"] == len(HOSTILE)
    old = config_file(source, "old.yaml", encoder={"model": "hashing:64"}, storage={"keep": 1})
    built = [cli("run", "-c", old)["id"]]
    cli("promote", "-c", old, "--initial", "--reason", "a test")
    assert ids_of(old, cli) == sorted(HOSTILE)
    hits = cli("search", "-c", old, *[f"word{i}" for i in range(len(HOSTILE))], "-k", "1")[
        "results"
    ]
    assert [r["hits"][0]["doc_id"] for r in hits] == HOSTILE

    # Half of them deleted and one changed, while another model is built and promoted.
    new = config_file(source, "new.yaml", encoder={"model": "hashing:96"}, storage={"keep": 1})
    built.append(cli("run", "-c", new)["id"])
    half = len(HOSTILE) // 2
    dataset = lance.dataset(source)
    dataset.delete(f"number < {half}")
    dataset.update({"text": "'changed document'"}, where=f"number = {half}")
    cli("promote", "-c", new, "--force", "--reason", "x' OR '1'='1")
    assert ids_of(new, cli) == sorted(HOSTILE[half:])
    assert cli("history", "-c", new)["steps"][-1]["reason"] == "x' OR '1'='1"
    for _ in range(2):  # a third, so that something is there to remove
        cli("run", "-c", new, "--fresh")
        cli("promote", "-c", new, "--force", "--reason", "again")
    assert cli("gc", "-c", new, "--yes")["removed"]
    assert ids_of(new, cli) == sorted(HOSTILE[half:])
    assert lance.dataset(source).count_rows() == len(HOSTILE) - half


def ids_of(file: str, cli: Any) -> list[str]:
    """Ids in the table of what is live, which is verified."""
    live = cli("status", "-c", file)["live"]["release"]
    report = cli("verify", "-c", file, "--release", live, "--sample", "20")
    assert report["passed"]
    root = Path(file).parent / "root"
    release = Catalog(Storage.open(str(root)), "passages").release(live)
    table = open_table(Storage.open(str(root)), release.table, release.table_version)
    return sorted(table.to_table(columns=["doc_id"])["doc_id"].to_pylist())


# S9 and S18: a run as its own process, with a private Ray, its keys in the environment

CANARY = "canary0123456789/Secret+key"


@pytest.fixture
def short_folder() -> Iterator[str]:
    """Ray's sockets lie below it, and their paths may have 107 characters."""
    folder = tempfile.mkdtemp(prefix="re-", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def descendants(pid: int) -> set[int]:
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
        except OSError:
            continue
        parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
    found, before = {pid}, 0
    while before != len(found):
        before = len(found)
        found |= {child for child, parent in parents.items() if parent in found}
    return found


def listeners(pid: int) -> dict[str, str]:
    """Addresses, as /proc has them, on which a process or one below it listens: address -> command."""
    inodes: dict[str, str] = {}
    for process in descendants(pid):
        try:
            command = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            for fd in Path(f"/proc/{process}/fd").iterdir():
                target = os.readlink(fd)
                if target.startswith("socket:["):
                    inodes[target[8:-1]] = command[:100]
        except OSError:
            continue
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found[fields[1].rpartition(":")[0]] = inodes[fields[9]]
    return found


LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads /proc")
@pytest.mark.s3
@pytest.mark.timeout(240)
@pytest.mark.deep
def test_s9_s18_a_run_leaves_no_secret_anywhere_and_listens_on_the_loopback_alone(
    corpus: Callable[..., str],
    config_file: Callable[..., str],
    bucket: Any,
    cli: Any,
    short_folder: str,
) -> None:
    source = corpus(300)
    storage = {"root": f"{bucket.uri}/root", "options": bucket.options}
    file = config_file(source, storage=storage)
    env = os.environ | {
        "AWS_SECRET_ACCESS_KEY": CANARY,
        "AWS_SESSION_TOKEN": CANARY[::-1],
        "HF_TOKEN": CANARY,
        "AZURE_STORAGE_ACCOUNT_KEY": CANARY,
        "RAY_TMPDIR": short_folder,
        "RAY_BACKEND_LOG_LEVEL": "debug",
    }
    said, heard, open_to_others = "", {}, set[str]()
    first = ["promote", "--initial", "--reason", "a test"]
    for words in (["run", "-v"], first, ["search", "a b"], ["verify"], ["config"], ["gc"]):
        process = subprocess.Popen(
            cli.command(*words, "-c", file), env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )  # fmt: skip
        while words[0] == "run" and process.poll() is None:
            heard |= listeners(process.pid)
            open_to_others |= {
                p.name for p in Path(short_folder).iterdir() if p.stat().st_mode & 0o077
            }
            time.sleep(0.5)
        said += process.communicate(timeout=230)[0]
        assert process.returncode == 0, said
    wrong = config_file(source, "wrong.yaml", storage=storage | {"root": "s3://no-such-bucket/x"})
    failed = cli.process("run", "-v", "-c", wrong, **{k: v for k, v in env.items() if v == CANARY})
    assert failed.returncode != 0
    said += failed.stdout + failed.stderr

    assert open_to_others == set(), "Ray's session can be entered by other users"
    assert heard, "no socket was seen"
    assert {a: c for a, c in heard.items() if a not in LOOPBACK} == {}
    places = {"output": said.encode(), **objects(Storage.open(storage["root"], bucket.options))}
    logs = [p for p in Path(short_folder).rglob("*") if p.is_file()]
    assert logs
    places |= {str(p): p.read_bytes() for p in logs}
    for secret in (CANARY, CANARY[::-1]):
        assert [place for place, body in places.items() if secret.encode() in body] == []


def objects(storage: Storage) -> dict[str, bytes]:
    found = {path: storage.read_bytes(path) for path, _ in storage.objects("")}
    assert len(found) > 10
    return found


# S11: a document that was deleted


@pytest.mark.parametrize("index", [{}, {"kind": "lance", "factory": "IVF_FLAT"}])
def test_s11_after_catch_up_and_gc_no_byte_of_a_deleted_document_is_left(
    corpus: Callable[..., str],
    make_config: Callable[..., Config],
    quiet: Any,
    ray_local: None,
    index: dict[str, Any],
) -> None:
    source = corpus(130)
    storage = {"keep": 1, "erase_deleted": True}
    config = make_config(source, table={"carry": ["title"]}, storage=storage, index=index)
    catalog = Catalog(Storage.open(config.storage.root), config.alias)
    first = full_rebuild(config, quiet, executor=RayExecutor())
    promote(catalog, first.id, initial_reason="a test")
    (row,) = (r for r in rows_of(catalog.storage, first).to_pylist() if r["doc_id"] == "d00003")
    traces = {
        "vector": np.asarray(row["vector"], np.float32).tobytes(),
        "digest": row["text_hash"],
        "digest in hex": row["text_hash"].hex().encode(),
        "title": row["title"].encode(),
    }
    holding = {k for k, t in traces.items() if any(t in b for b in objects(catalog.storage).values())}  # fmt: skip
    assert holding == {"vector", "digest", "title"}, "they cannot be searched for"
    lance.dataset(source).delete("doc_id = 'd00003'")
    release = catch_up(config, first, quiet, executor=RayExecutor())
    follow(catalog, release)
    gc.apply(catalog, gc.plan(catalog, 1), 1)
    left = objects(catalog.storage)
    assert [(p, k) for p, b in left.items() for k, t in traces.items() if t in b] == []
    assert rows_of(catalog.storage, release).num_rows == 129


# S12: a source that may only be read


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another user's identity")
def test_s12_a_source_of_another_user_is_read_and_not_tagged(short_folder: str) -> None:
    source = f"{short_folder}/docs.lance"
    import pyarrow as pa

    lance.write_dataset(pa.table({"doc_id": ["a"], "text": ["x"]}), source)
    for place in (Path(short_folder), *Path(short_folder).rglob("*")):
        place.chmod(0o755 if place.is_dir() else 0o644)
    program = f"""
import os
from reembed.source.dataset import Source
from reembed.config.settings import load
settings = ["alias=a", "encoder.model=hashing:8", "storage.root=r", "source.uri={source}"]
os.setgid(65534); os.setuid(65534)
source = Source.open(load([], settings)[0])
print(source.check_documents(), source.pin("reembed-x"), source.dataset().tags.list())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"HOME": "/tmp"}, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.stdout == "1 False {}\n", done.stderr


def test_s12_a_run_needs_no_right_to_write_to_its_source(
    corpus: Callable[..., str], make_config: Callable[..., Config], quiet: Any, ray_local: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    source = corpus(130)
    before = {p: p.read_bytes() for p in Path(source).rglob("*") if p.is_file()}
    tags = type(lance.dataset(source).tags)
    create = tags.create

    def refuse(self: Any, tag: str, *args: Any) -> None:
        if self._ds.uri.rstrip("/").endswith(Path(source).name):
            raise OSError("Access Denied")
        create(self, tag, *args)

    monkeypatch.setattr(tags, "create", refuse)
    config = make_config(source)
    release = full_rebuild(config, quiet, executor=RayExecutor())
    (plan,) = quiet.of(Planned)
    assert plan.pinned is False
    assert (
        promote(
            Catalog(Storage.open(config.storage.root), config.alias),
            release.id,
            initial_reason="a test",
        ).release.id
        == release.id
    )
    assert {p: p.read_bytes() for p in Path(source).rglob("*") if p.is_file()} == before


# S17: the record of one release with the parts of another


@pytest.fixture
def pair(
    corpus: Callable[..., str], make_config: Callable[..., Config], quiet: Any
) -> tuple[Catalog, Release, Release]:
    source = corpus(120)
    configs = [make_config(source, encoder={"model": f"hashing:{dim}"}) for dim in (16, 32)]
    first, second = (full_rebuild(c, quiet, executor=Inline()) for c in configs)
    storage = Storage.open(make_config(source).storage.root)
    return Catalog(storage, "passages"), first, second


SWAPS = {
    "table": ("table",),
    "table and version": ("table", "table_version"),
    "table, version and tag": ("table", "table_version", "table_tag"),
    "index": ("index",),
    "index and its sha256": ("index", "index_sha256"),
    "table and index": ("table", "table_version", "table_tag", "index", "index_sha256"),
    "space": ("space",),
}


@pytest.mark.parametrize("parts", list(SWAPS.values()), ids=list(SWAPS))
def test_s17_a_release_with_parts_of_another_is_not_promoted(
    pair: tuple[Catalog, Release, Release], parts: tuple[str, ...]
) -> None:
    catalog, first, second = pair
    swapped = dataclasses.replace(first, **{part: getattr(second, part) for part in parts})
    catalog.storage.write(f"releases/passages/{first.id}.json", encode(swapped))
    with pytest.raises(IntegrityError):
        promote(catalog, first.id, initial_reason="a test")
    assert catalog.live() is None
    assert promote(catalog, second.id, initial_reason="a test").release == second


def test_s17_a_release_with_another_record_of_its_files_is_not_verified(
    pair: tuple[Catalog, Release, Release],
) -> None:
    catalog, first, second = pair
    swapped = dataclasses.replace(first, sealed_sha256=second.sealed_sha256)
    catalog.storage.write(f"releases/passages/{first.id}.json", encode(swapped))
    with pytest.raises(IntegrityError, match="another record of its table's files"):
        verification.verify_release(catalog, first.id, level=0, sample=0, resume=False, stall_s=60)
    with pytest.raises(IntegrityError):
        promote(catalog, first.id, initial_reason="a test")


def test_s17_a_table_put_in_the_place_of_another_is_not_promoted(
    pair: tuple[Catalog, Release, Release],
) -> None:
    catalog, first, second = pair
    place = Path(catalog.storage.root, first.table)
    shutil.rmtree(place)
    shutil.copytree(Path(catalog.storage.root, second.table), place)
    assert first.table_version == second.table_version
    with pytest.raises(IntegrityError, match="is not what release"):
        promote(catalog, first.id, initial_reason="a test")


def test_s17_a_record_copied_to_another_root_or_alias_is_not_promoted(
    pair: tuple[Catalog, Release, Release], tmp_path: Path, config_file: Callable[..., str]
) -> None:
    catalog, first, _ = pair
    other = Storage.open(str(tmp_path / "other"))
    for folder in (f"runs/{first.id}", "releases/passages"):
        shutil.copytree(Path(catalog.storage.root, folder), Path(other.root, folder))
    with pytest.raises(IntegrityError, match="has no index"):
        promote(Catalog(other, "passages"), first.id, initial_reason="a test")
    shutil.copytree(Path(other.root, "releases/passages"), Path(other.root, "releases/tenant"))
    with pytest.raises(ReembedError):
        promote(Catalog(other, "tenant"), first.id, initial_reason="a test")
    file = config_file("s", "tenant.yaml", alias="tenant", storage={"root": other.root})
    said = CliRunner().invoke(reembed_cli, ["promote", first.id, "-c", file])
    assert said.exit_code == 1
    assert "its record was copied" in said.stderr

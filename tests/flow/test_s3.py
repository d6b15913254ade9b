"""Everything on S3: the same flow gives the same as on a local folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lance
import pytest

from reembed.catalog.releases import Catalog
from reembed.config.settings import load
from reembed.errors import ConfigError
from reembed.store.records import SCHEMA_VERSION
from reembed.store.storage import Storage

pytestmark = pytest.mark.s3

QUERIES = ["a word", "another one"]
EVENTS = ["plan", "ray", "embedded", "table", "index", "verify", "candidate"]


@dataclass(frozen=True)
class Place:
    """Where one flow keeps its documents and everything else."""

    source: str
    root: str
    options: dict[str, str]

    def storage(self) -> Storage:
        return Storage.open(self.root, self.options)


def whole_flow(cli: Any, config_file: Callable[..., str], place: Place, files: Path) -> Any:
    """Every verb once, in the order of a migration; what does not depend on the place."""
    options = [f"--option={name}={value}" for name, value in place.options.items()]
    imported = cli("import", str(files / "documents.jsonl"), "--to", place.source, *options)
    common = {
        "storage": {"root": place.root, "options": place.options, "keep": 1},
        "table": {"carry": ["title"]},
        "gate": {"queries": str(files / "judged")},
    }
    old = config_file(place.source, "old.yaml", encoder={"model": "hashing:32"}, **common)
    new = config_file(place.source, "new.yaml", encoder={"model": "hashing:256"}, **common)
    first = cli("run", "-c", old)
    promoted = [cli("promote", "-c", old, "--initial", "--reason", "a test")]
    second = cli("run", "-c", new)
    compared = cli("compare", "-c", new)
    promoted.append(cli("promote", "-c", new))
    hits = [cli("search", "-c", new, *QUERIES, "--show", "title")["results"]]
    tables = [rows(place, release) for release in (first, second)]
    promoted.append(cli("rollback", "-c", new))
    hits.append(cli("search", "-c", new, *QUERIES, "--show", "title")["results"])
    verified = cli("verify", "-c", new, "--release", second["id"])
    history = cli("history", "-c", new)["steps"]
    status = cli("status", "-c", new)
    catalog = Catalog(place.storage(), "passages")
    stages = [logged(place, release) for release in (first, second)]
    assert [r.id for r in catalog.releases()] == [first["id"], second["id"]]
    assert cli("run", "-c", new)["id"] == second["id"]
    collected = cli("gc", "-c", new, "--yes")
    assert collected["removed"] == [second["id"]]
    assert not list(place.storage().objects(f"{second['table']}/"))
    assert not list(place.storage().objects(f"{second['index']}/"))
    hits.append(cli("search", "-c", new, *QUERIES, "--show", "title")["results"])
    return {
        "rows": imported["rows"],
        "tables": tables,
        "hits": hits,
        "metrics": compared["metrics"],
        "verdict": compared["verdict"],
        "ann_recall": compared["ann_recall_at_10"],
        "moves": [(p["action"], p["generation"], p["model"], p["behind"]) for p in promoted],
        "history": [(s["generation"], s["action"], s["model"], s["forced"]) for s in history],
        "verified": {k: verified[k] for k in ("passed", "rows", "differences", "sampled")},
        "live": {k: status["live"][k] for k in ("model", "space", "rows", "dead_letters")},
        "generation": status["generation"],
        "stages": stages,
    }


def rows(place: Place, release: dict[str, Any]) -> list[dict[str, Any]]:
    """The vector table of a release, by document."""
    uri = place.storage().uri(release["table"])
    options = place.options or None
    dataset = lance.dataset(uri, version=release["table_version"], storage_options=options)
    return sorted(dataset.to_table().to_pylist(), key=lambda row: str(row["doc_id"]))


def logged(place: Place, release: dict[str, Any]) -> list[str]:
    lines = place.storage().read_bytes(f"runs/{release['id']}/events.jsonl").splitlines()
    return [json.loads(line)["stage"] for line in lines]


@pytest.fixture
def files(tmp_path: Path, corpus: Callable[..., str], eval_folder: Callable[..., str]) -> Path:
    """documents.jsonl and judged/ of one corpus."""
    source = corpus()
    documents = lance.dataset(source).to_table().to_pylist()
    lines = "".join(json.dumps(document) + "\n" for document in documents)
    (tmp_path / "documents.jsonl").write_text(lines)
    Path(eval_folder(source)).rename(tmp_path / "judged")
    return tmp_path


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
@pytest.mark.deep
def test_a_migration_on_s3_gives_the_same_as_on_a_local_folder(
    bucket: Any,
    cli: Any,
    config_file: Callable[..., str],
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(files)
    local = Place(str(files / "here.lance"), str(files / "here"), {})
    remote = Place(f"{bucket.uri}/documents.lance", f"{bucket.uri}/deep/prefix", bucket.options)
    there = whole_flow(cli, config_file, remote, files)
    here = whole_flow(cli, config_file, local, files)
    for part in here:
        assert there[part] == here[part], part

    assert here["rows"] == len(here["tables"][0]) == len(here["tables"][1]) == 300
    assert here["verdict"] == "pass"
    assert [action for _, action, _, _ in here["history"]] == ["promote", "promote", "rollback"]
    assert here["hits"][0] != here["hits"][1] == here["hits"][2]
    assert here["stages"] == [EVENTS, EVENTS]
    assert not (files / "s3:").exists(), "a URI was taken for a folder"
    assert_holds_no_key(Storage.open(bucket.uri, bucket.options))


def assert_holds_no_key(storage: Storage) -> None:
    """Plans, settings, releases, reports: none names a key of the environment."""
    secret = os.environ["AWS_SECRET_ACCESS_KEY"].encode()
    paths = [path for path, _ in storage.objects("")]
    assert any(path.endswith("config.yaml") for path in paths)
    assert not [path for path in paths if secret in storage.read_bytes(path)]


FORMAT = {"schema_version": SCHEMA_VERSION}


def test_of_two_creates_on_s3_one_wins(bucket: Any) -> None:
    storage = Storage.open(f"{bucket.uri}/root", bucket.options)
    assert storage.create("log/1.json", FORMAT | {"by": "first"})
    assert not storage.create("log/1.json", FORMAT | {"by": "second"})
    assert storage.read("log/1.json") == FORMAT | {"by": "first"}
    assert storage.create("log/1.json", FORMAT | {"by": "first"}), (
        "its own bytes: an answer that was lost"
    )

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda i: storage.create("log/2.json", FORMAT | {"by": i}), range(16)))
    assert won.count(True) == 1
    assert storage.read("log/2.json") == FORMAT | {"by": won.index(True)}


def test_records_on_s3_are_listed_replaced_and_removed(bucket: Any) -> None:
    storage = Storage.open(f"{bucket.uri}/root", bucket.options)
    for name in ("b/2.json", "b/1.json", "bb/1.json"):
        storage.write(name, FORMAT | {"name": name})
    assert [path for path, _ in storage.objects("b/")] == ["b/1.json", "b/2.json"]
    assert storage.folders("") == ["b", "bb"]
    storage.write("b/1.json", FORMAT | {"name": "new"})
    assert storage.read_if_there("b/1.json") == FORMAT | {"name": "new"}
    assert storage.read_if_there("b/3.json") is None
    assert storage.delete_tree("b/") > 0
    storage.remove("b/1.json")
    assert [path for path, _ in storage.objects("")] == ["bb/1.json"]


@pytest.mark.parametrize(
    "key",
    ["aws_secret_access_key", "aws_access_key_id", "aws_session_token", "azure_storage_master_key"],
)
def test_a_key_among_the_storage_options_is_refused_and_not_repeated(
    key: str, config_file: Callable[..., str]
) -> None:
    file = config_file("s3://b/d", storage={"options": {key: "hunter2"}})
    with pytest.raises(
        ConfigError, match=f"{key} is a secret; export it, for example as {key.upper()}"
    ) as bad:
        load([file], [])
    assert "hunter2" not in str(bad.value)

"""Records with a valid sha256 from someone else: any field may be missing, or be of another type."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest
from click.testing import CliRunner
from inline import Inline

from reembed import api as check
from reembed.catalog.lease import UnitAttempt, Worker, is_driven, workers
from reembed.catalog.releases import Catalog, Release
from reembed.catalog.runs import Run, find_runs
from reembed.cli.verbs import cli as reembed_cli
from reembed.config.settings import Config, load
from reembed.encoders import golden, load_encoder
from reembed.engine import attempts
from reembed.errors import IntegrityError, ReembedError
from reembed.evaluation import comparisons
from reembed.lifecycle import complete, verification
from reembed.lifecycle.scratch import JournalKey, JournalRecord, Scratch
from reembed.source import lag
from reembed.source.dataset import Source
from reembed.store.records import SCHEMA_VERSION, encode, from_bytes, to_bytes
from reembed.store.storage import Storage
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild
from reembed.table import provenance
from reembed.table import seal as sealing


@dataclass(frozen=True)
class Root:
    """A root with a live release, its catch-up, a compared candidate and an unfinished run."""

    catalog: Catalog
    config: Config
    file: str
    first: Release
    newer: Release
    candidate: Release
    unfinished: Run

    @property
    def folder(self) -> Path:
        return Path(self.catalog.storage.root)

    def read(self, path: str) -> dict[str, Any]:
        return dict(from_bytes((self.folder / path).read_bytes(), path))


class Stopped(Inline):
    """Ends after one unit."""

    def embed(self, job, units, on_receipt, stop):
        super().embed(job, units[:1], on_receipt, stop)
        raise KeyboardInterrupt


@pytest.fixture
def root(corpus, eval_folder, config_file, quiet) -> Root:
    source = corpus(60)
    file, other = (
        config_file(
            source,
            name=f"{dim}.yaml",
            encoder={"model": f"hashing:{dim}"},
            gate={"queries": eval_folder(source, 24) if dim == 16 else None},
            embed={"unit_documents": 20},
        )
        for dim in (16, 24)
    )
    config, third = load([file], [])[0], load([other], ["encoder.model=hashing:8"])[0]
    catalog = Catalog(Storage.open(config.storage.root), config.alias)
    first = full_rebuild(config, quiet, executor=Inline())
    catalog.append(None, "promote", first)
    queries = f"gate.queries={json.dumps(config.gate.queries)}"
    candidate = full_rebuild(load([other], [queries])[0], quiet, executor=Inline())
    check.compare(load([other], [queries])[0], candidate.id, emit=quiet)
    new = pa.table({"doc_id": ["n"], "title": ["n"], "text": ["new"]})
    lance.write_dataset(new, source, mode="append")
    newer = catch_up(config, first, quiet, executor=Inline())
    with pytest.raises(KeyboardInterrupt):
        full_rebuild(third, quiet, executor=Stopped())
    unfinished = find_runs(catalog.storage)[-1]
    worker = Worker("w", "u", 3, (UnitAttempt("v", 1),), 0, "", "", "", 1, "x")
    unfinished.storage.write(unfinished.path(WORKER), encode(worker))
    attempt = {"schema_version": SCHEMA_VERSION, "driver": "d", "trying": [0, 20], "token": "t"}
    unfinished.storage.write(unfinished.path("attempts/u/0003.json"), attempt)
    verification.verify_release(catalog, first.id, level=2, sample=0, resume=False, stall_s=60)
    lag.note(catalog, first, 1, Source(first.source, ()))
    journal = JournalRecord(KEY, "0" * 32)
    catalog.storage.write(f"runs/{first.id}/verifying.json", encode(journal))
    return Root(catalog, config, file, first, newer, candidate, unfinished)


KEY = JournalKey(1, 1, None, 2, 0)
WORKER = f"workers/{7:032x}.json"
Reader = Callable[[Root], Any]


def readers(r: Root) -> dict[str, Reader]:
    """Path of a record to what reads it: one at least of every kind."""
    storage, first, newer = r.catalog.storage, r.first, r.newer
    pair = f"comparisons/{r.config.alias}/{r.candidate.origin}/{first.origin}"
    plain = Run(storage, first.id)
    model = first.encoder
    sealed = f"runs/{newer.id}/sealed.json"
    unit = f"units/{min(r.unfinished.staged())}.json"
    lease = next(p for p, _ in storage.objects(r.unfinished.path("leases/")))
    found: dict[str, Reader] = {
        "root.json": lambda r: Storage(storage.root).root_id,
        f"releases/{r.config.alias}/{first.id}.json": lambda r: r.catalog.release(first.id),
        f"aliases/{r.config.alias}/00000001.json": lambda r: r.catalog.live(),
        f"results/{first.id}.json": lambda r: plain.result(),
        plain.path("plan.json"): lambda r: plain.plan(),
        plain.path("verify.json"): lambda r: provenance.is_verified(storage, first),
        next(p for p, _ in storage.objects(plain.path("caught-up/"))): lambda r: lag.caught_up(
            r.catalog, first
        ),
        plain.path("golden.json"): lambda r: golden.require(
            storage, first.origin, load_encoder(model)
        ),
        plain.path("verifying.json"): lambda r: Scratch.resumed(plain, KEY, resume=True),
        Run(storage, newer.id).path("plan.json"): lambda r: Run(storage, newer.id).plan(),
        sealed: lambda r: sealing.read_sealed(
            Run(storage, newer.id), newer.table, newer.table_version
        ),
        f"{first.index}/{first.index_sha256}.json": lambda r: complete.require_complete(
            r.catalog, first
        ),
        r.unfinished.path(unit): lambda r: r.unfinished.receipts(),
        r.unfinished.path(WORKER): lambda r: workers(r.unfinished),
        r.unfinished.path("attempts/u/0003.json"): lambda r: attempts._deaths(
            r.unfinished, "u", [3]
        ),
        lease: lambda r: is_driven(r.unfinished),
        f"{pair}/00000001.json": lambda r: comparisons.newest(r.catalog, first, r.candidate),
    }
    return {path: use for path, use in found.items() if storage.read_if_there(path) is not None}


def places(record: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every field, however deep; of a list, only its first item."""
    items = record.items() if isinstance(record, dict) else list(enumerate(record))[:1]
    for key, value in items:
        yield (*at, key)
        if isinstance(value, dict | list):
            yield from places(value, (*at, key))


_OTHER: dict[type, Any] = {
    str: [1], int: "x", float: "x", bool: "no", dict: 7, list: 7, type(None): {"a": [1]},
}  # fmt: skip


def changed(record: dict[str, Any], at: tuple[Any, ...], how: str) -> dict[str, Any]:
    record = copy.deepcopy(record)
    inner: Any = record
    for key in at[:-1]:
        inner = inner[key]
    if how == "missing":
        del inner[at[-1]]
    else:
        inner[at[-1]] = None if how == "null" else _OTHER[type(inner[at[-1]])]
    return record


NEEDED = {
    "root.json": {"root_id", "create_only_at"},
    "releases": {"id", "alias", "space", "table", "source", "gate", "verify", "place"},
    "aliases": {"generation", "token", "previous_token", "release", "grounds", "standing", "at"},
    "results": {"release", "at"},
    "plan.json": {
        "run_id",
        "place",
        "space",
        "encoder",
        "source",
        "units",
        "base",
        "donors",
        "gate",
    },
    "verify.json": {"table_version", "level", "rows", "documents", "differences", "why"},
    "caught-up": {"number", "source"},
    "golden.json": {"device", "path", "versions", "vectors"},
    "verifying.json": {"key", "folder"},
    "sealed.json": {"rows", "documents", "dead_letters", "files"},
    "indexes": {"sha256", "size_bytes", "table", "table_version", "space"},
    "units": {
        "unit",
        "space",
        "columns",
        "rows",
        "documents",
        "dead_letters",
        "fragments",
        "files",
    },
    "workers": {"id", "unit", "attempt", "node", "job", "actor", "pid", "at"},
    "attempts": {"driver", "trying", "token"},
    "leases": {"number", "host", "machine", "pid", "pid_started", "beat", "released"},
    "comparisons": {"verdict", "queries", "gate", "changes", "earlier", "candidate", "live"},
}


def kind_of(path: str) -> str:
    parts = path.split("/")
    return parts[0] if parts[0] != "runs" else parts[2]


def test_no_field_of_a_record_ends_in_a_traceback(root):
    """Each reader alone: a field that it needs is named, and nothing but our errors is raised."""
    silent: dict[str, set[str]] = {}
    named, placeless = set(), set()
    for path, reader in readers(root).items():
        reader(root)
        record, whole = root.read(path), (root.folder / path).read_bytes()
        for at in places(record):
            for how in ("missing", "null", "another type"):
                (root.folder / path).write_bytes(to_bytes(changed(record, at, how)))
                try:
                    reader(root)
                except ReembedError as error:
                    if path in str(error) and str(at[-1]) in str(error):
                        named.add((kind_of(path), how))
                    elif how == "missing" and len(at) == 1:
                        placeless.add((kind_of(path), at[0]))
                else:
                    if how == "missing" and len(at) == 1:
                        silent.setdefault(kind_of(path), set()).add(at[0])
        (root.folder / path).write_bytes(whole)
    assert {kind: silent.get(kind, set()) & needed for kind, needed in NEEDED.items()} == {
        kind: set() for kind in NEEDED
    }
    assert placeless == set()
    kinds = {kind_of(path) for path in readers(root)}
    assert kinds == NEEDED.keys()
    assert {kind for kind, how in named if how == "missing"} == kinds
    assert {kind for kind, how in named if how == "another type"} == kinds


BYTES = {
    "deep": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "not UTF-8": b'{"alias": "\xff\xfe", "id": "\xc3("}',
    "half a surrogate": to_bytes({"a": "x"}).replace(b'"x"', rb'"\ud800"'),
    "a list": b"[1, 2]",
    "a list of pairs": b'[["id", 1], ["alias", 2]]',
    "a number": b"1e999",
    "a long number": b'{"a": ' + b"9" * 5_000 + b"}",
    "nothing": b"",
    "zeros": bytes(1_000),
}


def test_bytes_that_are_not_a_record_are_named(root):
    for path, reader in readers(root).items():
        whole = (root.folder / path).read_bytes()
        for body in BYTES.values():
            (root.folder / path).write_bytes(body)
            with pytest.raises(IntegrityError, match=path):
                reader(root)
        (root.folder / path).write_bytes(whole)


VERBS = (
    ("status",),
    ("history",),
    ("gc",),
    ("verify", "--level", "2", "--resume"),
    ("compare",),
    ("rollback",),
    ("dead-letters",),
    ("search", "x"),
)


def test_no_verb_ends_in_a_traceback(root):
    """On the command line, where every reader meets the rest: one field of each record at a time."""
    for number, path in enumerate(readers(root)):
        if not (root.folder / path).exists():
            continue  # a verification that ended well removed its journal
        whole, record = (root.folder / path).read_bytes(), root.read(path)
        fields = sorted(record)
        hostile = (
            to_bytes(changed(record, (fields[number % len(fields)],), "missing")),
            to_bytes(changed(record, (fields[-1],), "another type")),
            BYTES["deep"],
            BYTES["not UTF-8"],
        )
        (root.folder / path).write_bytes(hostile[number % len(hostile)])
        for verb in VERBS:
            said = CliRunner().invoke(reembed_cli, [*verb, "-c", root.file])
            assert isinstance(said.exception, SystemExit | None), (path, verb, said.exception)
            assert "Traceback" not in said.output
        (root.folder / path).write_bytes(whole)
    assert CliRunner().invoke(reembed_cli, ["status", "-c", root.file]).exit_code == 0


def test_a_record_that_asks_for_more_is_refused(root):
    """A field that no reembed writes is not passed over."""
    path = f"releases/{root.config.alias}/{root.first.id}.json"
    (root.folder / path).write_bytes(to_bytes(root.read(path) | {"trust_remote_code": True}))
    with pytest.raises(IntegrityError, match="trust_remote_code"):
        root.catalog.release(root.first.id)


def test_a_receipt_names_no_file_outside_its_table(root):
    """Lance would look for it where a base path of the manifest leads."""
    (unit,) = root.unfinished.staged()
    path = root.unfinished.path(f"units/{unit}.json")
    record = root.read(path)
    fragment = json.loads(record["fragments"][0])
    fragment["files"][0]["base_id"] = 1
    record["fragments"][0] = json.dumps(fragment)
    (root.folder / path).write_bytes(to_bytes(record))
    with pytest.raises(IntegrityError, match="base_id"):
        root.unfinished.receipts()

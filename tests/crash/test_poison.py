"""A document that makes the model raise, or kills its process: a dead letter, never a lost unit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import lance
import pyarrow as pa
import pytest
from conftest import documents
from crash.forks import search_path
from crash.killed import Outlived, attempt_at

from reembed.catalog.runs import Run
from reembed.engine import attempts
from reembed.errors import RunFailed
from reembed.store.storage import Storage

# Ray workers import this before anything of reembed runs: a model that some text is too much for.
SITECUSTOMIZE = """
import importlib.abc, os, sys

class Poison(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "reembed.engine.pipeline":
            return None
        sys.meta_path.remove(self)
        from reembed.encoders import hashing
        encoder = hashing.HashingEncoder
        plain = encoder.embed
        ids_of = lambda word: set(encoder(_config()).tokenize([word], "document").ids.tolist())
        bad = {{word: ids_of(word) for word in ("zzkillzz", "zzraisezz")}}
        def embed(self, tokens):
            for i in range(len(tokens)):
                ids = set(tokens.ids[tokens.offsets[i]:tokens.offsets[i + 1]].tolist())
                if bad["zzkillzz"] <= ids:
                    os._exit(139)
                if bad["zzraisezz"] <= ids:
                    raise ValueError("this text is too much")
            return plain(self, tokens)
        encoder.embed = embed
        return None

def _config():
    from reembed.config.settings import EncoderConfig
    return EncoderConfig(model="hashing:64")

sys.meta_path.insert(0, Poison())
"""


@pytest.mark.deep
@pytest.mark.ray
@pytest.mark.timeout(300)
def test_poison_documents_become_dead_letters_and_all_others_get_their_vector(
    tmp_path, config_file, cli
):
    rows = documents(128, 0)
    rows[5]["text"] += " zzkillzz"
    rows[70]["text"] += " zzraisezz"
    source = str(tmp_path / "poison.lance")
    lance.write_dataset(pa.Table.from_pylist(rows), source)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITECUSTOMIZE.format())
    file = config_file(source, embed={"max_dead_letters": 2, "unit_documents": 64})
    path = f"{tmp_path / 'site'}{os.pathsep}{search_path()}"
    done = cli.process("run", "-c", file, "--json", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    release = json.loads(done.stdout)
    assert (release["rows"], release["dead_letters"]) == (126, 2)
    storage = Storage.open(str(tmp_path / "root"))
    dead = {
        d.doc_id: d.reason for r in Run(storage, release["id"]).receipts() for d in r.dead_letters
    }
    assert dead == {
        "d00005": "embedding it kills or hangs the process",
        "d00070": "ValueError: this text is too much",
    }
    tried = [p for p, _ in storage.objects(f"runs/{release['id']}/attempts/")]
    # Every attempt is recorded: up to 8 of the unit that kills, and one of its neighbour for each death of the actor.
    assert len(tried) <= 16
    table = lance.dataset(storage.uri(release["table"]), version=release["table_version"])
    assert set(table.to_table(columns=["doc_id"])["doc_id"].to_pylist()) == {
        r["doc_id"] for r in rows
    } - set(dead)


@pytest.mark.parametrize("killers", [{0}, {77}, {999}, {3, 4}, {10, 500, 998}])
def test_the_killing_documents_are_found_in_few_attempts(tmp_path: Path, killers: set[int]):
    run = Run(Storage.open(str(tmp_path)), "docs-0-v1-1")
    attempt, count = None, 0
    while attempt is None:
        attempt = attempt_at(
            run, 1000, lambda tried: bool(killers & set(range(*tried))), Outlived()
        )
        count += 1
    assert attempt.poison == killers
    covered = [r for a, b in attempt.ranges() for r in range(a, b)]
    assert sorted(covered) == sorted(set(range(1000)) - killers)
    assert count <= 3 + 5 * len(killers)


def test_a_unit_that_always_dies_fails_the_run_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = Run(Storage.open(str(tmp_path)), "docs-0-v1-1")
    monkeypatch.setattr(Run, "plan", lambda self: SimpleNamespace(restart="reembed run --fresh"))
    for _ in range(attempts.MAX_ATTEMPTS):
        attempts.begin(run, "u", 10, Outlived())
    with pytest.raises(RunFailed, match="was tried 30 times"):
        attempts.begin(run, "u", 10, Outlived())


def test_a_document_is_not_blamed_for_a_node_that_went_away_twice(tmp_path: Path):
    run = Run(Storage.open(str(tmp_path)), "docs-0-v1-1")
    for _ in range(2):
        assert attempt_at(run, 100, lambda tried: True) is None
    assert attempts.begin(run, "u", 100).poison == frozenset()

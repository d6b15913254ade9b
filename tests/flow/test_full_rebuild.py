from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path

import lance
import lancedb
import numpy as np
import pyarrow as pa
import pytest
from conftest import documents
from flow_tables import rows_of, vectors_of
from inline import Inline
from tiny_models import bert_model

from reembed import faults
from reembed.api import dead_letters
from reembed.catalog.lease import driving
from reembed.catalog.releases import Catalog
from reembed.catalog.runs import Run, find_runs
from reembed.digests import digest as text_hash
from reembed.engine.ray_executor import RayExecutor
from reembed.errors import Conflict, RunFailed, SpaceMismatch, UsageError
from reembed.lifecycle.promote import promote, rollback
from reembed.serving.index import Index
from reembed.store.storage import Storage
from reembed.strategies import preflight
from reembed.strategies.full_rebuild import full_rebuild
from reembed.table import seal as sealing
from reembed.table import write as tables


def catalog_of(config):
    return Catalog(Storage.open(config.storage.root), config.alias)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_every_document_has_one_vector_of_its_text(corpus, make_config, quiet):
    config = make_config(corpus(300), table={"carry": ["title"]})
    release = full_rebuild(config, quiet, executor=RayExecutor())
    table = rows_of(Storage.open(config.storage.root), release)
    expected = {d["doc_id"]: d for d in documents(300, 0)}
    assert table["doc_id"].to_pylist() == sorted(expected)
    for row in table.select(["doc_id", "title", "text_hash", "space"]).to_pylist():
        document = expected[row["doc_id"]]
        assert row["text_hash"] == text_hash(document["text"].encode())
        assert (row["title"], row["space"]) == (document["title"], release.space.id)
    assert np.allclose(np.linalg.norm(vectors_of(table), axis=1), 1, atol=1e-5)
    assert next(s for s in quiet.stages() if s != "begin") == "plan"
    assert quiet.stages()[-1] == "candidate"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_vectors_are_those_of_sentence_transformers(corpus, make_config, quiet, tmp_path):
    from sentence_transformers import SentenceTransformer

    folder = bert_model(
        tmp_path / "bert", seed=3, prompts={"document": "passage: ", "query": "query: "}
    )
    config = make_config(corpus(60), encoder={"model": str(folder)}, table={"dtype": "float16"})
    release = full_rebuild(config, quiet, executor=RayExecutor())
    table = rows_of(Storage.open(config.storage.root), release)
    texts = [d["text"] for d in documents(60, 0)]
    theirs = SentenceTransformer(str(folder)).encode_document(texts, normalize_embeddings=True)
    assert table.schema.field("vector").type.value_type == pa.float16()
    ours = vectors_of(table)
    assert (np.sum(ours * theirs, axis=1) / np.linalg.norm(ours, axis=1)).min() >= 0.9999


def test_lancedb_opens_the_tables_folder_and_filters_on_carried_columns(corpus, make_config, quiet):
    config = make_config(corpus(80), table={"carry": ["title"]})
    release = full_rebuild(config, quiet, executor=Inline())
    table = lancedb.connect(f"{config.storage.root}/tables").open_table(Path(release.table).stem)
    title = documents(80, 0)[7]["title"]
    query = vectors_of(rows_of(Storage.open(config.storage.root), release))[7]
    hits = table.search(query).where(f"title = '{title}'").limit(1).to_list()
    assert [h["doc_id"] for h in hits] == ["d00007"]


def test_deleted_and_filtered_documents_have_no_vector(corpus, make_config, quiet):
    source = corpus(300)
    lance.dataset(source).delete("doc_id in ('d00003', 'd00150')")
    config = make_config(source, source={"uri": source, "filter": "doc_id < 'd00200'"})
    release = full_rebuild(config, quiet, executor=Inline())
    ids = rows_of(Storage.open(config.storage.root), release)["doc_id"].to_pylist()
    assert ids == [f"d{i:05d}" for i in range(200) if i not in (3, 150)]


def test_integer_ids_and_a_text_template(tmp_path, make_config, quiet):
    uri = str(tmp_path / "ints.lance")
    rows = {"n": list(range(50)), "a": [f"one {i}" for i in range(50)], "b": ["two", None] * 25}
    lance.write_dataset(pa.table(rows), uri)
    config = make_config(uri, source={"uri": uri, "id_column": "n", "text": "{a} / {b}"})
    table = rows_of(
        Storage.open(config.storage.root), full_rebuild(config, quiet, executor=Inline())
    )
    assert table["doc_id"].to_pylist() == list(range(50))
    assert table["text_hash"].to_pylist()[:2] == [text_hash(b"one 0 / two"), text_hash(b"one 1 / ")]


@pytest.fixture
def texts_not_looked_at(monkeypatch):
    """Documents without text are met by the worker alone, not before the run."""
    monkeypatch.setattr(preflight, "require_texts", lambda *_: None)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_documents_without_text_are_dead_letters_and_a_limit_stops_the_run(
    tmp_path, make_config, quiet, texts_not_looked_at
):
    uri = str(tmp_path / "nulls.lance")
    texts = [None if i in (4, 9) else f"text {i}" for i in range(40)]
    lance.write_dataset(pa.table({"doc_id": [f"d{i}" for i in range(40)], "text": texts}), uri)
    with pytest.raises(RunFailed) as failure:
        full_rebuild(make_config(uri), quiet, executor=RayExecutor())
    assert "2 of 40 documents could not be embedded, 0 are allowed" in failure.value.what
    assert "'d4': its text is null" in failure.value.why
    assert "embed.max_dead_letters=2" in failure.value.fix
    config = make_config(uri)
    (run,) = find_runs(catalog_of(config).storage)
    null = {f"d{i}": "its text is null" for i in (4, 9)}
    listed = dead_letters(config, run.id)
    assert (listed.of, listed.finished) == (run.id, False)
    assert {d.doc_id: d.reason for d in listed.dead_letters} == null
    release = full_rebuild(
        make_config(uri, embed={"unit_documents": 64, "max_dead_letters": 2}),
        quiet,
        executor=RayExecutor(),
    )
    assert (release.rows, release.dead_letters) == (38, 2)
    listed = dead_letters(config, None)
    assert (listed.of, len(listed.dead_letters), listed.finished) == (release.id, 2, True)
    assert {d.doc_id: d.reason for d in listed.dead_letters} == null
    with pytest.raises(UsageError, match="no release"):
        dead_letters(config, "docs-00000000-v1-1")
    assert release.verify.differences["missing"].count == 0


def test_the_same_command_again_changes_nothing_and_fresh_starts_over(corpus, make_config, quiet):
    config = make_config(corpus(150))
    first = full_rebuild(config, quiet, executor=Inline())
    assert full_rebuild(config, quiet, executor=Inline()) == first
    assert quiet.stages()[-1] == "already"
    again = full_rebuild(config, quiet, fresh=True, executor=Inline())
    assert again.id != first.id
    storage = Storage.open(config.storage.root)
    assert rows_of(storage, again).equals(rows_of(storage, first))


def test_a_new_source_version_is_a_new_run_and_the_old_release_keeps_its_version(
    corpus, make_config, quiet
):
    source = corpus(100)
    config = make_config(source)
    first = full_rebuild(config, quiet, executor=Inline())
    lance.write_dataset(pa.Table.from_pylist(documents(130, 0)[100:]), source, mode="append")
    second = full_rebuild(config, quiet, executor=Inline())
    storage = Storage.open(config.storage.root)
    assert (first.rows, second.rows) == (100, 130)
    assert rows_of(storage, first).num_rows == 100
    assert first.table == second.table


def test_a_dataset_made_anew_in_the_same_place_is_not_taken_for_the_old_one(
    tmp_path, make_config, quiet
):
    import shutil

    uri = str(tmp_path / "anew.lance")
    lance.write_dataset(pa.Table.from_pylist(documents(30, 1)), uri)
    config = make_config(uri)
    first = full_rebuild(config, quiet, executor=Inline())
    shutil.rmtree(uri)
    lance.write_dataset(pa.Table.from_pylist(documents(30, 2)), uri)
    second = full_rebuild(config, quiet, executor=Inline())
    assert second.id != first.id
    table = rows_of(Storage.open(config.storage.root), second)
    assert table["text_hash"][0].as_py() == text_hash(documents(30, 2)[0]["text"].encode())


def test_the_text_itself_and_columns_named_like_our_own_can_be_carried(
    tmp_path, make_config, quiet
):
    uri = str(tmp_path / "names.lance")
    rows = [
        {**d, "tokens": i, "error": None if i else "e", "unit": "u"}
        for i, d in enumerate(documents(20, 0))
    ]
    lance.write_dataset(pa.Table.from_pylist(rows), uri)
    config = make_config(uri, table={"carry": ["text", "tokens", "error", "unit"]})
    table = rows_of(
        Storage.open(config.storage.root), full_rebuild(config, quiet, executor=Inline())
    )
    assert table.select(["text", "tokens", "error"]).to_pylist()[0] == {
        "text": rows[0]["text"],
        "tokens": 0,
        "error": "e",
    }


def test_an_interrupted_run_resumes_after_another_run_committed_to_the_same_table(
    tmp_path, make_config, quiet, corpus, texts_not_looked_at
):
    source = corpus(60)
    lance.dataset(source).update({"text": "NULL"}, where="doc_id = 'd00001'")
    config = make_config(source)
    with pytest.raises(RunFailed):
        full_rebuild(config, quiet, executor=Inline())
    limits = {"unit_documents": 64, "max_dead_letters": 1}
    other = full_rebuild(
        make_config(source, embed=limits, table={"carry": ["title"]}), quiet, executor=Inline()
    )
    mine = full_rebuild(make_config(source, embed=limits), quiet, executor=Inline())
    assert other.table == mine.table
    storage = Storage.open(config.storage.root)
    assert rows_of(storage, other).drop_columns(["title"]).equals(rows_of(storage, mine))


def test_many_documents_without_text_are_no_broken_model(tmp_path, make_config, quiet):
    uri = str(tmp_path / "mostly.lance")
    texts = [None if i % 4 else f"text {i}" for i in range(40)]
    lance.write_dataset(pa.table({"doc_id": [f"d{i}" for i in range(40)], "text": texts}), uri)
    release = full_rebuild(
        make_config(uri, embed={"max_dead_letters": 30}), quiet, executor=Inline()
    )
    assert (release.rows, release.dead_letters) == (10, 30)


def test_two_drivers_of_one_plan_are_refused(corpus, make_config, quiet):
    config = make_config(corpus(100))
    release = full_rebuild(config, quiet, executor=Inline())
    run = Run(Storage.open(config.storage.root), release.id)
    with driving(run), pytest.raises(Conflict, match="already being driven by process"):
        full_rebuild(config, quiet, executor=Inline())


def test_a_model_edited_between_two_attempts_is_refused(
    corpus, make_config, quiet, tmp_path, texts_not_looked_at
):
    folder = bert_model(tmp_path / "model", seed=1)
    uri = corpus(30)
    lance.dataset(uri).update({"text": "NULL"}, where="doc_id = 'd00001'")
    config = make_config(uri, encoder={"model": str(folder)})
    with pytest.raises(RunFailed):
        full_rebuild(config, quiet, executor=Inline())
    bert_model(tmp_path / "model", seed=2)
    with pytest.raises(SpaceMismatch, match="was planned with another model"):
        full_rebuild(config, quiet, executor=Inline())


def test_receipts_prove_every_file_by_size_and_digest(corpus, make_config, quiet):
    import hashlib

    config = make_config(corpus(150))
    release = full_rebuild(config, quiet, executor=Inline())
    storage = Storage.open(config.storage.root)
    receipts = Run(storage, release.id).receipts()
    assert sum(r.rows for r in receipts) == 150
    for receipt in receipts:
        for name, proof in receipt.files.items():
            body = storage.read_bytes(f"{release.table}/data/{name}")
            assert (len(body), hashlib.sha256(body).hexdigest()) == (
                proof.size_bytes,
                proof.sha256,
            )


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_gc_removes_what_no_release_needs_and_rollback_to_it_is_refused(
    corpus, make_config, quiet, cli, config_file
):
    source = corpus(60)
    ids = []
    for dim in (16, 24, 32):
        config = make_config(source, encoder={"model": f"hashing:{dim}"}, storage={"keep": 2})
        release = full_rebuild(config, quiet, executor=RayExecutor())
        promote(
            catalog_of(config), release.id, **{f"{'force' if ids else 'initial'}_reason": "test"}
        )
        ids.append(release.id)
    file = config_file(source, encoder={"model": "hashing:32"}, storage={"keep": 2})
    storage = Storage.open(config.storage.root)
    assert len(lance.dataset(source).tags.list()) == 3
    listed = cli("gc", "-c", file)
    assert [r["release"] for r in listed["remove"]] == ids[:1]
    assert {k["release"] for k in listed["keep"]} == set(ids[1:])
    assert any(True for _ in storage.objects(f"indexes/{ids[0]}/"))
    assert cli("gc", "-c", file, "--yes")["removed"] == ids[:1]
    gone = catalog_of(config).release(ids[0])
    assert not list(storage.objects(f"indexes/{ids[0]}/"))
    assert not list(storage.objects(f"{gone.table}/"))
    pinned = [
        t.removeprefix("reembed-").rsplit("-", 1)[0] for t in lance.dataset(source).tags.list()
    ]
    assert sorted(pinned) == sorted(ids[1:])
    assert "removed by gc" in cli("rollback", "-c", file, "--to", ids[0], code=2)["what"]
    assert cli("gc", "-c", file)["remove"] == []
    assert cli("search", "-c", file, "anything", "-k", "3")["release"] == ids[2]
    assert cli("rollback", "-c", file)["to"] == ids[1]
    assert cli("search", "-c", file, "anything", "-k", "3")["release"] == ids[1]


def test_two_roots_pin_one_source_apart(corpus, make_config, quiet, tmp_path):
    source = corpus(30)
    for root in ("a", "b"):
        full_rebuild(
            make_config(source, storage={"root": str(tmp_path / root)}), quiet, executor=Inline()
        )
    assert len(lance.dataset(source).tags.list()) == 2


def test_a_serving_process_follows_the_alias_as_a_whole(corpus, make_config, quiet):
    source = corpus(60)
    old = make_config(source, encoder={"model": "hashing:32"}, table={"carry": ["title"]})
    new = make_config(source, encoder={"model": "hashing:64:other"}, table={"carry": ["title"]})
    catalog = catalog_of(old)
    first = full_rebuild(old, quiet, executor=Inline())
    promote(catalog, first.id, initial_reason="test")
    alias = Index(catalog)
    wanted = documents(60, 0)[11]
    (hits,) = alias.search([wanted["text"]], k=3, columns=["title"])
    assert (hits[0].doc_id, hits[0].columns) == (wanted["doc_id"], {"title": wanted["title"]})
    second = full_rebuild(new, quiet, executor=Inline())
    promote(catalog, second.id, force_reason="test")
    assert alias.current.release.id == first.id
    assert alias.search([wanted["text"]], k=1)[0][0].doc_id == wanted["doc_id"]
    assert alias.refresh()
    assert not alias.refresh()
    assert (alias.current.release.id, alias.current.encoder.dim) == (second.id, 64)
    assert alias.search([wanted["text"]], k=1)[0][0].doc_id == wanted["doc_id"]
    rollback(catalog)
    assert alias.refresh()
    assert (alias.current.release.id, alias.current.index.dim) == (first.id, 32)


def test_of_two_commits_of_one_run_the_tagged_one_counts(corpus, make_config, quiet):
    """A driver that was paused inside its commit, and another that resumed meanwhile."""
    config = make_config(corpus(40))
    release = full_rebuild(config, quiet, executor=Inline())
    storage = Storage.open(config.storage.root)
    run = Run(storage, release.id)
    plan = run.plan()
    columns = tables.schema(plan.space, pa.string(), [])
    late = sealing._commit(
        run,
        dataclasses.replace(plan, base_version=release.table_version),
        columns,
        run.receipts(),
        sealing.read_sealed(run, plan.table, release.table_version),
    )
    assert late == release.table_version + 1
    again = sealing.seal(run, plan, columns, max_dead_letters=0)
    assert (again.version, again.content.rows) == (release.table_version, 40)


def test_gc_keeps_the_table_of_an_unfinished_run(make_config, quiet, corpus, monkeypatch):
    from reembed.lifecycle import gc

    def stopped(point):
        if point == "run.after_plan":
            raise KeyboardInterrupt

    source = corpus(60)
    config = make_config(source)
    full_rebuild(config, quiet, executor=Inline())
    lance.dataset(source).update({"text": "'another'"}, where="doc_id = 'd00001'")
    with monkeypatch.context() as patch:
        patch.setattr(faults, "hook", stopped)
        with pytest.raises(KeyboardInterrupt):
            full_rebuild(config, quiet, executor=Inline())
    storage = Storage.open(config.storage.root)
    planned = gc.plan(catalog_of(config), keep=1)
    assert len(planned.held_runs) == 1
    assert len(find_runs(storage)) == 2


def test_rollback_goes_down_the_line_and_never_back_and_forth(corpus, make_config, quiet):
    source = corpus(40)
    ids = []
    for dim in (16, 24, 32):
        config = make_config(source, encoder={"model": f"hashing:{dim}"})
        reason = {f"{'force' if ids else 'initial'}_reason": "test"}
        ids.append(full_rebuild(config, quiet, executor=Inline()).id)
        promote(catalog_of(config), ids[-1], **reason)
    catalog = catalog_of(config)
    assert [rollback(catalog).release.id for _ in range(2)] == [ids[1], ids[0]]
    with pytest.raises(Exception, match="nothing to roll back to"):
        rollback(catalog)
    log = catalog.log()
    assert [r.generation for r in log] == [1, 2, 3, 4, 5]
    assert all(b.previous_token == a.token for a, b in pairwise(log))


def test_the_run_folder_says_what_happened(corpus, make_config, quiet):
    config = make_config(corpus(100))
    release = full_rebuild(config, quiet, executor=Inline())
    storage = Storage.open(config.storage.root)
    lines = storage.read_bytes(f"runs/{release.id}/events.jsonl").decode().splitlines()
    stages = [json.loads(line)["stage"] for line in lines]
    steps = ["embedded", "table", "index", "verify", "candidate"]
    assert stages == ["plan", "note", "ray", *steps]
    assert b"unit_documents: 64" in storage.read_bytes(f"runs/{release.id}/config.yaml")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_tokenizing_and_embedding_are_two_stages_that_overlap(
    corpus, make_config, quiet, monkeypatch
):
    """Ray fuses stages of equal resources; then the model would wait for its own tokenizer."""
    import ray.data

    seen = []
    iter_rows = ray.data.Dataset.iter_rows

    def spy(dataset):
        yield from iter_rows(dataset)
        seen.append(dataset.stats())

    monkeypatch.setattr(ray.data.Dataset, "iter_rows", spy)
    full_rebuild(
        make_config(corpus(200), embed={"cpus_per_actor": 1}), quiet, executor=RayExecutor()
    )
    operators = [
        line.split(":")[0] for line in seen[0].splitlines() if line.startswith("Operator ")
    ]
    assert len(operators) == 3, operators
    names = [o.split(maxsplit=2)[2] for o in operators]
    assert names == ["Read_Units", "MapBatches(_Embedder)", "MapBatches(_write)"]

"""One unit on its own: device memory, broken models, and replicas that do not sing the same."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import lance
import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import documents
from tiny_models import bert_model

from reembed import encoders
from reembed.catalog.lease import workers
from reembed.catalog.lines import Place
from reembed.catalog.plan import EmbedRange, Plan
from reembed.catalog.runs import Run
from reembed.config.gate import FrozenGate
from reembed.config.settings import Config, EncoderConfig, IndexConfig
from reembed.encoders.base import Embedded, EncoderStats
from reembed.encoders.hashing import HashingEncoder
from reembed.encoders.local.sentence import SentenceEncoder
from reembed.engine import attempts
from reembed.engine import worker as units
from reembed.engine.documents import read, tokenized, tokenizer_of, tokens_of
from reembed.engine.executor import EmbedJob
from reembed.engine.turns import ModelThread
from reembed.errors import IntegrityError, RunFailed, SpaceMismatch
from reembed.source.dataset import Source
from reembed.store.storage import Storage
from reembed.table import write as table


@pytest.fixture
def job(tmp_path):
    """job(model="hashing:16", n=40) -> (job, tokenized documents of its only unit)."""

    def make(model: str = "hashing:16", n: int = 40):
        uri = str(tmp_path / f"s{n}.lance")
        lance.write_dataset(pa.Table.from_pylist(documents(n, 0)), uri, mode="overwrite")
        config = Config(
            alias="a",
            source={"uri": uri},
            encoder={"model": model},
            storage={"root": str(tmp_path / "root")},
        )
        storage, source = Storage.open(config.storage.root), Source.open(config)
        space = encoders.describe(config.encoder, "float32")
        columns = table.schema(space, *source.schema())
        path = f"tables/a-{space.id}.lance"
        version = table.ensure_table(storage, path, columns)
        fields = {"source": source.ref, "table": path, "base_version": version}
        rest = {
            "gate": FrozenGate(),
            "index": IndexConfig(),
            "rows": n,
            "documents": n,
            "unit_documents": n,
            "created_at": "",
            "place": Place("s", "r", 0, 1),
            "encoder": config.encoder,
        }
        unit = EmbedRange("u", (0,), 0, n, n)
        plan = Plan(
            kind="rebuild", run_id="r", alias="a", space=space, units=[unit], **fields, **rest
        )
        made = EmbedJob(
            Run(storage, "a-0-v1-1"), plan, source, config.encoder, config.embed, columns
        )
        texts = tokenized(read(made, unit), encoders.load_tokenizer(config.encoder))
        return made, texts

    return make


def test_too_large_a_batch_is_halved_for_good_and_no_row_is_lost(job, tmp_path, monkeypatch):
    made, texts = job(str(bert_model(tmp_path / "bert", seed=1)))
    whole = units.UnitEmbedder(made).embed("u", texts)
    plain, batches = SentenceEncoder._forward, []

    def forward(self, features):
        rows, width = features["input_ids"].shape
        if rows * width > 200:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        batches.append(rows)
        return plain(self, features)

    embedder = units.UnitEmbedder(made)
    monkeypatch.setattr(SentenceEncoder, "_forward", forward)
    halved = embedder.embed("v", texts)
    assert halved["reembed.error"].null_count == 40
    ours, theirs = halved["vector"].to_pylist(), whole["vector"].to_pylist()
    assert np.allclose(ours, theirs, atol=1e-5)
    assert embedder._encoder.batch_tokens < made.embed.batch_tokens
    remembered = embedder._encoder.batch_tokens
    embedder.embed("w", texts)
    assert embedder._encoder.batch_tokens == remembered
    assert units.stats_of(halved).batch_tokens == remembered


def test_a_text_that_alone_is_too_much_for_the_device_is_a_dead_letter(job, tmp_path, monkeypatch):
    made, texts = job(str(bert_model(tmp_path / "bert", seed=1)))
    heavy = texts["reembed.tokens"].to_pylist()[3]
    plain = SentenceEncoder._forward

    def forward(self, features):
        ids = features["input_ids"].flatten().tolist()
        if any(ids[i : i + len(heavy)] == heavy for i in range(len(ids))):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, features)

    embedder = units.UnitEmbedder(made)
    monkeypatch.setattr(SentenceEncoder, "_forward", forward)
    errors = embedder.embed("u", texts)["reembed.error"].to_pylist()
    assert "out of memory" in errors[3]
    assert sum(e is not None for e in errors) == 1


@pytest.mark.parametrize(
    "broken",
    [
        torch.AcceleratorError("an illegal memory access was encountered"),
        RuntimeError("CUDA error: unspecified launch failure"),
    ],
    ids=["typed", "plain"],
)
@pytest.mark.parametrize("rows", [3, 40])
def test_a_device_that_breaks_makes_no_document_a_dead_letter(
    job, tmp_path, monkeypatch, broken, rows
):
    made, texts = job(str(bert_model(tmp_path / "bert", seed=1)))
    embed = made.embed.model_copy(update={"max_dead_letters": 40})
    embedder = units.UnitEmbedder(dataclasses.replace(made, embed=embed))

    def forward(self, features):
        raise broken

    monkeypatch.setattr(SentenceEncoder, "_forward", forward)
    with pytest.raises(type(broken)) as failure:
        embedder.embed("u", texts.slice(0, rows))
    assert failure.value is broken
    assert not workers(made.run), "the worker did not die: no document is suspected"


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda v: np.repeat(v[:1], len(v), axis=0), "got the same vector"),
        (lambda v: v * 3, "could not be embedded"),
        (
            lambda v: np.where(np.arange(len(v))[:, None] % 3 > 0, np.nan, v),
            "could not be embedded",
        ),
    ],
    ids=["constant", "long", "nan"],
)
def test_a_model_that_is_broken_stops_the_run(job, monkeypatch, broken, said):
    made, texts = job()
    embedder = units.UnitEmbedder(made)
    plain = HashingEncoder.embed
    monkeypatch.setattr(HashingEncoder, "embed", lambda self, tokens: broken(plain(self, tokens)))
    with pytest.raises(RunFailed) as failure:
        embedder.embed("u", texts)
    assert said in failure.value.what


def test_rows_of_one_document_that_fail_are_one_failure(job, monkeypatch):
    """Most rows fail, and they are those of one document among many."""
    made, texts = job()
    bad = texts.num_rows * 3 // 4
    names = ["d0"] * bad + [f"e{n}" for n in range(texts.num_rows - bad)]
    at = texts.schema.get_field_index("doc_id")
    texts = texts.set_column(at, "doc_id", pa.chunked_array([names]))
    plain = HashingEncoder.embed

    def embed(self, tokens):
        vectors = plain(self, tokens)
        vectors[:bad] = np.nan
        return vectors

    monkeypatch.setattr(HashingEncoder, "embed", embed)
    errors = units.UnitEmbedder(made).embed("u", texts)["reembed.error"]
    assert len(errors) - errors.null_count == bad


def test_a_vector_of_another_length_is_a_dead_letter_where_unit_length_is_promised(
    job, monkeypatch
):
    made, texts = job()
    plain = HashingEncoder.embed

    def embed(self, tokens):
        vectors = plain(self, tokens)
        vectors[3] *= 1.5
        return vectors

    embedder = units.UnitEmbedder(made)
    monkeypatch.setattr(HashingEncoder, "embed", embed)
    errors = embedder.embed("u", texts)["reembed.error"].to_pylist()
    assert errors[3] == "its vector has length 1.500, not 1"
    assert sum(e is not None for e in errors) == 1


def test_a_replica_that_makes_other_vectors_than_the_first_does_not_start(job, monkeypatch):
    made, _ = job()
    units.UnitEmbedder(made)
    units.UnitEmbedder(made)
    plain = HashingEncoder.embed

    def other(self, tokens):
        return np.ascontiguousarray(plain(self, tokens)[:, ::-1])

    monkeypatch.setattr(HashingEncoder, "embed", other)
    with pytest.raises(SpaceMismatch, match="produces different vectors"):
        units.UnitEmbedder(made)
    another = dataclasses.replace(made.plan, place=Place("s", "another", 0, 1))
    units.UnitEmbedder(dataclasses.replace(made, plan=another))


@pytest.mark.parametrize(("model", "stored"), [("bert", "uint16"), ("hashing:16", "int32")])
def test_token_ids_travel_in_as_few_bytes_as_hold_them(job, tmp_path, model, stored):
    _, texts = job(str(bert_model(tmp_path / "bert")) if model == "bert" else model)
    column = texts["reembed.tokens"].combine_chunks()
    assert str(column.type.value_type) == stored
    tokens = tokens_of(texts)
    assert tokens.ids.dtype == np.int32
    assert tokens.lengths.tolist() == [len(row) for row in column.to_pylist()]


def test_the_length_of_the_prompt_travels_with_the_tokens(job, monkeypatch):
    made, _ = job()
    tokenizer = encoders.load_tokenizer(made.encoder)
    plain = type(tokenizer).tokenize
    monkeypatch.setattr(
        type(tokenizer),
        "tokenize",
        lambda *given: dataclasses.replace(plain(*given), prompt_length=3),
    )
    tokens = tokenized(read(made, made.plan.units[0]), tokenizer)
    assert tokens_of(tokens).prompt_length == 3
    with pytest.raises(KeyError, match="prompt"):
        tokens_of(tokens.replace_schema_metadata({"other": "1"}))
    with pytest.raises(IntegrityError, match="length: Field required"):
        tokens_of(tokens.replace_schema_metadata({"reembed.prompt": "{}"}))


def test_an_actor_that_tokenizes_gives_the_same_vectors(job, tmp_path):
    made, texts = job(str(bert_model(tmp_path / "bert")))
    embedder = units.UnitEmbedder(made)
    apart = embedder.embed("u", texts)
    within = embedder.embed("v", read(made, made.plan.units[0]))
    assert within["vector"].equals(apart["vector"])
    assert within["text_hash"].equals(apart["text_hash"])


def test_a_unit_says_how_it_was_embedded(job, tmp_path):
    made, texts = job(str(bert_model(tmp_path / "bert")))
    said = units.stats_of(units.UnitEmbedder(made).embed("u", texts))
    assert said.path == "packed float32"
    assert said.model_tokens <= said.tokens  # equal texts once
    assert said.computed_tokens < said.model_tokens + 16 * 8
    assert said.flop > 0
    assert said.peak_flops > 0


@pytest.mark.parametrize("change", [{"tokens": "many"}, {"unknown": 1}])
def test_stats_that_are_not_as_a_worker_writes_them_are_refused(job, change):
    made, texts = job()
    done = units.UnitEmbedder(made).embed("u", texts)
    said = json.loads(done.schema.metadata[b"reembed.stats"]) | change
    with pytest.raises(IntegrityError, match=next(iter(change))):
        units.stats_of(done.replace_schema_metadata({"reembed.stats": json.dumps(said)}))


def test_null_texts_between_others_do_not_shift_them(job, monkeypatch):
    made, _ = job()
    source = made.source.read(made.plan.units[0])
    texts = source["reembed.text"].to_pylist()
    texts[0] = texts[7] = texts[-1] = None
    holes = source.set_column(
        source.column_names.index("reembed.text"),
        "reembed.text",
        pa.array(texts, source["reembed.text"].type),
    )
    found = []
    for name, held in (("u", source), ("v", holes)):
        monkeypatch.setattr(Source, "read", lambda self, unit, held=held: held)
        embedder = units.UnitEmbedder(made)
        found.append(embedder.embed(name, read(made, made.plan.units[0])))
    for row, text in enumerate(texts):
        if text is None:
            assert found[1]["reembed.error"][row].as_py() == "its text is null"
        else:
            assert found[1]["vector"][row].equals(found[0]["vector"][row])


def test_a_node_with_another_tokenizer_tokenizes_nothing(job, tmp_path):
    made, _ = job(str(bert_model(tmp_path / "bert", seed=1)))
    planned = made.plan.space.tokenizer_sha256
    tokenizer_of(made.encoder, planned)
    tokenizer_of.cache_clear()
    file = tmp_path / "bert" / "tokenizer.json"
    file.write_text(file.read_text().replace('"zz"', '"zzz"'))
    with pytest.raises(SpaceMismatch, match="another tokenizer") as refused:
        tokenizer_of(made.encoder, planned)
    assert "every node needs the same model folder" in refused.value.fix


def test_a_replica_that_goes_another_way_than_the_first_says_so(job, tmp_path, monkeypatch):
    made, texts = job(str(bert_model(tmp_path / "bert", seed=1)))
    first = units.UnitEmbedder(made).embed("u", texts)
    assert "first replica" not in units.stats_of(first).notes
    monkeypatch.setattr(SentenceEncoder, "path", "packed bfloat16")
    other = units.UnitEmbedder(made).embed("v", texts)
    said = units.stats_of(other).notes
    assert "first replica computed by packed float32, this one by packed bfloat16" in said


@pytest.mark.parametrize("gpus", [0.25, 0.5])
def test_replicas_that_share_a_gpu_share_its_peak(job, gpus):
    made, _ = job()
    shared = dataclasses.replace(made, embed=made.embed.model_copy(update={"gpus_per_actor": gpus}))
    embedder = units.UnitEmbedder(shared)
    assert embedder._share("cpu") == 1
    assert embedder._share("cuda") == embedder._share("cuda:1") == gpus


def test_no_error_of_the_reading_thread_goes_unheard():
    """Ray Data raises more than RayErrors: its own patience ends with a plain Exception."""
    from ray.data.exceptions import ExecutionTimeoutError

    from reembed.engine.pipeline import _receipts

    class Ends:
        def iter_rows(self):
            yield {"receipt": "{}"}
            raise ExecutionTimeoutError("no progress")

    receipts = _receipts(Ends(), lambda: None)
    assert next(receipts) == "{}"
    with pytest.raises(ExecutionTimeoutError):
        next(receipts)


def test_documents_that_failed_already_are_not_given_to_the_model(job, monkeypatch):
    made, _ = job()
    documents = read(made, made.plan.units[0])
    errors = [None] * 40
    errors[1] = errors[4] = "failed before"
    column = documents.column_names.index("reembed.error")
    documents = documents.set_column(column, "reembed.error", pa.array(errors, pa.string()))
    embedder, given, honest = units.UnitEmbedder(made), [], HashingEncoder.embed_documents
    texts = documents["reembed.text"].to_pylist()

    def embed(self, some):
        given.extend(some)
        return honest(self, some)

    monkeypatch.setattr(HashingEncoder, "embed_documents", embed)
    found = embedder.embed("u", documents)["reembed.error"].to_pylist()
    assert found == errors
    assert len(given) == 38
    assert not {texts[1].decode(), texts[4].decode()} & set(given)


def test_time_of_a_unit_is_its_own_whatever_units_came_before(job, monkeypatch):
    made, texts = job()
    embedder = units.UnitEmbedder(made)
    honest = HashingEncoder.embed

    def embed(self, tokens):
        time.sleep(0.2 if len(tokens) == 40 else 0.05)
        return honest(self, tokens)

    monkeypatch.setattr(HashingEncoder, "embed", embed)
    for unit, part, least in (("u", texts, 0.2), ("v", texts.slice(0, 3), 0.05), ("w", texts, 0.2)):
        said = units.stats_of(embedder.embed(unit, part))
        assert least <= said.model_s <= said.embed_s


def test_replicas_at_work_at_one_time_are_told_apart(job, monkeypatch):
    made, texts = job()
    one, other = units.UnitEmbedder(made), units.UnitEmbedder(made)
    seen = []
    honest = HashingEncoder.embed

    def embed(self, tokens):
        if not seen:
            seen.append("first")
            other.embed("v", texts.slice(0, 5))
            seen.append({w.unit for w in workers(made.run)})
        elif seen == ["first"]:
            seen.append({w.unit for w in workers(made.run)})
        return honest(self, tokens)

    monkeypatch.setattr(HashingEncoder, "embed", embed)
    one.embed("u", texts)
    assert seen == ["first", {"u", "v"}, {"u"}]
    assert not workers(made.run)


def test_a_model_that_makes_vectors_of_another_size_than_it_describes_does_not_start(
    job, monkeypatch
):
    made, _ = job("hashing:16")
    other = HashingEncoder(EncoderConfig(model="hashing:24"))
    monkeypatch.setattr(units.encoders, "load_encoder", lambda *a, **k: other)
    with pytest.raises(SpaceMismatch) as refused:
        units.UnitEmbedder(made)
    assert refused.value.what == "hashing:16 produces vectors of 24 dimensions"


@pytest.mark.parametrize(("cores", "parallel"), [(1, "false"), (2, "true")])
def test_a_replica_tokenizes_on_as_many_cores_as_it_has(job, monkeypatch, cores, parallel):
    made, _ = job()
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    embed = made.embed.model_copy(update={"cpus_per_actor": cores})
    units.UnitEmbedder(dataclasses.replace(made, embed=embed))
    assert os.environ["TOKENIZERS_PARALLELISM"] == parallel
    assert os.environ["RAYON_NUM_THREADS"] == str(cores)


def test_seconds_of_the_model_are_those_of_this_unit_alone(job, monkeypatch):
    made, texts = job()
    embedder, plain = units.UnitEmbedder(made), HashingEncoder.embed

    def slow(self, tokens):
        time.sleep(0.05)
        return plain(self, tokens)

    monkeypatch.setattr(HashingEncoder, "embed", slow)
    for unit in ("u", "v", "w"):
        stats = units.stats_of(embedder.embed(unit, texts))
        assert 0.05 <= stats.model_s <= stats.embed_s


def test_every_document_that_kills_is_a_dead_letter_that_says_so(job, monkeypatch):
    made, texts = job()
    embedder, begin = units.UnitEmbedder(made), attempts.begin

    def fourth(run, unit, rows, host, driver):
        return dataclasses.replace(
            begin(run, unit, rows, host, driver),
            poison=frozenset({3, 7}),
            _ranges=((0, 3), (4, 7), (8, rows)),
        )

    monkeypatch.setattr(attempts, "begin", fourth)
    found = embedder.embed("u", texts)
    errors = found["reembed.error"].to_pylist()
    assert {n for n, e in enumerate(errors) if e} == {3, 7}
    assert errors[3] == errors[7] == "embedding it kills or hangs the process"


def test_only_the_driver_that_was_asked_to_end_drains(job):
    made, _ = job()
    other = dataclasses.replace(made, token="another start")
    assert not made.is_draining
    made.drain()
    assert made.is_draining
    assert not other.is_draining


def test_what_a_unit_took_counts_all_of_its_parts():
    """A unit is embedded in parts where its provider was busy in between."""
    rows = pa.table({units.ERROR: pa.array([None, None], pa.string())})
    unit = units._Unit.begin(rows, 1)
    vector = np.ones((1, 1), np.float32)
    for row in range(2):
        part = Embedded(vector, stats=EncoderStats(tokens=3, flop=1.5))
        unit.take(np.array([row]), part)
    assert (unit.stats.tokens, unit.stats.flop) == (6, 3.0)
    assert not len(unit.todo)


def test_the_model_goes_on_while_records_of_other_units_are_written(job, monkeypatch):
    """Once the next unit is recorded the store takes no record until the model is at it."""
    made, texts = job()
    replica = units.UnitEmbedder(made, turns=ModelThread())
    plain_embed, plain_write = HashingEncoder.embed, Storage.write
    taken, slow_store, release = [], threading.Event(), threading.Event()

    def embed(self, tokens):
        if len(tokens) == 40:  # not the texts that models are compared by
            taken.append(threading.get_ident())
        if len(taken) == 1:
            wait_until(lambda: [w.following for w in workers(made.run)] != [()])
            slow_store.set()
        if len(taken) == 2:
            release.set()
        return plain_embed(self, tokens)

    def write(storage, path, record):
        if slow_store.is_set() and "/workers/" in path:
            assert release.wait(30), "the model waited for a record"
        plain_write(storage, path, record)

    monkeypatch.setattr(HashingEncoder, "embed", embed)
    monkeypatch.setattr(Storage, "write", write)
    with ThreadPoolExecutor(2) as pool:
        done = [pool.submit(replica.embed, unit, texts) for unit in ("u", "v")]
        assert all(d.result(60)["reembed.error"].null_count == 40 for d in done)
    assert len(set(taken)) == 1
    assert not workers(made.run)


def wait_until(holds):
    deadline = threading.Event()
    timer = threading.Timer(30, deadline.set)
    timer.start()
    while not holds():
        assert not deadline.is_set()
    timer.cancel()


def test_a_unit_that_waits_for_the_model_when_the_job_ends_is_taken_back(job):
    made, texts = job()
    ending = []
    replica = units.UnitEmbedder(made, is_ending=lambda: bool(ending))
    assert replica.embed("u", texts) is not None
    ending.append(1)
    assert replica.embed("v", texts) is None
    assert not workers(made.run)
    assert made.run.numbered("attempts/u/") == ["0001.json"]
    assert made.run.numbered("attempts/v/") == []


def test_time_without_a_unit_and_time_without_its_records_are_told_apart(job, monkeypatch):
    made, texts = job()
    clock = iter(range(0, 10_000, 10))
    replica = units.UnitEmbedder(made)
    monkeypatch.setattr(units.time, "perf_counter", lambda: next(clock))
    first, second = (units.stats_of(replica.embed(name, texts)) for name in "uv")
    assert (first.waited_s, first.embed_s, first.model_s) == (0, 30, 10)
    assert (second.waited_s, second.embed_s, second.model_s) == (10, 30, 10)

"""A model behind an endpoint: its provider may be busy or broken, and no document is to blame."""

from __future__ import annotations

import dataclasses
import pickle
from collections import Counter
from collections.abc import Callable, Sequence

import lance
import numpy as np
import pyarrow as pa
import pytest
from conftest import documents
from inline import Inline

from reembed import api, encoders
from reembed.catalog.lease import workers
from reembed.catalog.releases import Catalog
from reembed.catalog.runs import Run
from reembed.config.settings import EncoderConfig
from reembed.encoders import golden
from reembed.encoders.base import Embedded, EncoderStats, Vectors
from reembed.encoders.hashing import HashingEncoder
from reembed.engine import patience
from reembed.engine.patience import Patience
from reembed.errors import (
    NotVerified,
    ProviderBusy,
    ProviderError,
    SetupError,
    SourceError,
    SpaceMismatch,
    TooManyDeadLetters,
)
from reembed.lifecycle import differences, verification
from reembed.lifecycle.scratch import Scratch
from reembed.lifecycle.verification import verify_release
from reembed.lifecycle.verify import Subject, verify
from reembed.serving.live import OpenRelease
from reembed.source.dataset import Source
from reembed.space import ProviderIdentity, Space
from reembed.store.storage import Storage
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild
from reembed.table.read import TableVersion


class Endpoint:
    """An encoder without token ids, as one behind HTTP: every call may meet a fault first."""

    def __init__(self, config: EncoderConfig) -> None:
        self.model = HashingEncoder(EncoderConfig(model="hashing:32"))
        self.identity = ProviderIdentity("test", config.model, config.revision, "2026-11-26")
        self.calls: list[int] = []
        self.fault: Callable[[Sequence[str]], None] = lambda texts: None
        self.bad: dict[str, str] = {}
        """Texts that the provider refuses, and why."""

    def describe(self) -> Space:
        return dataclasses.replace(
            self.model.describe(), model="test model", identity=self.identity, pooling=None
        )

    def embed_documents(self, texts: Sequence[str]) -> Embedded:
        stats = EncoderStats(device="api.test", path="HTTP")
        if not texts:
            return Embedded(np.empty((0, 32), np.float32), {}, stats)
        self.calls.append(len(texts))
        self.fault(texts)
        failures = {n: self.bad[t] for n, t in enumerate(texts) if t in self.bad}
        vectors = self.model.embed_documents(texts).vectors
        vectors[list(failures)] = np.nan
        return Embedded(vectors, failures, dataclasses.replace(stats, tokens=2 * len(texts)))

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        self.fault(texts)
        return self.model.embed_queries(texts)


@pytest.fixture
def endpoint(monkeypatch):
    """What `encoder.model: test:model` loads, every time."""
    one = Endpoint(EncoderConfig(model="test:model"))
    backend = encoders.Backend(lambda config: one.describe(), lambda config, **_: one)
    monkeypatch.setitem(encoders.BACKENDS, "test", backend)
    return one


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def build(endpoint, corpus, make_config, quiet, waits):
    """build(**embed) -> a release of 100 documents; build.config is the last run's."""

    class Waiting(Inline):
        wait = staticmethod(waits.append)

    def make(**embed):
        make.config = make_config(
            make.source, encoder={"model": "test:model"}, embed={"unit_documents": 50, **embed}
        )
        return full_rebuild(make.config, quiet, executor=make.executor)

    make.source, make.executor = corpus(100), Waiting()
    return make


def storage_of(build) -> Storage:
    return Storage.open(build.config.storage.root)


def test_an_encoder_without_tokens_goes_through_a_whole_rebuild_and_answers(
    build, endpoint, quiet, waits
):
    release = build()
    assert (release.rows, release.dead_letters) == (100, 0)
    assert release.space.identity == endpoint.identity
    assert release.space.tokenizer_sha256 is None
    storage = storage_of(build)
    opened = OpenRelease.open(storage, release)
    texts = lance.dataset(build.source).to_table().to_pylist()
    hit = opened.search([texts[7]["text"]], 1)[0][0]
    assert hit.doc_id in {t["doc_id"] for t in texts if t["text"] == texts[7]["text"]}
    assert storage.read(golden.path(release.origin))["device"] == "api.test"
    receipts = Run(storage, release.id).receipts()
    assert {(r.stats.device, r.stats.path, r.stats.tokens) for r in receipts} == {
        ("api.test", "HTTP", 100)
    }
    assert not waits
    lance.write_dataset(_one_more(), build.source, mode="append")
    newer = catch_up(build.config, release, quiet, executor=build.executor)
    assert (newer.rows, newer.space) == (101, release.space)


def _one_more():
    import pyarrow as pa

    return pa.Table.from_pylist([{**documents(1, 0)[0], "doc_id": "new"}])


def test_a_provider_that_changes_the_model_behind_its_name_is_not_served(build, endpoint):
    release = build()
    endpoint.model = HashingEncoder(EncoderConfig(model="hashing:32:other"))
    with pytest.raises(SpaceMismatch, match="produces different vectors") as refused:
        OpenRelease.open(storage_of(build), release)
    assert "on api.test" in refused.value.what


def test_a_provider_that_is_busy_for_a_while_costs_no_document(build, endpoint, waits):
    faults = [ProviderBusy("429"), ProviderError("502"), ProviderBusy("429", retry_after_s=17)]

    def fault(texts):
        if len(texts) > 40 and faults:
            raise faults.pop(0)

    endpoint.fault = fault
    release = build()
    assert (release.rows, release.dead_letters) == (100, 0)
    assert waits == [1, 2, 17]
    assert not faults


def test_a_provider_that_is_busy_at_the_start_is_waited_for(build, endpoint, waits):
    faults = [ProviderBusy("429")] * 3

    def fault(texts):
        if faults:
            raise faults.pop()

    endpoint.fault = fault
    assert build().rows == 100
    assert waits == [1, 2, 4]


def test_a_provider_that_is_busy_while_the_index_is_tuned_or_verified_is_waited_for(
    build, endpoint, eval_folder, make_config, quiet, monkeypatch
):
    monkeypatch.setattr(patience, "_FIRST_S", 0.01)
    asked: Counter[int] = Counter()

    def fault(texts):
        asked[len(texts)] += 1
        if len(texts) in (24, 100) and asked[len(texts)] == 1:  # queries; the sample of verify
            raise ProviderBusy("429")

    endpoint.fault = fault
    config = make_config(
        build.source,
        encoder={"model": "test:model"},
        embed={"unit_documents": 50},
        gate={"queries": eval_folder(build.source, 24)},
    )
    assert full_rebuild(config, quiet, executor=build.executor).rows == 100
    assert (asked[24], asked[100]) == (2, 2)


def test_a_provider_that_stays_busy_ends_the_verification_in_time(build, endpoint):
    release = build()
    storage = storage_of(build)
    endpoint.fault = lambda texts: _busy()
    subject = Subject(
        Source.open(build.config),
        TableVersion(storage, release.table, release.table_version, release.space.dim),
        release.space,
        release.encoder,
        (),
        patience=Patience(100, wait=(waited := []).append),
    )
    with pytest.raises(ProviderBusy, match="did not answer"):
        verify(subject, Scratch.of(Run(storage, release.id)))
    assert 1 < sum(waited) <= 80


def test_a_provider_that_stays_busy_is_not_taken_for_a_store_that_cannot_be_read(
    build, endpoint, monkeypatch
):
    release = build()
    monkeypatch.setattr(patience, "_SHARE", 0)
    endpoint.fault = lambda texts: _busy()
    with pytest.raises(ProviderBusy, match="did not answer") as failure:
        verify_again(build, release)
    assert failure.value.exit_code == 75


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (ValueError("operands could not be broadcast together"), ValueError),
        (pa.ArrowInvalid("External error: Not found: 0.lance"), NotVerified),
        (OSError("Input/output error"), NotVerified),
        (SourceError("the source is gone"), NotVerified),
        (SetupError("the model is gone"), SetupError),
    ],
)
def test_only_a_failed_read_means_that_a_release_could_not_be_verified(
    build, monkeypatch, error, raised
):
    release = build()

    def fails(*_):
        raise error

    monkeypatch.setattr(differences, "compare", fails)
    with pytest.raises(raised):
        verify_again(build, release)


def test_verify_waits_for_a_provider_as_long_as_the_config_says(build, endpoint, monkeypatch):
    build()
    endpoint.fault = lambda texts: _busy()
    embed = build.config.embed.model_copy(update={"stall_s": 10})
    config = build.config.model_copy(update={"embed": embed})
    waited = []

    def patient(stall_s, fix):
        return Patience(stall_s, fix, wait=waited.append, clock=lambda: 0.0)

    monkeypatch.setattr(verification, "Patience", patient)
    with pytest.raises(ProviderBusy, match="did not answer in 7 s") as failure:
        api.verify(config, sample=5)
    assert waited == [1.0, 2.0, 4.0]
    assert failure.value.fix.startswith("reembed verify --release ")


def verify_again(build, release):
    catalog = Catalog(storage_of(build), build.config.alias)
    return verify_release(catalog, release.id, level=3, sample=5, resume=False, stall_s=60)


def _busy():
    raise ProviderBusy("429")


def test_a_provider_that_stays_broken_stops_the_run_which_then_resumes(build, endpoint, waits):
    staged = []

    def fault(texts):
        if len(texts) == 50:
            staged.append(texts)
            if len(staged) > 1:
                raise ProviderError("connection refused")

    endpoint.fault = fault
    with pytest.raises(ProviderError) as stopped:
        build(stall_s=100)
    assert stopped.value.exit_code == 75
    assert stopped.value.why == "connection refused"
    assert stopped.value.fix.startswith("reembed run ")
    assert sum(waits) <= 80
    assert max(waits) <= 60
    endpoint.fault = lambda texts: None
    endpoint.calls.clear()
    release = build(stall_s=100)
    assert (release.rows, release.dead_letters) == (100, 0)
    assert endpoint.calls.count(50) == 1, "the finished unit is not paid for again"


def test_a_worker_that_waits_for_its_provider_is_not_at_work(build, endpoint, monkeypatch):
    """Else its unit goes over its deadline, the worker is ended, and in the end documents are blamed."""
    at_work, while_waiting, faults = [], [], [ProviderBusy("429")] * 2
    build.config = None

    def now():
        storage = Storage.open(root)
        (run,) = [Run(storage, name) for name in storage.folders("runs/")]
        return [(w.id, w.tries) for w in workers(run)]

    def fault(texts):
        if len(texts) == 50 and faults:
            at_work.extend(now())
            raise faults.pop()

    root = str(build.source).rsplit("/", 1)[0] + "/root"
    endpoint.fault = fault
    monkeypatch.setattr(
        type(build.executor), "wait", staticmethod(lambda s: while_waiting.append(now()))
    )
    assert build().rows == 100
    assert while_waiting == [[], []]
    assert len(set(at_work)) == len(at_work) == 2, "each try has a mark of its own"


def test_a_document_that_the_provider_refuses_is_a_dead_letter(build, endpoint, waits):
    rows = lance.dataset(build.source).to_table().to_pylist()
    endpoint.bad = {rows[3]["text"]: "the provider's filter refuses it"}
    wanted = {r["doc_id"] for r in rows if r["text"] == rows[3]["text"]}
    with pytest.raises(TooManyDeadLetters):
        build()
    release = build(max_dead_letters=len(wanted))
    dead = [d for r in Run(storage_of(build), release.id).receipts() for d in r.dead_letters]
    assert {(d.doc_id, d.reason) for d in dead} == {
        (doc_id, "the provider's filter refuses it") for doc_id in wanted
    }
    assert not waits


@pytest.mark.parametrize("error", [SetupError("no such model"), ValueError("a bug in the client")])
def test_an_error_that_no_document_caused_stops_the_run_at_once(build, endpoint, waits, error):
    def fault(texts):
        if len(texts) == 50:
            raise error

    endpoint.fault = fault
    with pytest.raises(type(error)):
        build(max_dead_letters=100)
    assert not waits
    storage = storage_of(build)
    assert not Catalog(storage, build.config.alias).ids()
    (run,) = storage.folders("runs/")
    assert not [d for r in Run(storage, run).receipts() for d in r.dead_letters]


def test_pauses_double_up_to_a_minute_and_end_in_time():
    waits: list[float] = []

    def ask():
        raise ProviderBusy("429")

    with pytest.raises(ProviderError, match="in 363 s of waiting"):
        Patience(500, "reembed run", waits.append).through(ask)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60]


@pytest.mark.parametrize("kind", [ProviderBusy, ProviderError])
def test_an_error_that_outlasts_the_waiting_keeps_its_type(kind):
    def ask():
        raise kind("429")

    with pytest.raises(ProviderError) as stopped:
        Patience(10, "reembed run", lambda s: None).through(ask)
    assert type(stopped.value) is kind
    assert (stopped.value.why, stopped.value.fix) == ("429", "reembed run")


def test_requests_that_take_long_count_as_waiting():
    now = [0.0]

    def ask():
        now[0] += 60
        raise ProviderError("timed out")

    with pytest.raises(ProviderError, match="did not answer"):
        Patience(500, "reembed run", lambda s: None, lambda: now[0]).through(ask)
    assert now[0] < 500


def test_an_error_of_a_provider_travels_with_what_it_asks_for():
    error = pickle.loads(pickle.dumps(ProviderBusy("429", "rate limit", retry_after_s=3)))
    assert (error.what, error.why, error.retry_after_s) == ("429", "rate limit", 3)

"""The protocol, the backends, and what is done on an error; without a model."""

from __future__ import annotations

import numpy as np
import pytest

from reembed import encoders
from reembed.config.settings import EncoderConfig
from reembed.encoders.base import EncoderStats, apart
from reembed.encoders.hashing import HashingEncoder
from reembed.encoders.tokens import blaming_texts
from reembed.errors import DocumentError, ProviderBusy, SetupError


@pytest.mark.parametrize("bad", [set(), {0}, {7}, {2, 3}, set(range(8))])
def test_failing_rows_are_found_and_all_others_done_in_order(bad):
    def work(rows):
        if hit := bad & set(rows.tolist()):
            raise DocumentError(f"row {min(hit)} is bad")
        return rows * 10

    done, failures = apart(np.arange(8), work)
    assert failures == {row: f"row {row} is bad" for row in bad}
    assert [r for rows, _ in done for r in rows.tolist()] == sorted(set(range(8)) - bad)
    assert all((found == rows * 10).all() for rows, found in done)


def test_nothing_to_do_is_not_tried():
    assert apart(np.arange(0), lambda rows: pytest.fail("called")) == ([], {})


@pytest.mark.parametrize("error", [ProviderBusy("busy"), SetupError("wrong"), ValueError("a bug")])
def test_an_error_that_is_not_about_a_document_is_not_halved(error):
    calls = []

    def work(rows):
        calls.append(len(rows))
        raise error

    with pytest.raises(type(error)):
        apart(np.arange(8), work)
    assert calls == [8]


def test_a_local_model_reports_the_text_it_fails_on_and_embeds_the_others(monkeypatch):
    encoder = HashingEncoder(EncoderConfig(model="hashing:16"))
    honest, texts = HashingEncoder.embed, ["one", "two", "three"]
    bad = encoder.tokenize(["two"], "document").ids.tolist()

    def embed(self, tokens):
        for n in range(len(tokens)):
            if tokens.take(np.array([n])).ids.tolist() == bad:
                raise IndexError("no row for this token\nof many")
        return honest(self, tokens)

    whole = encoder.embed_documents(texts)
    assert not whole.failures
    monkeypatch.setattr(HashingEncoder, "embed", embed)
    found = encoder.embed_documents(texts)
    assert found.failures == {1: "IndexError: no row for this token"}
    assert np.isnan(found.vectors[1]).all()
    np.testing.assert_array_equal(found.vectors[[0, 2]], whole.vectors[[0, 2]])
    with pytest.raises(DocumentError, match="IndexError"):
        encoder.embed_queries(["two"])


@pytest.mark.parametrize(
    ("error", "of_text"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("The size of tensor a must match the size of tensor b"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (type("AcceleratorError", (RuntimeError,), {})("device-side assert triggered"), False),
    ],
)
def test_a_text_is_blamed_for_what_it_can_cause_and_not_for_a_broken_device(error, of_text):
    with pytest.raises(DocumentError if of_text else type(error)) as raised, blaming_texts():
        raise error
    assert (raised.value is error) == (not of_text)


def test_a_text_that_cannot_be_tokenized_is_a_failure_too(monkeypatch):
    encoder, honest = HashingEncoder(EncoderConfig(model="hashing:16")), HashingEncoder.tokenize

    def tokenize(self, texts, kind):
        if "two" in texts:
            raise DocumentError("not a text")
        return honest(self, texts, kind)

    monkeypatch.setattr(HashingEncoder, "tokenize", tokenize)
    found = encoder.embed_documents(["one", "two", "three"])
    assert found.failures == {1: "not a text"}
    assert np.isfinite(found.vectors[[0, 2]]).all()


def test_without_texts_there_are_stats_and_no_vectors():
    found = encoders.load_encoder(EncoderConfig(model="hashing:16")).embed_documents([])
    assert (found.vectors.shape, found.stats.device, found.stats.tokens) == ((0, 16), "cpu", 0)


def test_stats_add_their_counts_and_keep_the_newest_words():
    one = EncoderStats("cpu", "padded", ("slow",), 8, 1.0, 1, 2, 3, 4.0)
    other = EncoderStats("cpu", "packed", (), 4, 2.0, 10, 20, 30, 40.0)
    assert one + other == EncoderStats("cpu", "packed", (), 4, 2.0, 11, 22, 33, 44.0)


def test_a_backend_is_registered_in_one_line(monkeypatch):
    hashing = HashingEncoder(EncoderConfig(model="hashing:8"))
    backend = encoders.Backend(lambda config: hashing.describe(), lambda config, **_: hashing)
    monkeypatch.setitem(encoders.BACKENDS, "mine", backend)
    section = EncoderConfig(model="mine:model")
    assert encoders.describe(section, "float16") == hashing.describe().stored_as("float16")
    assert encoders.load_encoder(section) is hashing
    with pytest.raises(SetupError, match="mine:model has no tokenizer"):
        encoders.load_tokenizer(section)


def test_an_unknown_scheme_is_refused_with_those_that_are_known():
    with pytest.raises(SetupError) as refused:
        encoders.describe(EncoderConfig(model="opnai:text-embedding"), "float32")
    assert refused.value.what == "encoder.model opnai:text-embedding: unknown scheme opnai:"
    assert "hashing:, package:, a folder, or a hub id" in refused.value.why


def test_a_folder_whose_name_has_a_colon_is_a_folder(tmp_path, monkeypatch):
    (tmp_path / "a:b").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SetupError, match="not a model folder"):
        encoders.describe(EncoderConfig(model="a:b"), "float32")

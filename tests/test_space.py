"""A space's identity: by content or by provider, stable, and stored as it is."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from reembed.catalog.query_model import Bridge, QueryModel, StoredSpace
from reembed.catalog.releases import Release
from reembed.config.settings import EncoderConfig
from reembed.errors import IntegrityError, SpaceMismatch
from reembed.space import ContentIdentity, ProviderIdentity, Space
from reembed.store.records import decode, encode

CONTENT = Space(
    "m", None, ContentIdentity("w", "t"), "mean", "", "", True, None, 128, "none", "float32", 8
)
PROVIDER = dataclasses.replace(
    CONTENT,
    identity=ProviderIdentity("acme", "text-3", None, "2026-11-26"),
    pooling=None,
    max_length=None,
)


@dataclass(frozen=True)
class Holder:
    space: StoredSpace


@pytest.mark.parametrize("space", [CONTENT, PROVIDER], ids=["content", "provider"])
def test_a_stored_space_is_read_back_as_it_was(space):
    assert decode(Holder, encode(Holder(space))) == Holder(space)


def test_ids_do_not_change_between_versions_of_reembed():
    assert (CONTENT.id, PROVIDER.id) == ("fc20376acfbf", "be1a899e0983")


@pytest.mark.parametrize(
    "change", [{"provider": "b"}, {"model": "b"}, {"revision": "2"}, {"pinned_on": "2027-01-01"}]
)
def test_each_word_of_a_provider_is_another_space_and_another_model(change):
    identity = dataclasses.replace(PROVIDER.identity, **change)
    other = dataclasses.replace(PROVIDER, identity=identity)
    assert other.id != PROVIDER.id
    assert identity.model_sha256 != PROVIDER.identity.model_sha256


@pytest.mark.parametrize(
    "change", [{"dim": 4}, {"prompt_query": "q: "}, {"normalize": False}, {"truncate_dim": 4}]
)
def test_settings_of_a_providers_model_are_another_space_of_the_same_model(change):
    other = dataclasses.replace(PROVIDER, **change)
    assert other.id != PROVIDER.id
    assert other.identity.model_sha256 == PROVIDER.identity.model_sha256


def test_labels_and_tokenizer_do_not_tell_models_apart():
    assert dataclasses.replace(CONTENT, model="elsewhere", revision="note").id == CONTENT.id
    other = ContentIdentity("w", "other tokenizer")
    assert other.model_sha256 == CONTENT.identity.model_sha256
    assert dataclasses.replace(CONTENT, identity=other).id != CONTENT.id
    assert (CONTENT.tokenizer_sha256, PROVIDER.tokenizer_sha256) == ("t", None)


def test_two_models_of_one_name_are_told_apart_by_the_ids_of_their_spaces():
    prompted = dataclasses.replace(CONTENT, prompt_query="query: ")
    asks = QueryModel(prompted, EncoderConfig(model="m"), "0" * 64, Bridge("b", "s", 9, 9))
    ours = f"m (space {prompted.id})"
    assert asks.beside(CONTENT) == f"{ours} over a bridge of 9 documents"
    assert asks.label == "m over a bridge of 9 documents"
    release = SimpleNamespace(space=CONTENT, queries=asks)
    assert (
        Release.model.fget(release) == f"m (space {CONTENT.id}), queries by {asks.beside(CONTENT)}"
    )
    assert (
        CONTENT.beside(CONTENT) == CONTENT.beside(dataclasses.replace(prompted, model="n")) == "m"
    )


def test_what_differs_between_two_kinds_of_identity_is_named():
    with pytest.raises(SpaceMismatch) as refused:
        CONTENT.require(PROVIDER, "here")
    assert "kind 'content' against 'provider'" in refused.value.why
    assert "weights_sha256 'w' against None" in refused.value.why
    assert "dim" not in refused.value.why


@pytest.mark.parametrize("kind", ["promise", None])
def test_an_identity_of_no_known_kind_is_refused(kind):
    record = encode(Holder(CONTENT))
    record["space"]["identity"]["kind"] = kind
    with pytest.raises(IntegrityError, match="identity"):
        decode(Holder, record)

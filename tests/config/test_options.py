"""Settings of object stores: apart for root, source and queries; secrets stay in the environment."""

from __future__ import annotations

import pickle

import pytest

from reembed.config.options import resolved
from reembed.config.settings import Config, load
from reembed.errors import ConfigError, SourceError
from reembed.redact import redacted, shown_override
from reembed.source.dataset import Source
from reembed.store.storage import Storage

KEYS = {"aws_access_key_id": "env:CORPUS_ID", "aws_secret_access_key": "env:CORPUS_PASS"}


def config(**sections) -> Config:
    plain = {"source": {"uri": "s3://corpora/a.lance"}, "storage": {"root": "s3://vectors/root"}}
    merged = {name: {**plain.get(name, {}), **values} for name, values in sections.items()}
    return Config(alias="a", encoder={"model": "hashing:8"}, **{**plain, **merged})


def test_each_store_has_its_own_settings_and_takes_the_next_ones_where_it_has_none():
    root, own, other = {"aws_region": "r"}, {"aws_region": "s"}, {"aws_region": "q"}
    pairs = {name: tuple(value.items()) for name, value in (("r", root), ("s", own), ("q", other))}

    def stores(source, gate):
        found = config(
            source={"options": source}, gate={"options": gate}, storage={"options": root}
        )
        return found.stores.source, found.stores.queries

    assert stores(None, None) == (pairs["r"], pairs["r"])
    assert stores(own, None) == (pairs["s"], pairs["s"])
    assert stores(own, other) == (pairs["s"], pairs["q"])
    assert stores({}, None) == ((), ()), "set, though empty: none of the root's"


def test_a_secret_is_looked_up_in_the_environment_when_a_store_is_opened(monkeypatch):
    monkeypatch.setenv("CORPUS_ID", "an-id-of-the-corpus")
    monkeypatch.setenv("CORPUS_PASS", "a-password-of-the-corpus")
    made = config(source={"options": {**KEYS, "aws_region": "s"}})
    source = Storage("s3://corpora", made.stores.source)
    assert source.lance_options == {
        "aws_access_key_id": "an-id-of-the-corpus",
        "aws_secret_access_key": "a-password-of-the-corpus",
        "aws_region": "s",
    }
    kept = (pickle.dumps(source) + repr(made).encode() + str(made.shown()).encode()).decode(
        "latin-1"
    )
    assert "of-the-corpus" not in kept
    assert made.shown()["source"]["options"] == {**KEYS, "aws_region": "s"}
    assert redacted("refused: an-id-of-the-corpus") == "refused: ***"


def test_a_variable_that_is_not_set_is_named_with_the_option_that_asks_for_it(monkeypatch):
    monkeypatch.delenv("CORPUS_ID", raising=False)
    with pytest.raises(ConfigError) as refused:
        resolved(KEYS)
    assert refused.value.what == "the environment has no CORPUS_ID"
    assert refused.value.why == "the store option aws_access_key_id is env:CORPUS_ID"
    assert refused.value.fix.startswith("set CORPUS_ID in the environment")
    with pytest.raises(SourceError, match=r"cannot open the dataset s3://corpora/a.lance") as named:
        Source.open(config(source={"options": KEYS}))
    assert "the environment has no CORPUS_ID" in named.value.what


def test_keys_are_not_sent_with_the_session_token_of_others(monkeypatch):
    monkeypatch.setenv("CORPUS_ID", "an-id-of-the-corpus")
    monkeypatch.setenv("CORPUS_PASS", "a-password-of-the-corpus")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-token-of-the-root")
    with pytest.raises(ConfigError, match="AWS_SESSION_TOKEN"):
        resolved(KEYS)
    assert resolved({"aws_region": "s"}) == {"aws_region": "s"}
    own = {**KEYS, "aws_session_token": "env:CORPUS_PASS"}
    assert resolved(own)["aws_session_token"] == "a-password-of-the-corpus"


@pytest.mark.parametrize("section", ["source", "gate", "storage"])
def test_a_secret_itself_is_refused_in_every_section_and_one_that_was_left_out_is_asked_for(
    section,
):
    with pytest.raises(ValueError, match="aws_secret_access_key is a secret; export it") as refused:
        config(**{section: {"options": {"aws_secret_access_key": "hunter2"}}})
    assert "hunter2" not in str(refused.value.errors()[0]["msg"])
    with pytest.raises(ValueError, match=rf"add --set {section}.options.proxy_url=VALUE"):
        config(**{section: {"options": {"proxy_url": "***"}}})
    assert (
        shown_override(f"{section}.options.proxy_url=hunter2") == f"{section}.options.proxy_url=***"
    )
    named = f"{section}.options.aws_access_key_id=env:NAME"
    assert shown_override(named) == named


def test_the_sources_store_settings_do_not_decide_which_run_it_is():
    plain, moved = config(), config(source={"options": {"aws_region": "elsewhere"}})
    assert plain.result_key("s3://corpora/a.lance") == moved.result_key("s3://corpora/a.lance")


def test_store_settings_are_read_from_a_file_with_their_lines(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(
        "alias: a\nsource:\n  uri: s.lance\n  options:\n    aws_region: s\n"
        "encoder: {model: 'hashing:8'}\nstorage: {root: r}\ngate:\n  options:\n"
    )
    found, origins = load([str(file)], ["source.options.aws_endpoint=http://here:9000"])
    assert found.source.options == {"aws_region": "s", "aws_endpoint": "http://here:9000"}
    assert found.gate.options is None
    assert origins["source.options.aws_region"] == f"{file}:5"

"""`reembed.open`: what it opens, what it refuses, and what is left after `close`."""

from __future__ import annotations

import gc as memory
import re
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
from releases import promoted

import reembed
from reembed.errors import UsageError
from reembed.serving.live import OpenRelease

README = (Path(__file__).parents[2] / "README.md").read_text()


def build(config: Any, **reason: str) -> Any:
    return promoted(config, **reason)[0]


@pytest.fixture
def config(corpus, make_config):
    return make_config(corpus(130), table={"carry": ["title"]})


def test_an_index_names_the_release_that_answers_and_follows_the_alias(config):
    first = build(config)
    with reembed.open(config.storage.root, config.alias) as index:
        assert isinstance(index, reembed.Index)
        (hits,) = index.search(["bada"], k=3, columns=["title"])
        assert [type(h) for h in hits] == [reembed.Hit] * 3
        assert hits[0].columns["title"]
        assert (index.alias, index.release) == (config.alias, first)
        assert not index.refresh()
        second = build(config, force_reason="a test")
        assert index.release == first
        assert index.refresh()
        assert index.release == second


@pytest.mark.s3
def test_an_index_opens_from_an_object_store(corpus, make_config, bucket):
    storage = {"root": f"{bucket.uri}/root", "options": bucket.options}
    release = build(make_config(corpus(60), storage=storage))
    with reembed.open(f"{bucket.uri}/root/", "passages", options=bucket.options) as index:
        assert index.release == release
        assert len(index.search(["bada"], k=3)[0]) == 3
    with pytest.raises(UsageError, match="elsewhere serves nothing yet"):
        reembed.open(f"{bucket.uri}/root", "elsewhere", options=bucket.options)


def test_the_first_python_code_of_the_readme_is_three_lines_that_work(config):
    build(config)
    code = re.search(r"```python\n(.*?)```", README, re.S)[1]
    assert len(code.splitlines()) == 3
    here = code.replace("s3://vectors/passages", config.storage.root)
    assert here != code
    names: dict[str, Any] = {}
    exec(here, names)
    assert len(names["hits"]) == 10
    names["index"].close()


def test_an_option_that_holds_a_secret_is_refused_without_its_value(tmp_path):
    with pytest.raises(UsageError, match="env:AWS_SECRET_ACCESS_KEY") as refused:
        reembed.open("s3://b/root", "passages", options={"aws_secret_access_key": "hunter2"})
    assert "hunter2" not in str(refused.value)


def test_a_root_that_does_not_exist_is_named_and_not_created(tmp_path):
    missing = tmp_path / "no" / "such"
    with pytest.raises(UsageError, match=f"{missing} does not exist") as refused:
        reembed.open(missing, "passages")
    assert refused.value.fix == "reembed run"
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "root").write_text("x")
    with pytest.raises(UsageError, match="is not a folder"):
        reembed.open(tmp_path / "root", "passages")


def test_opening_what_was_never_promoted_writes_nothing(tmp_path):
    with pytest.raises(UsageError, match="passages serves nothing yet"):
        reembed.open(tmp_path, "passages")
    assert list(tmp_path.iterdir()) == []


def test_a_closed_index_is_freed_and_says_that_it_is_closed(config):
    build(config)
    index = reembed.open(config.storage.root, config.alias)
    held = [weakref.ref(part) for part in (index.current.index, index.current.encoder)]
    memory.disable()  # by their counts alone, not when the collector comes by
    try:
        index.close()
        assert [part() for part in held] == [None, None]
    finally:
        memory.enable()
    index.close()
    for ask in (lambda: index.search(["bada"]), index.refresh, lambda: index.release):
        with pytest.raises(UsageError, match="passages is closed") as refused:
            ask()
        assert refused.value.fix == f"reembed.open({config.storage.root!r}, 'passages')"


def test_an_index_closed_during_a_refresh_stays_closed(config, monkeypatch):
    build(config)
    index = reembed.open(config.storage.root, config.alias)
    build(config, force_reason="a test")
    plain, inside, go = OpenRelease.open, threading.Event(), threading.Event()

    def slow(*args: Any) -> Any:
        inside.set()
        go.wait(20)
        return plain(*args)

    monkeypatch.setattr(OpenRelease, "open", slow)
    said: list[str] = []

    def refresh() -> None:
        try:
            index.refresh()
        except UsageError as error:
            said.append(error.what)

    thread = threading.Thread(target=refresh)
    thread.start()
    inside.wait(20)
    index.close()
    go.set()
    thread.join(20)
    assert said == ["the index of passages is closed"]
    with pytest.raises(UsageError, match="is closed"):
        index.search(["bada"])

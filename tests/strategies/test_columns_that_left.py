"""A column that a release was made from is dropped, renamed or retyped in the newest version.

What reads the newest version says so; what is about the release's own version still answers.
"""

from __future__ import annotations

import shlex

import lance
import pyarrow as pa
import pytest
from inline import Inline, Silent

from reembed import api
from reembed.catalog.releases import Catalog
from reembed.errors import SourceError, TooManyDeadLetters
from reembed.lifecycle.candidates import by_default
from reembed.lifecycle.moves import roll_back
from reembed.lifecycle.promote import promote
from reembed.lifecycle.status import status
from reembed.lifecycle.verification import verify_release
from reembed.store.storage import Storage
from reembed.strategies import preflight
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild

FILTERED = {"filter": "lang = 'en' AND year > 2"}


@pytest.fixture
def line(tmp_path, make_config):
    """line(source settings) -> (config, catalog, two releases of 3 files; the first is live)."""
    uri = str(tmp_path / "source.lance")
    rows = {
        "doc_id": [f"d{n:02}" for n in range(30)],
        "text": [f"text {n}" for n in range(30)],
        "title": [f"title {n}" for n in range(30)],
        "lang": ["en", "de"] * 15,
        "year": list(range(30)),
    }
    lance.write_dataset(pa.table(rows), uri, max_rows_per_file=10, enable_stable_row_ids=True)

    def build(**source):
        config = make_config(uri, source={"uri": uri, **source}, table={"carry": ["title"]})
        first = full_rebuild(config, Silent(), executor=Inline())
        second = full_rebuild(config, Silent(), fresh=True, executor=Inline())
        catalog = Catalog(Storage.open(config.storage.root), config.alias)
        promote(catalog, first.id, initial_reason="a test")
        lance.dataset(uri).update({"text": "'newer'"}, where="doc_id = 'd04'")
        return config, catalog, first, second

    return build


def dropped(column):
    return lambda dataset: dataset.drop_columns([column])


def renamed(column, to):
    return lambda dataset: dataset.alter_columns({"path": column, "name": to})


def retyped(column, kind):
    def change(dataset):
        dataset.drop_columns([column])
        values = pa.table({column: pa.nulls(30, kind)})
        lance.dataset(dataset.uri).add_columns(values.to_reader())

    return change


LEFT = [
    (FILTERED, dropped("lang"), "No field named lang"),
    (FILTERED, renamed("lang", "language"), "No field named lang"),
    (FILTERED, renamed("year", "written"), "No field named year"),
    (FILTERED, retyped("year", pa.list_(pa.int64())), "source.filter"),
    ({}, dropped("text"), "no column 'text'"),
    ({}, renamed("text", "body"), "no column 'text'"),
    ({}, retyped("text", pa.int64()), "cannot be text"),
    ({"text": "{title} {lang}"}, renamed("lang", "language"), "no column 'lang'"),
    ({}, renamed("doc_id", "id"), "no column 'doc_id'"),
    ({}, retyped("doc_id", pa.float64()), "cannot be ids"),
    ({}, dropped("title"), "no column 'title'"),
    ({}, renamed("title", "heading"), "no column 'title'"),
]


@pytest.mark.parametrize(("settings", "change", "said"), LEFT)
def test_a_column_that_left_is_named_by_every_verb_and_the_releases_own_version_is_still_compared(
    line, settings, change, said
):
    config, catalog, first, second = line(**settings)
    change(lance.dataset(config.source.uri))
    newest = lance.dataset(config.source.uri).version
    for verb in (
        lambda: catch_up(config, first, Silent(), executor=Inline()),
        lambda: api.promote(config, second.id, force="a test", emit=Silent()),
    ):  # fmt: skip
        with pytest.raises(SourceError) as refused:
            verb()
        assert said in str(refused.value)
        assert f"version {newest}" in refused.value.what
        assert refused.value.fix
    assert "--no-catch-up" in refused.value.fix
    report = verify_release(catalog, first.id, level=3, sample=5, resume=False, stall_s=60)
    assert report.passed
    assert said in report.lag.why
    assert said in status(catalog).lag.why
    moved = api.promote(config, second.id, force="b", catch_up=False, emit=Silent())
    back = roll_back(catalog, None, "c")
    for step in (moved, back):
        assert said in step.behind.why
    assert by_default(catalog, config).id == back.release.id == first.id


@pytest.mark.parametrize(
    ("column", "to", "meant"),
    [
        ("lang", "language", "`language` = 'en' AND year > 2"),
        ("year", "the year", "lang = 'en' AND `the year` > 2"),
        ("year", "written", None),
    ],
)
def test_a_filter_over_a_renamed_column_is_answered_with_the_name_that_is_most_like_it(
    line, column, to, meant
):
    config, _, first, _ = line(**FILTERED)
    renamed(column, to)(lance.dataset(config.source.uri))
    with pytest.raises(SourceError) as refused:
        catch_up(config, first, Silent(), executor=Inline())
    command = ["run", "--set", f"source.filter={meant}"] if meant else ["config"]
    assert shlex.split(refused.value.fix, comments=True) == ["reembed", *command]


def test_a_failing_catch_up_is_said_as_it_failed_where_the_source_lost_a_column_meanwhile(
    line, monkeypatch
):
    monkeypatch.setattr(preflight, "require_changed_texts", lambda *given: None)
    config, _, first, _ = line()
    dataset = lance.dataset(config.source.uri)
    dataset.update({"text": "cast(null as string)"}, where="doc_id = 'd01'")
    for attempt in range(2):
        if attempt:
            dropped("title")(lance.dataset(config.source.uri))
        with pytest.raises(TooManyDeadLetters):
            catch_up(config, first, Silent(), executor=Inline())

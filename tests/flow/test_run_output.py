"""What a run says of itself: each step before the first document, and each setting it ignores."""

from __future__ import annotations

import contextlib

import lance
import pyarrow as pa
import pytest
from inline import Inline, Silent

from reembed.cli.progress import Console
from reembed.engine.executor import ONE_CPU
from reembed.errors import RunFailed, TooManyDeadLetters
from reembed.events import Ignored, Working
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild


def test_each_setting_that_a_planned_run_ignores_is_named_with_both_values(
    corpus, make_config, quiet
):
    source = corpus(300)
    full_rebuild(make_config(source), quiet, executor=Inline())
    changed = {"gate": {"margin": 0.3, "split": "dev"}, "index": {"factory": "HNSW16"}}
    other = make_config(source, embed={"unit_documents": 32}, **changed)
    full_rebuild(other, quiet, executor=Inline())
    assert quiet.stages()[-1] == "ignored"
    assert ignored(quiet) == [
        ("gate.split", "test", "dev"),
        ("gate.margin", None, 0.3),
        ("embed.unit_documents", 64, 32),
        ("index.factory", "auto", "HNSW16"),
    ]


def test_what_a_resumed_run_ignores_is_said_in_one_line_and_what_it_takes_is_not(
    corpus, make_config, quiet, capsys
):
    class Dies(Inline):
        def order(self, units):
            return units[:-1]

    source = corpus(300)
    with pytest.raises(RunFailed):
        full_rebuild(make_config(source), quiet, executor=Dies())
    changed = {"gate": {"margin": 0.3}, "index": {"factory": "Flat"}}
    other = make_config(source, embed={"unit_documents": 32, "batch_tokens": 512}, **changed)
    full_rebuild(other, Console(), executor=Inline())
    (line,) = (line for line in capsys.readouterr().err.splitlines() if " ignored " in line)
    assert "gate.margin 0.3 (planned: left out)" in line
    assert "embed.unit_documents 32 (planned: 64)" in line
    assert "index" not in line
    assert "batch_tokens" not in line


class Killed(BaseException):
    pass


class DiesVerifying(Inline):
    def each(self, function, items, needs=ONE_CPU):
        if function.__name__ == "_verify_task":
            raise Killed
        return super().each(function, items, needs)


class DiesEmbedding(Inline):
    def order(self, units):
        return units[:-1]


def ignored(quiet) -> list[tuple]:
    """Settings that were named as ignored since the last look."""
    named = [(s.name, s.used, s.now) for event in quiet.of(Ignored) for s in event.settings]
    quiet.events.clear()
    return named


def test_index_settings_that_come_after_the_index_was_built_are_named(corpus, make_config, quiet):
    source = corpus(300)
    with pytest.raises(Killed):
        full_rebuild(make_config(source), quiet, executor=DiesVerifying())
    assert not ignored(quiet)
    other = {"factory": "HNSW16", "ann_recall": 0.9}
    full_rebuild(make_config(source, index=other), quiet, executor=Inline())
    expected = [("index.factory", "auto", "HNSW16"), ("index.ann_recall", 0.98, 0.9)]
    assert sorted(ignored(quiet)) == sorted(expected)
    full_rebuild(make_config(source, index=other), quiet, executor=Inline())
    assert sorted(ignored(quiet)) == sorted(expected)


def test_index_settings_that_a_resumed_run_built_by_are_held_against_nothing_else(
    corpus, make_config, quiet
):
    source = corpus(300)
    with pytest.raises(RunFailed):
        full_rebuild(make_config(source), quiet, executor=DiesEmbedding())
    built_by = make_config(source, index={"factory": "HNSW16"})
    for _ in range(2):
        full_rebuild(built_by, quiet, executor=Inline())
        assert not ignored(quiet)
    full_rebuild(make_config(source), quiet, executor=Inline())
    assert ignored(quiet) == [("index.factory", "HNSW16", "auto")]


@pytest.mark.parametrize("settings", [{}, {"factory": "HNSW16"}])
def test_a_catch_up_that_goes_on_names_index_settings_that_it_does_not_use(
    corpus, make_config, quiet, settings
):
    source = corpus(300)
    release = full_rebuild(make_config(source), quiet, executor=Inline())
    lance.dataset(source).delete("doc_id = 'd00001'")
    with pytest.raises(Killed):
        catch_up(make_config(source), release, quiet, executor=DiesVerifying())
    assert not ignored(quiet)
    config = make_config(source, index={**settings, "device": "gpu"})
    catch_up(config, release, quiet, executor=Inline())
    named = {name: (used, now) for name, used, now in ignored(quiet)}
    assert named.pop("index.device") == ("cpu", "gpu")
    assert named == {f"index.{k}": ("auto", v) for k, v in settings.items()}


@pytest.mark.parametrize("dies", [DiesEmbedding, DiesVerifying])
def test_a_catch_up_that_goes_on_names_the_units_it_was_planned_in(
    corpus, make_config, quiet, dies
):
    source = corpus(300)
    release = full_rebuild(make_config(source), quiet, executor=Inline())
    dataset = lance.dataset(source)
    dataset.delete("doc_id < 'd00002'")  # what stays of its fragment is the largest unit
    rows = [{"doc_id": f"x{n}", "title": "", "text": f"more {n}"} for n in range(100)]
    lance.write_dataset(pa.Table.from_pylist(rows), source, mode="append")
    with pytest.raises((RunFailed, Killed)):
        catch_up(make_config(source), release, quiet, executor=dies())
    assert not ignored(quiet)
    other = make_config(source, embed={"unit_documents": 32, "reuse": False, "batch_tokens": 512})
    catch_up(other, release, quiet, executor=Inline())
    assert ignored(quiet) == [("embed.unit_documents", 64, 32)]


@pytest.mark.parametrize("staged", [DiesEmbedding, DiesVerifying, Inline])
@pytest.mark.parametrize("first", [True, False])
def test_a_resumed_run_names_that_it_copies_or_does_not_as_planned(
    corpus, make_config, quiet, first, staged
):
    source = corpus(300)
    full_rebuild(make_config(source), quiet, executor=Inline())
    planned, other = (
        make_config(source, table={"carry": ["title"]}, embed={"reuse": reuse})
        for reuse in (first, not first)
    )
    with contextlib.suppress(RunFailed, Killed):
        full_rebuild(planned, quiet, executor=staged())
    assert not ignored(quiet)
    full_rebuild(other, quiet, executor=Inline())
    assert ignored(quiet) == [("embed.reuse", first, not first)]
    full_rebuild(planned, quiet, executor=Inline())
    assert not ignored(quiet)


def test_where_nothing_could_be_copied_the_choice_is_not_named(corpus, make_config, quiet):
    source = corpus(300)
    with pytest.raises(RunFailed):
        full_rebuild(make_config(source), quiet, executor=DiesEmbedding())
    full_rebuild(make_config(source, embed={"reuse": False}), quiet, executor=Inline())
    assert not ignored(quiet)


def test_a_resumed_run_that_allows_fewer_dead_letters_than_are_in_its_table_fails(
    make_config, quiet, tmp_path
):
    source = str(tmp_path / "some.lance")
    rows = [{"doc_id": str(i), "text": t} for i, t in enumerate(["a b", None, "c", None, "d e"])]
    lance.write_dataset(pa.Table.from_pylist(rows), source)
    with pytest.raises(Killed):
        full_rebuild(
            make_config(source, embed={"max_dead_letters": 2}), quiet, executor=DiesVerifying()
        )
    for allowed in (0, 1):
        config = make_config(source, embed={"max_dead_letters": allowed})
        with pytest.raises(TooManyDeadLetters, match=f"2 of 5 .* {allowed} are allowed") as failed:
            full_rebuild(config, quiet, executor=Inline())
        assert "embed.max_dead_letters=2" in failed.value.fix
    done = make_config(source, embed={"max_dead_letters": 2})
    assert full_rebuild(done, quiet, executor=Inline()).dead_letters == 2
    assert not ignored(quiet)
    full_rebuild(make_config(source), quiet, executor=Inline())
    assert ignored(quiet) == [("embed.max_dead_letters", 2, 0)]


def test_settings_that_the_plan_fixed_and_those_that_something_was_built_by_are_told_apart(
    corpus, make_config, capsys
):
    source = corpus(100)
    full_rebuild(make_config(source), Silent(), executor=Inline())
    changed = {"gate": {"margin": 0.3}, "index": {"factory": "HNSW16"}}
    full_rebuild(make_config(source, **changed), Console(), executor=Inline())
    (line,) = (line for line in capsys.readouterr().err.splitlines() if " ignored " in line)
    assert "fixed when the run was planned: gate.margin 0.3 (planned: left out);" in line
    assert "built already: index.factory HNSW16 (built with: auto);" in line
    assert "the same command with --fresh plans again" in line


def test_a_larger_unit_that_would_have_cut_nothing_is_not_said_to_be_ignored(
    corpus, make_config, quiet
):
    source = corpus(100)
    full_rebuild(make_config(source, embed={"unit_documents": 500}), quiet, executor=Inline())
    full_rebuild(make_config(source, embed={"unit_documents": 900}), quiet, executor=Inline())
    assert quiet.stages()[-1] == "already"


def test_what_goes_on_before_the_first_document_is_said(corpus, make_config, quiet):
    full_rebuild(make_config(corpus(60)), quiet, executor=Inline())
    before = quiet.events[: quiet.stages().index("embed")]
    said = " ".join(e.what for e in before if isinstance(e, Working))
    for step in ("reading the model's files", "reading every id", "connecting to this process"):
        assert step in said

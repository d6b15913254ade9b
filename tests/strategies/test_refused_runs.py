"""A run that was refused, stopped or killed before it had a plan: nothing later takes it for a run."""

from __future__ import annotations

import re
import shutil

import lance
import pytest
from inline import Inline, Silent

from reembed import faults
from reembed.catalog.lease import driving
from reembed.catalog.lines import Place, begin
from reembed.catalog.releases import Catalog
from reembed.catalog.runs import Run, find_runs, open_runs
from reembed.cli import text as report
from reembed.errors import Conflict, ReembedError, SourceError
from reembed.lifecycle.candidates import release_of
from reembed.lifecycle.gc import plan as plan_gc
from reembed.lifecycle.status import status
from reembed.source.dataset import Source
from reembed.store.storage import Storage
from reembed.strategies.full_rebuild import full_rebuild


@pytest.fixture
def place(corpus, make_config):
    """(uri, config, catalog) of 60 documents; nothing is built."""
    uri = corpus(60)
    config = make_config(uri)
    return uri, config, Catalog(Storage.open(config.storage.root), config.alias)


def build(config):
    return full_rebuild(config, Silent(), executor=Inline())


def set_text(uri, text):
    lance.dataset(uri).update({"text": text}, where="doc_id = 'd00001'")


def told(catalog):
    return report.text("status", status(catalog))


def test_a_release_is_named_after_the_version_it_was_made_from_though_a_run_was_refused(place):
    uri, config, catalog = place
    set_text(uri, "cast(null as string)")
    with pytest.raises(ReembedError):
        build(config)
    set_text(uri, "'a text'")
    release = build(config)
    assert release.source.version == 3
    assert "-v3-" in release.id
    assert build(config) == release, "it is complete already"
    for version, found in ((2, None), (3, release)):
        pinned = config.source.model_copy(update={"version": version})
        assert release_of(catalog, config.model_copy(update={"source": pinned})) == found


def begun(config, catalog, uri):
    """The run of the source's first version, as it is before it has a plan."""
    settings = config.line_settings(uri)
    run = Run(catalog.storage, f"{config.alias}-{settings}-v1-1")
    begin(catalog.storage, config.alias, run.id, Place(settings, run.id, 0, 1))
    return run


def test_a_run_that_was_refused_is_nothing_to_go_on_with(place):
    uri, config, catalog = place
    set_text(uri, "cast(null as string)")
    for _ in range(2):
        with pytest.raises(ReembedError):
            build(config)
    assert open_runs(catalog.storage, catalog.alias) == []
    assert plan_gc(catalog, 1).dropped_runs == [], "it staged nothing"
    assert status(catalog).runs == ()
    assert told(catalog).endswith("Next: reembed run")


def test_a_run_killed_before_its_plan_is_shown_while_it_is_driven_and_not_after(place):
    uri, config, catalog = place
    run = begun(config, catalog, uri)
    with driving(run):
        assert [r.run for r in status(catalog).runs] == [run.id]
    assert status(catalog).runs == ()
    assert plan_gc(catalog, 1).held_runs == []
    assert build(config).id == run.id, "the run of this version goes on"


def test_a_run_killed_before_its_plan_does_not_give_its_name_to_another_version(place):
    uri, config, catalog = place
    run = begun(config, catalog, uri)
    with driving(run):
        pass
    set_text(uri, "'a text'")
    assert build(config).id not in (run.id, None)


def test_a_run_whose_plan_is_being_made_is_not_started_beside(place):
    uri, config, catalog = place
    run = begun(config, catalog, uri)
    with driving(run):
        set_text(uri, "'a text'")
        with pytest.raises(Conflict, match=re.escape(run.id)):
            build(config)
    assert [r.id for r in find_runs(catalog.storage)] == [run.id]


def test_after_a_stopped_run_status_names_what_waits_and_how_to_give_it_up(place, monkeypatch):
    uri, config, catalog = place
    release = build(config)

    def stopped(point):
        if point == "run.after_plan":
            raise KeyboardInterrupt

    set_text(uri, "'a text'")
    with monkeypatch.context() as patch:
        patch.setattr(faults, "hook", stopped)
        with pytest.raises(KeyboardInterrupt):
            build(config)
    (run,) = open_runs(catalog.storage, catalog.alias)
    first, *others = told(catalog).split("Next: ")[1].split("\n")
    assert first == f"reembed run -c {catalog.storage.uri(run.path('config.yaml'))}"
    assert others[0].startswith(f"  or: reembed promote {release.id} --initial")
    assert others[1].startswith(f"  or: reembed gc --drop-run {run.id} --yes")


def test_a_source_version_that_is_not_there_is_answered_with_one_that_is(place):
    uri, config, _ = place
    with pytest.raises(SourceError, match="version 99") as refused:
        Source.open(
            config.model_copy(update={"source": config.source.model_copy(update={"version": 99})})
        )
    assert refused.value.fix.startswith("reembed run --set source.version=1 ")
    shutil.rmtree(uri)
    with pytest.raises(SourceError) as refused:
        Source.open(config)
    assert refused.value.fix.startswith("reembed import ")

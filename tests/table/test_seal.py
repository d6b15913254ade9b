"""Each receipt of many is held against the plan before anything is committed; each check alone."""

from __future__ import annotations

from types import SimpleNamespace

import pyarrow as pa
import pytest
from inline import Inline, Silent

from reembed.catalog.releases import Catalog
from reembed.errors import IntegrityError, RunFailed, TooManyDeadLetters
from reembed.store.storage import Storage
from reembed.strategies import rebuild_plan, steps
from reembed.strategies.context import RunContext
from reembed.table import seal as sealing
from reembed.table import write as table

UNITS = 5


@pytest.fixture
def staged(corpus, make_config, monkeypatch):
    """A run whose units are all staged; nothing is committed, whatever seal finds."""
    config = make_config(corpus(300), table={"carry": ["title"]})
    catalog = Catalog(Storage.open(config.storage.root), config.alias)
    wanted = rebuild_plan.Wanted.read(config, catalog, Silent())
    run = rebuild_plan.choose_run(wanted, fresh=False)
    plan = rebuild_plan.make_plan(run, wanted, Inline(), Silent())
    work = RunContext(run, plan, wanted.source, config, Inline(), Silent())
    steps.embed_documents(work)
    assert len(run.staged()) == len(plan.units) == UNITS

    def committed(*arguments):
        raise AssertionError("it went on to commit")

    monkeypatch.setattr(sealing, "_check_files", lambda run, plan, receipts, files: None)
    monkeypatch.setattr(sealing, "_commit", committed)
    return work


def change(work, unit, **fields):
    path = work.run.path(f"units/{work.plan.units[unit].id}.json")
    work.run.storage.write(path, {**work.run.storage.read(path), **fields})


def seal(work, dead_letters=0):
    return sealing.seal(work.run, work.plan, work.columns, dead_letters)


def test_receipts_that_fit_are_committed(staged):
    with pytest.raises(AssertionError, match="it went on to commit"):
        seal(staged)


@pytest.mark.parametrize("unit", range(UNITS))
@pytest.mark.parametrize("field", ["space", "columns"])
def test_a_receipt_of_another_space_or_other_columns_is_refused(staged, unit, field):
    change(staged, unit, **{field: "0" * 12})
    with pytest.raises(IntegrityError, match="do not match the plan") as found:
        seal(staged)
    assert staged.plan.units[unit].id in found.value.what


@pytest.mark.parametrize("unit", [0, 3, UNITS - 1])
@pytest.mark.parametrize("figures", [("rows",), ("documents",), ("rows", "documents")])
def test_a_receipt_with_a_row_or_document_too_few_or_too_many_is_refused(staged, unit, figures):
    for more in (-1, 1):
        changed = staged.plan.units[unit].documents + more
        change(staged, unit, **dict.fromkeys(figures, changed))
        with pytest.raises(IntegrityError, match="do not match the plan"):
            seal(staged)


@pytest.mark.parametrize("unit", [0, 3, UNITS - 1])
def test_a_unit_without_a_receipt_is_named(staged, unit):
    name = staged.plan.units[unit].id
    staged.run.storage.remove(staged.run.path(f"units/{name}.json"))
    with pytest.raises(RunFailed, match=f"1 of {UNITS} units are not staged: {name}"):
        seal(staged)


def test_a_receipt_of_no_planned_unit_is_refused(staged):
    path = staged.run.path(f"units/{staged.plan.units[0].id}.json")
    receipt = {**staged.run.storage.read(path), "unit": "stray"}
    staged.run.storage.write(staged.run.path("units/stray.json"), receipt)
    with pytest.raises(IntegrityError, match="do not match the plan: stray"):
        seal(staged)


def test_dead_letters_of_all_units_count_together(staged):
    for unit in (1, 3):
        rows = staged.plan.units[unit].rows
        dead = [{"doc_id": f"x{unit}", "reason": "a test", "text_hash": "00"}]
        change(staged, unit, rows=rows - 1, documents=rows - 1, dead_letters=dead)
    with pytest.raises(TooManyDeadLetters, match="2 of 300 documents"):
        seal(staged, dead_letters=1)
    with pytest.raises(AssertionError, match="it went on to commit"):
        seal(staged, dead_letters=2)


def test_a_staged_file_that_is_not_there_or_cut_short_is_no_proof(tmp_path):
    storage = Storage.open(str(tmp_path))
    storage.write_bytes("tables/t/data/short.lance", b"1234")
    for name, size in (("gone", 0), ("short", 4)):
        file = SimpleNamespace(path=f"{name}.lance", file_size_bytes=10)
        with pytest.raises(IntegrityError, match=f"has {size} bytes where 10 were written"):
            table._proof(storage, "tables/t", file)


def test_the_columns_of_a_table_that_may_not_be_null_are_said_to_be(staged):
    columns = table.schema(staged.plan.space, pa.string(), [])
    assert {f.name for f in columns if not f.nullable} >= {"doc_id"}

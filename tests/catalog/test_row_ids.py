"""Row ids of units come back as they were planned, or are refused."""

from __future__ import annotations

import numpy as np
import pytest

from reembed.catalog.row_ids import RowIdFile
from reembed.catalog.runs import Run
from reembed.errors import IntegrityError
from reembed.store.storage import Storage

UNITS = [[5, 2, 2**40], [], [7], list(range(1000))]


@pytest.fixture
def run(tmp_path):
    return Run(Storage.open(str(tmp_path)), "a-run")


def written(run):
    file = RowIdFile()
    units = [file.add(np.array(rows, np.int64)) for rows in UNITS]
    file.write(run)
    return units


def test_each_unit_reads_its_own(run):
    units = written(run)
    assert [unit.read(run).tolist() for unit in units] == UNITS
    assert [unit.rows for unit in units] == [3, 0, 1, 1000]
    assert len(list(run.storage.objects("runs/a-run/rows/"))) == 1


def test_without_rows_there_is_no_file(run):
    file = RowIdFile()
    none = file.add(np.empty(0, np.int64))
    file.write(run)
    assert not list(run.storage.objects("runs/"))
    assert none.read(run).tolist() == []


@pytest.mark.parametrize("harm", ["flipped", "cut", "gone"])
def test_other_bytes_are_refused(run, harm):
    units = written(run)
    ((path, _),) = run.storage.objects("runs/a-run/rows/")
    body = bytearray(run.storage.read_bytes(path))
    body[-1] ^= 1
    if harm == "cut":
        body = body[:-8]
    run.storage.write_bytes(path, bytes(body))
    if harm == "gone":
        run.storage.remove(path)
    with pytest.raises(IntegrityError, match="does not hold the row ids") as refused:
        units[-1].read(run)
    assert refused.value.fix.startswith("reembed gc --drop-run a-run --yes")

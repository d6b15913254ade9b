"""Row ids of a plan's units, in a file beside the plan: a catch-up can have a hundred million of them.

runs/RUN/rows/NAME.i64    int64, little-endian: the row ids of all units of a plan, one unit after the other
"""

from __future__ import annotations

import hashlib
import uuid
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from reembed.errors import IntegrityError

if TYPE_CHECKING:
    from reembed.catalog.runs import Run

Int64 = npt.NDArray[np.int64]
ROWS = "rows/"
"""Folder below the run's own."""
_TYPE = np.dtype("<i8")


class RowIds(NamedTuple):
    """Where the row ids of a unit are."""

    file: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    start: Annotated[int, Field(ge=0)]
    """Row ids of the file before them."""
    rows: Annotated[int, Field(ge=0)]
    sha256: str
    """Digest of their bytes."""

    def read(self, run: Run) -> Int64:
        """Return them, int64 [R].

        Raises:
            IntegrityError: the file is missing, or its bytes are not those that were planned.
        """
        if not self.rows:
            return np.empty(0, np.int64)
        path, size = _path(run, self.file), _TYPE.itemsize
        try:
            body = run.storage.read_range(path, self.start * size, self.rows * size)
        except FileNotFoundError:
            body = b""
        if hashlib.sha256(body).hexdigest() != self.sha256:
            what = f"{path} does not hold the row ids that run {run.id} was planned with"
            fix = f"reembed gc --drop-run {run.id} --yes     # and start the catch-up again"
            raise IntegrityError(what, "it was removed or changed", fix)
        return np.frombuffer(body, _TYPE).astype(np.int64)


class RowIdFile:
    """Collects the row ids of units, and writes them as one file."""

    def __init__(self) -> None:
        self._name, self._rows = uuid.uuid4().hex, 0
        self._parts: list[bytes] = []

    def add(self, row_ids: Int64) -> RowIds:
        """Take the row ids of a unit; return where they will be."""
        body = np.ascontiguousarray(row_ids, _TYPE).tobytes()
        added = RowIds(self._name, self._rows, len(row_ids), hashlib.sha256(body).hexdigest())
        self._parts.append(body)
        self._rows += len(row_ids)
        return added

    def write(self, run: Run) -> None:
        """Write the file, if there are any; what names it is written afterwards."""
        if self._rows:
            run.storage.write_bytes(_path(run, self._name), b"".join(self._parts))


def _path(run: Run, name: str) -> str:
    return run.path(f"{ROWS}{name}.i64")

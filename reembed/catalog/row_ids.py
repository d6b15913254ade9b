"""Row ids of a plan's units, in a file beside the plan: a catch-up can have a hundred million of them.

runs/RUN/rows/NAME.i64    int64, little-endian: the row ids of all units of a plan, one unit after the other
"""

from __future__ import annotations

import hashlib
import uuid
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import Field

from reembed.errors import IntegrityError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from reembed.catalog.runs import Run

    Int64 = npt.NDArray[np.int64]

ROWS = "rows/"
"""Folder below the run's own."""
_BYTES = 8


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
        import numpy as np  # `status`, which reads plans, does without

        body = self._body(run)
        if hashlib.sha256(body).hexdigest() != self.sha256:
            what = f"{_path(run, self.file)} does not hold the row ids that run {run.id} was planned with"
            fix = f"reembed gc --drop-run {run.id} --yes     # and start the catch-up again"
            raise IntegrityError(what, "it was removed or changed", fix)
        return np.frombuffer(body, "<i8").astype(np.int64)

    def _body(self, run: Run) -> bytes:
        if not self.rows:
            return b""
        place = _path(run, self.file), self.start * _BYTES, self.rows * _BYTES
        try:
            return run.storage.read_range(*place)
        except FileNotFoundError:
            return b""


class RowIdFile:
    """Collects the row ids of units, and writes them as one file."""

    def __init__(self) -> None:
        self._name, self._rows = uuid.uuid4().hex, 0
        self._parts: list[bytes] = []

    def add(self, row_ids: Int64) -> RowIds:
        """Take the row ids int64 [R] of a unit; return where they will be."""
        body = row_ids.astype("<i8").tobytes()
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

"""A table version as a table of LanceDB, for hybrid search, full text and SQL."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from reembed.errors import IntegrityError, UsageError
from reembed.store.storage import first_line
from reembed.table.read import TableVersion

if TYPE_CHECKING:
    from lancedb.table import Table


def open_lancedb(table: TableVersion) -> Table:
    """Return the table at exactly its version; LanceDB refuses to write to it there.

    Raises:
        UsageError: LanceDB is not installed.
        IntegrityError: the version cannot be read.
    """
    try:
        import lancedb
    except ImportError as error:
        raise UsageError(
            "LanceDB is not installed", str(error), "pip install 'reembed-ray[lancedb]'"
        ) from error
    path = PurePosixPath(table.path)
    storage = table.storage
    database = lancedb.connect(storage.uri(str(path.parent)), storage_options=storage.lance_options)
    try:
        return database.open_table(path.stem, version=table.version)
    except (OSError, ValueError, RuntimeError) as error:
        raise IntegrityError(
            f"{table.path} version {table.version} cannot be opened with LanceDB",
            first_line(error),
            "reembed status     # if gc removed it, open the live release",
        ) from error

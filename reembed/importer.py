"""JSONL, CSV or Parquet -> a Lance dataset with stable row ids, streamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.dataset as pads

from reembed.errors import SourceError, UsageError
from reembed.storage import absolute

FORMATS = {
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}
_COMPRESSIONS = (".gz", ".bz2", ".zst")


def import_documents(
    files: list[str],
    to: str,
    *,
    file_format: str | None = None,
    columns: list[str] | None = None,
    options: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Write the rows of all files into a new Lance dataset at `to`.

    Raises:
        UsageError: the target exists, a file is missing or of an unknown kind.
        SourceError: a file cannot be read as what it is, or a column is missing.
    """
    uri = absolute(to)
    kind = file_format or _format(files)
    missing = [f for f in files if not Path(f).exists()]
    if missing:
        raise UsageError(
            f"no such file: {', '.join(missing)}", None, "ls " + str(Path(missing[0]).parent)
        )
    if _exists(uri, options):
        raise UsageError(
            f"{to} is a Lance dataset already",
            "import makes new datasets; existing documents are never overwritten",
            f"reembed import {' '.join(files)} --to {to.removesuffix('.lance')}-2.lance",
        )
    try:
        found = pads.dataset(files, format=kind)
        names = columns or [f.name for f in found.schema if not _is_empty(f.type)]
        if unknown := sorted(set(names) - set(found.schema.names)):
            raise SourceError(
                f"no column {', '.join(unknown)}",
                f"there are: {', '.join(found.schema.names)}",
                None,
            )
        schema = pa.schema([found.schema.field(n) for n in names])
        reader = pa.RecordBatchReader.from_batches(
            schema, found.scanner(columns=names).to_batches()
        )
        written = lance.write_dataset(
            reader, uri, mode="create", enable_stable_row_ids=True, storage_options=options or None
        )
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise SourceError(
            f"cannot read {', '.join(files)} as {kind}",
            str(error).splitlines()[0],
            "reembed import FILE --to URI --format json|csv|parquet",
        ) from error
    skipped = [f.name for f in found.schema if f.name not in names]
    return {
        "uri": to,
        "rows": written.count_rows(),
        "columns": names,
        "skipped": skipped,
        "version": written.version,
    }


def _format(files: list[str]) -> str:
    kinds = set()
    for name in files:
        suffixes = [s for s in Path(name).suffixes if s not in _COMPRESSIONS]
        kinds.add(FORMATS.get(suffixes[-1] if suffixes else ""))
    if len(kinds) != 1 or None in kinds:
        raise UsageError(
            f"cannot tell the format of {', '.join(files)}",
            f"known endings: {', '.join(FORMATS)} (also compressed: {', '.join(_COMPRESSIONS)})",
            "reembed import FILE --to URI --format json|csv|parquet",
        )
    return str(kinds.pop())


def _is_empty(kind: pa.DataType) -> bool:
    """A struct without fields or a column without values: nothing a table could hold."""
    return bool(pa.types.is_null(kind) or (pa.types.is_struct(kind) and kind.num_fields == 0))


def _exists(uri: str, options: dict[str, str] | None) -> bool:
    try:
        lance.dataset(uri, storage_options=options or None)
    except (ValueError, OSError):
        return False
    return True

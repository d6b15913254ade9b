"""JSONL, CSV or Parquet -> a Lance dataset with stable row ids, streamed."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.dataset as pads
import pyarrow.json as pajson

from reembed.errors import SourceError, UsageError
from reembed.lance_io import open_dataset
from reembed.storage import absolute, is_remote

FORMATS = {
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}
ID_COLUMNS = ("_id", "id", "doc_id")
"""Read from CSV as text: 007 is not 7."""
_COMPRESSIONS = (".gz", ".bz2", ".zst")
_BLOCK_BYTES = 16 << 20


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
    missing = [f for f in files if not Path(f).is_file()]
    if missing:
        raise UsageError(
            f"no such file: {', '.join(missing)}", None, "ls " + str(Path(missing[0]).parent)
        )
    if _exists(uri, options):
        raise UsageError(
            f"{to} is a Lance dataset already",
            "import makes new datasets; existing documents are never overwritten",
            f"reembed import {shlex.join(files)} --to {shlex.quote(to.removesuffix('.lance') + '-2.lance')}",
        )
    if not is_remote(uri) and Path(uri).is_dir() and any(Path(uri).iterdir()):
        raise UsageError(
            f"{to} is a folder with something else in it",
            "a dataset gets a folder of its own",
            f"reembed import {shlex.join(files)} --to {shlex.quote(to.rstrip('/') + '/documents.lance')}",
        )
    try:
        found = _json_schema(files) if kind == "json" else _dataset(files, kind).schema
        names = columns or [f.name for f in found if not _is_empty(f.type)]
        if unknown := sorted(set(names) - set(found.names)):
            raise SourceError(
                f"no column {', '.join(unknown)}", f"there are: {', '.join(found.names)}", None
            )
        if not names:
            raise SourceError(f"{', '.join(files)}: there are no documents in it")
        schema = pa.schema([found.field(n) for n in names])
        batches = _json_batches(files, schema) if kind == "json" else _batches(files, kind, schema)
        reader = pa.RecordBatchReader.from_batches(schema, batches)
        written = lance.write_dataset(
            reader,
            uri,
            mode="create",
            enable_stable_row_ids=True,
            storage_options=options or None,
        )
    except (pa.ArrowException, OSError) as error:  # Lance passes on a reader's error as OSError
        raise SourceError(
            f"cannot import {', '.join(files)} as {kind} to {to}",
            str(error).splitlines()[0],
            "reembed import FILE --to URI --format json|csv|parquet",
        ) from error
    skipped = [f.name for f in found if f.name not in names]
    return {
        "uri": to,
        "rows": written.count_rows(),
        "columns": names,
        "skipped": skipped,
        "version": written.version,
    }


def _dataset(files: list[str], kind: str) -> pads.Dataset:
    if kind == "parquet":
        return pads.dataset(files, format="parquet")
    form = pads.CsvFileFormat(
        parse_options=pacsv.ParseOptions(newlines_in_values=True),
        read_options=pacsv.ReadOptions(block_size=_BLOCK_BYTES),
        convert_options=pacsv.ConvertOptions(column_types=dict.fromkeys(ID_COLUMNS, pa.string())),
    )
    return pads.dataset(files, format=form)


def _batches(files: list[str], kind: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    yield from _dataset(files, kind).scanner(columns=schema.names).to_batches()


def _json_schema(files: list[str]) -> pa.Schema:
    """Every field of every line, with a type that holds all its values: a first pass."""
    schema = pa.schema([])
    for table in _json_tables(files):
        schema = pa.unify_schemas([schema, table.schema], promote_options="permissive")
    return schema


def _json_batches(files: list[str], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for table in _json_tables(files, schema):
        yield from table.to_batches()


def _json_tables(files: list[str], schema: pa.Schema | None = None) -> Iterator[pa.Table]:
    """Whole lines, some MiB at a time; a block of Arrow's own reader would cut long lines."""
    parse = pajson.ParseOptions(
        explicit_schema=schema, unexpected_field_behavior="infer" if schema is None else "ignore"
    )
    for name in files:
        for lines in _blocks(name):
            read = pajson.ReadOptions(block_size=len(lines) + 1, use_threads=False)
            yield pajson.read_json(pa.BufferReader(lines), read, parse)


def _blocks(name: str) -> Iterator[bytes]:
    with pa.input_stream(name, compression="detect") as stream:
        rest = b""
        while block := stream.read(_BLOCK_BYTES):
            lines, newline, tail = (rest + block).rpartition(b"\n")
            rest = tail
            if lines.strip():
                yield lines + newline
        if rest.strip():
            yield rest


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
        open_dataset(uri, options=options)
    except FileNotFoundError:
        return False
    return True

"""Import JSONL, CSV or Parquet into a Lance dataset with stable row ids; streamed, every cell is kept.

The files are read three times: to find one type for each column over all files, to write, and, by
another reader, to compare every cell with what was written.
"""

from __future__ import annotations

import shlex
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import lance
import pyarrow as pa

from reembed.config.options import as_options, resolved, secrets_in
from reembed.errors import IntegrityError, SourceError, UsageError
from reembed.source.import_columns import (
    COMPRESSIONS,
    Column,
    Format,
    Numbers,
    first_false,
    text_differs,
)
from reembed.source.import_csv import Csv
from reembed.source.import_json import Json
from reembed.source.import_parquet import Parquet
from reembed.store.lance import open_dataset
from reembed.store.paths import absolute, is_remote
from reembed.store.storage import Storage, first_line

FORMATS = {
    ".jsonl": "json", ".json": "json", ".ndjson": "json", ".csv": "csv", ".parquet": "parquet"
}  # fmt: skip
_READERS: dict[str, Format] = {"json": Json(), "csv": Csv(), "parquet": Parquet()}
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class _Asked:
    """What the user asked for."""

    files: list[str]
    to: str
    file_format: str | None
    columns: list[str]
    options: dict[str, str]

    @property
    def uri(self) -> str:
        return absolute(self.to)

    def again(self, **changes: Any) -> str:
        """Return the command that asks for the same but for the changes, without secrets."""
        asked = replace(self, **changes)
        command = ["reembed", "import", *asked.files, "--to", asked.to]
        if asked.file_format:
            command += ["--format", asked.file_format]
        if asked.columns:
            command += ["--columns", ",".join(asked.columns)]
        public = asked.options.keys() - set(secrets_in(asked.options))
        for key in sorted(public):
            command += ["--option", f"{key}={asked.options[key]}"]
        return shlex.join(command)


@dataclass(frozen=True)
class Imported:
    """A Lance dataset that was made from files."""

    uri: str
    rows: int
    types: dict[str, str]
    """Arrow type of each column, in their order."""
    notes: dict[str, str]
    """Why a column has its type, by name, where that is not obvious."""
    skipped: tuple[str, ...]
    """Columns that were left out: they hold no values, or were not asked for."""
    version: int
    """Lance version of the dataset."""

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in their order."""
        return list(self.types)

    def to_json(self) -> dict[str, Any]:
        """Return what `reembed import --json` prints."""
        return {**asdict(self), "columns": self.columns}


def import_documents(
    files: list[str],
    to: str,
    *,
    file_format: str | None = None,
    columns: list[str] | None = None,
    options: dict[str, str] | None = None,
) -> Imported:
    """Write the rows of all files into a new Lance dataset at `to`, and compare every cell.

    Raises:
        UsageError: the target exists, a file is missing or of an unknown kind.
        SourceError: a file cannot be read as what it is, or a column is missing.
        IntegrityError: what was written is not what the files hold.
    """
    asked = _Asked(files, to, file_format, columns or [], options or {})
    kind = file_format or _format(asked)
    _require_files(files)
    _require_new(asked)
    reader = _READERS[kind]
    try:
        own = [_with_folders(column, files) for column in reader.survey(files)]
        found = [*own, *_path_columns(files, {c.name for c in own})]
        chosen = _chosen(asked, found)
        with _new_folder(asked):
            written = _write(reader, asked, chosen)
            if not written.count_rows():
                raise _no_documents(asked)
            _compare(reader, asked, written, chosen)
    except (pa.ArrowException, OSError) as error:  # Lance passes on a reader's error as OSError
        what = f"cannot import {', '.join(files)} as {kind} to {to}"
        raise SourceError(what, first_line(error)) from error
    types = {c.name: str(c.type) for c in chosen}
    return Imported(
        uri=to,
        rows=written.count_rows(),
        types=types,
        notes={c.name: c.why for c in chosen if c.why},
        skipped=tuple(c.name for c in found if c.name not in types),
        version=written.version,
    )


def _require_files(files: list[str]) -> None:
    if missing := [f for f in files if not Path(f).is_file()]:
        nearest = next((p for p in Path(missing[0]).parents if p.is_dir()), Path())
        raise UsageError(
            f"no such file: {', '.join(missing)}", None, f"ls {shlex.quote(str(nearest))}"
        )


def _require_new(asked: _Asked) -> None:
    with suppress(FileNotFoundError):
        open_dataset(asked.uri, options=asked.options)
        raise UsageError(
            f"{asked.to} is already a Lance dataset",
            "import makes new datasets; existing documents are never overwritten",
            asked.again(to=asked.to.removesuffix(".lance") + "-2.lance"),
        )
    if found := _in_the_way(asked):
        place = asked.to.rstrip("/") + "-documents.lance"
        what = f"{asked.to} is {found}"
        raise UsageError(what, "a dataset needs its own folder", asked.again(to=place))


def _in_the_way(asked: _Asked) -> str | None:
    """Return what is at the place of the dataset; None if nothing is, or an empty folder or bucket."""
    place = Path(asked.uri)
    if is_remote(asked.uri):
        full = bool(Storage(asked.uri, as_options(asked.options)).objects(""))
    elif place.is_file():
        return "a file"
    else:
        full = place.exists() and any(place.iterdir())
    return "a folder with something else in it" if full else None


def _with_folders(column: Column, files: list[str]) -> Column:
    """Return the column; with a clash if a file lacks it and lies in a folder that is named after it."""
    other = [f for f in files if f not in column.files and _path_values(f).get(column.name)]
    if not other:
        return column
    folder = next(
        p for p in Path(other[0]).parent.parts if unquote(p).startswith(f"{column.name}=")
    )
    clash = f"is in {min(column.files)}, and a folder's name for {other[0]}: {folder}"
    return replace(column, clash=column.clash or clash)


def _path_columns(files: list[str], own: set[str]) -> list[Column]:
    """Return columns that folders named KEY=VALUE stand for, as Hive and Spark write them.

    A column that the files have themselves is not taken from the folders.
    """
    found: dict[str, Numbers] = {}
    for file in files:
        for key, value in _path_values(file).items():
            found.setdefault(key, Numbers("each")).add(pa.array([value], pa.string()))
    columns = (seen.column(key) for key, seen in found.items() if key not in own)
    return [replace(c, why="from the names of the folders", from_path=True) for c in columns]


def _path_values(file: str) -> dict[str, str | None]:
    pairs = (part.partition("=") for part in Path(file).parent.parts if "=" in part)
    values = {unquote(key): unquote(value) for key, _, value in pairs if key}
    return {key: None if value == _HIVE_NULL else value for key, value in values.items()}


def _chosen(asked: _Asked, found: list[Column]) -> list[Column]:
    """Return the columns to keep: those asked for, or all that hold a value.

    Raises:
        SourceError: there is none, one is not there, or a dataset cannot have it.
    """
    by_name = {c.name: c for c in found}
    if unknown := sorted(set(asked.columns) - set(by_name)):
        raise SourceError(
            f"no column {', '.join(unknown)}",
            f"there are: {', '.join(by_name)}",
            asked.again(columns=[n for n in asked.columns if n in by_name]),
        )
    held = [c.name for c in found if c.clash or not pa.types.is_null(c.type)]
    chosen = [by_name[n] for n in asked.columns or held]
    if not chosen:
        raise _no_documents(asked)
    if refused := {c.name: why for c in chosen if (why := c.clash or _refusal(c))}:
        rest = [c.name for c in chosen if c.name not in refused and "," not in c.name]
        name, why = next(iter(refused.items()))
        raise SourceError(
            f"column {name!r} {why}",
            "a dataset cannot store it",
            asked.again(columns=rest) if rest else None,
        )
    return chosen


def _no_documents(asked: _Asked) -> SourceError:
    return SourceError(
        f"{', '.join(asked.files)}: contains no documents",
        "no file has a row with a value",
        f"ls -l {shlex.join(asked.files)}",
    )


def _refusal(column: Column) -> str | None:
    """Return what Lance says against a column of this name and type; None if it takes it."""
    try:
        schema = pa.schema([(column.name, column.type)])
        lance.write_dataset(schema.empty_table(), "memory://probe", mode="create").to_table()
    except (OSError, ValueError) as error:
        return f"cannot be in a Lance dataset: {first_line(error)}"
    return None


@contextmanager
def _new_folder(asked: _Asked) -> Iterator[None]:
    """Make a folder that no other user reads; if the block fails, nothing is left in it."""
    folder = Path(asked.uri)
    made = not is_remote(asked.uri) and _closed_folder(folder)
    try:
        yield
    except BaseException:  # Ctrl-C too: half a dataset looks like a whole one
        Storage(asked.uri, as_options(asked.options)).delete_tree("")
        if made:
            folder.rmdir()
        raise


def _closed_folder(folder: Path) -> bool:
    """Make a folder of mode 0700, or close an existing one to all but its owner and group; True if made."""
    if not folder.exists():
        folder.mkdir(mode=0o700, parents=True)
        return True
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & stat.S_IRWXO:
        try:
            folder.chmod(mode & ~stat.S_IRWXO)
        except PermissionError as error:
            raise UsageError(
                f"{folder} has mode {mode:04o} and belongs to user {folder.stat().st_uid}",
                "every user of this machine could read what is imported there",
                f"ls -ld {shlex.quote(str(folder))}     # import to a folder that is not there yet",
            ) from error
    return False


def _write(reader: Format, asked: _Asked, columns: list[Column]) -> lance.LanceDataset:
    batches = (
        batch
        for file in asked.files
        for count, cells in reader.typed(file, [c for c in columns if file in c.files])
        for batch in _with_all(columns, file, count, cells).to_batches()
    )
    schema = pa.schema([(c.name, c.type) for c in columns])
    return lance.write_dataset(
        pa.RecordBatchReader.from_batches(schema, batches),
        asked.uri,
        mode="create",
        enable_stable_row_ids=True,
        storage_options=resolved(asked.options) or None,
    )


def _with_all(columns: list[Column], file: str, count: int, cells: Mapping[str, Any]) -> pa.Table:
    """Return rows of a file with every column: its own, those of its folders' names, else nulls."""
    nulls = {c.name: pa.nulls(count, c.type) for c in columns}
    of_path = [c for c in columns if c.from_path]
    texts = {c.name: _path_texts(file, c.name, count).cast(c.type) for c in of_path}
    return pa.table({**nulls, **cells, **texts})


def _path_texts(file: str, key: str, rows: int) -> pa.Array:
    return pa.repeat(pa.scalar(_path_values(file).get(key), pa.string()), rows)


def _compare(
    reader: Format, asked: _Asked, written: lance.LanceDataset, columns: list[Column]
) -> None:
    """Compare every cell of every file with the dataset, some thousand rows at a time.

    Raises:
        IntegrityError: a cell or the number of rows differs; names the file, the row, the column.
    """
    start = 0
    for file in asked.files:
        first = start
        for count, cells in reader.cells(file):
            rows = written.scanner(offset=start, limit=count, scan_in_order=True).to_table()
            if rows.num_rows != count:
                raise _lost(asked, file, f"row {start - first + rows.num_rows + 1} is not there")
            for column in columns:
                at = _first_other(reader, file, cells, column, rows[column.name])
                if at is not None:
                    found = f"row {start - first + at + 1}: column {column.name!r}"
                    raise _lost(asked, file, found)
            start += count
    if start != (count := written.count_rows()):
        raise _lost(asked, ", ".join(asked.files), f"{count:,} rows were written of {start:,}")


def _first_other(
    reader: Format, file: str, cells: Mapping[str, Any], column: Column, written: pa.ChunkedArray
) -> int | None:
    if column.from_path:
        return text_differs(_path_texts(file, column.name, len(written)), written)
    if column.name in cells:
        return reader.differs(cells[column.name], written)
    return first_false(written.is_null())


def _lost(asked: _Asked, file: str, what: str) -> IntegrityError:
    return IntegrityError(
        f"{asked.to} is not what {file} holds: {what}",
        "the file changed meanwhile, or a reader lost something; the dataset was not kept",
    )


def _format(asked: _Asked) -> str:
    kinds = {name: FORMATS.get(_ending(name)) for name in asked.files}
    found = [kind for kind in dict.fromkeys(kinds.values()) if kind is not None]
    what = f"cannot tell the format of {', '.join(asked.files)}"
    if None in kinds.values() or not found:
        first, *others = _READERS
        raise UsageError(
            what,
            f"known endings: {', '.join(FORMATS)} (also compressed: {', '.join(COMPRESSIONS)})",
            f"{asked.again(file_format=first)}     # or {', '.join(others)}",
        )
    first, *others = found
    if others:
        files = [name for name, kind in kinds.items() if kind == first]
        raise UsageError(
            what,
            f"an import reads files of one format, and these are {' and '.join(found)}",
            f"{asked.again(files=files)}     # and the others each into a dataset of their own",
        )
    return first


def _ending(name: str) -> str:
    endings = [s for s in Path(name).suffixes if s not in COMPRESSIONS]
    return "".join(endings[-1:])

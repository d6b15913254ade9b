"""Judged queries: read from where they lie, checked, and reduced to the ones that can be scored."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from obstore.exceptions import BaseError

from reembed.config.settings import FrozenGate, GateConfig
from reembed.errors import UsageError
from reembed.store.paths import absolute_queries, is_remote
from reembed.store.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa
    from obstore.store import ObjectStore

_TABLE_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet", ".lance")
_COLUMNS = ("query_id", "text", "doc_ids")
_TSV_HEADER = ("query-id", "corpus-id", "score")
_MOST_GRADE = 1_000_000
"""Gains are sums of grades; a grade that is larger is an id or a time in the wrong column."""
_FORMATS = (
    "a BEIR folder (queries.jsonl[.gz], qrels/SPLIT.tsv[.gz]), or a .jsonl[.gz], .parquet or "
    ".lance with query_id, text, doc_ids and, if graded, grades"
)


@dataclass(frozen=True)
class EvalSet:
    """Queries with at least one relevant document, in the order they were stored."""

    query_ids: list[str]
    texts: list[str]
    qrels: list[dict[str, int]]
    """For each query, the grade of each document id, as given; 0 or less means "not relevant"."""
    source: str
    """Where it was read from, with the split of a BEIR folder."""
    sha256: str
    """Digest of ids, texts and grades; the same in every format and in any order."""
    dropped: int
    """Queries left out: they have judgements (or a row), but none that is positive."""


@dataclass(frozen=True)
class _Query:
    place: str
    query_id: str
    text: str
    qrels: dict[str, int]


def load_eval_set(uri: str, split: str, storage_options: dict[str, str]) -> EvalSet:
    """Read judged queries from a BEIR folder, JSONL, Parquet or Lance, local or in an object store.

    Args:
        uri: folder or file; object stores as s3://, gs://, az://.
        split: which qrels/SPLIT.tsv of a BEIR folder; the other formats have no splits.
        storage_options: object-store settings, as Lance takes them.

    Raises:
        UsageError: nothing is there, the format is unknown, or a line in it is wrong.
    """
    uri = uri.removeprefix("file://").rstrip("/") or uri
    if not is_remote(uri) and not Path(uri).exists():
        raise _missing(uri)
    if not uri.endswith(_TABLE_SUFFIXES):
        return _eval_set(f"{uri} ({split})", _beir_queries(uri, split, storage_options))
    if uri.endswith(".lance"):
        return _eval_set(uri, _table_queries(uri, _lance_table(uri, storage_options)))
    parent, slash, name = uri.rpartition("/")
    content = _read(_open_store(parent or slash or ".", storage_options), name, uri)
    if uri.endswith(".parquet"):
        return _eval_set(uri, _table_queries(uri, _parquet_table(uri, content)))
    rows = _jsonl_rows(uri, content)
    return _eval_set(uri, (_query_of_row(row, place) for place, row in rows))


def freeze(section: GateConfig, storage_options: dict[str, str]) -> FrozenGate:
    """Return the gate with the absolute place of its queries, and their digest and number as they are now.

    Raises:
        UsageError: as `load_eval_set`.
    """
    section = absolute_queries(section)
    if not section.queries:
        return FrozenGate(**section.model_dump())
    found = load_eval_set(section.queries, section.split, storage_options)
    return FrozenGate(**section.model_dump(), sha256=found.sha256, count=len(found.query_ids))


def _eval_set(source: str, queries: Iterator[_Query]) -> EvalSet:
    kept: list[_Query] = []
    place_of: dict[str, str] = {}
    for query in queries:
        if first := place_of.get(query.query_id):
            why = f"query {query.query_id!r} is a duplicate, first seen at {first}"
            raise _bad(query.place, why)
        place_of[query.query_id] = query.place
        if any(grade > 0 for grade in query.qrels.values()):
            kept.append(query)
    if not kept:
        raise UsageError(
            f"{source}: no query has a relevant document",
            f"{len(place_of)} judged queries were read, none with a grade above 0",
            "set gate.queries and gate.split to queries with judgements",
        )
    lines = sorted(json.dumps([q.query_id, q.text, sorted(q.qrels.items())]) for q in kept)
    return EvalSet(
        query_ids=[query.query_id for query in kept],
        texts=[query.text for query in kept],
        qrels=[query.qrels for query in kept],
        source=source,
        sha256=hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        dropped=len(place_of) - len(kept),
    )


def _beir_queries(uri: str, split: str, options: dict[str, str]) -> Iterator[_Query]:
    """Yield the queries that the split judges, in the order of queries.jsonl."""
    if not is_remote(uri) and not Path(uri).is_dir():
        raise UsageError(f"{uri}: unknown kind of judged queries", f"known: {_FORMATS}")
    store = _open_store(uri, options)
    qrels_name = _qrels_name(store, uri, split)
    qrels_place = f"{uri}/{qrels_name}"
    qrels = _parse_qrels(qrels_place, _read(store, qrels_name, qrels_place))
    name = "queries.jsonl.gz"
    if name not in _names(store, "", uri):
        name = "queries.jsonl"
    place = f"{uri}/{name}"
    seen: set[str] = set()
    for line_place, row in _jsonl_rows(place, _read(store, name, place)):
        query_id = _id_of(_field(row, "_id", line_place), line_place)
        if query_id in qrels:
            seen.add(query_id)
            yield _Query(line_place, query_id, _text_of(row, line_place), qrels[query_id])
    lost = sorted(qrels.keys() - seen)
    if lost:
        raise UsageError(
            f"{qrels_place}: {len(lost)} judged queries have no text, among them {lost[0]!r}",
            f"{place} has no line for them",
            f"add them to {place}, or remove their judgements",
        )


def _qrels_name(store: ObjectStore, uri: str, split: str) -> str:
    """Return the name of the split's file, one of those that exist, so that a split is never a path."""
    names = [n for n in _names(store, "qrels", uri) if n.endswith((".tsv", ".tsv.gz"))]
    if not names:
        why = f"there is no qrels/*.tsv; judged queries are {_FORMATS}"
        raise UsageError(f"{uri}: no judged queries", why, "set gate.queries to one of these")
    name_of = {n.removesuffix(".gz").removesuffix(".tsv"): n for n in names}
    if split not in name_of:
        splits = ", ".join(sorted(name_of))
        raise UsageError(
            f"{uri}: no split {split!r}",
            f"splits there: {splits}",
            f"set gate.split to one of them: {splits}",
        )
    return f"qrels/{name_of[split]}"


def _parse_qrels(place: str, content: bytes) -> dict[str, dict[str, int]]:
    """Parse as BEIR's reader does: tab-separated CSV, in which a cell may be quoted."""
    rows = _tsv_rows(place, content)
    _, columns = next(rows, (place, []))
    missing = [name for name in _TSV_HEADER if name not in columns]
    if missing:
        first = "\t".join(columns)
        raise UsageError(
            f"{place}: no column {', '.join(missing)}",
            f"the first line is {first[:80]!r}",
            f"make its first line {' '.join(_TSV_HEADER)}, separated by tabs",
        )
    query_at, doc_at, score_at = (columns.index(name) for name in _TSV_HEADER)
    qrels: dict[str, dict[str, int]] = {}
    for row_place, cells in rows:
        if len(cells) != len(columns):
            raise _bad(row_place, f"{len(cells)} cells where the header has {len(columns)}")
        try:
            grade = int(cells[score_at])
        except ValueError:
            raise _bad(row_place, f"score {cells[score_at]!r:.80} is not a whole number") from None
        _judge(qrels.setdefault(cells[query_at], {}), cells[doc_at], grade, row_place)
    return qrels


def _tsv_rows(place: str, content: bytes) -> Iterator[tuple[str, list[str]]]:
    """Yield `place:number` and the cells of each row that is not blank."""
    reader = csv.reader(io.StringIO(_text(place, content), newline=""), delimiter="\t", strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield f"{place}:{reader.line_num}", cells
    except csv.Error as error:
        raise _bad(f"{place}:{reader.line_num}", f"not tab-separated values: {error}") from None


def _judge(qrels: dict[str, int], doc_id: str, grade: int, place: str) -> None:
    if abs(grade) > _MOST_GRADE:
        raise _bad(place, f"the grade of document {doc_id!r:.80} is beyond {_MOST_GRADE:,}")
    if qrels.setdefault(doc_id, grade) != grade:
        raise _bad(place, f"document {doc_id!r} has grade {grade} and, before, {qrels[doc_id]}")


def _table_queries(uri: str, table: pa.Table) -> Iterator[_Query]:
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if missing:
        raise UsageError(
            f"{uri}: no column {', '.join(missing)}",
            f"columns there: {', '.join(table.column_names)}",
            "rename them to query_id, text, doc_ids and, if graded, grades",
        )
    wanted = [name for name in (*_COLUMNS, "grades") if name in table.column_names]
    for number, row in enumerate(table.select(wanted).to_pylist(), start=1):
        yield _query_of_row(row, f"{uri}, row {number}")


def _query_of_row(row: Mapping[str, Any], place: str) -> _Query:
    query_id = _id_of(_field(row, "query_id", place), place)
    text = _text_of(row, place)
    doc_ids = _field(row, "doc_ids", place)
    if not isinstance(doc_ids, list):
        raise _bad(place, f"doc_ids is not a list: {doc_ids!r:.80}")
    grades = row.get("grades")
    if grades is None:
        grades = [1] * len(doc_ids)
    if not isinstance(grades, list) or len(grades) != len(doc_ids):
        raise _bad(place, "grades must be a list of the same length as doc_ids")
    qrels: dict[str, int] = {}
    for doc_id, grade in zip(doc_ids, grades, strict=True):
        if type(grade) is not int:
            raise _bad(place, f"grade {grade!r:.80} is not a whole number")
        _judge(qrels, _id_of(doc_id, place), grade, place)
    return _Query(place, query_id, text, qrels)


def _field(row: Mapping[str, Any], name: str, place: str) -> Any:
    if name not in row:
        raise _bad(place, f"no {name!r}; there are {', '.join(map(str, row)) or 'no fields'}")
    return row[name]


def _id_of(value: Any, place: str) -> str:
    # A float id is a column of integers with a gap in it: "12.0" would match no document.
    if type(value) in (str, int):
        return str(value)
    raise _bad(place, f"id {value!r:.80} is neither a string nor an integer")


def _text_of(row: Mapping[str, Any], place: str) -> str:
    text = _field(row, "text", place)
    if isinstance(text, str) and text.strip():
        return text
    raise _bad(place, f"text {text!r:.80} is empty or not a string")


def _jsonl_rows(place: str, content: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield `place:number` and the object of each line that is not blank."""
    # str.splitlines would also break at U+2028, which JSON leaves as it is inside a text.
    for number, line in enumerate(_text(place, content).split("\n"), start=1):
        if not line.strip():
            continue
        line_place = f"{place}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError: also a number of 5,000 digits
            raise _bad(line_place, f"not JSON: {error}") from None
        if not isinstance(row, dict):
            raise _bad(line_place, "not a JSON object")
        yield line_place, row


def _text(place: str, content: bytes) -> str:
    try:
        if place.endswith(".gz"):
            content = gzip.decompress(content)
        return content.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        why = str(error)
        raise UsageError(f"{place}: not readable as text", why, "store it again as UTF-8") from None


def _parquet_table(uri: str, content: bytes) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(content))
        table.validate(full=True)  # Parquet itself may hold text that is not UTF-8
        return table
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{uri}: not readable as Parquet", str(error), "write it again") from None


def _lance_table(uri: str, options: dict[str, str]) -> pa.Table:
    from reembed.store.lance import open_dataset

    with _reading(uri):
        dataset = open_dataset(uri, options=options)
        names = set(dataset.schema.names)
        if not names.issuperset(_COLUMNS):
            return dataset.to_table()  # all columns, so that the error can name them
        return dataset.to_table(columns=[*_COLUMNS, *names.intersection(["grades"])])


@contextmanager
def _reading(place: str) -> Iterator[None]:
    """Raise a UsageError that names the place instead of an error of a disk, a store or Lance."""
    try:
        yield
    except FileNotFoundError:
        raise _missing(place) from None
    except (BaseError, OSError, ValueError, UsageError) as error:
        raise _missing(place, str(error).split("\n")[0]) from None


def _open_store(folder: str, options: dict[str, str]) -> ObjectStore:
    place = folder
    if not is_remote(folder):
        place = str(Path(folder).resolve())
    with _reading(folder):
        return Storage(place, tuple(sorted(options.items()))).store


def _read(store: ObjectStore, name: str, place: str) -> bytes:
    with _reading(place):
        return bytes(store.get(name).bytes())


def _names(store: ObjectStore, folder: str, place: str) -> list[str]:
    with _reading(place):
        listed = store.list_with_delimiter(folder or None)["objects"]
    return [entry["path"].rpartition("/")[2] for entry in listed]


def _missing(place: str, why: str = "nothing is there") -> UsageError:
    return UsageError(
        f"{place}: cannot read judged queries", why, "set gate.queries to " + _FORMATS
    )


def _bad(place: str, why: str) -> UsageError:
    return UsageError(f"{place}: not usable", why, "correct it or remove it, then run again")

"""Judged and logged queries as they are stored: a BEIR folder, or rows of a table; checked one by one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from reembed.errors import UsageError
from reembed.evaluation.figures import Kind
from reembed.evaluation.rows import (
    Place,
    Row,
    bad,
    field_of,
    id_of,
    jsonl_rows,
    tsv_rows,
    words_of,
)
from reembed.store.paths import is_remote

FORMATS = (
    "a BEIR folder (queries.jsonl[.gz], qrels/SPLIT.tsv[.gz]), or a .jsonl[.gz], .parquet or "
    ".lance with query_id, text, doc_ids and, if graded, grades; or a log with text and clicks"
)
CLICKS, SHOWN = "clicks", "shown"
"""The fields of a log that list what was clicked, and what was shown."""
_LOG_FIX = "set gate.logged to a .jsonl[.gz], .parquet or .lance with text and, where known, clicks"
_COLUMNS = ("query_id", "text", "doc_ids")
_TSV_HEADER = ("query-id", "corpus-id", "score")
_MOST_GRADE = 1_000_000
"""Gains are sums of grades; a grade that is larger is an id or a time in the wrong column."""


@dataclass(frozen=True)
class Kept:
    """The fields of a query that are kept beside its text."""

    slices: tuple[str, ...] = ()
    group: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Their names: slices, the group, the time."""
        return (*self.slices, *([self.group] if self.group else []), "timestamp")


@dataclass(frozen=True)
class Query:
    """One query, as it was read."""

    place: str
    query_id: str
    text: str
    qrels: dict[str, int]
    slices: tuple[str | None, ...]
    """In the order of the names."""
    group: str | None
    timestamp: str | None
    """ISO 8601, in UTC."""


@dataclass(frozen=True)
class JudgedSet:
    """The queries of one place."""

    place: str
    """With the split of a BEIR folder."""
    queries: list[Query]
    fields: frozenset[str]
    """Names of the fields that rows have."""
    evidence: Kind = "judgements"


def read_set(place: Place, split: str, kept: Kept) -> JudgedSet:
    """Read the judged queries of one place, in the order they are stored.

    Raises:
        UsageError: nothing is there, the format is unknown, or a line in it is wrong.
    """
    place.require()
    if not place.is_table:
        return _read_beir(place, split, kept)
    columns = place.columns()
    rows = list(place.rows({*_COLUMNS, "grades", CLICKS, *kept.names}))
    fields = frozenset(columns or (name for _, row in rows for name in row))
    if CLICKS in fields and "doc_ids" not in fields:
        log = log_of_rows(rows, kept)
        return JudgedSet(place.uri, log.queries, fields, "clicks")
    _require_columns(place, columns)
    queries = [_query_of_row(row, at, kept) for at, row in rows]
    return JudgedSet(place.uri, queries, fields)


@dataclass(frozen=True)
class Log:
    """Logged queries, each text once."""

    queries: list[Query]
    """In the order in which they were first asked. What was clicked has grade 1."""
    rows: int
    empty: int
    """Rows without a text, which are left out."""


def place_of_log(uri: str, options: dict[str, str]) -> Place:
    """Return the place of logged queries.

    Raises:
        UsageError: nothing is there, or it is not JSONL, Parquet or Lance.
    """
    place = Place.of(uri, options, "logged queries", _LOG_FIX)
    place.require()
    if not place.is_table:
        raise place.missing(why="logged queries are a .jsonl[.gz], .parquet or .lance")
    return place


def read_log(place: Place, kept: Kept) -> Log:
    """Read logged queries: a text a row and, as far as there are, a list of clicked documents, an id and a time.

    Raises:
        UsageError: a line in it is wrong.
    """
    columns = place.columns()
    if columns and "text" not in columns:
        raise UsageError(
            f"{place.uri}: no column text",
            f"columns there: {', '.join(columns)}",
            "rename the column that holds what was asked to text",
        )
    return log_of_rows(place.rows({"query_id", "text", CLICKS, *kept.names}), kept)


def log_of_rows(rows: Iterable[tuple[str, Row]], kept: Kept) -> Log:
    """Return the queries of a log. Rows of one text are one query, with the clicks of all; the rest is the first's."""
    queries: dict[str, Query] = {}
    count = empty = 0
    for at, row in rows:
        count += 1
        words = logged_words(row, at)
        if words is None:
            empty += 1
            continue
        query_id = row.get("query_id")
        named = _name(words) if query_id is None else id_of(query_id, at)
        if words not in queries:
            queries[words] = _query(row, named, {}, at, kept)
        queries[words].qrels.update(dict.fromkeys(ids_in(row, CLICKS, at), 1))
    return Log(list(queries.values()), count, empty)


def logged_words(row: Row, place: str) -> str | None:
    """Return the text of a logged query; None if it has none.

    Raises:
        UsageError: the row has no field `text`, or it is not a string.
    """
    text = field_of(row, "text", place)
    if text is None or (isinstance(text, str) and not text.strip()):
        return None
    return words_of(row, place)


def _name(text: str) -> str:
    """Return the id of a logged query that has none."""
    return f"log-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def ids_in(row: Row, name: str, place: str) -> list[str]:
    """Return the ids that a field of a logged query lists; none without the field."""
    listed = row.get(name)
    if listed is None:
        return []
    if not isinstance(listed, list):
        raise bad(place, f"{name} is not a list of document ids: {listed!r:.80}")
    return [id_of(doc_id, place) for doc_id in listed]


def _require_columns(place: Place, columns: list[str]) -> None:
    missing = [name for name in _COLUMNS if columns and name not in columns]
    if missing:
        raise UsageError(
            f"{place.uri}: no column {', '.join(missing)}",
            f"columns there: {', '.join(columns)}",
            "rename them to query_id, text, doc_ids and, if graded, grades",
        )


def _read_beir(place: Place, split: str, kept: Kept) -> JudgedSet:
    """Read the queries that the split judges, in the order of queries.jsonl."""
    uri = place.uri
    if not is_remote(uri) and not Path(uri).is_dir():
        what = f"{uri}: unknown kind of judged queries"
        raise UsageError(what, f"known: {FORMATS}", "set gate.queries to one of these")
    qrels_name = _qrels_name(place, split)
    qrels_place = f"{uri}/{qrels_name}"
    qrels = _parse_qrels(qrels_place, place.read(qrels_name))
    name = "queries.jsonl.gz"
    if name not in place.names():
        name = "queries.jsonl"
    file, queries, fields = f"{uri}/{name}", [], set[str]()
    for at, line in jsonl_rows(file, place.read(name)):
        query_id = id_of(field_of(line, "_id", at), at)
        if query_id in qrels:
            row = _with_metadata(line)
            fields.update(row)
            queries.append(_query(row, query_id, qrels[query_id], at, kept))
    lost = sorted(qrels.keys() - {query.query_id for query in queries})
    if lost:
        raise UsageError(
            f"{qrels_place}: {len(lost)} judged queries have no text, among them {lost[0]!r}",
            f"{file} has no line for them",
            f"add them to {file}, or remove their judgements",
        )
    return JudgedSet(f"{uri} ({split})", queries, frozenset(fields))


def _with_metadata(line: Row) -> Row:
    """Return a line of BEIR's queries with the fields of its `metadata` beside its own."""
    metadata = line.get("metadata")
    return {**metadata, **line} if isinstance(metadata, dict) else line


def _qrels_name(place: Place, split: str) -> str:
    """Return the name of the split's file, one of those that exist, so that a split is never a path."""
    names = [n for n in place.names("qrels") if n.endswith((".tsv", ".tsv.gz"))]
    if not names:
        why = f"it has no qrels/*.tsv; judged queries are {FORMATS}"
        raise UsageError(f"{place.uri}: no judged queries", why, "set gate.queries to one of these")
    name_of = {n.removesuffix(".gz").removesuffix(".tsv"): n for n in names}
    if split not in name_of:
        splits = ", ".join(sorted(name_of))
        raise UsageError(
            f"{place.uri}: no split {split!r}",
            f"splits there: {splits}",
            f"set gate.split to one of them: {splits}",
        )
    return f"qrels/{name_of[split]}"


def _parse_qrels(place: str, content: bytes) -> dict[str, dict[str, int]]:
    """Parse as BEIR's reader does: tab-separated CSV, in which a cell may be quoted."""
    rows = tsv_rows(place, content)
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
            raise bad(row_place, f"{len(cells)} cells where the header has {len(columns)}")
        try:
            grade = int(cells[score_at])
        except ValueError:
            raise bad(row_place, f"score {cells[score_at]!r:.80} is not a whole number") from None
        _judge(qrels.setdefault(cells[query_at], {}), cells[doc_at], grade, row_place)
    return qrels


def _judge(qrels: dict[str, int], doc_id: str, grade: int, place: str) -> None:
    if abs(grade) > _MOST_GRADE:
        raise bad(place, f"the grade of document {doc_id!r:.80} is beyond {_MOST_GRADE:,}")
    if qrels.setdefault(doc_id, grade) != grade:
        raise bad(place, f"document {doc_id!r} has grade {grade} and, before, {qrels[doc_id]}")


def _query_of_row(row: Row, place: str, kept: Kept) -> Query:
    query_id = id_of(field_of(row, "query_id", place), place)
    doc_ids = field_of(row, "doc_ids", place)
    if not isinstance(doc_ids, list):
        raise bad(place, f"doc_ids is not a list: {doc_ids!r:.80}")
    grades = row.get("grades")
    if grades is None:
        grades = [1] * len(doc_ids)
    if not isinstance(grades, list) or len(grades) != len(doc_ids):
        raise bad(place, "grades must be a list of the same length as doc_ids")
    qrels: dict[str, int] = {}
    for doc_id, grade in zip(doc_ids, grades, strict=True):
        if type(grade) is not int:
            raise bad(place, f"grade {grade!r:.80} is not a whole number")
        _judge(qrels, id_of(doc_id, place), grade, place)
    return _query(row, query_id, qrels, place, kept)


def _query(row: Row, query_id: str, qrels: dict[str, int], place: str, kept: Kept) -> Query:
    return Query(
        place=place,
        query_id=query_id,
        text=words_of(row, place),
        qrels=qrels,
        slices=tuple(_label(row.get(name), name, place) for name in kept.slices),
        group=_label(row.get(kept.group or ""), kept.group or "", place),
        timestamp=time_of(row, place),
    )


def _label(value: Any, name: str, place: str) -> str | None:
    """Return the value of a slice or a group as text; None if the query has none."""
    if value is None or value == "":
        return None
    if isinstance(value, str | int):
        return str(value)
    raise bad(place, f"{name} is {value!r:.80}; it must be a text or a whole number")


def time_of(row: Row, place: str) -> str | None:
    """Return when a query was asked, ISO 8601 in UTC; None if that is not known."""
    value = row.get("timestamp")
    if value is None:
        return None
    found = value
    if isinstance(value, str):
        try:
            found = datetime.fromisoformat(value)
        except ValueError:
            found = None
    if isinstance(found, date) and not isinstance(found, datetime):
        found = datetime(found.year, found.month, found.day)
    if not isinstance(found, datetime):
        raise bad(place, f"timestamp {value!r:.80} is not a time such as 2026-11-27T12:00:00Z")
    if found.tzinfo is None:
        found = found.replace(tzinfo=UTC)
    return found.astimezone(UTC).isoformat()

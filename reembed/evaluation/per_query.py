"""What a comparison found for each query, so that its gate can be computed again and its queries looked at.

comparisons/ALIAS/CANDIDATE/LIVE/SHA256.parquet   named by its content, create-only

One row a query, with the columns

    evidence           judged, or of a logged query: clicks or none
    set, query_id, group, timestamp, text    text only where it was asked for
    slice:NAME         the value of a slice
    live:METRIC, candidate:METRIC            float64; null where the query has no judgements
    both:METRIC        overlap@10 and rbo
    counts_as          only in a shadow: what the query counts as, once (`evaluation.looks`)
    live_ids, live_scores, candidate_ids, candidate_scores    the first 10 results, best first
    live_grades, candidate_grades            int32, what the judgements or the clicks say of them; null of one that
                                             nobody judged
    relevant                                 int32, relevant documents that there are
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reembed.errors import IntegrityError
from reembed.evaluation.comparisons import Comparison, values_path
from reembed.evaluation.figures import Sides
from reembed.evaluation.metrics import Ranked
from reembed.evaluation.queries import EvalSet
from reembed.evaluation.statistics import Floats
from reembed.store.records import DAMAGED
from reembed.store.storage import Storage

Evidence = Literal["judged", "clicks", "none"]
"""The gate judges by the first alone; the others are logged queries."""
KEPT = 10
"""Results that are kept of each list."""
_SLICE, _LIVE, _CANDIDATE, _BOTH = "slice:", "live:", "candidate:", "both:"
_COUNTS_AS = "counts_as"
Pairs = dict[str, tuple[Floats, Floats]]


@dataclass(frozen=True)
class Found:
    """A result of a query."""

    doc_id: str
    score: float
    grade: int | None
    """None if nobody judged it for the query."""
    text: str | None = None
    """The beginning of the document's; None where texts of documents are not asked for, or it has none any more."""


@dataclass(frozen=True)
class QueryChange:
    """A query on both sides: a metric, and the first results."""

    set: str
    query_id: str
    text: str | None
    """None where texts are not kept."""
    relevant: int
    """Relevant documents that there are."""
    metric: Sides[float]
    found: Sides[tuple[Found, ...]]

    @property
    def change(self) -> float:
        """How much the metric changed."""
        return self.metric.candidate - self.metric.live


@dataclass(frozen=True)
class ChangedMost:
    """The judged queries whose metric changed most, the largest change first."""

    lost: tuple[QueryChange, ...]
    won: tuple[QueryChange, ...]

    @property
    def documents(self) -> set[str]:
        """Return the ids of the documents that either side found."""
        changes = (*self.lost, *self.won)
        return {d.doc_id for q in changes for d in (*q.found.live, *q.found.candidate)}

    def with_texts(self, texts: Mapping[str, str]) -> ChangedMost:
        """Return the same with the texts of the documents."""

        def one(change: QueryChange) -> QueryChange:
            found = change.found.each(
                lambda side: tuple(replace(d, text=texts.get(d.doc_id)) for d in side)
            )
            return replace(change, found=found)

        return ChangedMost(tuple(map(one, self.lost)), tuple(map(one, self.won)))


@dataclass(frozen=True)
class PerQuery:
    """The rows of a comparison."""

    table: pa.Table

    @classmethod
    def of(
        cls,
        evidence: Evidence,
        queries: EvalSet,
        lists: tuple[Ranked, Ranked],
        pairs: Pairs,
        both: Mapping[str, Floats],
    ) -> PerQuery:
        """Return a row for each query: metrics [Q] of live and of the candidate, or of both together."""
        columns: dict[str, Any] = {
            "evidence": [evidence] * len(queries.texts),
            "set": queries.set_names,
            "query_id": queries.query_ids,
            "text": queries.texts,
            "group": queries.groups or [None] * len(queries.texts),
            "timestamp": queries.timestamps or [None] * len(queries.texts),
        }
        columns = {name: pa.array(values, pa.string()) for name, values in columns.items()}
        for name, values in queries.slices.items():
            columns[_SLICE + name] = pa.array(values, pa.string())
        for name, (live_Q, candidate_Q) in pairs.items():
            columns |= {_LIVE + name: live_Q, _CANDIDATE + name: candidate_Q}
        columns |= {_BOTH + name: values_Q for name, values_Q in both.items()}
        for side, ranked in zip(("live", "candidate"), lists, strict=True):
            ids = [row[:KEPT] for row in ranked.ids]
            scores = [row[:KEPT] for row in ranked.scores]
            columns[f"{side}_ids"] = pa.array(ids, pa.list_(pa.string()))
            grades = [[q.get(d) for d in row] for q, row in zip(queries.qrels, ids, strict=True)]
            columns[f"{side}_scores"] = pa.array(scores, pa.list_(pa.float64()))
            columns[f"{side}_grades"] = pa.array(grades, pa.list_(pa.int32()))
        relevant = [sum(grade > 0 for grade in q.values()) for q in queries.qrels]
        columns["relevant"] = pa.array(relevant, pa.int32())
        return cls(pa.table(columns))

    def __add__(self, other: PerQuery) -> PerQuery:
        """Return the rows of both; a column that one lacks is null there."""
        return PerQuery(pa.concat_tables([self.table, other.table], promote_options="default"))

    def counted_as(self, names: Sequence[str]) -> PerQuery:
        """Return the rows with what each query counts as."""
        return PerQuery(self.table.append_column(_COUNTS_AS, pa.array(names, pa.string())))

    @property
    def counts_as(self) -> list[str]:
        """Return what each query counts as."""
        names: list[str] = self.table.column(_COUNTS_AS).to_pylist()
        return names

    def without_texts(self) -> PerQuery:
        """Return the rows without the texts of the queries."""
        return PerQuery(self.table.drop_columns(["text"]))

    @property
    def judged(self) -> PerQuery:
        """Return the rows that the gate judged by."""
        return PerQuery(self.table.filter(pc.field("evidence") == "judged"))

    @property
    def pairs(self) -> Pairs:
        """Return each metric of live and of the candidate, float64 [Q] each."""
        names = [n.removeprefix(_LIVE) for n in self.table.column_names if n.startswith(_LIVE)]
        return {n: (self._values(_LIVE + n), self._values(_CANDIDATE + n)) for n in names}

    def changed_most(self, metric: str, most: int) -> ChangedMost:
        """Return the judged queries that lost most, and those that won most; equal changes in the stored order."""
        judged = self.judged
        live_Q, candidate_Q = judged.pairs[metric]
        deltas_Q = candidate_Q - live_Q
        lost = [row for row in np.argsort(deltas_Q, kind="stable").tolist() if deltas_Q[row] < 0]
        won = [row for row in np.argsort(-deltas_Q, kind="stable").tolist() if deltas_Q[row] > 0]
        return ChangedMost(judged._at(lost[:most], metric), judged._at(won[:most], metric))

    def _at(self, rows: list[int], metric: str) -> tuple[QueryChange, ...]:
        found = self.table.take(pa.array(rows, pa.int64())).to_pylist()
        return tuple(_query_change(row, metric) for row in found)

    def _values(self, column: str) -> Floats:
        values_Q: Floats = self.table.column(column).to_numpy()
        return values_Q

    def to_bytes(self) -> bytes:
        """Return the rows as a Parquet file; equal rows give equal bytes."""
        out = io.BytesIO()
        pq.write_table(self.table, out, compression="zstd")
        return out.getvalue()

    @classmethod
    def read(cls, storage: Storage, path: str, record: Comparison) -> PerQuery:
        """Read the rows of the comparison that was kept at a path; raise errors as `read_file`."""
        return cls.read_file(storage, values_path(path, record), record.per_query_sha256)

    @classmethod
    def read_file(cls, storage: Storage, place: str, written: str) -> PerQuery:
        """Read the rows at a place, of the digest that was written.

        Raises:
            IntegrityError: the file is not the one that was written.
            FileNotFoundError: it is gone.
        """
        body = storage.read_bytes(place)
        found = hashlib.sha256(body).hexdigest()
        if found != written:
            raise IntegrityError(
                f"{place} is not the file that was written",
                f"its sha256 is {found[:12]}, not {written[:12]}",
                DAMAGED,
            )
        return cls(pq.read_table(io.BytesIO(body)))


def _query_change(row: dict[str, Any], metric: str) -> QueryChange:
    lists = (
        zip(row[f"{side}_ids"], row[f"{side}_scores"], row[f"{side}_grades"], strict=True)
        for side in ("live", "candidate")
    )
    live, candidate = (tuple(Found(*result) for result in found) for found in lists)
    return QueryChange(
        set=row["set"],
        query_id=row["query_id"],
        text=row.get("text"),
        relevant=row["relevant"],
        metric=Sides(row[_LIVE + metric], row[_CANDIDATE + metric]),
        found=Sides(live, candidate),
    )

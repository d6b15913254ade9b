"""Judged queries of one or several sets, reduced to the ones that can be scored, and frozen by content."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from reembed.catalog.reports import QueriesPlace
from reembed.config.gate import FrozenGate, GateConfig
from reembed.errors import UsageError
from reembed.evaluation.figures import QuerySet
from reembed.evaluation.judged import FORMATS, JudgedSet, Kept, Query, read_set
from reembed.evaluation.rows import Place, bad
from reembed.plural import counted
from reembed.store.paths import absolute_queries

if TYPE_CHECKING:
    from reembed.evaluation.statistics import Groups

MOST_SAME = 0.5
"""Share of the queries of a set that may be in another one as well."""
SET = "set"
"""The slice of queries by the set they come from."""


@dataclass(frozen=True)
class EvalSet:
    """Queries with at least one relevant document, set by set, in the order they were stored.

    Ids are unique within a set: a query is known by its set and its id.
    """

    query_ids: list[str]
    texts: list[str]
    qrels: list[dict[str, int]]
    """For each query, the grade of each document id, as given; 0 or less means "not relevant"."""
    source: str
    """Where it was read from, with the split of a BEIR folder."""
    sha256: str
    """Digest of ids, texts, grades, slices and groups; the same in every format and in any order."""
    dropped: int
    """Queries left out: they have judgements (or a row), but none that is positive."""
    sets: tuple[QuerySet, ...] = ()
    slices: dict[str, tuple[str | None, ...]] = field(default_factory=dict)
    """For each slice field with at least two values, the value of each query; None where it has none.
    With several sets, "set" is one of them."""
    constant_slices: tuple[str, ...] = ()
    """Slice fields that are left out, since all queries have the same value."""
    groups: tuple[str, ...] | None = None
    """For each query, the group it belongs to: a query without one is a group by itself. None if no
    field was named."""
    timestamps: tuple[str | None, ...] | None = None
    """For each query, when it was asked, ISO 8601 in UTC. None if no query has one."""

    @property
    def set_names(self) -> list[str]:
        """Return the name of the set of each query."""
        return [found.name for found in self.sets for _ in range(found.count)]

    @property
    def groups_Q(self) -> Groups | None:
        """Return the number of the group of each query [Q]; None if no field was named."""
        from reembed.evaluation.statistics import numbered

        return numbered(self.groups) if self.groups else None

    def take(self, rows: Sequence[int]) -> EvalSet:
        """Return the queries at some rows, in ascending order; source, digest and `dropped` stay."""
        names = self.set_names
        names = [names[row] for row in rows]
        return replace(
            self,
            query_ids=[self.query_ids[row] for row in rows],
            texts=[self.texts[row] for row in rows],
            qrels=[self.qrels[row] for row in rows],
            sets=tuple(replace(found, count=names.count(found.name)) for found in self.sets),
            slices={n: tuple(values[row] for row in rows) for n, values in self.slices.items()},
            groups=tuple(self.groups[row] for row in rows) if self.groups else None,
            timestamps=tuple(self.timestamps[row] for row in rows) if self.timestamps else None,
        )

    @property
    def same_text(self) -> int:
        """Return how many queries have a text that another query has as well."""
        return sum(n for n in Counter(self.texts).values() if n > 1)


def load_eval_set(
    uris: str | Sequence[str],
    split: str,
    storage_options: dict[str, str],
    slices: Sequence[str] = (),
    group: str | None = None,
) -> EvalSet:
    """Read judged queries from BEIR folders, JSONL, Parquet or Lance, local or in an object store.

    Args:
        uris: folder or file, or several; object stores as s3://, gs://, az://.
        split: which qrels/SPLIT.tsv of a BEIR folder; the other formats have no splits.
        storage_options: object-store settings, as Lance takes them.
        slices: fields of the queries that divide them into slices; also inside BEIR's `metadata`.
        group: field that queries which belong together share.

    Raises:
        UsageError: nothing is there, the format is unknown, a line is wrong, or no query has a field.
    """
    named = [uris] if isinstance(uris, str) else list(uris)
    kept = Kept(tuple(slices), group)
    fix = "set gate.queries to " + FORMATS
    read = [
        read_set(Place.of(uri, storage_options, "judged queries", fix), split, kept)
        for uri in named
    ]
    for place in read:
        _require_unique(place)
    _require_fields(read, kept)
    return _joined(read, _names(named), kept)


def load(place: QueriesPlace, storage_options: dict[str, str]) -> EvalSet:
    """Do as `load_eval_set`, for the place that a plan or a comparison names."""
    return load_eval_set(place.queries, place.split, storage_options, place.slices, place.group)


def place_of(gate: GateConfig) -> QueriesPlace:
    """Return where a gate's queries are read from."""
    return QueriesPlace(gate.queries, gate.split, gate.slices, gate.group)


def freeze(section: GateConfig, storage_options: dict[str, str]) -> FrozenGate:
    """Return the gate with the absolute places of its queries, and their digest and number as they are now.

    Raises:
        UsageError: as `load_eval_set`.
    """
    section = absolute_queries(section)
    if not section.queries:
        return FrozenGate(**section.model_dump())
    found = load(place_of(section), storage_options)
    return FrozenGate(**section.model_dump(), sha256=found.sha256, count=len(found.query_ids))


def _names(uris: Sequence[str]) -> list[str]:
    """Return a name for each set: the name of its file or folder, with the folder above if two are equal.

    Raises:
        UsageError: two sets still have the same name.
    """
    parts = [PurePosixPath(uri.rstrip("/").split("://")[-1]).parts for uri in uris]
    for depth in (1, 2):
        names = ["/".join(p[-depth:]).removesuffix(".gz") for p in parts]
        names = [str(PurePosixPath(name).with_suffix("")) for name in names]
        if len(set(names)) == len(names):
            return names
    twice = next(name for name, n in Counter(names).items() if n > 1)
    raise UsageError(
        f"gate.queries: two sets are named {twice!r}",
        f"places: {', '.join(uris)}",
        "set gate.queries to places with different names",
    )


def _require_unique(read: JudgedSet) -> None:
    place_of_id: dict[str, str] = {}
    for query in read.queries:
        if first := place_of_id.get(query.query_id):
            why = f"query {query.query_id!r} is a duplicate, first seen at {first}"
            raise bad(query.place, why)
        place_of_id[query.query_id] = query.place


def _require_fields(read: Sequence[JudgedSet], kept: Kept) -> None:
    there = frozenset().union(*(found.fields for found in read))
    for setting, names in (("slices", kept.slices), ("group", [kept.group] if kept.group else [])):
        if missing := [name for name in names if name not in there]:
            raise UsageError(
                f"gate.{setting}: no query has a field {', '.join(missing)}",
                f"fields there: {', '.join(sorted(there))}",
                f"set gate.{setting} to fields of the queries",
            )


def _joined(read: Sequence[JudgedSet], names: Sequence[str], kept: Kept) -> EvalSet:
    scored = [[q for q in found.queries if any(g > 0 for g in q.qrels.values())] for found in read]
    sets = []
    for found, name, some in zip(read, names, scored, strict=True):
        if not some:
            raise UsageError(
                f"{found.place}: no query has a relevant document",
                f"{len(found.queries)} judged queries were read, none with a grade above 0",
                "set gate.queries and gate.split to queries with judgements",
            )
        dropped = len(found.queries) - len(some)
        sets.append(QuerySet(name, found.place, len(some), dropped, found.evidence))
    _require_no_copies(sets, scored)
    queries = [query for some in scored for query in some]
    named = [found.name for found in sets for _ in range(found.count)]
    slices = {name: tuple(q.slices[at] for q in queries) for at, name in enumerate(kept.slices)}
    if len(sets) > 1:
        slices[SET] = tuple(named)
    times = tuple(query.timestamp for query in queries)
    return EvalSet(
        query_ids=[query.query_id for query in queries],
        texts=[query.text for query in queries],
        qrels=[query.qrels for query in queries],
        source=", ".join(found.source for found in sets),
        sha256=_digest(scored, kept),
        dropped=sum(found.dropped for found in sets),
        sets=tuple(sets),
        slices={name: values for name, values in slices.items() if len(set(values)) > 1},
        constant_slices=tuple(n for n, values in slices.items() if len(set(values)) < 2),
        groups=_groups(queries, named) if kept.group else None,
        timestamps=times if any(times) else None,
    )


def _require_no_copies(sets: Sequence[QuerySet], scored: Sequence[Sequence[Query]]) -> None:
    """Check that no two sets have mostly the same texts and judgements: copies would count as more evidence."""
    content = [{(q.text, frozenset(q.qrels.items())) for q in some} for some in scored]
    for (one, mine), (other, theirs) in combinations(zip(sets, content, strict=True), 2):
        same, smaller = len(mine & theirs), min(len(mine), len(theirs))
        if same > MOST_SAME * smaller:
            raise UsageError(
                f"gate.queries: sets {one.name!r} and {other.name!r} have mostly the same queries",
                f"{same:,} of {counted(smaller, 'query')} have the same text and judgements;"
                " a query that counts twice makes a result look surer than it is",
                "set gate.queries to one of the two; parts of a set are named by gate.slices",
            )


def _groups(queries: Sequence[Query], sets: Sequence[str]) -> tuple[str, ...]:
    """Return the group of each query; of a query without one, a name that no other query has."""
    own = [f"(alone) {name} {q.query_id}" for q, name in zip(queries, sets, strict=True)]
    return tuple(q.group or alone for q, alone in zip(queries, own, strict=True))


def _digest(scored: Iterable[Iterable[Query]], kept: Kept) -> str:
    """Return the digest of what decides the evidence; the names of sets do not."""
    return _of_lines(_of_lines(_line(query, kept) for query in some) for some in scored)


def _line(query: Query, kept: Kept) -> str:
    slices = dict(zip(kept.slices, query.slices, strict=True))
    grades = sorted(query.qrels.items())
    return json.dumps([query.query_id, query.text, grades, slices, query.group, query.timestamp])


def _of_lines(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()

"""Which documents two releases hold, and which of them the judged queries name."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reembed.catalog.releases import Catalog, Release
from reembed.errors import UsageError
from reembed.evaluation.comparison import DocumentsCompared
from reembed.evaluation.gate import Shared
from reembed.evaluation.queries import EvalSet
from reembed.serving.live import OpenRelease
from reembed.source.lag import caught_up

_CHOOSE_DOCUMENTS = ("uri", "id_column", "filter", "version")
"""Settings of a source that decide which documents there are."""


@dataclass(frozen=True)
class Held:
    """Ids of a release's documents."""

    hashes: npt.NDArray[np.int64]
    """Of each document once, sorted; comparable in this process."""
    named: frozenset[str]
    """Documents that the judged queries name."""
    relevant: frozenset[str]
    """Documents among these that are relevant."""
    example: str | None

    @classmethod
    def read(cls, opened: OpenRelease, queries: EvalSet) -> Held:
        """Read the ids of every row."""
        relevant = {d for qrels in queries.qrels for d, grade in qrels.items() if grade > 0}
        asked = relevant.union(queries.query_ids)
        named: set[str] = set()
        hashes, example = [np.empty(0, np.int64)], None
        for batch in opened.table.scan(["doc_id"]):
            ids = [str(d) for d in batch.column("doc_id").to_pylist()]
            example = example or next(iter(ids), None)
            named |= asked.intersection(ids)
            hashes.append(np.fromiter(map(hash, ids), np.int64, len(ids)))
        every = np.unique(np.concatenate(hashes))
        return cls(every, frozenset(named), frozenset(named & relevant), example)


@dataclass(frozen=True)
class Coverage:
    """How the judged queries fit the documents of a release."""

    present: float
    """Share of the judgements whose relevant document is there and may be found."""
    own: int
    """Queries whose id is also a document's; that document is left out of their results."""
    own_judged: int
    """Queries among these that judge that document relevant: the ids may be equal by chance."""

    @classmethod
    def of(cls, held: Held, release: Release, queries: EvalSet) -> Coverage:
        """Count by the ids of the release's documents.

        Raises:
            UsageError: no judged document is in the release: the ids are of different kinds.
        """
        pairs = [
            (query, document)
            for query, qrels in zip(queries.query_ids, queries.qrels, strict=True)
            for document, grade in qrels.items()
            if grade > 0
        ]
        if not held.relevant:
            raise UsageError(
                f"no judged document of {queries.source} is in release {release.id}",
                f"judgements name documents like {min(d for _, d in pairs)!r}, the table has ids like {held.example!r}",
                "reembed config     # source.id_column and gate.queries must use the same ids",
            )
        own = held.named.intersection(queries.query_ids)
        found = sum(document in held.named and document != query for query, document in pairs)
        own_judged = sum(query == document and query in own for query, document in pairs)
        return cls(found / len(pairs), len(own), own_judged)


def documents_compared(catalog: Catalog, live: Release, candidate: Release) -> DocumentsCompared:
    """Compare the sources that both releases were last found to equal."""
    old, new = (caught_up(catalog, r).ref for r in (live, candidate))
    values = {k: (getattr(old, k), getattr(new, k)) for k in _CHOOSE_DOCUMENTS}
    words = {
        k: f"source.{k} is {a} in live, {b} in the candidate"
        for k, (a, b) in values.items()
        if a != b
    }
    behind = None
    if words.keys() == {"version"}:
        _, behind = min((old.version, live.id), (new.version, candidate.id))
    return DocumentsCompared(tuple(words.values()), behind)


def shared(old: Held, new: Held, documents: DocumentsCompared) -> Shared:
    """Return the shares of documents and of relevant documents that both releases hold."""
    either = len(old.relevant | new.relevant)
    both = len(np.intersect1d(old.hashes, new.hashes, assume_unique=True))
    return Shared(
        judged=len(old.relevant & new.relevant) / either,
        all=both / (len(old.hashes) + len(new.hashes) - both),
        why=", ".join(documents.differ),
    )

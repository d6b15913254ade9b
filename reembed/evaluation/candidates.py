"""The first results of a release, as another model would rank them.

Shapes: D documents, Q queries, P pairs of a document and a query.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reembed import digests
from reembed.config.settings import Config
from reembed.evaluation import metrics
from reembed.evaluation.answers import judged_lists
from reembed.evaluation.figures import DEPTH as LOOKED_AT
from reembed.evaluation.metrics import Ranked
from reembed.evaluation.queries import EvalSet
from reembed.evaluation.rescore import Asked, Scored
from reembed.serving.live import OpenRelease
from reembed.source.dataset import Source
from reembed.store.paths import from_anywhere
from reembed.table.read import TableVersion

DEPTH = 50
"""Results of a query that are ranked again."""


@dataclass(frozen=True)
class Documents:
    """The documents that were to be ranked again."""

    embedded: int = 0
    changed: int = 0
    """Documents whose text is not the one that the release embedded: left out, they keep their places."""
    gone: int = 0
    """Documents that the source no longer has: left out, too."""
    failed: int = 0
    """Documents that the new model cannot embed: it would not find them."""


@dataclass(frozen=True)
class Reranked:
    """What another model makes of the results."""

    lists: Ranked
    share: float
    """Of the places that were ranked again; the others hold documents without their text."""
    documents: Documents
    not_embedded: int
    """Queries that the new model cannot embed: it would find nothing."""


@dataclass(frozen=True)
class Candidates:
    """What a release finds for judged queries, and where the texts of its first results are."""

    queries: EvalSet
    old: Ranked
    """As deep as a comparison looks."""
    hashes: dict[str, bytes]
    """By id, the digest of the text of each document that is to be ranked again."""
    rows: dict[str, int]
    """By id, its row in the source, in the order of the rows. Documents that are gone have none."""
    source: Source
    judged: float
    """Share of the relevant documents that the release holds."""
    depth: int
    """Results of a query that are ranked again."""

    @classmethod
    def of(
        cls,
        opened: OpenRelease,
        source: Source,
        queries: EvalSet,
        depth: int | None = None,
        also: Iterable[str] = (),
    ) -> Candidates:
        """Search a release, and look its results up in its table and in a version of its source.

        `also` are documents that are to be embedded whatever is found.
        """
        depth = depth or DEPTH
        old = judged_lists(opened, queries, max(depth, LOOKED_AT))
        first = {doc_id for ids in old.ids for doc_id in ids[:depth]}.union(also)
        relevant = [
            doc_id
            for query, qrels in zip(queries.query_ids, queries.qrels, strict=True)
            for doc_id, grade in qrels.items()
            if grade > 0 and doc_id != query
        ]
        held = _hashes(opened.table, first.union(relevant))
        rows = source.rows_of(first)
        return cls(
            queries=queries,
            old=old,
            hashes={doc_id: held[doc_id] for doc_id in first},
            rows=dict(sorted(rows.items(), key=lambda item: item[1])),
            source=source,
            judged=sum(doc_id in held for doc_id in relevant) / max(len(relevant), 1),
            depth=depth,
        )

    def asked(self, config: Config) -> Asked:
        """Return what the config's model is to score: each document once, whatever finds it."""
        place = {doc_id: at for at, doc_id in enumerate(self.rows)}
        pairs = sorted(
            (place[doc_id], query)
            for query, ids in enumerate(self.old.ids)
            for doc_id in ids[: self.depth]
            if doc_id in place
        )
        document, query = np.array(pairs, np.int64).reshape(-1, 2).T
        return Asked(
            encoder=from_anywhere(config.encoder),
            embed=config.embed,
            dtype=config.table.dtype,
            source=self.source,
            rows=np.array(list(self.rows.values()), np.int64),
            hashes=digests.stack(b"".join(self.hashes[doc_id] for doc_id in self.rows)),
            queries=tuple(self.queries.texts),
            document=document,
            query=query,
        )

    def reranked(self, asked: Asked, scored: Scored) -> Reranked:
        """Return the results in the order of the scores.

        A document without its text keeps its place, as it does while a migration runs.
        """
        names = list(self.rows)
        scores: list[dict[str, float]] = [{} for _ in self.old.ids]
        for at, query, value in zip(asked.document, asked.query, scored.scores, strict=True):
            scores[query][names[at]] = float(value)
        failed = {names[at] for at in np.flatnonzero(scored.failed)}
        changed = int(scored.changed.sum())
        known = zip(self.queries.query_ids, self.old.ids, scores, ~scored.unknown, strict=True)
        lists = [
            _list(query, [d for d in ids if d not in failed], found) if can else []
            for query, ids, found, can in known
        ]
        left_out = {names[at] for at in np.flatnonzero(scored.changed)}
        left_out |= self.hashes.keys() - self.rows.keys()
        places = [doc_id not in left_out for ids in self.old.ids for doc_id in ids[: self.depth]]
        return Reranked(
            lists=Ranked(lists, [[] for _ in lists]),
            share=sum(places) / max(len(places), 1),
            documents=Documents(
                embedded=len(names) - changed - len(failed),
                changed=changed,
                gone=len(self.hashes) - len(names),
                failed=len(failed),
            ),
            not_embedded=int(scored.unknown.sum()),
        )


def _list(query: str, ids: list[str], scores: dict[str, float]) -> list[str]:
    """Return a list with the documents that have a score in its order, among their own places."""
    scored = [doc_id for doc_id in ids if math.isfinite(scores.get(doc_id, math.nan))]
    ranked = metrics.ranking(scored, [scores[doc_id] for doc_id in scored], query, len(scored))
    best = iter(doc_id for doc_id, _ in ranked)
    moved = set(scored)
    return [next(best) if doc_id in moved else doc_id for doc_id in ids]


def _hashes(table: TableVersion, doc_ids: set[str]) -> dict[str, bytes]:
    """Return the digest of the text of each of these documents that the table holds, by id."""
    wanted = pa.array(doc_ids, pa.large_string())
    held: dict[str, bytes] = {}
    for batch in table.scan(["doc_id", "text_hash"]):
        names = batch.column("doc_id").cast(pa.large_string())
        asked = pc.is_in(names, wanted)
        hashes = batch.column("text_hash").filter(asked).to_pylist()
        held |= zip(names.filter(asked).to_pylist(), hashes, strict=True)
    return held

"""Judged queries on both models before anything is migrated: what a rule of fusion would answer while some is.

The new model has embedded what live finds for the queries, and no other document. With `slots` that is all that an
answer depends on. `zscore` and `rrf` search the new side, and here they find only documents that a judged query finds
on live.

Shapes: Q queries, D results of live that are ranked again, P documents that the new model embedded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reembed.catalog.lazies import Fusion
from reembed.evaluation import metrics
from reembed.evaluation.candidates import Candidates
from reembed.evaluation.replay import Documents, Int64
from reembed.evaluation.rescore import Bools, Float32, Vectors
from reembed.index.wider import best
from reembed.serving.fusion import ABSENT, Background, Fused, NewList, OldList, rrf, slots, zscore

_TOGETHER = 64
"""Queries that are searched at a time."""


@dataclass(frozen=True)
class Fusable:
    """What both models say of judged queries."""

    found: Candidates
    names: dict[int, str]
    """Ids of documents by their keys."""
    old: OldList
    """[Q, D], with the new scores of all documents that have one; those are `migrated`."""
    pool: Int64
    """Keys of the embedded documents [P]."""
    new: Vectors
    """Of these, and of the queries."""
    own: Int64
    """Key of the document that each query is [Q], -1 if it is none: it is not found."""
    backgrounds: tuple[Background, Background] | None

    @classmethod
    def of(
        cls,
        found: Candidates,
        documents: Documents,
        new: Vectors,
        background: tuple[Float32, Float32, list[str]] | None = None,
    ) -> Fusable:
        """Return it from what live finds and what the new model embedded.

        Args:
            found: what live finds.
            documents: their keys.
            new: the vectors of `found.rows`, and of the queries.
            background: vectors [Q, dim] of the queries by the old model, [B, dim] of documents, and their ids.
        """
        pool = documents.find(found.rows)
        place = {int(key): at for at, key in enumerate(pool)}
        ids = [ids[: found.depth] for ids in found.old.ids]
        keys = documents.lists(ids, found.depth)
        old, again = np.zeros(keys.shape, np.float32), np.full(keys.shape, np.nan, np.float32)
        for query, row in enumerate(keys.tolist()):
            old[query, : len(ids[query])] = found.old.scores[query][: found.depth]
            at = np.array([place.get(key, -1) for key in row])
            again[query, at >= 0] = new.documents[at[at >= 0]] @ new.queries[query]
        held = list(found.hashes)  # all that are listed, also those that the source no longer has
        return cls(
            found=found,
            names=dict(zip(documents.find(held).tolist(), held, strict=True)),
            old=OldList(keys, old, np.isfinite(again), again),
            pool=pool,
            new=new,
            own=documents.find(found.queries.query_ids),
            backgrounds=_backgrounds(found, new, background) if background else None,
        )

    def quality(self, metric: str, rule: Fusion, migrated: Bools) -> float:
        """Return the mean of a metric over the answers by a rule, with these documents migrated [N]."""
        measured = metrics.named(metric)
        fused = self._fused(rule, migrated, measured.k)
        lists = [[self.names[key] for key in row if key != ABSENT] for row in fused.tolist()]
        return float(measured.of(self.found.queries, lists).mean())

    def _fused(self, rule: Fusion, migrated: Bools, k: int) -> Int64:
        there = self.old.keys != ABSENT
        new = self.old.migrated & there & migrated[self.old.keys]
        old = OldList(self.old.keys, self.old.scores, new, self.old.new_scores)
        if rule == "slots":
            return slots(old, k).keys
        parts = [
            self._both(rule, old, migrated, np.arange(start, min(start + _TOGETHER, len(there))), k)
            for start in range(0, len(there), _TOGETHER)
        ]
        return np.concatenate([part.keys for part in parts])

    def _both(self, rule: Fusion, old: OldList, migrated: Bools, rows: Int64, k: int) -> Fused:
        """Return the answers to some queries by a rule that searches both sides."""
        old = OldList(*(values[rows] for values in vars(old).values()))
        new = self._new_list(migrated, rows)
        if rule == "rrf" or self.backgrounds is None:
            return rrf(old, new, k)
        of_old, of_new = (Background(b.mean[rows], b.sd[rows]) for b in self.backgrounds)
        return zscore(old, new, (of_old, of_new), k)

    def _new_list(self, migrated: Bools, rows: Int64) -> NewList:
        """Return what the new model finds among the migrated documents of the pool."""
        known = np.flatnonzero(migrated[self.pool])
        scores = self.new.queries[rows] @ self.new.documents[known].T
        keys = np.broadcast_to(self.pool[known], scores.shape)
        own: Bools = np.equal(keys, self.own[rows][:, None])
        usable = np.isfinite(scores) & ~own
        keys, scores = np.where(usable, keys, ABSENT), np.where(usable, scores, -np.inf)
        return NewList(*best(keys, scores.astype(np.float32), min(self.found.depth, len(known))))


def _backgrounds(
    found: Candidates, new: Vectors, given: tuple[Float32, Float32, list[str]]
) -> tuple[Background, Background]:
    """Return how each query scores the documents that both models have embedded; one without a vector scores 0."""
    of_queries, of_documents, ids = given
    place = {doc_id: at for at, doc_id in enumerate(found.rows)}
    at = [place.get(doc_id, -1) for doc_id in ids]
    known = [b for b, row in enumerate(at) if row >= 0 and np.isfinite(new.documents[row]).all()]
    finite = (np.array(np.isfinite(q).all(axis=1), bool) for q in (of_queries, new.queries))
    both = np.array(np.logical_and(*finite), bool)
    sides = (of_queries, of_documents[known]), (new.queries, new.documents[[at[b] for b in known]])
    old, again = (Background.of(np.where(both[:, None], q, 0) @ d.T) for q, d in sides)
    return old, again

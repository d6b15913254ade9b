"""Which documents a release holds, of those that evidence names."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reembed.evaluation.queries import EvalSet
from reembed.serving.live import OpenRelease


@dataclass(frozen=True)
class Held:
    """Ids of a release's documents."""

    hashes: npt.NDArray[np.int64]
    """Sorted hashes, one for each document; comparable only within this process."""
    named: frozenset[str]
    """Documents among those that were asked for, or that judged queries name."""
    relevant: frozenset[str]
    """Documents among these that are relevant."""
    example: str | None

    @classmethod
    def read(cls, opened: OpenRelease, queries: EvalSet, also: Collection[str] = ()) -> Held:
        """Read the ids of every row; remember those that the queries name, and those in `also`."""
        relevant = {d for qrels in queries.qrels for d, grade in qrels.items() if grade > 0}
        asked = relevant.union(queries.query_ids, also)
        named: set[str] = set()
        hashes, example = [np.empty(0, np.int64)], None
        for batch in opened.table.scan(["doc_id"]):
            ids = [str(d) for d in batch.column("doc_id").to_pylist()]
            example = example or next(iter(ids), None)
            named |= asked.intersection(ids)
            hashes.append(np.fromiter(map(hash, ids), np.int64, len(ids)))
        every = np.unique(np.concatenate(hashes))
        return cls(every, frozenset(named), frozenset(named & relevant), example)

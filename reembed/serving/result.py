"""The hits of a search as a result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reembed.catalog.releases import Release
from reembed.serving.live import Hit


@dataclass(frozen=True)
class SearchResult:
    """The hits of each query, all of one release."""

    release: Release
    queries: tuple[str, ...]
    hits: tuple[tuple[Hit, ...], ...]
    """Of each query, best first."""

    def to_json(self) -> dict[str, Any]:
        """Return what `reembed search --json` prints: numbers that JSON does not have as null."""
        pairs = zip(self.queries, self.hits, strict=True)
        return {
            "release": self.release.id,
            "model": self.release.space.model,
            "space": self.release.space.id,
            "results": [{"query": q, "hits": [_hit(h) for h in hits]} for q, hits in pairs],
        }


def _hit(hit: Hit) -> dict[str, Any]:
    return {"doc_id": hit.doc_id, "score": round(hit.score, 6), "columns": _finite(hit.columns)}


def _finite(value: Any) -> Any:
    """Return the value with None for each number that JSON does not have, at every depth."""
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""One search, as an open index answers it: by both sides while a lazy migration serves."""

from __future__ import annotations

from collections.abc import Sequence

from reembed.catalog.releases import Catalog
from reembed.serving.lazy_pair import LazyPair
from reembed.serving.lazy_serving import LazyServing
from reembed.serving.live import Hit, OpenRelease, SearchResult

_PATIENCE_S = 600.0
"""That nobody waits for an answer as users of a service do; the new model may load for the first time."""


def searched(
    catalog: Catalog | None,
    opened: OpenRelease,
    queries: Sequence[str],
    k: int,
    columns: Sequence[str],
    filter: str | None,
) -> SearchResult:
    """Return the k best documents of each query; without a catalog, of the release alone. Nothing is queued."""
    texts = tuple(queries)
    if catalog is None:
        return SearchResult(opened.release, texts, _hits(opened, texts, k, columns, filter))
    lazy = LazyServing(catalog, _PATIENCE_S)
    try:
        both = lazy.beside(opened, None)
        hits = _hits(both, texts, k, columns, filter)
        counts, alone = lazy.counts, None
        if counts is not None and not counts.fused:
            alone = counts.last_error or "its state changed at this moment"
        side = both.shared.plan.side if isinstance(both, LazyPair) else None
        return SearchResult(opened.release, texts, hits, side, alone)
    finally:
        lazy.close(write=False)


def _hits(
    opened: OpenRelease, texts: tuple[str, ...], k: int, columns: Sequence[str], filter: str | None
) -> tuple[tuple[Hit, ...], ...]:
    return tuple(map(tuple, opened.search(texts, k, columns, filter)))

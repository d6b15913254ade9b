"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

from reembed.serving.index import Index

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """The metrics of one application; each has a registry of its own."""

    def __init__(self, index: Index) -> None:
        """Take the index whose release is shown."""
        self._registry = CollectorRegistry()
        self._registry.register(_Serving(index))
        self.requests = Counter(
            "reembed_requests",
            "Requests by path and status",
            ["path", "status"],
            registry=self._registry,
        )
        self.seconds = Histogram(
            "reembed_search_seconds",
            "Time of a search, with encoding its queries",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.queries = Counter("reembed_queries", "Queries searched", registry=self._registry)
        self.empty = Counter(
            "reembed_queries_without_results", "Queries without any hit", registry=self._registry
        )

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self._registry)


class _Serving:
    """What is read from the index when Prometheus asks."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def collect(self) -> Iterator[GaugeMetricFamily]:
        release = self._index.release
        labels = {
            "alias": release.alias,
            "release": release.id,
            "model": release.space.model,
            "space": release.space.id,
        }
        info = GaugeMetricFamily(
            "reembed_release_info", "The release that answers; always 1", labels=list(labels)
        )
        info.add_metric(list(labels.values()), 1)
        yield info
        yield GaugeMetricFamily("reembed_documents", "Documents of that release", release.documents)
        failing = self._index.refresh_error is not None
        yield GaugeMetricFamily(
            "reembed_refresh_failing", "1 if the last look for a newer release failed", failing
        )

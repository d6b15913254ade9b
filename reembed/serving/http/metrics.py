"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from reembed.serving.index import Index
from reembed.serving.lazy_counts import LazyCounts, Reason

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

    def collect(self) -> Iterator[Metric]:
        release = self._index.release
        labels = {
            "alias": release.alias,
            "release": release.id,
            "model": release.model,
            "space": release.query_model.id,
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
        if self._index.lazy is not None:
            yield from _of_lazy(self._index.lazy)


def _of_lazy(counts: LazyCounts) -> Iterator[Metric]:
    """Yield what became of the answers while a lazy migration served."""
    answers = CounterMetricFamily(
        "reembed_lazy_answers",
        "Answers of both sides (fused), and of the old one alone, by why",
        labels=["how"],
    )
    for how in get_args(Reason):
        answers.add_metric([how], getattr(counts, how))
    yield answers
    hits = CounterMetricFamily(
        "reembed_lazy_hits", "Documents of those answers, by side", labels=["side"]
    )
    hits.add_metric(["old"], counts.hits - counts.hits_new)
    hits.add_metric(["new"], counts.hits_new)
    yield hits
    yield CounterMetricFamily(
        "reembed_lazy_embedded",
        "Documents that were not migrated, and that the new model embedded for an answer",
        counts.embedded,
    )
    turned_up = CounterMetricFamily(
        "reembed_lazy_turned_up",
        "Documents that turned up and were not migrated: queued, or dropped",
        labels=["to"],
    )
    turned_up.add_metric(["queue"], counts.queued)
    turned_up.add_metric(["dropped"], counts.dropped)
    yield turned_up

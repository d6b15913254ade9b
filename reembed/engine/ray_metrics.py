"""Figures of a run as Ray's application metrics, which Prometheus reads from the nodes of the cluster."""

from __future__ import annotations

from ray.util.metrics import Gauge

from reembed.events import Event, Listener, Progress

GAUGES = {
    "done": ("documents_done", "Documents embedded so far"),
    "total": ("documents", "Documents of the run"),
    "dead_letters": ("dead_letters", "Documents that could not be embedded"),
    "docs_per_s": ("documents_per_second", "Documents embedded a second in the last minute"),
    "tokens_per_s": ("tokens_per_second", "Tokens embedded a second in the last minute"),
    "units_done": ("units_done", "Units embedded so far"),
    "units": ("units", "Units of the run"),
    "actors": ("actors", "Actors that embed"),
    "busy": ("busy_ratio", "Share of the actors' time in which their models compute"),
    "waits_for_input": (
        "input_wait_ratio",
        "Share of the actors' time spent waiting for documents",
    ),
}
"""Name and description of the gauge of each figure of `Progress`; Prometheus sees ray_reembed_NAME."""


def exported(alias: str, run_id: str) -> Listener:
    """Return a listener that sets the gauges, with labels `alias` and `run`, at each `Progress`."""
    tags = {"alias": alias, "run": run_id}
    gauges = {
        figure: Gauge(f"reembed_{name}", description, tag_keys=tuple(tags))
        for figure, (name, description) in GAUGES.items()
    }

    def export(event: Event) -> None:
        if isinstance(event, Progress):
            for figure, gauge in gauges.items():
                gauge.set(getattr(event.figures, figure), tags)

    return export

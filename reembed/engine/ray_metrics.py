"""Figures of a run as Ray's application metrics, which Prometheus reads from the nodes of the cluster."""

from __future__ import annotations

from ray.util.metrics import Gauge

from reembed.events import Event, Listener, Progress

COUNTS = {
    "done": ("documents_done", "Documents that are done, with dead letters and earlier attempts"),
    "total": ("documents", "Documents of the run"),
    "dead_letters": ("dead_letters", "Documents that could not be embedded since this start"),
    "units_done": ("units_done", "Units that are staged"),
    "units": ("units", "Units of the run"),
}
RATES = {
    "docs_per_s": ("documents_per_second", "Documents a second in the last minute"),
    "tokens_per_s": ("tokens_per_second", "Tokens a second in the last minute"),
    "actors": ("actors", "Actors that embed"),
    "busy": ("busy_ratio", "Share of the actors' time in which their models compute"),
    "waits_for_input": (
        "input_wait_ratio",
        "Share of the actors' time spent waiting for documents",
    ),
}
"""Figures that are 0 once the embedding has ended.

Both: name and description of the gauge of a figure of `Progress`; Prometheus sees ray_reembed_NAME.
"""


def exported(alias: str, run_id: str) -> Listener:
    """Return a listener that sets the gauges, with labels `alias` and `run`, at each `Progress`."""
    tags = {"alias": alias, "run": run_id}
    counts, rates = (
        {
            figure: Gauge(f"reembed_{name}", description, tag_keys=tuple(tags))
            for figure, (name, description) in described.items()
        }
        for described in (COUNTS, RATES)
    )

    def export(event: Event) -> None:
        if not isinstance(event, Progress):
            return
        for figure, gauge in counts.items():
            gauge.set(getattr(event.figures, figure), tags)
        for figure, gauge in rates.items():
            gauge.set((not event.last) * getattr(event.figures, figure), tags)

    return export

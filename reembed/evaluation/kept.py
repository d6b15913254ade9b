"""Make a comparison and keep it, with the values of each query and the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from reembed.catalog.releases import Catalog, Release
from reembed.config.gate import GateConfig
from reembed.config.settings import changed_settings
from reembed.evaluation import comparisons
from reembed.evaluation.compare import compare
from reembed.evaluation.comparisons import Comparison
from reembed.evaluation.page.document import Report, require_places
from reembed.evaluation.queries import place_of
from reembed.evaluation.terms import Asked
from reembed.events import ChangedSetting, Ignored, Listener
from reembed.source.lag import caught_up

_DECIDE_NOTHING = ("logged", "logged_sample")


def compare_and_keep(
    catalog: Catalog,
    live: Release,
    candidate: Release,
    configured: GateConfig,
    asked: Asked,
    emit: Listener,
) -> Comparison:
    """Return the comparison that was kept, with its report's address; raise errors as `compare` and `require_places`.

    SourceError if texts of documents are asked for and the source cannot be read.

    Emits `Ignored` for settings that differ from those that were planned.
    """
    require_places(asked.reports)
    record, values = compare(catalog, live, candidate, configured, asked)
    if changed := _ignored(record, configured):
        emit(Ignored(tuple(changed)))
    report = Report(record, values, candidate, catalog.log())
    if asked.document_texts:
        report = report.with_texts(caught_up(catalog, candidate))
    kept = comparisons.keep(catalog, live, candidate, record, values.to_bytes())
    report = replace(report, comparison=kept)
    catalog.storage.write_bytes(kept.report, report.html().encode())
    for place in asked.reports:
        report.write(Path(place))
    return replace(kept, report=catalog.storage.uri(kept.report))


def _ignored(record: Comparison, configured: GateConfig) -> list[ChangedSetting]:
    judged = {n for n, used in record.gate.settings if used == getattr(configured, n)}
    judged |= set(_DECIDE_NOTHING)
    if place_of(configured) == record.queries.place:
        judged |= set(vars(record.queries.place))
    planned = record.planned_gate.settings.model_dump(exclude=judged)
    return changed_settings("gate", planned, configured.model_dump(exclude=judged))

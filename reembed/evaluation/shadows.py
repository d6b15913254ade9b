"""Shadows: a candidate beside live over the queries that arrive, look by look. What is kept of them.

shadows/ALIAS/plans/00000001.json        create-only: which pair, and what it is judged by; the newest counts
shadows/ALIAS/1/looks/00000001.json      create-only: a look at queries that no look before it judged
shadows/ALIAS/1/looks/SHA256.parquet     what it found for each of them, written before it
shadows/ALIAS/1/cut-over.json            create-only: when the candidate went live, and the end of the holdover

A process that is killed between the two files of a look leaves one that nothing names: the look did not happen.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from reembed import faults
from reembed.catalog.numbered import numbers
from reembed.catalog.releases import Catalog
from reembed.catalog.reports import MetricLook, ShadowLook
from reembed.config.gate import FrozenGate, GateConfig
from reembed.config.shadow import ShadowDesign
from reembed.evaluation.comparisons import Rule, metric_name
from reembed.evaluation.figures import Needed
from reembed.plural import counted
from reembed.store.at_once import at_once
from reembed.store.paths import content_path
from reembed.store.records import decode, encode


@dataclass(frozen=True)
class Asked:
    """What the config said when a shadow began; another evidence would be another shadow."""

    gate: GateConfig
    """Without the log, which decides nothing; the places of the queries are absolute."""
    design: ShadowDesign


@dataclass(frozen=True)
class ShadowPlan:
    """What a shadow judges by, fixed before the candidate was asked anything."""

    number: int
    alias: str
    live: str
    """The first release of the line that was live; its newest release is the old side, also after the cut-over."""
    candidate: str
    """The first release of the candidate's line."""
    generation: int
    """The number of the alias's step at the start."""
    asked: Asked
    gate: FrozenGate
    """The candidate's planned gate, with the queries as they were at the start."""
    margins: dict[str, float]
    """The allowed loss of each metric, absolute."""
    earlier: tuple[int, ...]
    """Earlier shadows of the same two lines."""
    replaces: int | None
    """The shadow that was given up for this one."""
    reason: str | None
    """Why it was."""
    by: str
    at: str


@dataclass(frozen=True)
class LookRecord:
    """A look, and what it judged."""

    number: int
    old: str
    """The newest release of the line that was live at the start; `live:` in the columns of the values."""
    new: str
    judged: int
    """Queries that this look judged."""
    per_query_sha256: str
    found: ShadowLook
    """Of this look and those before it."""
    by: str
    at: str


@dataclass(frozen=True)
class CutOver:
    """The candidate went live, and the release before it is kept up to date until the end of the holdover."""

    generation: int
    at: str
    until: str


def newest(catalog: Catalog) -> ShadowPlan | None:
    """Return the alias's last shadow; None if there is none.

    Raises:
        IntegrityError: plans were removed.
    """
    found = numbers(catalog.storage, _plans(catalog))
    return _plan(catalog, found[-1]) if found else None


def begin(catalog: Catalog, plan: ShadowPlan) -> ShadowPlan:
    """Keep a plan; return it, or the one that another process began at the same moment."""
    catalog.storage.create(f"{_plans(catalog)}/{plan.number:08d}.json", encode(plan))
    faults.point("shadow.after_plan")
    return _plan(catalog, plan.number)


def of_pair(catalog: Catalog, live: str, candidate: str) -> tuple[int, ...]:
    """Return the numbers of the shadows of two lines."""
    plans = (_plan(catalog, number) for number in numbers(catalog.storage, _plans(catalog)))
    return tuple(p.number for p in plans if (p.live, p.candidate) == (live, candidate))


def looks(catalog: Catalog, plan: ShadowPlan) -> list[LookRecord]:
    """Return every look, oldest first.

    Raises:
        IntegrityError: looks were removed.
    """
    return at_once(partial(_look, catalog, plan), numbers(catalog.storage, looks_folder(plan)))


def last_look(catalog: Catalog, plan: ShadowPlan) -> LookRecord | None:
    """Return the newest look; None before the first."""
    found = numbers(catalog.storage, looks_folder(plan))
    return _look(catalog, plan, found[-1]) if found else None


def keep_look(catalog: Catalog, plan: ShadowPlan, record: LookRecord, values: bytes) -> bool:
    """Keep a look and its values; False if another process made a look of this number."""
    storage, folder = catalog.storage, looks_folder(plan)
    storage.write_bytes(content_path(folder, record.per_query_sha256, "parquet"), values)
    faults.point("shadow.after_queries")
    made = storage.create(f"{folder}/{record.number:08d}.json", encode(record))
    faults.point("shadow.after_look")
    return made


def values_path(plan: ShadowPlan, record: LookRecord) -> str:
    """Return the path of what a look found for each query."""
    return content_path(looks_folder(plan), record.per_query_sha256, "parquet")


def cut_over(catalog: Catalog, plan: ShadowPlan) -> CutOver | None:
    """Return when the candidate went live; None if it did not, or no shadow has seen it yet."""
    return catalog.storage.decode_if_there(CutOver, f"{_folder(plan)}/cut-over.json")


def keep_cut_over(catalog: Catalog, plan: ShadowPlan, made: CutOver) -> CutOver:
    """Record when the candidate went live; return the first such record."""
    path = f"{_folder(plan)}/cut-over.json"
    catalog.storage.create(path, encode(made))
    return decode(CutOver, catalog.storage.read(path))


def rules(found: ShadowLook) -> tuple[Rule, ...]:
    """Return the gate's rules about its metrics, by a look."""
    return tuple(_rule(found, key, metric) for key, metric in found.metrics.items())


def _rule(found: ShadowLook, key: str, metric: MetricLook) -> Rule:
    name = f"{metric_name(key)} change"
    size = counted(found.queries, "query")
    if found.independent != found.queries:
        size += f" in {counted(found.independent, 'group')}"
    detail = (
        f"{name} {metric.mean:+.4f} over {size} in look {found.look}, one-sided bounds {metric.lower:+.4f} and"
        f" {metric.upper:+.4f} at any look, at least {-metric.margin:+.4f} needed"
    )
    needed = None
    if metric.expected is not None:
        each = found.queries / found.independent
        needed = Needed(round(metric.expected * each), metric.expected)
        detail = f"{detail}: about {needed} would decide if this change is real"
    return Rule(
        name,
        metric.verdict,
        detail,
        observed=metric.mean,
        bound=metric.lower,
        required=-metric.margin,
        margin=metric.margin,
        if_real=needed,
        metric=key,
        n=found.queries,
        independent=found.independent,
    )


def _plans(catalog: Catalog) -> str:
    return f"shadows/{catalog.alias}/plans"


def _folder(plan: ShadowPlan) -> str:
    return f"shadows/{plan.alias}/{plan.number}"


def looks_folder(plan: ShadowPlan) -> str:
    """Return the folder of its looks."""
    return f"{_folder(plan)}/looks"


def _plan(catalog: Catalog, number: int) -> ShadowPlan:
    return decode(ShadowPlan, catalog.storage.read(f"{_plans(catalog)}/{number:08d}.json"))


def _look(catalog: Catalog, plan: ShadowPlan, number: int) -> LookRecord:
    return decode(LookRecord, catalog.storage.read(f"{looks_folder(plan)}/{number:08d}.json"))

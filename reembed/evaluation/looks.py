"""A look of a shadow: the queries that no look before it judged, on both releases, and what all of them show.

What counts once, as one observation:

- with `gate.group`, a group: by the queries of it that the first look found that saw one; later ones add nothing;
- else a judged query, by its set and id, and a logged one, by its set and text, however often it is asked and
  whatever is clicked later.

So what an earlier look counted never changes, as the sequential tests need.

Arrays: Q queries, in the order of the looks and, within one, of the sets.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from reembed.catalog.alias import who
from reembed.catalog.releases import Catalog, Release
from reembed.catalog.reports import MetricLook, ShadowLook
from reembed.clock import now
from reembed.config.gate import GateConfig
from reembed.evaluation import compare, metrics, sequential, shadows, terms
from reembed.evaluation.answers import judged_lists
from reembed.evaluation.differences import judged_of, likeness, pairs_of
from reembed.evaluation.figures import Sides
from reembed.evaluation.gate import applied_margin
from reembed.evaluation.per_query import PerQuery
from reembed.evaluation.queries import EvalSet
from reembed.evaluation.sequential import MIN_FIRST_LOOK, MIN_LOOK, Look
from reembed.evaluation.shadows import LookRecord, ShadowPlan
from reembed.evaluation.statistics import Floats, Groups
from reembed.serving.live import OpenRelease
from reembed.store.at_once import at_once

_ALONE = "(alone) "
_ERROR = 0.05


def queries_now(
    catalog: Catalog, pair: Sides[Release], configured: GateConfig, reason: str
) -> tuple[terms.Terms, EvalSet]:
    """Return the terms of a comparison of two releases by the queries that are there now, and these.

    Raises:
        UsageError: none are named, or they cannot be used.
    """
    asked = terms.Asked(changed_queries=True, reason=reason)
    return terms.agree(catalog, pair.live, pair.candidate, configured, asked)


def margins(
    catalog: Catalog, pair: Sides[Release], found: terms.Terms, queries: EvalSet
) -> dict[str, float]:
    """Return the allowed loss of each metric, absolute, by what live answers; the candidate is not asked."""
    keys = found.gate.metrics
    if found.gate.margin is not None:
        return dict.fromkeys(keys, found.gate.margin)
    lists = judged_lists(OpenRelease.open(catalog.storage, pair.live), queries)
    return {k: applied_margin(None, metrics.named(k).of(queries, lists.ids)) for k in keys}


def look(
    catalog: Catalog,
    plan: ShadowPlan,
    pair: Sides[Release],
    configured: GateConfig,
    *,
    guards: bool,
) -> LookRecord | None:
    """Judge the queries that are new, keep that as the next look, and return it.

    Returns the last look of this kind if there is nothing new, or no more is planned; None if there was none. If
    another process made the next look meanwhile, only what that one did not judge is judged.

    `guards`: after the cut-over, for harm.

    Raises:
        UsageError: the queries cannot be used.
        IntegrityError: a release, or what an earlier look kept, is damaged.
    """
    _, queries = queries_now(catalog, pair, configured, "a look of a shadow")
    names = counts_as(queries)
    opened: Sides[OpenRelease] | None = None
    while True:
        made = shadows.looks(catalog, plan)
        values = at_once(partial(_values, catalog, plan), made)
        mine = [at for at, record in enumerate(made) if record.found.guards == guards]
        known = {name for some in values for name in some.counts_as}
        new = [row for row, name in enumerate(names) if name not in known]
        if not new or _is_complete(plan, [values[at] for at in mine], guards=guards):
            return made[mine[-1]] if mine else None
        opened = opened or compare.opened(catalog, pair.live, pair.candidate)
        found = _ask(plan, opened, queries.take(new), [names[row] for row in new])
        number = len(made) + 1
        record = LookRecord(
            number=number,
            old=pair.live.id,
            new=pair.candidate.id,
            judged=len(new),
            per_query_sha256=hashlib.sha256(found.to_bytes()).hexdigest(),
            found=judge(plan, number, [*(values[at] for at in mine), found], guards=guards),
            by=who(),
            at=now(),
        )
        if shadows.keep_look(catalog, plan, record, found.to_bytes()):
            return record


def counts_as(queries: EvalSet) -> list[str]:
    """Return what each query counts as: 32 hex digits, the same for those that count together, and in every look."""
    kinds = [found.evidence for found in queries.sets for _ in range(found.count)]
    groups: Sequence[str] = queries.groups or [_ALONE] * len(queries.texts)
    rows = zip(queries.set_names, kinds, queries.query_ids, queries.texts, groups, strict=True)
    return [_digest(*row) for row in rows]


def _digest(set_name: str, kind: str, query_id: str, text: str, group: str) -> str:
    one = [set_name, kind, text if kind == "clicks" else query_id]
    if not group.startswith(_ALONE):
        one = ["group", group]
    return hashlib.sha256(json.dumps(one).encode()).hexdigest()[:32]


def _ask(
    plan: ShadowPlan, opened: Sides[OpenRelease], queries: EvalSet, names: list[str]
) -> PerQuery:
    """Return the values of new queries, without their texts."""
    lists = opened.each(lambda side: judged_lists(side, queries))
    both = lists.live, lists.candidate
    pairs = pairs_of(queries, *both, plan.gate.metrics)
    pairs["judged@10"] = judged_of(queries, *both)
    rows = PerQuery.of("judged", queries, both, pairs, likeness(*both))
    return rows.without_texts().counted_as(names)


def _values(catalog: Catalog, plan: ShadowPlan, record: LookRecord) -> PerQuery:
    place = shadows.values_path(plan, record)
    return PerQuery.read_file(catalog.storage, place, record.per_query_sha256)


def _is_complete(plan: ShadowPlan, values: list[PerQuery], *, guards: bool) -> bool:
    """Return whether all planned queries were judged."""
    planned = plan.asked.design.planned_queries
    seen = {name for some in values for name in some.counts_as}
    return planned is not None and not guards and len(seen) >= planned


def judge(plan: ShadowPlan, number: int, values: list[PerQuery], *, guards: bool) -> ShadowLook:
    """Return what the values of all looks so far show, in the order of the looks.

    A candidate passes if every metric does, each with an error of 5 %. Harm after the cut-over is shown by one metric,
    so they share these 5 %.
    """
    names = [name for some in values for name in some.counts_as]
    groups_Q = np.unique(names, return_inverse=True)[1]
    ends = np.cumsum([len({*some.counts_as}) for some in values]).tolist()
    design = plan.asked.design
    planned = None if guards else design.planned_queries
    found = {}
    for key in plan.gate.metrics:
        pairs = [some.pairs[key] for some in values]
        changes_Q = np.concatenate([candidate_Q - live_Q for live_Q, candidate_Q in pairs])
        if guards:
            assert design.guardrail_margin is not None
            margin, level = design.guardrail_margin, 1 - _ERROR / len(plan.gate.metrics)
            seen = sequential.always_valid(changes_Q, -margin, groups_Q, level)
        else:
            margin = plan.margins[key]
            seen = _seen(changes_Q, -margin, groups_Q, ends, planned)
        needed = planned or sequential.expected(changes_Q, -margin, groups_Q)
        more = needed if seen.verdict == "inconclusive" else None
        found[key] = MetricLook(seen.verdict, margin, seen.mean, seen.lower, seen.upper, more)
    return ShadowLook(
        shadow=plan.number,
        look=number,
        planned=planned,
        guards=guards,
        queries=len(names),
        independent=ends[-1],
        metrics=found,
        earlier=plan.earlier,
    )


def _seen(
    changes_Q: Floats, limit: float, groups_Q: Groups, ends: list[int], planned: int | None
) -> Look:
    """Return what the changes show; `ends`: how many groups there were at the end of each look."""
    always = sequential.always_valid(changes_Q, limit, groups_Q)
    if planned is None:
        return always
    counted = _counted(ends, planned)
    if not counted:  # too few yet for its first look
        return replace(always, verdict="inconclusive", decided_at=None, lower=-1.0, upper=1.0)
    return sequential.group_sequential(changes_Q, limit, counted, planned, groups_Q)


def _counted(ends: list[int], planned: int) -> list[int]:
    """Return the looks that a group-sequential design counts: far enough apart, and from the end."""
    counted = [0]
    for end in (min(end, planned) for end in ends):
        enough = end >= MIN_FIRST_LOOK and end - counted[-1] >= MIN_LOOK * planned
        if enough and (end == planned or planned - end >= MIN_LOOK * planned):
            counted.append(end)
    return counted[1:]

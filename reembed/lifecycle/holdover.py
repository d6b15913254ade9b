"""Where a shadow stands, by what it kept and by the alias's log."""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict, dataclass
from typing import Any, Literal

from reembed.catalog.releases import AliasRecord, Catalog
from reembed.clock import now
from reembed.evaluation import shadows
from reembed.evaluation.shadows import CutOver, LookRecord, ShadowPlan

Stage = Literal["judging", "holdover", "over", "rolled back", "superseded"]
"""judging: the candidate is not live. holdover: it is, and the old release is kept up to date. over: that ended.
rolled back: it was live. superseded: a release of neither line is live."""


@dataclass(frozen=True)
class Shadow:
    """The alias's last shadow."""

    plan: ShadowPlan
    stage: Stage
    look: LookRecord | None
    """The newest look."""
    cut_over: CutOver | None
    """None before the candidate went live, or before `reembed shadow` saw that."""

    @property
    def is_exhausted(self) -> bool:
        """Whether all planned queries were judged, and show neither."""
        if self.look is None or self.look.found.planned is None:
            return False
        return self.look.found.independent >= self.look.found.planned

    @property
    def is_open(self) -> bool:
        """Whether it still has something to find out."""
        failed = self.look is not None and self.look.found.verdict == "fail"
        return self.stage == "holdover" or (self.stage == "judging" and not failed)

    def to_json(self) -> dict[str, Any]:
        """Return its number and stage, what it judges, and the newest look."""
        return {
            "shadow": self.plan.number,
            "stage": self.stage,
            "lines": {"old": self.plan.live, "new": self.plan.candidate},
            "margins": self.plan.margins,
            "look": asdict(self.look) if self.look else None,
            "holdover_until": self.cut_over.until if self.cut_over else None,
        }


def last_shadow(catalog: Catalog, live: AliasRecord | None) -> Shadow | None:
    """Return the alias's last shadow; None if it has none. `live` is the alias's newest step."""
    plan = shadows.newest(catalog)
    if plan is None or live is None:
        return None
    cut = shadows.cut_over(catalog, plan)
    stage = _stage(catalog, plan, live, cut)
    return Shadow(plan, stage, shadows.last_look(catalog, plan), cut)


def _stage(catalog: Catalog, plan: ShadowPlan, live: AliasRecord, cut: CutOver | None) -> Stage:
    line = live.release.origin
    if line == plan.candidate:
        return "over" if cut and cut.until <= now() else "holdover"
    if line != plan.live:
        return "superseded"
    if cut is not None:
        return "rolled back"
    undone = catalog.rolled_back(live)
    if undone is None:
        return "judging"
    step, left = undone
    was_live = step.generation > plan.generation and left.release.origin == plan.candidate
    return "rolled back" if was_live else "judging"


def record_cut_over(catalog: Catalog, plan: ShadowPlan, holdover_s: float) -> CutOver:
    """Record when the candidate, which is live, went live, and when its holdover ends; return the first record."""
    step = went_live(catalog)
    until = dt.datetime.fromisoformat(step.at) + dt.timedelta(seconds=holdover_s)
    made = CutOver(step.generation, step.at, until.isoformat(timespec="seconds"))
    return shadows.keep_cut_over(catalog, plan, made)


def went_live(catalog: Catalog) -> AliasRecord:
    """Return the step by which the model that is live went live."""
    return next(step for step in reversed(catalog.log()) if step.action != "catch-up")

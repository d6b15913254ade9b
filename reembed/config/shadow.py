"""The settings of a shadow: both releases beside each other until the queries that arrive decide."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from reembed.config.section import Section


class ShadowDesign(Section):
    """What a shadow judges by, beside the gate. Fixed when it starts."""

    planned_queries: Annotated[int, Field(ge=20)] | None = None
    """Queries (groups, with gate.group) that will arrive, if that is known: a group-sequential design, which
    decides earlier. Default: any number may arrive, with a look at any time (an always-valid sequence)."""
    guardrail_margin: Annotated[float, Field(gt=0, lt=1)] | None = 0.03
    """Loss of one of gate.metrics that, once shown by queries after the cut-over, rolls back by itself; null: none."""

    @property
    def settings(self) -> ShadowDesign:
        """Only these settings, of a config's section."""
        return ShadowDesign(**self.model_dump(include=set(ShadowDesign.model_fields)))


class ShadowSection(ShadowDesign):
    """How `reembed shadow` judges, and what it does by itself."""

    promote_if_pass: bool = False
    """Make a candidate live by itself once it passes."""
    holdover_s: Annotated[float, Field(ge=0)] = 604_800
    """Seconds after the cut-over in which the release before is kept up to date."""

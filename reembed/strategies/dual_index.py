"""Dual index: a candidate beside live, both up to date, until the queries that arrive decide which one serves.

`reembed run` builds the candidate, as a full rebuild does. Then each call of `shadow` goes once through this flow.
It keeps no state of its own: what is to be done next follows from the looks that are kept and from the alias's log,
so a process that was killed anywhere is started again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from reembed import faults
from reembed.catalog.alias import who
from reembed.catalog.releases import AliasRecord, Catalog, Release
from reembed.catalog.reports import Outcome
from reembed.clock import now
from reembed.config.gate import GateConfig
from reembed.config.settings import Config, changed_settings
from reembed.engine.executor import Executor
from reembed.errors import (
    Conflict,
    NoCapacity,
    ProviderError,
    RunFailed,
    SourceUnreachable,
    StorageFailed,
    UsageError,
)
from reembed.evaluation import comparisons, looks, shadows
from reembed.evaluation.comparisons import Comparison
from reembed.evaluation.figures import Sides
from reembed.evaluation.kept import compare_and_keep
from reembed.evaluation.shadows import LookRecord, ShadowPlan
from reembed.evaluation.terms import Asked as AskedToCompare
from reembed.events import Listener, Looked, LookFailed
from reembed.lifecycle import candidates
from reembed.lifecycle.holdover import Shadow, last_shadow, record_cut_over, went_live
from reembed.lifecycle.promote import Reasons, rollback
from reembed.store.paths import absolute_queries
from reembed.store.storage import storage_errors
from reembed.strategies.catch_up import catch_up
from reembed.strategies.context import emit_ignored
from reembed.strategies.up_to_date import catch_up_and_follow, promote_up_to_date

_PASSES = Conflict, NoCapacity, ProviderError, RunFailed, SourceUnreachable, StorageFailed
"""Errors that may be gone at the next look: another process was faster; nodes, a provider, a job or a store failed."""


@dataclass(frozen=True)
class Asked:
    """What is asked of a shadow beside its config."""

    release: str | None = None
    """The candidate; None: the one built with the config's settings."""
    promote_if_pass: bool = False
    """Make it live once it passes, also if the config does not say so."""
    new: str | None = None
    """Why the last shadow is given up and a new one started; recorded."""


@dataclass(frozen=True)
class Shadowed:
    """Where a shadow stands."""

    shadow: Shadow
    live: str
    """The release that is live now."""
    old: str
    """The newest release of the line that was live at the start."""
    new: str
    """The newest release of the candidate's line."""
    comparison: Comparison | None = None
    """Made when the looks decided, with the gate's rules about all else than the metrics."""

    @property
    def verdict(self) -> Outcome:
        """pass: the candidate may become live, or is; fail: it may not, or was rolled back."""
        if self.shadow.stage in ("holdover", "over"):
            return "pass"
        if self.shadow.stage == "rolled back":
            return "fail"
        return self.comparison.verdict if self.comparison else "inconclusive"

    @property
    def is_settled(self) -> bool:
        """Whether queries that arrive change nothing more."""
        if self.shadow.stage == "judging":
            return self.verdict != "inconclusive" or self.shadow.is_exhausted
        return self.shadow.stage != "holdover"

    def to_json(self) -> dict[str, Any]:
        """Return what `reembed shadow --json` prints."""
        return {
            "alias": self.shadow.plan.alias,
            **self.shadow.to_json(),
            "verdict": self.verdict,
            "live": self.live,
            "old": self.old,
            "new": self.new,
            "report": self.comparison.report if self.comparison else None,
        }


def shadow(
    catalog: Catalog,
    config: Config,
    asked: Asked,
    every_s: float | None,
    emit: Listener,
    *,
    executor: Executor,
) -> Shadowed:
    """Look once, or at an interval until queries that arrive change nothing more; return where it ended.

    With an interval, a look that fails for a reason that may be gone at the next one (`_PASSES`) is told, and the
    next one tries again. The first look must succeed.

    Raises errors as `look_once`.
    """
    found: Shadowed | None = None
    while True:
        try:
            with storage_errors("a look of the shadow could not read or write"):
                found = look_once(catalog, config, asked, emit, executor=executor)
        except _PASSES as error:
            gone = isinstance(error.__cause__, FileNotFoundError)  # what should be there: damage
            if every_s is None or found is None or gone:
                raise
            emit(LookFailed(error.what, error.why, every_s))
        if every_s is None or found.is_settled:
            return found
        asked = replace(asked, new=None)  # the first call started it
        time.sleep(every_s)


def look_once(
    catalog: Catalog, config: Config, asked: Asked, emit: Listener, *, executor: Executor
) -> Shadowed:
    """Do what there is to be done of a shadow, and return where it stands.

    catch both up -> look at the queries that arrived -> compare and cut over if they decided
    -> in the holdover: catch both up -> look for harm -> roll back if there is any

    Raises:
        UsageError: nothing is live, there is no candidate or no query, or another shadow is under way.
        Conflict: another process moved the alias, or catches up.
        RunFailed: a catch-up stopped; the same command resumes it.
    """
    found = _begun(catalog, config, asked, emit)
    if not found.is_open:
        return _told(catalog, found.plan)
    pair = _caught_up(catalog, config, found, emit, executor)
    if found.stage == "holdover":
        return _guarded(catalog, config, found.plan, pair, emit)
    look = found.look
    if look is None or look.found.verdict == "inconclusive":
        look = looks.look(catalog, found.plan, pair, _gate(config), guards=False)
        _emit_look(found.plan, look, emit, guards=False)
    if look is None or look.found.verdict == "inconclusive":
        return _told(catalog, found.plan)
    made = _compared(catalog, config, pair, look, emit)
    if made.verdict == "pass" and (config.shadow.promote_if_pass or asked.promote_if_pass):
        reasons = Reasons(shadow=look.found)
        promote_up_to_date(catalog, config, pair.candidate.id, reasons, emit, executor=executor)
        faults.point("shadow.before_cut_over")
        record_cut_over(catalog, found.plan, config.shadow.holdover_s)
    return _told(catalog, found.plan)


def _begun(catalog: Catalog, config: Config, asked: Asked, emit: Listener) -> Shadow:
    """Return the shadow under way, or start one."""
    if config.strategy != "dual_index":
        raise UsageError(
            f"strategy is {config.strategy}: its runs are judged by one comparison",
            "a shadow judges over time, and may change what is live by itself",
            "reembed shadow --set strategy=dual_index",
        )
    live = catalog.require_live()
    last = last_shadow(catalog, live)
    own = candidates.named_or_own(catalog, config, asked.release)
    goes_on = last is not None and asked.new is None and last.stage != "superseded"
    if last is not None and goes_on and own.origin == last.plan.candidate:
        if last.is_open:
            _require_same(last.plan, config)
        return last
    if last is not None and last.is_open and asked.new is None:
        raise UsageError(
            f"shadow {last.plan.number} of {last.plan.candidate} is not finished; {own.id} is another candidate",
            "an alias has one shadow at a time",
            f"reembed shadow --candidate {own.id} --new --reason 'WHY'     # gives it up; recorded",
        )
    own = candidates.candidate(catalog, config, own.id)
    plan = _plan(catalog, config, (live, own), asked, last)
    _emit_ignored(plan, emit)
    found = last_shadow(catalog, live)
    assert found is not None  # it was started above
    if plan.candidate != own.origin:
        raise Conflict(
            f"shadow {plan.number} of {plan.candidate} was started by {plan.by} at this moment",
            "an alias has one shadow at a time",
            "reembed status",
        )
    return found


def _plan(
    catalog: Catalog,
    config: Config,
    pair: tuple[AliasRecord, Release],
    asked: Asked,
    last: Shadow | None,
) -> ShadowPlan:
    """Begin a shadow: fix what it judges by, before the candidate is asked anything."""
    live, own = pair
    sides, gate = Sides(live.release, own), _gate(config)
    terms, queries = looks.queries_now(catalog, sides, gate, "the queries at the start of a shadow")
    return shadows.begin(
        catalog,
        ShadowPlan(
            number=last.plan.number + 1 if last else 1,
            alias=catalog.alias,
            live=live.release.origin,
            candidate=own.origin,
            generation=live.generation,
            asked=_asked(config),
            gate=terms.gate,
            margins=looks.margins(catalog, sides, terms, queries),
            earlier=shadows.of_pair(catalog, live.release.origin, own.origin),
            replaces=last.plan.number if last and last.is_open else None,
            reason=asked.new,
            by=who(),
            at=now(),
        ),
    )


def _emit_ignored(plan: ShadowPlan, emit: Listener) -> None:
    """Tell of settings of the gate that the run had planned otherwise."""
    of_the_log = {"logged", "logged_sample"}
    planned = plan.gate.settings.model_dump(exclude=of_the_log)
    emit_ignored(changed_settings("gate", planned, plan.asked.gate.model_dump()), emit)


def _gate(config: Config) -> GateConfig:
    return absolute_queries(config.gate)


def _asked(config: Config) -> shadows.Asked:
    """Return the settings that decide what a shadow finds; the log decides nothing."""
    of_the_log = {"logged": None, "logged_sample": GateConfig().logged_sample}
    return shadows.Asked(_gate(config).model_copy(update=of_the_log), config.shadow.settings)


def _require_same(plan: ShadowPlan, config: Config) -> None:
    """Raise UsageError if the config asks for another shadow than the one under way."""
    asked = _asked(config)
    changed = changed_settings("gate", plan.asked.gate.model_dump(), asked.gate.model_dump())
    changed += changed_settings("shadow", plan.asked.design.model_dump(), asked.design.model_dump())
    if changed:
        each = "; ".join(f"{c.name} was {c.used!r}, is {c.now!r}" for c in changed)
        raise UsageError(
            f"shadow {plan.number} was started with other settings",
            f"{each}. What judges is fixed before results exist",
            "reembed shadow --new --reason 'WHY'     # begins another one; recorded. Or put the settings back",
        )


def _caught_up(
    catalog: Catalog, config: Config, found: Shadow, emit: Listener, executor: Executor
) -> Sides[Release]:
    """Bring live and the release beside it up to date, each with its own model; return old and new."""
    lines = Sides(found.plan.live, found.plan.candidate)
    pinned = config.source.version is not None
    if not pinned:
        catch_up_and_follow(
            catalog, config, "live", emit, executor=executor, retry_dead_letters=False
        )
    beside = lines.candidate if found.stage == "judging" else lines.live
    if not pinned:
        newest = candidates.newest_of(catalog, catalog.release(beside))
        catch_up(config, newest, emit, executor=executor)
    return lines.each(lambda line: candidates.newest_of(catalog, catalog.release(line)))


def _compared(
    catalog: Catalog, config: Config, pair: Sides[Release], look: LookRecord, emit: Listener
) -> Comparison:
    """Return the comparison that rests on the look that decided; made again while it is inconclusive."""
    made = _comparison_of(catalog, pair, look)
    if made is not None and made.verdict != "inconclusive":
        return made
    reason = f"the queries that arrived, by look {look.number} of shadow {look.found.shadow}"
    asked = AskedToCompare(changed_queries=True, reason=reason, looked=look.found)
    return compare_and_keep(catalog, pair.live, pair.candidate, _gate(config), asked, emit)


def _comparison_of(
    catalog: Catalog, pair: Sides[Release], look: LookRecord | None
) -> Comparison | None:
    made = comparisons.newest(catalog, pair.live, pair.candidate)
    return made if made is not None and look is not None and made.shadow == look.found else None


def _guarded(
    catalog: Catalog, config: Config, plan: ShadowPlan, pair: Sides[Release], emit: Listener
) -> Shadowed:
    """Look for harm by the queries since the cut-over; roll back if it is shown."""
    live = catalog.require_live()
    cut, look = record_cut_over(catalog, plan, config.shadow.holdover_s), None
    promoted_again = went_live(catalog).generation != cut.generation  # by a person, who knew
    if plan.asked.design.guardrail_margin is not None and not promoted_again:
        look = looks.look(catalog, plan, pair, _gate(config), guards=True)
        _emit_look(plan, look, emit, guards=True)
    if look is not None and look.found.verdict == "fail":
        reason = (
            f"the guardrail of shadow {plan.number}, look {look.number}: {pair.live.id} is better"
        )
        rollback(catalog, reason=reason, shadow=look.found, decided_on=live, emit=emit)
    return _told(catalog, plan)


def _emit_look(plan: ShadowPlan, look: LookRecord | None, emit: Listener, *, guards: bool) -> None:
    number, queries, verdict = 0, 0, "inconclusive"
    if look is not None:
        number, queries, verdict = look.number, look.found.queries, look.found.verdict
    emit(Looked(plan.number, number, queries, verdict, guards))


def _told(catalog: Catalog, plan: ShadowPlan) -> Shadowed:
    live = catalog.require_live()
    found = last_shadow(catalog, live)
    assert found is not None  # it has a plan
    lines = Sides(plan.live, plan.candidate)
    pair = lines.each(lambda line: candidates.newest_of(catalog, catalog.release(line)))
    made = _comparison_of(catalog, pair, found.look)
    return Shadowed(found, live.release.id, pair.live.id, pair.candidate.id, made)

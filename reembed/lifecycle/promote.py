"""promote and rollback: the only writers of the alias. Each is one create-only record."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from reembed import faults
from reembed.catalog.releases import Action, AliasRecord, Catalog, Release
from reembed.catalog.reports import Evidence, Grounds, ShadowLook
from reembed.catalog.runs import Run, started_with
from reembed.config.gate import GateConfig
from reembed.errors import Conflict, GateFailed, Inconclusive, IntegrityError, UsageError
from reembed.evaluation import comparisons, terms
from reembed.evaluation.report import compare_again, to_compare
from reembed.events import AliasMoved, Listener, ignore
from reembed.lifecycle import complete
from reembed.lifecycle.candidates import newest_in, newest_of, previous, require_kept
from reembed.source.lag import caught_up, noted_place


@dataclass(frozen=True)
class Reasons:
    """Why a promotion needs no passing comparison, in the operator's words."""

    force: str | None = None
    """The gate is overruled."""
    initial: str | None = None
    """Nothing is live yet to compare with."""
    without_evidence: str | None = None
    """There are no judged queries to compare by."""
    shadow: ShadowLook | None = None
    """The look after which `reembed shadow` promotes by itself."""

    @property
    def flags(self) -> str:
        """Return them as options of the command line."""
        given = {
            "--force": self.force,
            "--initial": self.initial,
            "--without-evidence": self.without_evidence,
        }
        return "".join(f" {f} --reason {shlex.quote(why)}" for f, why in given.items() if why)


def promote(  # noqa: PLR0913 - one parameter for each reason without a passing comparison
    catalog: Catalog,
    release_id: str,
    *,
    force_reason: str | None = None,
    initial_reason: str | None = None,
    without_evidence_reason: str | None = None,
    shadow: ShadowLook | None = None,
    decided_on: AliasRecord | None = None,
    emit: Listener = ignore,
) -> AliasRecord:
    """Move the alias to a candidate; emit `AliasMoved` if that was a step.

    It needs a passing comparison of exactly this candidate against exactly what is live, or a reason,
    which is recorded, as is the look after which `reembed shadow` promotes. `decided_on` is the step
    that was live when this was decided: since then the alias may only have moved on in its line.

    Raises:
        GateFailed, Inconclusive: the comparison is missing or does not pass.
        Conflict: something else became live since the comparison, or at this moment.
        IntegrityError: the candidate is not verified, or its data is not there.
        UsageError: its line has a release with newer documents.
    """
    live = catalog.live()
    if decided_on is not None:
        _require_same_line(catalog, decided_on, live)
    chosen = catalog.release(release_id)
    require_kept(catalog, chosen)
    _require_newest(catalog, chosen)
    if live is not None and live.release.origin == chosen.origin:
        return _advance(catalog, live, chosen, emit, force_reason)
    reasons = Reasons(force_reason, initial_reason, without_evidence_reason, shadow)
    grounds = admissible(catalog, chosen, live, reasons)
    faults.point("promote.before_swap")
    record = _swap(catalog, live, "promote", chosen, grounds, emit)
    faults.point("promote.after_swap")
    return record


def admissible(
    catalog: Catalog,
    chosen: Release,
    live: AliasRecord | None,
    reasons: Reasons,
    configured: GateConfig | None = None,
) -> Grounds:
    """Return the grounds on which a release may become live: a comparison, or a reason without one.

    `configured` is the config's gate, whose judged queries a comparison would take if the plan has none.

    Raises:
        GateFailed, Inconclusive, Conflict, IntegrityError: as `promote`.
    """
    if live is None and reasons.initial is None:
        known = _below_gate(catalog, chosen)
        measured = f"; below its gate: {known}" if known else ""
        raise GateFailed(
            f"{catalog.alias} serves nothing yet: a first promotion has nothing to be compared with",
            f"unknown about {chosen.id}: {'; '.join(_unknown(chosen, live))}{measured}",
            f"reembed promote {chosen.id} --initial --reason 'the first release'",
        )
    if live is not None and reasons.initial is not None:
        raise Conflict(
            f"{catalog.alias} serves {live.release.id}: this promotion is not the first",
            "it needs a comparison with what is live",
            _compare(catalog, chosen, live.release, configured),
        )
    complete.require_complete(catalog, chosen)
    if live is not None and live.release.origin == chosen.origin:
        return Grounds()  # the same model with newer documents
    if live is None:
        below = _below_gate(catalog, chosen)
        return Grounds(reasons.initial, unknown=_unknown(chosen, live), below_gate=below)
    if reasons.force is not None:
        compared = comparisons.last(catalog, live.release, chosen)
        if compared:
            return Grounds(reasons.force, forced=True, comparison=compared)
        unknown, below = _unknown(chosen, live), _below_gate(catalog, chosen)
        return Grounds(reasons.force, forced=True, unknown=unknown, below_gate=below)
    again = _compare(catalog, chosen, live.release, configured)
    if reasons.without_evidence is not None:
        return _without_evidence(catalog, chosen, live, reasons.without_evidence, configured)
    passing = _passing_comparison(catalog, chosen, live.release, again)
    return Grounds(comparison=passing, shadow=reasons.shadow)


def _without_evidence(
    catalog: Catalog,
    chosen: Release,
    live: AliasRecord,
    reason: str,
    configured: GateConfig | None,
) -> Grounds:
    if terms.has_queries(catalog, live.release, chosen, configured or GateConfig()):
        raise GateFailed(
            f"release {chosen.id} has judged queries: it needs no promotion without evidence",
            "a comparison by them says whether it is better than what is live",
            to_compare(chosen.id, judged=True),
        )
    unknown, below = _unknown(chosen, live), _below_gate(catalog, chosen)
    return Grounds(reason, without_evidence=True, unknown=unknown, below_gate=below)


def _compare(
    catalog: Catalog, chosen: Release, live: Release, configured: GateConfig | None
) -> str:
    gate = configured or GateConfig()
    return to_compare(chosen.id, judged=terms.has_queries(catalog, live, chosen, gate))


def _unknown(chosen: Release, live: AliasRecord | None) -> tuple[str, ...]:
    """Return what is not known of a release that was never compared, in words."""
    than = "the search it replaces (nothing was live under this alias)"
    judged = "it has no judged queries"
    if live is not None:
        than = live.release.id
    if queries := chosen.gate.queries:
        judged = f"its judged queries ({', '.join(queries)}) were not run"
    return f"whether it is better than {than}", f"how good its results are: {judged}"


def _below_gate(catalog: Catalog, chosen: Release) -> str | None:
    """Return what was measured of an index that finds less than its gate needs, in words."""
    bound, required = complete.recall_bound(catalog, chosen), chosen.gate.ann_recall
    if bound >= required:
        return None
    return f"its index has a lower bound of ann_recall@10 of {bound:.4f}, gate.ann_recall is {required:.4f}"


def rollback(
    catalog: Catalog,
    to: str | None = None,
    *,
    reason: str | None = None,
    shadow: ShadowLook | None = None,
    decided_on: AliasRecord | None = None,
    emit: Listener = ignore,
) -> AliasRecord:
    """Move the alias back, to the release that served before this one or to `to`; emit `AliasMoved`.

    `shadow` is the look after which `reembed shadow` does it; `decided_on` as of `promote`.

    Raises:
        UsageError: nothing served before, or that release is gone.
        Conflict: another process moved the alias at this moment.
        IntegrityError: that release is not verified, or its data is not there.
    """
    live, before = catalog.last_steps()
    if live is None:
        raise UsageError(f"{catalog.alias} serves nothing yet", None, "reembed status")
    if decided_on is not None:
        _require_same_line(catalog, decided_on, live)
    if to == live.release.id:
        raise UsageError(f"release {to} is already live", None, "reembed history")
    held = {r.release.id: r.release for r in (live, before) if r is not None}
    target = _previous(catalog, live, held) if to is None else _served(catalog, live, to, held)
    return _swap(catalog, live, "rollback", target, Grounds(reason, shadow=shadow), emit)


def _previous(catalog: Catalog, live: AliasRecord, held: dict[str, Release]) -> Release:
    stood = previous(catalog, live)
    if stood is None:
        raise UsageError(
            f"{catalog.alias} has nothing to roll back to",
            f"nothing else served before {live.release.id}, or all of it was rolled back from",
            "reembed history     # `reembed rollback --to RELEASE` goes to any that served and is kept",
        )
    name = newest_in(catalog, stood)
    if name == stood.release:
        require_kept(catalog, catalog.release(name))
    try:
        return complete.require_standing(catalog, _release(catalog, name, held))
    except IntegrityError as error:
        if name == stood.release:
            raise
        older = f"reembed rollback --to {shlex.quote(stood.release)}"
        fix = f"{older}     # it served before; its documents are older"
        raise IntegrityError(error.what, error.why, fix) from error


def _served(catalog: Catalog, live: AliasRecord, to: str, held: dict[str, Release]) -> Release:
    """A release that served: one that stands, one of the last steps, or else one of the log."""
    served = held
    if to not in held and all(to != s.release for s in catalog.standing(live)):
        served = {record.release.id: record.release for record in catalog.log()}
        if to not in served:
            known = ", ".join(served)
            raise UsageError(
                f"release {to} never served {catalog.alias}",
                f"these did: {known}",
                "reembed history",
            )
    release = _release(catalog, to, served)
    require_kept(catalog, release)
    return complete.require_standing(catalog, release)


def _release(catalog: Catalog, release_id: str, held: dict[str, Release]) -> Release:
    return held.get(release_id) or catalog.release(release_id)


def follow(
    catalog: Catalog,
    release: Release,
    *,
    decided_on: AliasRecord | None = None,
    emit: Listener = ignore,
) -> AliasRecord:
    """Move the alias to what the live release grew into by a catch-up: same model, newer documents.

    If live has these documents already, or newer ones, nothing moves. `decided_on` is the step that was
    live when the catch-up began.

    Raises:
        Conflict: another release went live meanwhile, or the alias was rolled back.
        IntegrityError: it is not verified, or its data is not there.
    """
    live = catalog.require_live()
    went_back = (
        decided_on is not None
        and decided_on.release.origin == live.release.origin
        and decided_on.token != live.token
        and live.action == "rollback"
    )
    if went_back or live.release.origin != release.origin:
        raise Conflict(
            f"{catalog.alias} was moved to {live.release.id} meanwhile",
            f"{release.id} continues what was live before",
            "reembed status",
        )
    return _advance(catalog, live, release, emit)


def _advance(
    catalog: Catalog,
    live: AliasRecord,
    release: Release,
    emit: Listener,
    force: str | None = None,
) -> AliasRecord:
    """Swap to a release of the same line. Its index must reach the gate's ann_recall if live's does."""
    if _reach(catalog, release) <= _reach(catalog, live.release):
        return live
    if _went_back_to(catalog, release, live.release):
        return live
    complete.require_complete(catalog, release, grew_from=live.release)
    required = release.gate.ann_recall
    if force is None and complete.recall_bound(catalog, live.release) >= required:
        again = started_with(Run(catalog.storage, release.origin), "--fresh")
        fix = f"reembed promote {release.id} --force --reason 'WHY'     # or: {again}"
        complete.require_recall(catalog, release, required, fix)
    faults.point("promote.before_follow")
    grounds = Grounds(force, forced=force is not None)
    return _swap(catalog, live, "catch-up", release, grounds, emit)


def _reach(catalog: Catalog, release: Release) -> tuple[int, int]:
    """Return how new a release's documents are in its line: also by a newer version that it equals."""
    return max(release.place.reach, noted_place(catalog, release))


def _went_back_to(catalog: Catalog, older: Release, live: Release) -> bool:
    """Whether the source has an older release's documents again, and they are those of live."""
    built_before = older.place.reach < live.place.reach
    return built_before and caught_up(catalog, older).ref == caught_up(catalog, live).ref


def _require_newest(catalog: Catalog, chosen: Release) -> None:
    newest = newest_of(catalog, chosen)
    if newest.id != chosen.id:
        raise UsageError(
            f"release {chosen.id} is behind {newest.id}, which has its model and newer documents",
            "documents that were added or changed between them would be missing",
            f"reembed promote {newest.id}",
        )


def _require_same_line(catalog: Catalog, decided: AliasRecord, live: AliasRecord | None) -> None:
    if live is None or live.release.origin != decided.release.origin:
        now = live.release.id if live else "nothing"
        raise Conflict(
            f"{catalog.alias} was moved from {decided.release.id} to {now} meanwhile",
            "the decision was about the release that was live before",
            "reembed status",
        )


def _swap(
    catalog: Catalog,
    live: AliasRecord | None,
    action: Action,
    release: Release,
    grounds: Grounds,
    emit: Listener,
) -> AliasRecord:
    """Append the step, then look for gc's mark: gc may have marked the release at the same moment.

    gc marks, then reads the alias; this writes the alias, then looks for the mark. At least one of the
    two sees the other, so a release that lost its data never stays live.
    """
    record = catalog.append(live, action, release, grounds)
    if catalog.is_retired(release) and live is not None:
        undone = Grounds(f"gc was removing {release.id}")
        catalog.append(record, "rollback", live.release, undone, back_to=live)
        raise Conflict(
            f"release {release.id} was being removed by gc",
            f"{live.release.id} stays live",
            "reembed status",
        )
    before = live.release.id if live else None
    emit(AliasMoved(catalog.alias, action, record.generation, before, release.id))
    return record


def _passing_comparison(catalog: Catalog, chosen: Release, live: Release, again: str) -> Evidence:
    # A catch-up has the model of its line: the newest verdict on the line counts.
    record = comparisons.newest(catalog, live, chosen)
    if record is None:
        if others := comparisons.compared_with(catalog, chosen):
            raise Conflict(
                f"release {chosen.id} was compared with {', '.join(others)}, but {live.id} is live now",
                "the comparison does not say whether it is better than what is live",
                again,
            )
        raise GateFailed(
            f"release {chosen.id} was never compared with {live.id}, which is live",
            "without a comparison it is not known whether it is better",
            again,
        )
    compared = catalog.release(record.candidate.release)
    terms.require_sound(catalog, record, compared)
    failing = "; ".join(rule.detail for rule in record.rules if rule.verdict != "pass")
    again_by = compare_again(chosen.id, record.summary().runs)
    options = f"{again_by}     # shows what you can do"
    if record.verdict == "fail":
        what = f"release {chosen.id} failed the comparison with {live.id}"
        raise GateFailed(what, failing, options)
    if record.verdict != "pass":
        what = f"the comparison of {chosen.id} with {live.id} is inconclusive"
        raise Inconclusive(what, failing, options)
    if made := comparisons.not_passed_by_runs(record):
        raise GateFailed(
            f"release {chosen.id} passed by searches, but not by run files before ({made.verdict}, {made.at})",
            "run files come from the pipeline that users have: only others that pass take their place",
            f"{compare_again(chosen.id, made.runs)}     # or run files made again;"
            f" or: reembed promote {chosen.id} --force --reason 'WHY'",
        )
    if compared.id != chosen.id:  # the verdict is about another index
        complete.require_recall(catalog, chosen, record.gate.ann_recall, again_by)
    return record.evidence()

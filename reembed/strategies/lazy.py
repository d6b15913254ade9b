"""Lazy: the live release serves; a document gets its new vector after it turned up in an answer.

`start` builds a small second side, whose documents are a source of their own (members.py). Each batch brings more
documents there, and the side's alias moves. What a batch does is brought to a state, and a document leaves the queue
only when the side serves it, so a process that was killed anywhere is started again.
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from reembed import encoders, faults
from reembed.catalog import lazies, lazy_background
from reembed.catalog.alias import who
from reembed.catalog.lazies import Lazy, LazyPlan, Predicted, side_alias
from reembed.catalog.lazy_batches import Batch, keep, spent
from reembed.catalog.lazy_queue import Queue, oldest
from reembed.catalog.lease import driving
from reembed.catalog.releases import Catalog, Release
from reembed.catalog.runs import Run
from reembed.clock import now
from reembed.config.settings import Config
from reembed.engine.executor import Executor
from reembed.errors import Conflict, Inconclusive, UsageError
from reembed.evaluation.rerank import predict
from reembed.events import Listener, Notice, Working
from reembed.lifecycle.lazy_end import left_by_side, remove, settled
from reembed.source.dataset import Source
from reembed.source.members import count
from reembed.space import Space, sha256_of
from reembed.store.paths import absolute, from_anywhere
from reembed.store.records import encode
from reembed.strategies.lazy_side import Side, drawn
from reembed.strategies.members import Sweeping, bring, cold, opened

_LONGEST_ALIAS = 32


@dataclass(frozen=True)
class _Draft:
    """A lazy migration that is being started: what it is started with, and what was predicted."""

    settings: str
    predicted: tuple[Predicted, ...]


def start(
    catalog: Catalog, config: Config, reason: str | None, emit: Listener, *, executor: Executor
) -> Lazy:
    """Start a lazy migration from the live release to the config's model.

    gate -> drawn documents -> members -> the side's first release -> background -> plan -> running

    Raises:
        UsageError: nothing is live, another lazy migration is under way, the model is the live one, or there are
            neither judged queries nor a reason.
        GateFailed: the model is worse on judged queries. Inconclusive: too little is known, and no reason is given.
        Conflict: another process starts one, or an alias has the side's name.
        RunFailed: it stopped; the same command continues.
    """
    live, space = _startable(catalog, config)
    plan = lazies.unstarted(catalog)
    number = plan.number if plan else lazies.next_number(catalog)
    with _alone(catalog, number):
        if plan is not None and not _is_asked(plan, config, live, space):
            lazies.move(catalog, plan, None, "stopped", keep=False, reason="never started")
            plan = None
        if plan is None:
            plan = _prepare(catalog, config, (live, space), reason, emit, executor=executor)
            lazies.begin(catalog, plan)
            faults.point("lazy.after_plan")
        step = lazies.move(catalog, plan, None, "running", reason=reason)
        return Lazy(plan, step)


def _startable(catalog: Catalog, config: Config) -> tuple[Release, Space]:
    """Return what is live, and the space of the config's model."""
    if config.strategy != "lazy":
        raise UsageError(
            f"strategy is {config.strategy}: its documents are embedded by `reembed run`, all at once",
            "a lazy migration embeds them as they turn up",
            "reembed lazy start --set strategy=lazy",
        )
    live, found = catalog.require_live().release, settled(catalog)
    if found is not None and (found.serves or (found.step.state == "stopped" and found.step.keep)):
        raise UsageError(
            f"lazy migration {found.plan.number} of {catalog.alias} is {found.step.state}",
            "an alias has one at a time",
            "reembed lazy status",
        )
    if config.source.version is not None:
        raise UsageError(
            f"source.version is {config.source.version}",
            "a lazy migration follows what changes in the source",
            "reembed lazy start --set source.version=null",
        )
    space = encoders.describe(config.encoder, config.table.dtype)
    if space.id == live.space.id:
        raise UsageError(
            f"{live.id}, which is live, has this model already",
            None,
            "reembed config     # shows encoder; set it to the new model",
        )
    asked = (absolute(config.source.uri), config.source.id_column, config.source.text)
    if asked != (live.source.uri, live.source.id_column, live.source.text):
        raise UsageError(
            f"{live.id} was made of other documents or texts: {live.source.uri}, {live.source.text!r}",
            "answers of both models can be fused only for documents with the same text",
            "reembed run     # embeds all documents",
        )
    return live, space


def _is_asked(plan: LazyPlan, config: Config, live: Release, space: Space) -> bool:
    """Whether a plan that a process left before its first step is what is asked for now."""
    lazy = config.lazy
    made = (plan.live, plan.space.id, plan.fusion, plan.depth)
    return made == (live.origin, space.id, lazy.fusion, lazy.depth)


def _prepare(
    catalog: Catalog,
    config: Config,
    pair: tuple[Release, Space],
    reason: str | None,
    emit: Listener,
    *,
    executor: Executor,
) -> LazyPlan:
    (live, space), number = pair, lazies.next_number(catalog)
    source, encoder = Source.open(config), from_anywhere(config.encoder)
    side = Side.of(catalog, config, number, source.ref, encoder)
    settings = sha256_of(
        {"space": space.id, "live": live.id, "gate": config.gate.settings.model_dump()}
    )
    draft = catalog.storage.decode_if_there(_Draft, _draft_of(side))
    if draft is None or draft.settings != settings:
        predicted = _predicted(catalog, config, live, reason, emit, executor=executor)
        _claim(catalog, side, emit, again=draft is not None)
        draft = _Draft(settings, predicted)
        catalog.storage.write(_draft_of(side), encode(draft))
        faults.point("lazy.after_draft")
    if config.lazy.fusion == "rrf":
        emit(
            Notice(
                "lazy.fusion rrf is for comparison: its answers may be worse than the live release's"
            )
        )
    emit(Working(f"embedding documents drawn from {live.id} with both models"))
    ids = drawn(catalog, live)["doc_id"].to_pylist()
    bring(side.members, source, ids)
    side.build(emit, executor=executor)
    faults.point("lazy.after_side")
    path = f"lazy/{catalog.alias}/{number}/background.arrow"
    sha256 = lazy_background.write(catalog.storage, path, side.background(live))
    return LazyPlan(
        number=number,
        alias=catalog.alias,
        live=live.origin,
        side=side.catalog.alias,
        space=space,
        encoder=encoder,
        source=source.ref,
        documents=count(source),
        fusion=config.lazy.fusion,
        depth=config.lazy.depth,
        predicted=draft.predicted,
        background_sha256=sha256,
        reason=reason,
        by=who(),
        at=now(),
    )


def _predicted(
    catalog: Catalog,
    config: Config,
    live: Release,
    reason: str | None,
    emit: Listener,
    *,
    executor: Executor,
) -> tuple[Predicted, ...]:
    """Return what the re-rank test says of the model; a reason is enough where that is not known."""
    anyway = "reembed lazy start --reason 'WHY'     # starts without evidence; recorded"
    if not config.gate.queries and reason is None:
        raise UsageError(
            "no judged queries are named: nothing shows that the new model is better",
            "gate.queries is empty",
            anyway,
        )
    without = None if config.gate.queries else reason
    found = predict(catalog, live, config, emit, executor=executor, without_evidence=without)
    if found.verdict == "fail" or reason is None:
        try:
            found.require()
        except Inconclusive as error:
            error.fix = anyway
            raise
    for p in found.metrics:
        emit(Notice(p.words))
    return found.metrics


def _claim(catalog: Catalog, side: Side, emit: Listener, *, again: bool) -> None:
    """Take the side's alias; with `again`, remove what an interrupted start of other settings left.

    Raises:
        UsageError: the alias would be too long.
        Conflict: somebody has it.
    """
    storage, alias = catalog.storage, side.catalog.alias
    if len(alias) > _LONGEST_ALIAS:
        raise UsageError(
            f"{alias}, the alias of the new side, is longer than {_LONGEST_ALIAS} characters",
            f"it is made of {catalog.alias}",
            "reembed run     # embeds all documents, and needs no second alias",
        )
    if again:
        emit(Notice(f"{alias} was to be started with other settings, and is removed"))
        for place in (
            *left_by_side(catalog, alias),
            f"{side.members.path}/",
            f"{_folder(side)}looks/",
        ):
            remove(storage, place)
    elif storage.objects(f"lines/{alias}/") or side.catalog.live():
        raise Conflict(
            f"there is an alias {alias} already",
            "the new side needs it for itself",
            f"reembed status --set alias={shlex.quote(alias)}     # shows what it is",
        )


def _draft_of(side: Side) -> str:
    return f"{_folder(side)}draft.json"


def _folder(side: Side) -> str:
    return side.members.path.removesuffix("members.lance")


@contextmanager
def _alone(catalog: Catalog, number: int) -> Iterator[None]:
    """Hold the lease of a lazy migration.

    Raises:
        Conflict: another process has it.
    """
    with ExitStack() as held:
        try:
            held.enter_context(driving(Run(catalog.storage, side_alias(catalog.alias, number))))
        except Conflict as error:
            raise Conflict(
                f"lazy migration {number} of {catalog.alias}: another process is at it",
                f"one at a time migrates documents; {error.what}",
                "reembed lazy status",
            ) from error
        yield


def batch(
    catalog: Catalog,
    config: Config,
    most: int,
    emit: Listener,
    *,
    executor: Executor,
    sweeping: Sweeping | None = None,
) -> Batch:
    """Migrate so many documents at most: those of the queue and, in a sweep, others.

    queue -> members, at the source's newest version -> catch-up of the side -> its alias -> out of the queue

    Raises:
        UsageError: no lazy migration is running.
        Conflict: another process is at it.
        RunFailed: the side's catch-up stopped; the same command resumes it.
    """
    found = running(catalog)
    plan = found.plan
    with _alone(catalog, plan.number):
        began, queue = time.monotonic(), Queue(catalog.storage, plan)
        side = Side.of(catalog, config, plan.number, plan.source, plan.encoder)
        source = Source(plan.source, catalog.source_options).newest()
        held = opened(side.members, source)
        if sweeping is not None:
            most = min(most, max(0, math.ceil(sweeping.share * count(source)) - len(held.ids)))
        taken = oldest(queue, most, held.without)
        wanted = list(taken.doc_ids)
        if sweeping is not None:
            wanted += cold(held, source, most - len(wanted), wanted, sweeping.first)
        brought = bring(side.members, source, wanted, held)
        faults.point("lazy.before_side")
        before = side.catalog.require_live().release
        release = side.catch_up(emit, executor=executor)
        faults.point("lazy.after_side")
        if config.storage.erase_deleted:
            side.erase(plan)
        queue.served(taken)
        faults.point("lazy.after_queue")
        return keep(
            catalog.storage,
            plan,
            Batch(
                release=release.id,
                source_version=brought.source.version,
                documents=brought.documents,
                source_documents=count(source),
                added=brought.added,
                replaced=brought.replaced,
                removed=brought.removed,
                **spent(catalog.storage, release.id if release != before else None),
                seconds=round(time.monotonic() - began, 3),
                at=now(),
            ),
        )


def running(catalog: Catalog) -> Lazy:
    """Return the alias's lazy migration, which must be running.

    Raises:
        UsageError: there is none, or it is paused or over.
    """
    found = there(catalog)
    if found.step.state != "running":
        fix = "reembed lazy status"
        if found.step.state == "paused" or (found.step.state == "stopped" and found.step.keep):
            fix = "reembed lazy resume"
        raise UsageError(_stands(found), found.step.reason, fix)
    return found


def pause(catalog: Catalog, reason: str | None) -> Lazy:
    """Migrate nothing more until it is resumed; what was migrated is served."""
    found = there(catalog)
    if found.step.state == "paused":
        return found
    _require(found, "running")
    return Lazy(found.plan, lazies.move(catalog, found.plan, found.step, "paused", reason=reason))


def resume(catalog: Catalog, reason: str | None) -> Lazy:
    """Continue one that was paused, or was stopped with its new side kept."""
    found = there(catalog)
    if found.step.state == "running":
        return found
    if found.step.state == "stopped" and not found.step.keep:
        what = f"{_stands(found)}, and its new side was dropped"
        raise UsageError(what, None, "reembed lazy start")
    _require(found, "paused", "stopped")
    return Lazy(found.plan, lazies.move(catalog, found.plan, found.step, "running", reason=reason))


def stop(catalog: Catalog, reason: str, *, keep: bool) -> Lazy:
    """Answer from the live release alone, at once and everywhere; keep the new side, or let gc remove it."""
    while True:
        found = there(catalog)
        if found.step.state == "stopped" and (keep or not found.step.keep):
            return found
        _require(found, "running", "paused", "stopped")
        try:
            step = lazies.move(catalog, found.plan, found.step, "stopped", keep=keep, reason=reason)
        except Conflict:  # it was paused or resumed at this moment, which a stop overrules
            continue
        return Lazy(found.plan, step)


def there(catalog: Catalog) -> Lazy:
    """Return the alias's last lazy migration; UsageError if there was none."""
    found = settled(catalog)
    if found is None:
        what = f"{catalog.alias} has no lazy migration"
        raise UsageError(what, None, "reembed lazy start --set strategy=lazy")
    return found


def _require(found: Lazy, *states: str) -> None:
    if found.step.state not in states:
        raise UsageError(_stands(found), found.step.reason, "reembed lazy status")


def _stands(found: Lazy) -> str:
    plan, step = found.plan, found.step
    return f"lazy migration {plan.number} of {plan.alias} is {step.state} since {step.at}, by {step.by}"

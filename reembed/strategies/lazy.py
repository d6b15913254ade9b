"""Lazy: the live release serves; a document gets its new vector after it turned up in an answer.

`start` builds a small second side, whose documents are a source of their own (members.py). Each batch brings more
documents there, and the side's alias moves. What a batch does is brought to a state, and a document leaves the queue
only when the side serves it, so a process that was killed anywhere is started again.
"""

from __future__ import annotations

import shlex
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from reembed import encoders, faults
from reembed.catalog import lazies, lazy_background
from reembed.catalog.alias import who
from reembed.catalog.lazies import Lazy, LazyPlan
from reembed.catalog.lazy_batches import Batch, keep
from reembed.catalog.lazy_queue import Queue
from reembed.catalog.lease import driving
from reembed.catalog.releases import Catalog, Release
from reembed.catalog.runs import Run
from reembed.clock import now
from reembed.config.settings import Config, EncoderConfig
from reembed.engine.executor import Executor
from reembed.errors import Conflict, UsageError
from reembed.events import Listener, Notice, Working
from reembed.lifecycle.lazy_end import left_by_side, remove, settled
from reembed.source.dataset import Source
from reembed.space import Space, sha256_of
from reembed.store.paths import absolute
from reembed.store.records import encode
from reembed.strategies.lazy_side import Side, drawn, side_alias
from reembed.strategies.members import bring, cold

_LONGEST_ALIAS = 32
_READ_TOGETHER = 16


@dataclass(frozen=True)
class _Draft:
    """A lazy migration that is being started: what it is started with."""

    settings: str


def start(
    catalog: Catalog, config: Config, reason: str | None, emit: Listener, *, executor: Executor
) -> Lazy:
    """Start a lazy migration from the live release to the config's model.

    drawn documents -> members -> the side's first release -> background -> plan -> running

    Raises:
        UsageError: nothing is live, another lazy migration is under way, or the model is the live one.
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
    source, encoder = Source.open(config), _encoder(config)
    side = Side.of(catalog, config, number, source.ref, encoder)
    _claim(catalog, side, _Draft(sha256_of({"space": space.id, "source": source.uri})[:16]), emit)
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
        fusion=config.lazy.fusion,
        depth=config.lazy.depth,
        predicted=(),
        background_sha256=sha256,
        reason=reason,
        by=who(),
        at=now(),
    )


def _encoder(config: Config) -> EncoderConfig:
    """Return the encoder's settings, valid in every process."""
    encoder = config.encoder
    if Path(encoder.model).expanduser().is_dir():
        encoder = encoder.model_copy(update={"model": absolute(encoder.model)})
    return encoder


def _claim(catalog: Catalog, side: Side, draft: _Draft, emit: Listener) -> None:
    """Take the side's alias, or go on with it where a start of the same settings was interrupted.

    What an interrupted start of other settings left is removed.
    """
    storage, alias = catalog.storage, side.catalog.alias
    if len(alias) > _LONGEST_ALIAS:
        raise UsageError(
            f"{alias}, the alias of the new side, is longer than {_LONGEST_ALIAS} characters",
            f"it is made of {catalog.alias}",
            "reembed run     # embeds all documents, and needs no second alias",
        )
    path = f"lazy/{catalog.alias}/{_number(side)}/draft.json"
    found = storage.decode_if_there(_Draft, path)
    if found == draft:
        return
    if found is None and (storage.objects(f"lines/{alias}/") or side.catalog.live()):
        raise Conflict(
            f"there is an alias {alias} already",
            "the new side needs it for itself",
            f"reembed status --set alias={shlex.quote(alias)}     # shows what it is",
        )
    if found is not None:
        emit(
            Notice(f"lazy migration {_number(side)} was to be started with other settings: removed")
        )
        for prefix in (
            *left_by_side(catalog, alias),
            f"{side.members.path}/",
            f"{_folder(side)}looks/",
        ):
            remove(storage, prefix)
    storage.write(path, encode(draft))
    faults.point("lazy.after_draft")


def _folder(side: Side) -> str:
    return side.members.path.removesuffix("members.lance")


def _number(side: Side) -> str:
    return side.catalog.alias.rpartition("-")[2]


@contextmanager
def _alone(catalog: Catalog, number: int) -> Iterator[None]:
    """Hold the lease of a lazy migration: one process at a time works at it."""
    with driving(Run(catalog.storage, side_alias(catalog.alias, number))):
        yield


def batch(
    catalog: Catalog,
    config: Config,
    most: int,
    emit: Listener,
    *,
    executor: Executor,
    others: deque[str] | None = None,
) -> Batch:
    """Migrate about so many documents: those of the queue, and unless `others` is None then these and those of the
    source in its order.

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
        files, wanted = _oldest(queue, most)
        if others is not None:
            wanted += cold(side.members, source, most - len(wanted), wanted, others)
        brought = bring(side.members, source, wanted)
        faults.point("lazy.before_side")
        release = side.catch_up(emit, executor=executor)
        faults.point("lazy.after_side")
        queue.remove(files)
        faults.point("lazy.after_queue")
        return keep(
            catalog.storage,
            plan,
            Batch(
                release=release.id,
                source_version=brought.source.version,
                documents=brought.documents,
                added=brought.added,
                replaced=brought.replaced,
                removed=brought.removed,
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
        what = f"the new side of {_stands(found)} was dropped"
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


def _oldest(queue: Queue, most: int) -> tuple[list[str], list[str | int]]:
    """Return the oldest files of the queue that have about so many documents, and the documents."""
    taken: list[str] = []
    found: dict[str | int, None] = {}
    files = queue.files()
    for start in range(0, len(files), _READ_TOGETHER):
        for name, ids in queue.each(files[start : start + _READ_TOGETHER]):
            if taken and len(found) + len(ids) > most:
                return taken, list(found)
            taken.append(name)
            found |= dict.fromkeys(ids)
    return taken, list(found)

"""Checks before work starts, for what would stop a run after hours: missing texts, rights, disk room."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

import numpy as np

from reembed.catalog.plan import Plan, ThinFragment
from reembed.catalog.releases import Release
from reembed.catalog.runs import Run
from reembed.config.settings import Config
from reembed.errors import RunFailed, TooManyDeadLetters, UsageError
from reembed.events import Listener, Notice
from reembed.source.dataset import TEXT, Source
from reembed.store.paths import is_remote
from reembed.store.storage import Storage, readable
from reembed.strategies.changes import Changes
from reembed.strategies.unique_ids import Checked
from reembed.table.documents import rows_of

_ROW_BYTES = 40  # text_hash, space, source_version
_SLACK = 1.1


def require_texts(config: Config, source: Source, checked: Checked, emit: Listener) -> None:
    """Raise TooManyDeadLetters if more texts are null than embed.max_dead_letters allows."""
    nulls = checked.null_texts
    what = f"{nulls:,} of {checked.documents:,} documents have no text: {source.ref.text} is null"
    _allow(nulls, config, what, "reembed run")
    _tell(nulls, config, what, emit)


def require_changed_texts(
    config: Config, release: Release, source: Source, changes: Changes, emit: Listener
) -> None:
    """Raise TooManyDeadLetters if null texts and dead letters that stay are more than allowed."""
    nulls, stay = changes.without_text, len(changes.dead_letters)
    what = f"{nulls:,} of {changes.to_embed:,} documents to embed have no text: {source.ref.text} is null"
    both = what
    if stay:
        both += f"; dead letters of {release.id} that stay: {stay:,}"
    _allow(nulls + stay, config, both, f"reembed catch-up {release.id}")
    _tell(nulls, config, what, emit)


def _allow(count: int, config: Config, what: str, command: str) -> None:
    allowed = config.embed.max_dead_letters
    if count > allowed:
        raise TooManyDeadLetters(
            f"{what}; embed.max_dead_letters allows {allowed:,}",
            "a document without text has no vector: it is left out of the index, as a dead letter",
            f"{command} --set embed.max_dead_letters={count}",
        )


def _tell(nulls: int, config: Config, what: str, emit: Listener) -> None:
    if nulls:
        allowed = config.embed.max_dead_letters
        emit(Notice(f"{what}; each is a dead letter (embed.max_dead_letters: {allowed:,})"))


def require_rights(storage: Storage, plan: Plan) -> None:
    """Raise UsageError if a folder that the run writes to is not writable; object stores are not checked."""
    if is_remote(storage.root):
        return
    written = ["", "indexes", "lines", "releases", f"releases/{plan.alias}", "results", "runs"]
    written += [f"{plan.table}/data", f"{plan.table}/_versions"]
    for place in (Path(storage.root) / name for name in written):
        if place.exists() and not os.access(place, os.W_OK | os.X_OK):
            owner = f"it belongs to user {place.stat().st_uid}, this process runs as {os.geteuid()}"
            fix = f"ls -ld {shlex.quote(str(place))}"
            raise UsageError(f"{place} cannot be written to", owner, fix)


def require_room(run: Run, plan: Plan, source: Source, emit: Listener) -> None:
    """Raise RunFailed if the vectors alone do not fit in what is free in a local root."""
    if is_remote(run.storage.root):
        return
    staged = run.staged()
    written = [u for u in plan.units if not isinstance(u, ThinFragment)]
    rows = sum(rows_of(u.documents) for u in written if u.id not in staged)
    if not rows:
        return
    item = np.dtype(plan.space.vector_dtype).itemsize
    sample = next(source.scan()).drop_columns([TEXT])  # ids and carried values
    carried = sample.nbytes / max(1, sample.num_rows)
    table = int(rows * (plan.space.dim * item + _ROW_BYTES + carried))
    stay = plan.base.rows if plan.base else 0
    index = int((sum(u.rows for u in plan.units) + stay) * plan.space.dim * 4 * _SLACK)
    free = shutil.disk_usage(run.storage.root).free
    need = (
        f"{rows:,} rows of {plan.space.dim} x {plan.space.vector_dtype} and what is carried take"
        f" about {readable(table)}, the index up to {readable(index)}"
    )
    have = f"{run.storage.root} has {readable(free)} free"
    if table > free:
        raise RunFailed(have, need, f"df -h {shlex.quote(run.storage.root)}")
    if table * _SLACK + index > free:
        emit(Notice(f"little room: {have}; {need}"))

"""What a catch-up finds to do: the pass that was interrupted, or a new one over what changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from reembed import encoders, faults
from reembed.catalog.index_manifest import read_manifest
from reembed.catalog.lease import is_driven
from reembed.catalog.lines import Place, begin
from reembed.catalog.plan import (
    Base,
    EmbedRows,
    KeepFragments,
    Plan,
    RefreshRows,
    ThinFragment,
    Unit,
)
from reembed.catalog.releases import Catalog, Release
from reembed.catalog.row_ids import RowIdFile
from reembed.catalog.runs import Run, open_among
from reembed.clock import now
from reembed.config.settings import Config, changed_settings
from reembed.engine.executor import Executor
from reembed.events import ChangesFound, Listener, Notice
from reembed.lifecycle.scratch import Scratch
from reembed.planning.unit_size import unit_documents
from reembed.source.dataset import Source
from reembed.source.documents import documents_in as source_documents
from reembed.source.lag import caught_up, newest_of, note, noted_place
from reembed.store.storage import Storage, storage_errors
from reembed.strategies import preflight
from reembed.strategies.changes import Changes, Int64, find_changes
from reembed.strategies.context import (
    embed_settings_changed,
    emit_ignored,
    planned,
    resumed,
)
from reembed.strategies.differing import Comparing, at_work
from reembed.strategies.index_kind import as_built
from reembed.strategies.merging import written_together
from reembed.table import provenance
from reembed.table.documents import documents_in as table_documents
from reembed.table.read import FragmentRows, TableVersion, fragments_of, open_table

_DELETED = 0.1
"""Share of a fragment's rows up to which a deletion file names those that left; above, it is written again."""


@dataclass(frozen=True)
class Pass:
    """A pass over a release: one that is planned and was interrupted, or what a new one must do."""

    run: Run
    place: Place
    release: Release
    plan: Plan | None
    """None for a new pass."""
    after: Source
    """The version that the release becomes equal to."""
    changes: Changes | None
    """None for a planned pass."""

    @property
    def leaves_dead_letters(self) -> bool:
        """Whether an interrupted pass was planned to leave dead letters as they were."""
        return bool(self.plan and self.plan.base and self.plan.base.dead_letters)


def next_pass(
    config: Config,
    catalog: Catalog,
    release: Release,
    emit: Listener,
    *,
    executor: Executor,
    retry: bool,
) -> Pass | None:
    """Return the interrupted pass over this release, or else a new one; None if nothing differs.

    Raises:
        SourceError: ids of the source are null or repeated.
        IntegrityError: the release is not verified; rows that stay are taken over as they are.
        TooManyDeadLetters: documents without text exceed embed.max_dead_letters.
    """
    interrupted = unfinished_pass(catalog, release)
    provenance.require_verified(catalog.storage, release)
    if interrupted is not None:
        return interrupted
    before, number = caught_up(catalog, release), next_number(catalog, release)
    after = before.newest()  # after the number was taken: a later number has newer documents
    if after.is_same(before) and not retry:
        return None
    with Scratch.comparing(Run(catalog.storage, release.id)) as scratch:
        comparing = Comparing(scratch, partial(at_work, config, executor, release.rows))
        changes = changes_of(catalog, release, (before, after), comparing, retry=retry)
    emit(
        ChangesFound(
            before=before.version,
            after=after.version,
            embed=changes.to_embed,
            refresh=changes.to_refresh,
            copied=changes.copied,
            removed=changes.removed,
            documents=changes.documents,
            how=changes.how,
        )
    )
    if not changes.documents:
        note(catalog, release, number, after)
        return None
    preflight.require_changed_texts(config, release, after, changes, emit)
    run = Run(catalog.storage, f"{release.origin}-v{after.version}-{number}")
    place = replace(release.place, step=number, version=after.version)
    begin(catalog.storage, catalog.alias, run.id, place)
    return Pass(run, place, release, None, after, changes)


def unfinished_pass(catalog: Catalog, release: Release) -> Pass | None:
    """Return the pass over this release that was interrupted; give up those whose source was replaced."""
    for entry in reversed(open_among(catalog.storage, catalog.entries())):
        if entry.origin != release.origin or entry.id == entry.origin:
            continue
        run = Run(catalog.storage, entry.id)
        plan = run.plan()
        if plan is None or plan.base is None or plan.base.release != release.id:
            continue
        source = Source(plan.source, catalog.source_options)
        if source.is_as_planned(plan.source):
            return Pass(run, entry.place, release, plan, source, None)
        source.newest()  # raises if the source is only unavailable, and not replaced
        if not is_driven(run) and catalog.registered(run) is None:
            run.abandon()
    return None


def next_number(catalog: Catalog, release: Release) -> int:
    """Return the number of the line's next catch-up; a run that has no plan gives up its number."""
    taken = [
        e.place.step
        for e in catalog.entries()
        if e.origin == release.origin and (e.released or Run(catalog.storage, e.id).is_planned())
    ]
    return max([*taken, noted_place(catalog, release)[0]]) + 1


def changes_of(
    catalog: Catalog,
    release: Release,
    versions: tuple[Source, Source],
    comparing: Comparing,
    *,
    retry: bool,
) -> Changes:
    """Return what differs between a release, which equals the first of two versions of its source, and the second.

    Raises IntegrityError if records or files of the release were changed.
    """
    dead_letters = provenance.require_sealed(catalog.storage, release).dead_letters
    provenance.require_files(catalog.storage, release)
    before, after = versions
    failed = f"{release.table} of release {release.id} could not be compared with {after.uri}"
    with storage_errors(failed, f"reembed verify --release {release.id}"):
        held = _vectors(catalog.storage, release)
        return find_changes(before, after, held, dead_letters, retry=retry, comparing=comparing)


def is_superseded(found: Pass) -> bool:
    """Return whether a pass that failed again should give way to a newer version of the source, which may
    be right. After its first failure it is kept: the fix that was named needs what is staged.
    """
    if found.plan is None:
        return False
    newest, _ = newest_of(found.after)
    return newest is not None and not newest.is_same(found.after)


def as_planned(config: Config, plan: Plan, emit: Listener) -> Config:
    """Return the config with the line's index settings, on this machine's device; emit others that differ.

    A lower index.ann_recall is taken, too: what the line asks for may be out of reach for other documents.
    """
    line, lower = plan.index, min(plan.index.ann_recall, config.index.ann_recall)
    index = line.model_copy(update={"device": config.index.device, "ann_recall": lower})
    if lower < line.ann_recall:
        what = f"index.ann_recall is {lower:g}, and {line.ann_recall:g} in {plan.origin}"
        emit(Notice(f"{what}: an index that is built again is tuned to the lower one"))
    wanted = as_built(config.index, index)
    changed = changed_settings("index", index.model_dump(), wanted.model_dump())
    emit_ignored(changed + embed_settings_changed(plan, config), emit)
    return config.model_copy(update={"index": index})


def make_plan(config: Config, found: Pass, emit: Listener) -> Plan:
    """Return the plan of a pass; a new one is fixed, create-only.

    Raises SpaceMismatch if the model is no longer the one of the release.
    """
    run, plan = found.run, found.run.plan()
    if plan is not None:
        emit(resumed(run, plan))
    else:
        plan = _write_plan(config, found, emit)
    here = encoders.describe(plan.encoder, plan.space.vector_dtype)
    plan.space.require(here, f"run {run.id} embeds with the model of its release")
    return plan


def _write_plan(config: Config, found: Pass, emit: Listener) -> Plan:
    run, release, changes = found.run, found.release, found.changes
    assert changes is not None  # a planned pass is found by its plan
    pinned = found.after.pin(run.pin_tag)
    built = read_manifest(run.storage, release.index, release.index_sha256)
    held = fragments_of(_vectors(run.storage, release).dataset())
    erase = config.storage.erase_deleted
    if erase:
        changes = replace(changes, dropped=_with_deletions(changes.dropped, held))
    most, text_bytes = max(len(changes.embed), len(changes.refresh)), found.after.text_bytes()
    size = unit_documents(config.embed, most, text_bytes, release.space.dim)
    ids = RowIdFile()
    together = written_together(
        built,
        {f: rows for f, rows in held.items() if erase or f not in changes.dropped},
        len(changes.embed) + len(changes.refresh),
        unit_documents(config.embed, release.rows, text_bytes, release.space.dim),
        again=erase,
    )
    dropped = {f: np.empty(0, np.int64) for group in together for f in group} | changes.dropped
    changes = replace(changes, dropped=dropped)
    units = list(_units(held, changes, size, ids, together, erase=erase))
    ids.write(run)
    faults.point("plan.after_row_ids")
    plan = run.write_plan(
        Plan(
            kind="catch_up",
            run_id=run.id,
            alias=release.alias,
            place=found.place,
            space=release.space,
            encoder=release.encoder,
            source=found.after.ref,
            table=release.table,
            base_version=open_table(run.storage, release.table).version,
            gate=release.gate,
            index=built.settings,
            rows=len(changes.embed),
            documents=changes.to_embed,
            units=units,
            created_at=now(),
            base=_base(release, changes, held),
            queries=release.queries,
            unit_documents=size,
        )
    )
    emit(planned(run, plan, pinned=pinned))
    faults.point("run.after_plan")
    return plan


def _base(release: Release, changes: Changes, held: dict[int, FragmentRows]) -> Base:
    staying = tuple(f for f in held if f not in changes.dropped)
    rows = sum(held[f].rows for f in staying)
    return Base(
        release=release.id,
        table_version=release.table_version,
        fragments=staying,
        rows=rows,
        documents=table_documents(rows),
        dead_letters=changes.dead_letters,
        how=changes.how,
    )


def _with_deletions(dropped: dict[int, Int64], held: dict[int, FragmentRows]) -> dict[int, Int64]:
    """Return what leaves each fragment that loses rows, or has lost some by a deletion file before."""
    thinned = (f for f, rows in held.items() if rows.rows < rows.written)
    return {f: np.empty(0, np.int64) for f in thinned} | dropped


def _units(
    held: dict[int, FragmentRows],
    changes: Changes,
    size: int,
    ids: RowIdFile,
    together: Sequence[tuple[int, ...]],
    *,
    erase: bool,
) -> Iterator[Unit]:
    """Yield documents to embed, documents to refresh, and what stays of fragments that lost rows or become one.

    `ids` takes their row ids. `erase`: no file that holds rows that left is kept.
    """
    for start in range(0, len(changes.embed), size):
        rows = ids.add(changes.embed[start : start + size])
        yield EmbedRows(f"embed-{start:09d}", rows, source_documents(rows.rows))
    edges = np.flatnonzero(np.diff(changes.refresh, prepend=-1, append=-1))
    for first in range(0, len(edges) - 1, size):  # edges[n]: where the rows of document n begin
        last = min(first + size, len(edges) - 1)
        of = slice(*edges[[first, last]].tolist())
        rows, source = ids.add(changes.refreshed[of]), ids.add(changes.refresh[of])
        fragments = tuple(np.unique(changes.refreshed_fragments[of]).tolist())
        documents = source_documents(last - first)
        yield RefreshRows(f"refresh-{first:09d}", source, rows, documents, fragments)
    alone = changes.dropped.keys() - {f for group in together for f in group}
    for group in (*together, *((f,) for f in changes.dropped if f in alone)):
        first, dropped = group[0], np.concatenate([changes.dropped[f] for f in group])
        written = sum(held[f].written for f in group)
        left = sum(held[f].rows for f in group) - len(dropped)
        leaving, documents = ids.add(dropped), table_documents(left)
        if first in alone and left >= (1 - _DELETED) * written and not erase:
            yield ThinFragment(f"thin-{first:06d}", first, left, documents, leaving)
        elif left:
            yield KeepFragments(f"keep-{first:06d}", group, left, documents, leaving)


def _vectors(storage: Storage, release: Release) -> TableVersion:
    return TableVersion(storage, release.table, release.table_version, release.space.dim)

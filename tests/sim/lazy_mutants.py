"""Planted bugs of lazy migrations: each must be caught by the histories of sim/lazy_history.py."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import lance
import numpy as np
import pyarrow as pa

from reembed import digests
from reembed.catalog import lazies
from reembed.catalog.lazy_queue import Queue, oldest
from reembed.lifecycle import collect, lazy_end
from reembed.serving import lazy_fusion, lazy_serving, migrated
from reembed.serving.lazy_pair import LazyPair
from reembed.serving.lazy_watch import Watch
from reembed.serving.migrated import Migrated
from reembed.serving.turned_up import TurnedUp
from reembed.source.documents import columns_of
from reembed.source.members import Members
from reembed.store.storage import Storage
from reembed.strategies import lazy
from reembed.strategies import members as bringing
from sim.lazy_history import LazyHistory
from sim.mutants import Patch, Suite

SUITE = Suite("lazy", LazyHistory)
bug, under_faults = SUITE.bug, SUITE.under_faults

# --- what is migrated ---


@bug
def a_migrated_document_keeps_the_text_that_it_had(patch: Patch) -> None:
    honest = bringing._of_rows
    patch(bringing, "_of_rows", lambda found: np.zeros_like(honest(found)))


@bug
def a_deleted_document_stays_migrated(patch: Patch) -> None:
    patch(Members, "remove", lambda self, opened, row_ids: None)


@bug
def a_document_that_left_is_written_back(patch: Patch) -> None:
    """It was asked for, and is read from the source as it was some versions ago."""
    honest = bringing._Work.add

    def add(self: Any) -> None:
        honest(self)
        ref, version = self.source.ref, max(1, self.source.version - 3)
        before = lance.dataset(ref.uri, version=version).to_table(columns=columns_of(ref))
        ids = digests.stack(digests.of_column(before[ref.id_column]))
        wanted = digests.find(self.missing, ids) >= 0
        self._put(ids[wanted], before.filter(pa.array(wanted)))

    patch(bringing._Work, "add", add)


@bug
def a_replaced_document_counts_as_one_more(patch: Patch) -> None:
    honest = bringing.bring

    def twice(*args: Any) -> Any:
        found = honest(*args)
        return dataclasses.replace(found, documents=found.documents + found.replaced)

    patch(lazy, "bring", twice)


@bug
def a_member_is_added_beside_the_one_before(patch: Patch) -> None:
    def append(self: Members, opened: Any, rows: Any) -> None:
        lance.write_dataset(rows, self.uri, mode="append")

    patch(Members, "replace", append)


@under_faults
def members_equal_a_version_before_they_are_brought_there(patch: Patch) -> None:
    patch(
        bringing._Looks,
        "begin",
        lambda self, source: self._create(bringing._Look(source, done=True)),
    )


@bug
def a_sweep_leaves_a_document_out(patch: Patch) -> None:
    honest = bringing.cold
    patch(lazy, "cold", lambda *args: [d for d in honest(*args) if d != "d0002"])


# --- the queue ---


@under_faults
def documents_leave_the_queue_before_they_are_served(patch: Patch) -> None:
    honest = oldest

    def early(queue: Queue, *args: Any) -> Any:
        taken = honest(queue, *args)
        queue.served(taken)
        return dataclasses.replace(taken, files=(), left=())

    patch(lazy, "oldest", early)


@bug
def what_a_batch_has_no_room_for_leaves_the_queue(patch: Patch) -> None:
    patch(Queue, "served", lambda self, taken: self.remove(taken.files))


@bug
def a_document_of_two_files_waits_twice(patch: Patch) -> None:
    patch(Queue, "read", lambda self, files: [d for _, ids in self.each(files) for d in ids])


@under_faults
def what_could_not_be_queued_is_forgotten(patch: Patch) -> None:
    patch(TurnedUp, "_drop", lambda self, ids: None)


# --- answers ---


@bug
def an_answer_is_counted_twice(patch: Patch) -> None:
    honest = LazyPair._tell

    def twice(self: LazyPair, *args: Any) -> None:
        honest(self, *args)
        honest(self, *args)

    patch(LazyPair, "_tell", twice)


@bug
def a_stopped_migration_still_answers_until_a_refresh(patch: Patch) -> None:
    patch(Watch, "_look", lambda self: None)


@bug
def a_refresh_after_a_stop_opens_the_new_side(patch: Patch) -> None:
    patch(lazy_serving, "_is_of", lambda found, old: found.plan.live == old.release.origin)


@bug
def a_refresh_keeps_the_new_side_of_before(patch: Patch) -> None:
    patch(LazyPair, "is_at", lambda self, shared, token: self.shared is shared)


@bug
def what_a_batch_replaced_is_still_paired(patch: Patch) -> None:
    honest = Migrated.read.__func__  # type: ignore[attr-defined]

    def kept(cls: Any, old: Any, new: Any, before: Any = None) -> Any:
        if before is None or before.old is not old:
            return honest(cls, old, new, before)
        return dataclasses.replace(before, new=new)

    patch(Migrated, "read", classmethod(kept))


@bug
def a_document_is_migrated_whatever_its_text(patch: Patch) -> None:
    patch(migrated, "_KEY", ["doc_id"])


@bug
def migrated_documents_are_ranked_by_their_old_scores(patch: Patch) -> None:
    honest = lazy_fusion.Listed.scored

    def unchanged(self: Any, found: Any, *args: Any) -> Any:
        listed = honest(self, found, *args)
        return dataclasses.replace(listed, new_scores=found.scores)

    patch(lazy_fusion.Listed, "scored", unchanged)


# --- its life ---


@under_faults
def a_step_is_taken_without_compare_and_swap(patch: Patch) -> None:
    create = Storage.create

    def overwrite(self: Storage, path: str, record: Any, **proven: Any) -> bool:
        if "/steps/" in path:
            self.write(path, record)
            return True
        return create(self, path, record, **proven)

    patch(Storage, "create", overwrite)


@bug
def a_promotion_does_not_end_it(patch: Patch) -> None:
    honest = lazy_end.settled
    for module in list(sys.modules.values()):
        if getattr(module, "settled", None) is honest:
            patch(module, "settled", lazies.current)


@bug
def gc_removes_a_side_that_serves(patch: Patch) -> None:
    patch(collect, "is_over", lambda found: True)


@bug
def gc_leaves_a_side_whose_last_batch_died(patch: Patch) -> None:
    patch(collect, "is_copied", lambda side: bool(side.ids()))

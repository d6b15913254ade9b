"""What each batch of a lazy migration did.

lazy/ALIAS/1/batches/00000001.json    create-only
"""

from __future__ import annotations

from dataclasses import dataclass

from reembed.catalog.lazies import LazyPlan
from reembed.catalog.numbered import numbers
from reembed.store.at_once import at_once
from reembed.store.records import decode, encode
from reembed.store.storage import Storage


@dataclass(frozen=True)
class Batch:
    """A batch that the new side serves."""

    release: str
    """The side's release."""
    source_version: int
    """Version of the source that its documents equal."""
    documents: int
    """Documents that are migrated now."""
    added: int
    replaced: int
    """Migrated documents whose text or carried values had changed."""
    removed: int
    """Migrated documents that the source no longer has."""
    seconds: float
    at: str


def keep(storage: Storage, plan: LazyPlan, batch: Batch) -> Batch:
    """Record a batch, and return it. One whose process died just before has no record: nothing depends on it."""
    number = len(numbers(storage, _folder(plan))) + 1
    storage.create(f"{_folder(plan)}/{number:08d}.json", encode(batch))
    return batch


def batches(storage: Storage, plan: LazyPlan) -> list[Batch]:
    """Return every batch, oldest first."""
    found = numbers(storage, _folder(plan))
    return at_once(lambda n: decode(Batch, storage.read(f"{_folder(plan)}/{n:08d}.json")), found)


def _folder(plan: LazyPlan) -> str:
    return f"{plan.folder}/batches"

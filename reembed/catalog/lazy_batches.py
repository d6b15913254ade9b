"""What each batch of a lazy migration did.

lazy/ALIAS/1/batches/00000001.json    create-only
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from reembed.catalog.lazies import LazyPlan
from reembed.catalog.numbered import numbers
from reembed.catalog.runs import Run
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
    source_documents: int
    """Documents that the source had at this version."""
    added: int
    replaced: int
    """Migrated documents whose text or carried values had changed."""
    removed: int
    """Migrated documents that the source no longer has."""
    tokens: int
    """That were embedded; 0 where the model does not say."""
    model_s: float
    """Seconds that models computed, together."""
    seconds: float
    """That the batch took."""
    at: str


def keep(storage: Storage, plan: LazyPlan, batch: Batch) -> Batch:
    """Record a batch, and return it. One whose process died just before has no record: nothing depends on it."""
    number = len(numbers(storage, _folder(plan))) + 1
    storage.create(f"{_folder(plan)}/{number:08d}.json", encode(batch))
    return batch


class Spent(TypedDict):
    """What models did for a batch."""

    tokens: int
    model_s: float


def spent(storage: Storage, release: str | None) -> Spent:
    """Return what models did for a batch that made this release; nothing if it made none."""
    receipts = Run(storage, release).receipts() if release else []
    stats = [r.stats for r in receipts if r.stats]
    return Spent(
        tokens=sum(s.tokens for s in stats), model_s=round(sum(s.model_s for s in stats), 3)
    )


def batches(storage: Storage, plan: LazyPlan) -> list[Batch]:
    """Return every batch, oldest first."""
    found = numbers(storage, _folder(plan))
    return at_once(lambda n: decode(Batch, storage.read(f"{_folder(plan)}/{n:08d}.json")), found)


def _folder(plan: LazyPlan) -> str:
    return f"{plan.folder}/batches"

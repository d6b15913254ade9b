"""Documents that both models of a lazy migration embedded: what scores of one model are in those of the other.

lazy/ALIAS/1/background.arrow            Arrow IPC: doc_id, text_hash binary(16), old and new: fixed_size_list<float32>
lazy/ALIAS/1/backgrounds/SHA256.arrow    the same without documents that were erased
lazy/ALIAS/1/backgrounds/00000001.json   create-only: its sha256; the newest counts
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

import pyarrow as pa

from reembed.catalog.lazies import LazyPlan
from reembed.catalog.numbered import numbers
from reembed.errors import IntegrityError
from reembed.store.records import decode, encode
from reembed.store.storage import Storage

DOCUMENTS = 300
"""How many are drawn."""


def write(storage: Storage, path: str, found: pa.Table) -> str:
    """Write the table, and return its sha256."""
    body = _encoded(found)
    storage.write_bytes(path, body)
    return hashlib.sha256(body).hexdigest()


def _encoded(found: pa.Table) -> bytes:
    out = io.BytesIO()
    with pa.ipc.new_file(out, found.schema) as writer:
        writer.write_table(found)
    return out.getvalue()


@dataclass(frozen=True)
class _Shorter:
    """A background without documents that were erased."""

    sha256: str


def read(storage: Storage, plan: LazyPlan) -> pa.Table:
    """Return doc_id, text_hash, and the vectors `old` and `new`.

    Raises:
        IntegrityError: it is gone, or not what the plan or the newest record names.
    """
    while True:
        shorter = numbers(storage, _folder(plan))
        path, sha256 = _named(storage, plan, shorter)
        try:
            body = storage.read_bytes(path)
        except FileNotFoundError:
            body = b""
        if hashlib.sha256(body).hexdigest() == sha256:
            return pa.ipc.open_file(body).read_all()
        if numbers(storage, _folder(plan)) == shorter:
            break  # it was not replaced meanwhile
    raise IntegrityError(
        f"{storage.uri(path)} is gone, or not what lazy migration {plan.number} was planned with",
        "scores of two models cannot be compared without it",
        "reembed lazy stop --reason 'its background was damaged'     # the live release serves alone",
    )


def replace(storage: Storage, plan: LazyPlan, found: pa.Table) -> None:
    """Put a background with fewer documents in the place of the one that `read` returned."""
    number, body = len(numbers(storage, _folder(plan))) + 1, _encoded(found)
    sha256 = hashlib.sha256(body).hexdigest()
    storage.write_bytes(_path(plan, sha256), body)
    storage.create(f"{_folder(plan)}/{number:08d}.json", encode(_Shorter(sha256)))


def remove_replaced(storage: Storage, plan: LazyPlan) -> None:
    """Remove the backgrounds in whose place others were put."""
    newest, _ = _named(storage, plan, numbers(storage, _folder(plan)))
    places = (path for path, _ in storage.objects(f"{_folder(plan)}/"))
    for path in (plan.background, *(p for p in places if p.endswith(".arrow"))):
        if path != newest:
            storage.remove(path)


def _named(storage: Storage, plan: LazyPlan, shorter: list[int]) -> tuple[str, str]:
    if not shorter:
        return plan.background, plan.background_sha256
    record = decode(_Shorter, storage.read(f"{_folder(plan)}/{shorter[-1]:08d}.json"))
    return _path(plan, record.sha256), record.sha256


def _folder(plan: LazyPlan) -> str:
    return f"{plan.folder}/backgrounds"


def _path(plan: LazyPlan, sha256: str) -> str:
    return f"{_folder(plan)}/{sha256}.arrow"

"""Documents that both models of a lazy migration embedded: what scores of one model are in those of the other.

lazy/ALIAS/1/background.arrow    Arrow IPC: doc_id, text_hash binary(16), old and new: fixed-size lists of float32
"""

from __future__ import annotations

import hashlib
import io

import pyarrow as pa

from reembed.catalog.lazies import LazyPlan
from reembed.errors import IntegrityError
from reembed.store.storage import Storage

DOCUMENTS = 300
"""How many are drawn."""


def write(storage: Storage, path: str, found: pa.Table) -> str:
    """Write the table, and return its sha256."""
    out = io.BytesIO()
    with pa.ipc.new_file(out, found.schema) as writer:
        writer.write_table(found)
    body = out.getvalue()
    storage.write_bytes(path, body)
    return hashlib.sha256(body).hexdigest()


def read(storage: Storage, plan: LazyPlan) -> pa.Table:
    """Return doc_id, text_hash, and the vectors `old` and `new`.

    Raises:
        IntegrityError: it is gone, or not what the plan names.
    """
    try:
        body = storage.read_bytes(plan.background)
    except FileNotFoundError:
        body = b""
    if hashlib.sha256(body).hexdigest() != plan.background_sha256:
        raise IntegrityError(
            f"{storage.uri(plan.background)} is gone, or not what lazy migration {plan.number} was planned with",
            "scores of two models cannot be compared without it",
            "reembed lazy stop --reason 'its background was damaged'     # the live release serves alone",
        )
    return pa.ipc.open_file(body).read_all()

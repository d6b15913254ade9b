"""Which kind of index `index.kind: auto` means: by size, and by where it is served from."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from reembed.catalog.index_manifest import AnyManifest
from reembed.catalog.plan import Plan
from reembed.config.settings import Config, IndexConfig, changed_settings
from reembed.events import ChangedSetting, Listener, Notice
from reembed.index.factories import fast_scan_bytes
from reembed.index.train import factory_of
from reembed.planning.sizing import size_of
from reembed.store.paths import is_remote
from reembed.store.storage import readable

IN_MEMORY = 4 * 2**30
"""Codes in blocks up to which a process that serves may hold them."""
ON_ONE_DISK = 512 * 2**30
"""Bytes of an index up to which the disk of one machine may hold a copy."""


def resolved(config: Config, plan: Plan, emit: Listener) -> Config:
    """Return the config with a kind of index in place of `auto`; tell of another one than the usual."""
    if config.index.kind != "auto":
        return config
    kind, why = chosen(config, plan.rows, plan.space.dim)
    if kind != "faiss":
        emit(Notice(f"index.kind is auto: {kind}, as {why}"))
    index = config.index.model_copy(update={"kind": kind})
    return config.model_copy(update={"index": index})


def chosen(
    config: Config, rows: int, dim: int
) -> tuple[Literal["faiss", "faiss_ondisk", "lance"], str]:
    """Return the kind of index for this many vectors, and why."""
    factory = factory_of(config.index, rows, dim)
    codes = rows * fast_scan_bytes(factory)
    if codes <= IN_MEMORY:
        return "faiss", f"{readable(codes)} of codes in memory are at most {readable(IN_MEMORY)}"
    size = size_of(factory, rows, dim, config.index.shard_rows)
    too_large = size is not None and size.bytes > ON_ONE_DISK
    if too_large and config.index.factory == "auto" and is_remote(config.storage.root):
        why = f"a copy on each machine that serves would take more than {readable(ON_ONE_DISK)}"
        return "lance", why
    return (
        "faiss_ondisk",
        f"{readable(codes)} of codes in memory are more than {readable(IN_MEMORY)}",
    )


def changed_index_settings(built: AnyManifest, wanted: IndexConfig) -> list[ChangedSetting]:
    """Return settings that differ from those that an index was built by; of the device, from the one that was used."""
    used = built.settings
    changed = changed_settings("index", used.model_dump(), as_built(wanted, used).model_dump())
    changed = [replace(c, used=built.device) if c.name == "index.device" else c for c in changed]
    return [c for c in changed if c.used != c.now]


def as_built(wanted: IndexConfig, built: IndexConfig) -> IndexConfig:
    """Return the settings with the kind that was built in place of `auto`, to compare them."""
    if wanted.kind != "auto":
        return wanted
    return wanted.model_copy(update={"kind": built.kind})

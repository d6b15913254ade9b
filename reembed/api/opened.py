"""The catalog of a config, and what runs its work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reembed.catalog.releases import Catalog
from reembed.config.settings import Config, require_config
from reembed.store.storage import Storage

if TYPE_CHECKING:
    from reembed.engine.executor import Executor


def catalog_of(config: Config) -> Catalog:
    """Return the config's alias under its root."""
    require_config(config)
    storage = Storage.existing(config.storage.root, config.storage.options)
    return Catalog(storage, config.alias, config.stores)


def ray_executor() -> Executor:
    """Return what runs the work of a build: Ray, which is loaded here and not before."""
    from reembed.engine.ray_executor import RayExecutor

    return RayExecutor()

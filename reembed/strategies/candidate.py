"""What `reembed run` builds: a candidate, and what it would replace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reembed.catalog.releases import Catalog, Release
from reembed.config.settings import Config
from reembed.engine.executor import Executor
from reembed.evaluation import terms
from reembed.events import Listener
from reembed.store.records import encode
from reembed.store.storage import Storage
from reembed.strategies.full_rebuild import full_rebuild
from reembed.strategies.query_only import query_only


@dataclass(frozen=True)
class Built:
    """A candidate that was built, or was complete already."""

    release: Release
    live: Release | None
    """The live release, which a build does not change; None if nothing is live."""
    judged: bool = True
    """Whether a comparison with it has judged queries."""
    dual: bool = False
    """Whether the strategy is dual_index: a shadow follows."""

    def to_json(self) -> dict[str, Any]:
        """Return what `reembed run --json` prints: the release's record, and what is live."""
        return {**encode(self.release), "live": self.live.id if self.live else None}


@dataclass(frozen=True)
class QueryOnly:
    """The new model embeds queries alone."""

    bridge: int | None = None
    """Documents that a bridge to the live release's space is fitted to; None: no bridge."""


def build(
    config: Config,
    emit: Listener,
    *,
    executor: Executor,
    fresh: bool,
    only: QueryOnly | None = None,
) -> Built:
    """Build a candidate, and raise errors, as `full_rebuild`, or as `query_only`."""
    if only is None:
        release = full_rebuild(config, emit, executor=executor, fresh=fresh)
    else:
        release = query_only(config, emit, executor=executor, pairs=only.bridge, fresh=fresh)
    storage = Storage.open(config.storage.root, config.storage.options)
    catalog = Catalog(storage, config.alias, config.stores)
    if (live := catalog.live()) is None:
        return Built(release, None)
    judged = terms.has_queries(catalog, live.release, release, config.gate)
    return Built(release, live.release, judged, config.strategy == "dual_index")

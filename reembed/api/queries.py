"""Answers to queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from reembed.api.opened import catalog_of
from reembed.config.settings import Config, require_config
from reembed.errors import require_whole
from reembed.events import Listener, ignore

if TYPE_CHECKING:
    from reembed.serving.http.options import ServeOptions
    from reembed.serving.http.server import Served
    from reembed.serving.live import SearchResult


def search(
    config: Config,
    queries: Sequence[str],
    k: int = 10,
    release: str | None = None,
    columns: Sequence[str] = (),
    filter: str | None = None,
) -> SearchResult:
    """Return the k best documents of each query, in a release or in what is live: as `Index.search` answers.

    While a lazy migration serves, and without `release`, both sides answer, and nothing is queued. It opens what it
    asks for this one call; `reembed.open` keeps it open. `filter`: as of `Index.search`.

    Raises:
        UsageError: nothing is live, the release does not exist, a column is not carried, or `filter` is not
            a condition over carried columns.
        IntegrityError: a record, the index or the table is not what was registered.
    """
    from reembed.lifecycle import candidates
    from reembed.serving.lazy_once import searched
    from reembed.serving.live import OpenRelease, require_carried

    catalog = catalog_of(config)
    asked = candidates.kept(catalog, release) if release else catalog.require_live().release
    require_carried(asked, columns)
    opened = OpenRelease.open(catalog.storage, asked)
    return searched(None if release else catalog, opened, queries, k, columns, filter)


def serve(
    config: Config,
    host: str = "127.0.0.1",
    port: int = 8080,
    *,
    options: ServeOptions | None = None,
    emit: Listener = ignore,
) -> Served:
    """Answer searches over HTTP, until the process gets SIGTERM or Ctrl-C.

    A host that other machines reach needs a token in `options` (`reembed.serving.http.options.ServeOptions`); port 0
    takes a free one.

    Raises:
        UsageError: nothing is live, the address is in use or needs a token, or the extra `serve` is not installed.
        IntegrityError, SpaceMismatch: as `reembed.open`.
    """
    from reembed.serving.http import options as how

    require_config(config)
    require_whole("port", port, 0, 8080, 65_535)
    served: Served = how.server().serve(config, host, port, options or how.ServeOptions(), emit)
    return served

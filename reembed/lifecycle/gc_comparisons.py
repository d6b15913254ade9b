"""Values of queries that no comparison names: one that was killed before it was recorded left them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

from reembed.catalog.releases import Catalog
from reembed.errors import IntegrityError
from reembed.evaluation import comparisons
from reembed.lifecycle.gc_plan import Orphan, files_below

_OLDER = dt.timedelta(days=1)
"""A comparison writes its values moments before its record. What is not so much older than the newest file of all
comparisons may still be named. Both times are the store's: clocks of two hosts are not compared."""


def unnamed_values(catalog: Catalog) -> list[Orphan]:
    """Return files with the values of queries, and halves of such, that are old and named by no comparison."""
    folder = f"comparisons/{catalog.alias}/"
    written = catalog.storage.written(folder)
    last = max(written.values(), default=dt.datetime.min.replace(tzinfo=dt.UTC))
    by_pair: dict[str, list[Orphan]] = {}
    for file in files_below(catalog.storage, folder):
        pair, _, name = file.path.rpartition("/")
        if ".parquet" in name and file.path in written and last - written[file.path] > _OLDER:
            by_pair.setdefault(pair, []).append(file)
    return [file for pair, files in by_pair.items() for file in _unnamed(catalog, pair, files)]


def _unnamed(catalog: Catalog, pair: str, files: list[Orphan]) -> Iterator[Orphan]:
    try:
        named = comparisons.values_of_pair(catalog, pair)
    except IntegrityError:  # what a damaged record names is not known, so nothing is unnamed
        return
    yield from (file for file in files if file.path not in named)

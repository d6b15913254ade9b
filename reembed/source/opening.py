"""Open a source's dataset. Errors name the dataset, what is wrong and what to do."""

from __future__ import annotations

import functools
import shlex
from contextlib import suppress
from pathlib import Path

import lance
from obstore.exceptions import BaseError

from reembed.catalog.releases import SourceRef
from reembed.config.options import Options
from reembed.errors import ConfigError, ReembedError, SourceError, SourceUnreachable
from reembed.source.delta import fingerprint
from reembed.store.lance import open_dataset
from reembed.store.paths import is_remote
from reembed.store.storage import Storage

_KEPT_OPEN = 8
_WHERE = (
    "reembed config     # source.uri, source.options (left out: storage.options), "
    "and the keys in the environment"
)


def open_source(uri: str, version: int | None, options: Options) -> lance.LanceDataset:
    """Return the dataset at a version, or at its newest.

    Raises:
        SourceError: it cannot be opened, or the environment lacks a variable that the options name.
    """
    try:
        return open_dataset(uri, version, dict(options))
    except ConfigError as error:
        what = f"cannot open the dataset {uri}: {error.what}"
        raise SourceError(what, error.why, error.fix) from error
    except OSError as error:
        raise _cannot_open(uri, version, options, error) from error


@functools.lru_cache(maxsize=_KEPT_OPEN)
def open_pinned(uri: str, version: int, made_of: str, options: Options) -> lance.LanceDataset:
    """Return the dataset at a version, as `open_source`; this process opens it once.

    `made_of` is the version's fingerprint: a dataset recreated in its place is another one.
    """
    return open_source(uri, version, options)


def planned_dataset(planned: SourceRef, options: Options) -> lance.LanceDataset | None:
    """Return the version that a record names; None if it is gone, or made of other files.

    Raises:
        SourceError: as `open_source`, if it is not for the version alone.
    """
    try:
        dataset = open_source(planned.uri, planned.version, options)
    except SourceError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        if is_remote(planned.uri):  # with the settings of another store, no version is there at all
            open_source(planned.uri, None, options)
        return None
    if planned.fingerprint != fingerprint(dataset):
        return None
    return dataset


def _cannot_open(uri: str, version: int | None, options: Options, error: OSError) -> SourceError:
    if tables := _tables_in(uri, options):
        return SourceError(
            f"{uri} is a folder of {len(tables)} tables, as LanceDB keeps them",
            f"source.uri must name one: {', '.join(tables)}",
            f"reembed run --set {shlex.quote(f'source.uri={tables[0]}')}",
        )
    what, fix = f"cannot open the dataset {uri}", _instead(uri)
    if version is not None:
        what = f"{what} version {version}"
        with suppress(OSError):  # only this version may be missing
            newest = open_dataset(uri, None, dict(options)).version
            fix = f"reembed run --set source.version={newest}     # the newest version there is"
    kind = SourceError if isinstance(error, FileNotFoundError) else SourceUnreachable
    return kind(what, str(error), fix)


def _tables_in(uri: str, options: Options) -> list[str]:
    """Return the datasets in a folder or below a prefix; none if it cannot be listed."""
    if not is_remote(uri) and not Path(uri).is_dir():
        return []
    folder = Storage(uri.rstrip("/"), options)
    with suppress(OSError, BaseError, ReembedError):
        return [f"{folder.root}/{n}" for n in folder.folders("") if n.endswith(".lance")]
    return []


def _instead(uri: str) -> str:
    """Return where a store's settings are, or the import that makes this local dataset."""
    if is_remote(uri):
        return _WHERE
    stem, _, ending = uri.rpartition(".")
    if stem and ending.lower() in ("jsonl", "json", "csv", "parquet"):
        return f"reembed import {shlex.quote(uri)} --to {shlex.quote(stem + '.lance')}"
    return f"reembed import documents.jsonl --to {shlex.quote(uri)}"

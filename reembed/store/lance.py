"""Open datasets; tell one that does not exist from one that cannot be read.

Lance 14 raises `ValueError` for both when it opens a dataset. If a refused request were taken for a
missing dataset, existing vectors would be given up.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

import lance

from reembed.config.options import resolved
from reembed.errors import IntegrityError
from reembed.store.storage import first_line


def open_dataset(
    uri: str, version: int | None = None, options: Mapping[str, str] | None = None
) -> lance.LanceDataset:
    """Return a dataset, at a version or at its newest.

    Raises:
        FileNotFoundError: there is no such dataset, or no such version of it.
        OSError: the store did not answer or refused, or its answer cannot be read.
    """
    settings = resolved(options or {}) or None
    try:
        return lance.dataset(uri, version=version, storage_options=settings)
    except (ValueError, OSError) as error:
        said = first_line(error)
        if said.startswith("Dataset at path") and "was not found" in said:
            raise FileNotFoundError(said) from error
        raise OSError(said) from error


def tags_of(dataset: lance.LanceDataset) -> dict[str, int]:
    """Return the version of each tag, by name.

    Raises:
        IntegrityError: a file among the tags is not one.
    """
    try:
        return {name: tag["version"] for name, tag in dataset.tags.list().items()}
    except RuntimeError as error:
        raise IntegrityError(
            f"{dataset.uri}: its tags cannot be read",
            f"a file in _refs/tags is not a tag: {first_line(error)}",
            f"ls -l {shlex.quote(f'{dataset.uri}/_refs/tags')}     # and move it away",
        ) from error

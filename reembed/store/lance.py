"""Tell a dataset that does not exist from one that cannot be read.

Lance 14 raises `ValueError` for both when it opens a dataset and `OSError` for both when it reads more.
If a refused request were taken for a missing dataset, existing vectors would be given up.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lance

from reembed.config.options import resolved
from reembed.errors import IntegrityError


def first_line(error: BaseException) -> str:
    """Return the first line of an error without Lance's note of the place in its own code."""
    return (str(error) or type(error).__name__).split(", /home/")[0].splitlines()[0]


@contextmanager
def told_apart() -> Iterator[None]:
    """Lance's errors by what they mean.

    Raises:
        FileNotFoundError: there is no such dataset, or no such version of it.
        OSError: the store did not answer, or refused, or what it gave cannot be read.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        said = first_line(error)
        if said.startswith("Dataset at path") and "was not found" in said:
            raise FileNotFoundError(said) from error
        raise OSError(said) from error


def open_dataset(
    uri: str, version: int | None = None, options: Mapping[str, str] | None = None
) -> lance.LanceDataset:
    """A dataset, at a version or at its newest.

    Raises:
        FileNotFoundError, OSError: as `told_apart`.
    """
    with told_apart():
        return lance.dataset(uri, version=version, storage_options=resolved(options or {}) or None)


def tags_of(dataset: lance.LanceDataset) -> dict[str, Any]:
    """Name -> version and more of each tag.

    Raises:
        IntegrityError: a file among the tags is not one.
    """
    try:
        return dict(dataset.tags.list())
    except RuntimeError as error:
        raise IntegrityError(
            f"{dataset.uri}: its tags cannot be read",
            f"a file in _refs/tags is not a tag: {str(error).split(', /home/')[0].splitlines()[0]}",
            f"ls -l {shlex.quote(f'{dataset.uri}/_refs/tags')}     # and move it away",
        ) from error

"""Several requests to a store at a time: a record takes a request, and a request mostly waits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")

_THREADS = 16


def at_once(function: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """Return what the function returns for each item, in their order; raise the first one's error."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(function, items))

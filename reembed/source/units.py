"""How the rows of a source are cut into units: deterministic, so that every attempt reads the same rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from reembed.catalog.plan import EmbedRange
from reembed.source.documents import documents_in

_MANY_UNITS = 4


def sizes(rows: int, size: int, actors: int = 1) -> list[int]:
    """Return how many rows each unit has, largest first.

    Where several actors share many units, the last ones are quarters: the one that begins the last unit
    keeps the others waiting for a quarter of a unit's time at most.
    """
    units = math.ceil(rows / size)
    quarters = 0
    if actors > 1 and units >= _MANY_UNITS * actors:
        quarters = actors
    whole = (units - quarters) * size
    if whole >= rows:
        return _filled(rows, size)
    return _filled(whole, size) + _filled(rows - whole, max(1, size // 4))


def _filled(rows: int, size: int) -> list[int]:
    full, rest = divmod(rows, size)
    return [size] * full + [rest] * (rest > 0)


def cut(fragments: Sequence[tuple[int, int]], unit_rows: Iterable[int]) -> Iterator[EmbedRange]:
    """Yield units of so many rows each over (fragment, live rows), one after the other.

    A unit begins where the one before it ended, in the middle of a fragment or not, and may span several.
    """
    at = offset = 0
    for rows in unit_rows:
        while offset == fragments[at][1]:
            at, offset = at + 1, 0
        first, start, spanned, left = fragments[at][0], offset, [], rows
        while left:
            fragment, live = fragments[at]
            taken = min(left, live - offset)
            if taken:
                spanned.append(fragment)
            left, offset = left - taken, offset + taken
            if left:
                at, offset = at + 1, 0
        name = f"{first:06d}-{start:09d}"
        yield EmbedRange(name, tuple(spanned), start, rows, documents_in(rows))

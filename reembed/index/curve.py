"""What an open index finds at other values of its setting.

Shapes: Q queries, D dimensions, E exact results.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from reembed.index.exact import Searchable, recalls
from reembed.index.types import RECALL_K, Float32, Int64, Setting

_ENOUGH = 0.9995
"""ann_recall@10 from which a larger value is not tried."""


class Adjustable(Protocol):
    """An index that can be searched at another value of its setting."""

    @property
    def setting(self) -> Setting | None:
        """Its setting; None if it looks at all vectors."""

    def set_to(self, value: int) -> AbstractContextManager[Searchable]:
        """Search at this value meanwhile."""


@dataclass(frozen=True)
class Point:
    """What was found at a value."""

    value: int
    recall: float
    """Mean ann_recall@10."""
    seconds: float
    """Of one query, in a batch."""


def curve(
    index: Adjustable, queries: Float32, exact: tuple[Int64, Float32], at_most_s: float
) -> tuple[Setting, list[Point]] | None:
    """Return the index's setting and what it finds at a doubling ladder of values; None without a setting.

    The value in use is measured first. The ladder ends where recall is complete, or after `at_most_s` seconds.

    Args:
        index: open, and used by nothing else meanwhile.
        queries: [Q, D].
        exact: row ids and scores [Q, E] of the true best.
        at_most_s: seconds after which no further value is measured.
    """
    setting = index.setting
    if setting is None:
        return None
    began, points = time.perf_counter(), dict[int, Point]()
    for value in (setting.value, *_ladder(setting)):
        if points and time.perf_counter() - began > at_most_s:
            break
        if value not in points:
            points[value] = _measured(index, value, queries, exact)
        if value > setting.value and points[value].recall >= _ENOUGH:
            break
    return setting, sorted(points.values(), key=lambda point: point.value)


def _ladder(setting: Setting) -> Iterator[int]:
    value = setting.least
    while value < setting.most:
        yield value
        value *= 2
    yield setting.most


def _measured(
    index: Adjustable, value: int, queries: Float32, exact: tuple[Int64, Float32]
) -> Point:
    with index.set_to(value) as adjusted:
        start = time.perf_counter()
        found = adjusted.search(queries, RECALL_K)
        seconds = (time.perf_counter() - start) / len(queries)
    recall_Q = recalls(found, exact, by_score=adjusted.scores_are_exact)
    return Point(value, float(recall_Q.mean()), seconds)

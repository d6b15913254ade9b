"""Which files of a dataset become one, so that small commits leave few of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

ALIKE = 8
"""Files of about the same size, after which they become one."""


def to_merge(rows: Mapping[int, int], large: int) -> list[int]:
    """Return which fragments become one: the newest, of about the same size, once there are several.

    So a row is written again once for each eightfold growth.

    Args:
        rows: of each fragment, oldest first.
        large: rows above which a fragment is left as it is.
    """
    sizes, chosen = list(rows.values()), 0
    while (alike := _alike(sizes, large)) >= ALIKE:  # what they become may be one of several, too
        chosen += alike - (chosen > 0)
        sizes[-alike:] = [sum(sizes[-alike:])]
    return list(rows)[len(rows) - chosen :]


def _alike(sizes: Sequence[int], large: int) -> int:
    """Return how many of the last are of about the same size."""
    largest = 0
    for count, held in enumerate(reversed(sizes)):
        if held > large or (count and held > 2 * largest):
            return count
        largest = max(largest, held)
    return len(sizes)


def packed(chosen: Sequence[int], rows: Mapping[int, int], most: int) -> list[tuple[int, ...]]:
    """Return groups of neighbours with at most so many rows; a fragment that would be alone is in none."""
    groups: list[list[int]] = [[]]
    for fragment in chosen:
        if sum(rows[f] for f in groups[-1]) + rows[fragment] > most:
            groups.append([])
        groups[-1].append(fragment)
    return [tuple(group) for group in groups if len(group) > 1]

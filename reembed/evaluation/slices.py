"""Which parts of the queries got worse, although the whole may not have.

To block on any slice whose mean fell would stop 45 % of equal models, and to require that each slice proves itself
would stop all. So each slice gets a test of "it got worse", corrected for there being several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from reembed.evaluation.figures import Estimate, SliceChange
from reembed.evaluation.statistics import (
    Floats,
    Groups,
    holm,
    paired_interval,
    probability_below,
)

MIN_SLICE = 30
"""Fewest queries (groups, where queries have them) of a slice that is tested."""
HARM = 0.03
"""A loss that is blocked if it is significant; many queries make smaller ones significant, too."""
LEVEL = 0.05


def slice_changes(
    slices: Mapping[str, Sequence[str | None]],
    relevance: Mapping[str, tuple[Floats, Floats]],
    groups_Q: Groups | None = None,
) -> tuple[SliceChange, ...]:
    """Test each metric on each slice for a loss, Holm-corrected over all these tests.

    Args:
        slices: by field, the value of each query [Q]; a query without one is in no slice of the field.
        relevance: by key, a metric of live and of the candidate, float64 [Q] each.
        groups_Q: the group of each query, if they have any.

    Returns:
        Every slice with each metric. Small ones are in it without a p-value: nothing was shown of them.
    """
    found = [
        SliceChange(field, value, metric, _change(*pair, inside_Q, groups_Q), None, harmed=False)
        for field, values in slices.items()
        for value, inside_Q in _parts(values)
        for metric, pair in relevance.items()
    ]
    testable = [at for at, slice_ in enumerate(found) if slice_.change.independent >= MIN_SLICE]
    for at, p in zip(testable, holm([_p(found[at]) for at in testable]), strict=True):
        harmed = p <= LEVEL and found[at].change.mean < -HARM
        found[at] = replace(found[at], p=p, harmed=harmed)
    return tuple(found)


def _p(found: SliceChange) -> float:
    return probability_below(found.change)


def _parts(values: Sequence[str | None]) -> list[tuple[str, NDArray[np.bool_]]]:
    """Return each value of a field, and which queries have it [Q]."""
    values_Q = np.array(values, dtype=object)
    return [(value, values_Q == value) for value in sorted({v for v in values if v is not None})]


def _change(
    live_Q: Floats, candidate_Q: Floats, inside_Q: NDArray[np.bool_], groups_Q: Groups | None
) -> Estimate:
    groups = None
    if groups_Q is not None:
        groups = np.unique(groups_Q[inside_Q], return_inverse=True)[1]
    return paired_interval((candidate_Q - live_Q)[inside_Q], groups)

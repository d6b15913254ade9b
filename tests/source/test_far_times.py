"""Times beyond year 9999, which Arrow holds and `datetime` does not, flat and nested."""

from __future__ import annotations

import pyarrow as pa
import pytest

from reembed import digests
from reembed.serving.live import _value

FAR = 10**18  # microseconds: the year 33658
_TIME = pa.timestamp("us")


@pytest.mark.parametrize(
    ("value", "other", "kind"),
    [
        (FAR, FAR + 1, _TIME),
        ([FAR], [FAR + 1], pa.list_(_TIME)),
        ([FAR], [FAR, FAR], pa.large_list(_TIME)),
        ([FAR], [FAR + 1], pa.list_(_TIME, 1)),
        ([("a", FAR)], [("a", FAR + 1)], pa.map_(pa.string(), _TIME)),
        ([(FAR, "a")], [(FAR + 1, "a")], pa.map_(_TIME, pa.string())),
        ({"a": FAR}, {"a": FAR + 1}, pa.struct([("a", _TIME)])),
        ([{"a": [FAR]}], [{"a": [FAR + 1]}], pa.list_(pa.struct([("a", pa.list_(_TIME))]))),
    ],
)
def test_a_time_that_datetime_does_not_hold_is_compared_and_shown_at_any_depth(value, other, kind):
    column = pa.array([value, other, None], kind)
    first, second, _ = digests.stack(digests.of_rows([column], 3))
    assert first != second
    shown = [_value(v) for v in column]
    assert shown[0] != shown[1]
    assert shown[2] is None

from __future__ import annotations

import pytest
from crash import bit_flips

FLIPS = 300


@pytest.mark.deep
@pytest.mark.timeout(600)
def test_every_flipped_bit_is_noticed(tmp_path):
    found = bit_flips.run(FLIPS, seed=0, folder=tmp_path)
    assert found["bit_flips_found"] == FLIPS, found["violations"]
    assert min(found["by_kind"].values()) > 10
    assert len(found["by_kind"]) == 11

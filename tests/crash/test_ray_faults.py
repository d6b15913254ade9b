"""Actors, workers, nodes and drivers killed, stopped and drained at random; each job replays by its seed."""

from __future__ import annotations

import pytest
from crash import ray_faults

pytestmark = [pytest.mark.deep, pytest.mark.ray, pytest.mark.timeout(600)]

FAULTS, SEED = 8, 20260101


def test_random_faults_of_ray_lose_and_double_nothing():
    said = ray_faults.run(FAULTS, SEED)
    assert not said["violations"], "\n\n".join(said["violations"])
    assert said["ray_faults"] >= FAULTS
    assert said["driver_ends"]["done"] == said["jobs"]

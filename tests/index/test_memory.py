"""The task that fills a shard needs little more memory than the shard."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest

from bench.index_shards import write_table
from reembed.index import fill
from reembed.planning import measured
from reembed.store.storage import Storage

ROWS, DIM = 65_536, 384
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@LINUX
@pytest.mark.parametrize("factory", ["IVF64,PQ192x4fs,Refine(SQfp16)", "IVF64,SQ8"])
def test_a_task_that_fills_a_shard_keeps_no_buffers_and_no_copy(
    tmp_path: Path, factory: str
) -> None:
    write_table(Storage.open(tmp_path / "root"), ROWS, DIM)
    step(tmp_path, "train", factory)
    took = step(tmp_path, "fill", factory)
    beside = (took["peak_mib"] - took["file_mib"]) * measured.MIB
    assert beside < 0.75 * measured.FILL_TASK_BYTES


def step(folder: Path, name: str, factory: str) -> dict[str, float]:
    """A step of the bench in a process of its own."""
    told = {"child": name, "folder": folder, "factory": factory, "shard": 0}
    told |= {"rows": ROWS, "dim": DIM, "shard-rows": ROWS}
    command = [sys.executable, "bench/index_shards.py", *(f"--{k}={v}" for k, v in told.items())]
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_vectors_of_a_graph_are_reserved_too() -> None:
    rows, dim = 1_000, 64
    graph = faiss.index_factory(dim, "HNSW4", faiss.METRIC_INNER_PRODUCT)
    fill._reserve(graph, rows)
    held = faiss.downcast_index(graph.storage).codes
    graph.add(np.eye(dim, dtype=np.float32))
    reserved = int(held.data())
    graph.add(np.ones((rows - dim, dim), np.float32))
    assert int(held.data()) == reserved


@LINUX
def test_room_that_is_reserved_takes_no_memory_and_is_not_moved() -> None:
    rows, dim = 100_000, 256
    index = faiss.IndexFlatIP(dim)
    before = anonymous_mib()
    fill._reserve(index, rows)
    assert anonymous_mib() - before < 10, "its vectors take 98"
    vectors = np.ones((rows // 2, dim), np.float32)
    index.add(vectors)
    reserved = int(index.codes.data())
    index.add(vectors)
    assert int(index.codes.data()) == reserved
    assert (index.reconstruct_n(0, rows) == 1).all()


def anonymous_mib() -> float:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024

"""Measurements of whole jobs, with as few documents as they take: each still runs to its record.

Scripts that are not run here:

- encode.py, search.py, gpu_encode.py and the units of million.py: tests/benchmarks/test_bench.py
- chaos.py, lazy_chaos.py and mutants.py: what they run is tested in tests/crash, tests/sim and tests/mutation
- promote.py, stock_vs_reembed.py, lazy_migration.py, lazy_embed.py and the kills of million.py: run by hand, as
  they take minutes at any size
- structure.py: run by hand, as it reads old commits of this repository
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNITS = ("--unit-documents", "8")
CHEAP = ("--model", "hashing:64")
SMALL = {
    "catch_up": ("--documents", "2000"),
    "index_shards": (
        *("judged", "--rows", "2000", "--shard-rows", "1000", "--dim", "32", "--lists", "4"),
        *("--parts", "shards", "real", *CHEAP),
    ),
    "kill_resume": ("judged", "--kills", "1", *UNITS, *CHEAP),
    "growth": ("--sizes", "200", "400", "--rounds", "1"),
    "memory": ("--documents", "32", "--times", "2", *UNITS),
    "overhead": ("--documents", "32", *UNITS),
    "pipeline": ("--limit", "24", "--rounds", "1", "--sizes", "64", *UNITS),
    "refresh": ("--limit", "3000"),
    "scaling": (
        *("--cpu-actors", "1", "--gpu-actors", "2", "--unit-sizes", "4096"),
        *("--paragraphs", "32", "--sleep-s", "0.2", "--units-each", "2"),
    ),
    "scifact": ("judged", "--expected", "1", "--tolerance", "1", *CHEAP),
}

pytestmark = [pytest.mark.deep, pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """A BEIR folder of 48 documents; each of 8 queries has the words of one."""
    folder = tmp_path / "judged"
    (folder / "qrels").mkdir(parents=True)
    texts = [f"a note about subject {n} and what became of it" for n in range(48)]
    documents = [{"_id": f"d{n}", "title": "", "text": text} for n, text in enumerate(texts)]
    queries = [{"_id": f"q{n}", "text": f"subject {n}"} for n in range(8)]
    for name, rows in (("corpus", documents), ("queries", queries)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    judgements = "".join(f"q{n}\td{n}\t1\n" for n in range(8))
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judgements}")
    return folder


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that `ray stop` takes for a worker of Ray: a script may only end its own."""
    sleeps = [sys.executable, "-c", "import time; time.sleep(900)", "default_worker.py"]
    with subprocess.Popen(sleeps) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("name", SMALL)
def test_a_measurement_runs_to_its_record_and_ends_nobody_elses_ray(
    name: str, judged: Path, bystander: subprocess.Popen[bytes]
) -> None:
    out = judged.parent / "record.json"
    arguments = [str(judged) if a == "judged" else a for a in SMALL[name]]
    done = subprocess.run(
        [sys.executable, f"bench/{name}.py", *arguments, "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(out.read_text())["name"] == name
    assert bystander.poll() is None

"""What a verb that reads small records imports: no library that embeds, indexes or distributes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

_HEAVY = ("ray", "torch", "transformers", "sentence_transformers", "faiss", "lancedb", "scipy")
_PROGRAM = f"""
import sys
from reembed.cli.verbs import cli
try:
    cli(sys.argv[1:], standalone_mode=False)
finally:
    print([m for m in {_HEAVY} if m in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize("verb", ["status", "history", "config"])
def test_a_verb_that_reads_small_records_loads_no_heavy_library(
    verb: str, tmp_path: Path, config_file: Callable[..., str]
):
    (tmp_path / "root").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, verb, "-c", config_file("docs.lance")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.strip().splitlines()[-1] == "[]", done.stderr

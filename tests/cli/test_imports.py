"""What is imported for what: `import reembed`, `--help` and verbs on small records load no heavy library."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import reembed

_HEAVY = ("ray", "torch", "transformers", "sentence_transformers", "faiss", "lancedb", "scipy")
_DATA = ("lance", "pyarrow", "numpy")
_PROGRAM = f"""
import json, sys
from reembed.cli.verbs import cli
try:
    cli(sys.argv[1:], standalone_mode=False)
finally:
    print(json.dumps([m for m in {_HEAVY + _DATA} if m in sys.modules]), file=sys.stderr)
"""


def loaded(verb: str, folder: Path, config: str) -> str:
    """The last line that a verb on an empty root prints on stderr: the heavy modules it loaded."""
    (folder / "root").mkdir()
    command = [sys.executable, "-c", _PROGRAM, verb, "-c", config]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("verb", ["status", "history", "config"])
def test_a_verb_that_reads_small_records_loads_no_heavy_library(
    verb: str, tmp_path: Path, config_file: Callable[..., str]
):
    found = loaded(verb, tmp_path, config_file("docs.lance"))
    assert not set(_HEAVY) & set(json.loads(found)), found


def test_status_where_nothing_was_built_loads_neither_lance_nor_numpy(
    tmp_path: Path, config_file: Callable[..., str]
):
    assert loaded("status", tmp_path, config_file("docs.lance")) == "[]"


@pytest.mark.parametrize(
    "program",
    [
        "import reembed; reembed.__version__; dir(reembed)",
        "import reembed; reembed.Config; reembed.UsageError",
        "import sys; sys.argv = ['reembed', '--help']; from reembed.cli.verbs import main\n"
        "try: main()\nexcept SystemExit: pass",
    ],
)
def test_the_package_its_config_and_its_help_load_no_heavy_library(program: str):
    heavy = _HEAVY + _DATA
    said = f"{program}\nimport sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_public_name_is_there_and_no_other():
    assert all(getattr(reembed, name) is not None for name in reembed.__all__)
    assert set(dir(reembed)) == set(reembed.__all__)
    with pytest.raises(AttributeError, match="no attribute 'LiveAlias'"):
        _ = reembed.LiveAlias


def test_every_error_is_public():
    from reembed import errors

    defined = {
        n
        for n, v in vars(errors).items()
        if isinstance(v, type) and v.__module__ == errors.__name__
    }
    assert defined <= set(reembed.__all__)

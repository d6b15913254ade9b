"""Strategies, lifecycle, worker and simulator run where Ray cannot be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

_NO_RAY = """
import sys

class NoRay:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ray":
            raise ImportError(f"{name} is imported")
        return None

sys.meta_path.insert(0, NoRay())
"""
_REBUILD_AND_CATCH_UP = """
import json, lance
from inline import Inline, Silent
from reembed.catalog.releases import Catalog
from reembed.config.settings import load
from reembed.lifecycle import gc
from reembed.lifecycle.promote import promote
from reembed.lifecycle.status import status
from reembed.store.storage import Storage
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild

config, _ = load([sys.argv[1]], [])
first = full_rebuild(config, Silent(), executor=Inline())
lance.dataset(config.source.uri).delete("doc_id = 'd00001'")
second = catch_up(config, first, Silent(), executor=Inline())
catalog = Catalog(Storage.open(config.storage.root), config.alias)
promote(catalog, second.id, initial_reason="a test")
gc.plan(catalog, 2)
status(catalog)
print(json.dumps({"rows": [first.rows, second.rows], "ray": "ray" in sys.modules}))
"""
_SIMULATE = """
import json
from sim import history
played = history.play(0)
print(json.dumps({"steps": played["steps"], "violations": played["violations"], "ray": "ray" in sys.modules}))
"""


_TESTS = Path(__file__).parents[1]


def run(program: str, *arguments: str) -> dict:
    command = [sys.executable, "-c", _NO_RAY + program, *arguments]
    env = os.environ | {"PYTHONPATH": str(_TESTS)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_rebuild_and_a_catch_up_import_no_ray(
    corpus: Callable[..., str], config_file: Callable[..., str]
):
    file = config_file(corpus(60))
    assert run(_REBUILD_AND_CATCH_UP, file) == {"rows": [60, 59], "ray": False}


def test_a_history_of_the_simulator_imports_no_ray():
    played = run(_SIMULATE)
    assert played["steps"] > 50
    assert (played["violations"], played["ray"]) == ([], False)

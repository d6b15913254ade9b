"""The script that writes the tables of docs/sizing.md and the profiles of cluster.yaml."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_SCRIPT = Path(__file__).parents[1] / "docs" / "sizes.py"


def _loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_sizes_script", _SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


SIZES = _loaded()

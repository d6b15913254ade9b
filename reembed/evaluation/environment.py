"""What a comparison runs on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import reembed
from reembed.evaluation import cutoffs, known_items, operation
from reembed.evaluation.figures import Environment

_PACKAGES = ("faiss-cpu", "lancedb", "numpy", "pylance", "sentence-transformers", "torch")


def environment() -> Environment:
    """Return versions, machine and seeds."""
    return Environment(
        python=platform.python_version(),
        packages={"reembed": reembed.__version__} | _installed(),
        platform=platform.platform(),
        cpus=len(os.sched_getaffinity(0)),
        seeds={
            "documents searched by their first sentence": known_items.SEED,
            "bounds of the latency ratio": operation.SEED,
            "intervals of cut-offs": cutoffs.SEED,
        },
    )


def _installed() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

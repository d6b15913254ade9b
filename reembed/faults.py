"""Named crash points for tests: the process kills itself with SIGKILL. By default they do nothing.

REEMBED_CRASH_AT=table.after_fragments:2,index.after_train kills when the first point is passed for the
second time, or the second point for the first time, counted per process. With REEMBED_CRASH_ONCE=DIR a
point fires once over all processes that share the folder, so that a restarted Ray worker survives.
`grep -r faults.point reembed` lists the points.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable

_passed: Counter[str] = Counter()

hook: Callable[[str], None] | None = None
"""Called at every point instead: a simulator kills, fails or pauses one of its threads there."""


def point(name: str) -> None:
    """Kill this process if REEMBED_CRASH_AT names this point and how often it was passed."""
    if hook is not None:
        hook(name)
        return
    wanted = os.environ.get("REEMBED_CRASH_AT")
    if not wanted:
        return
    _passed[name] += 1
    for item in wanted.split(","):
        target, _, nth = item.partition(":")
        if target == name and _passed[name] == int(nth or 1) and _first(name):
            os.kill(os.getpid(), signal.SIGKILL)


def _first(name: str) -> bool:
    folder = os.environ.get("REEMBED_CRASH_ONCE")
    if folder is None:
        return True
    try:
        os.close(os.open(os.path.join(folder, name), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True

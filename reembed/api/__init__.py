"""Every verb as a function: it takes a `Config`, prints nothing, and returns a frozen result.

`to_json()` of a result is what the verb prints with `--json`. `emit` is called with each event. A function
that only reads raises UsageError if the root does not exist. A serving process searches with `reembed.open`.
"""

from reembed.api.build import config, dead_letters, import_documents, run, tune
from reembed.api.evidence import compare, shadow, verify
from reembed.api.lazy import lazy, simulate, sweep
from reembed.api.live import catch_up, gc, history, promote, rollback, status
from reembed.api.queries import search, serve

__all__ = [
    "catch_up",
    "compare",
    "config",
    "dead_letters",
    "gc",
    "history",
    "import_documents",
    "lazy",
    "promote",
    "rollback",
    "run",
    "search",
    "serve",
    "shadow",
    "simulate",
    "status",
    "sweep",
    "tune",
    "verify",
]

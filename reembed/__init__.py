"""reembed: change the embedding model behind a live vector index, safely and fast.

    import reembed

    index = reembed.open("s3://vectors/passages", "passages")
    hits = index.search(["how do vaccines work"], k=10)[0]

Names are loaded when they are first used: `import reembed` loads no heavy library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reembed import api
    from reembed.config.settings import Config
    from reembed.errors import *
    from reembed.serving.index import Index, open
    from reembed.serving.live import EncodedQueries, Hit

__version__ = "0.1.0"

__all__ = [
    "Config",
    "ConfigError",
    "Conflict",
    "DocumentError",
    "EncodedQueries",
    "EncoderError",
    "GateFailed",
    "Hit",
    "Inconclusive",
    "Index",
    "IntegrityError",
    "Interrupted",
    "NoCapacity",
    "NotVerified",
    "ProviderBusy",
    "ProviderError",
    "ReembedError",
    "RunFailed",
    "SetupError",
    "SourceError",
    "SourceUnreachable",
    "SpaceMismatch",
    "StorageFailed",
    "TooManyDeadLetters",
    "UsageError",
    "__version__",
    "api",
    "open",
]


_HOMES = {
    "Config": "config.settings",
    "EncodedQueries": "serving.live",
    "Hit": "serving.live",
    "Index": "serving.index",
    "open": "serving.index",
}
"""The modules of public names; all others are errors."""


def __getattr__(name: str) -> Any:
    """Load a public name from the module that defines it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "api":
        return import_module("reembed.api")
    return getattr(import_module(f"reembed.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return __all__

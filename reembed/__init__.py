"""reembed: change the embedding model behind a live vector index, safely and fast.

    import reembed

    index = reembed.open("s3://vectors/passages", "passages")
    hits = index.search(["how do vaccines work"], k=10)[0]

Names are loaded when they are first used: `import reembed` loads no heavy library.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reembed import api
    from reembed.config.settings import Config
    from reembed.errors import (
        ConfigError,
        Conflict,
        DocumentError,
        EncoderError,
        GateFailed,
        Inconclusive,
        IntegrityError,
        Interrupted,
        NoCapacity,
        NotVerified,
        ProviderBusy,
        ProviderError,
        ReembedError,
        RunFailed,
        SetupError,
        SourceError,
        SpaceMismatch,
        TooManyDeadLetters,
        UsageError,
    )
    from reembed.serving.index import Index, open
    from reembed.serving.live import Hit

__version__ = "0.1.0"

__all__ = [
    "Config",
    "ConfigError",
    "Conflict",
    "DocumentError",
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
    "SpaceMismatch",
    "TooManyDeadLetters",
    "UsageError",
    "__version__",
    "api",
    "open",
]


def __getattr__(name: str) -> Any:
    """Load a public name from the module that defines it; every other one is an error."""
    home: ModuleType
    if name in ("open", "Index"):
        import reembed.serving.index as home
    elif name == "Hit":
        import reembed.serving.live as home
    elif name == "Config":
        import reembed.config.settings as home
    elif name == "api":
        import reembed.api as home

        return home
    elif name in __all__:
        import reembed.errors as home
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(home, name)


def __dir__() -> list[str]:
    return __all__

"""How an alias is served over HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from reembed.errors import UsageError, require_positive, require_whole
from reembed.redact import REFERENCE
from reembed.serving.in_time import BUDGET_S

SET_TOKEN = "reembed serve --token env:REEMBED_TOKEN     # after: export REEMBED_TOKEN=$(openssl rand -hex 32)"


@dataclass(frozen=True)
class ServeOptions:
    """What a server asks of a request, and when it looks for a newer release.

    Raises UsageError where a value is out of range, or a token is given itself.
    """

    token: str | None = None
    """`env:NAME`, the variable that holds what requests must carry; None: they need nothing."""
    refresh_every: float = 10.0
    """Seconds between looks for a newer release."""
    lazy_budget: float = BUDGET_S
    """As of `reembed.open`."""
    lazy_embed: int = 0
    """As of `reembed.open`."""
    max_request_bytes: int = 1 << 20
    """Most bytes of the body of a request."""
    max_queries: int = 256
    """Most queries of a request."""
    max_k: int = 1000
    """Most hits for each query."""

    def __post_init__(self) -> None:
        """Check the values."""
        require_positive("refresh_every", self.refresh_every, 10.0)
        require_positive("lazy_budget", self.lazy_budget, BUDGET_S)
        require_whole("lazy_embed", self.lazy_embed, 0, 50)
        for name in ("max_request_bytes", "max_queries", "max_k"):
            require_whole(name, getattr(self, name), 1, getattr(ServeOptions, name))
        if self.token is not None and REFERENCE.fullmatch(self.token) is None:
            why = "others can read command lines and programs; name the variable that holds it"
            raise UsageError("a token is not given itself", why, SET_TOKEN)


def server() -> ModuleType:
    """Return the module that serves, `reembed.serving.http.server`.

    Raises:
        UsageError: the extra `serve` is not installed.
    """
    try:
        return import_module("reembed.serving.http.server")
    except ModuleNotFoundError as error:
        what = f"serving over HTTP needs {error.name}"
        raise UsageError(what, None, "pip install 'reembed-ray[serve]'") from error

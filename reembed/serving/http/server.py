"""A server in this process: it binds, serves until SIGTERM or Ctrl-C, finishes what is under way, and closes."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import uvicorn

from reembed.config.settings import Config, ServeConfig
from reembed.errors import ConfigError, UsageError
from reembed.events import Listener, Serving
from reembed.redact import hide_variable
from reembed.serving.http.app import create_app
from reembed.serving.http.guard import Guard
from reembed.serving.index import Index
from reembed.serving.index import open as open_index

_LEAST_TOKEN = 16
_SET_TOKEN = "export REEMBED_TOKEN=$(openssl rand -hex 32); reembed serve --set serve.token=env:REEMBED_TOKEN"


@dataclass(frozen=True)
class Served:
    """What a server did until it was stopped."""

    address: str
    requests: int

    def to_json(self) -> dict[str, Any]:
        """Return what `reembed serve --json` prints."""
        return asdict(self)


def serve(config: Config, emit: Listener) -> Served:
    """Serve what the config's alias names, until the process is asked to end.

    Requests under way are finished, for `serve.shutdown_s` at most. Emits `Serving` when it begins.

    Raises:
        UsageError: the address is not this machine's own and no token is set, it is in use, or nothing is live.
        ConfigError: the variable of `serve.token` does not hold a token.
        IntegrityError, SpaceMismatch: as `reembed.open`.
    """
    settings = config.serve
    token = token_of(settings)
    if token is None and not _is_loopback(settings.host):
        raise UsageError(
            f"serve.host is {settings.host}, and serve.token is not set",
            "other machines could read the index without a token",
            _SET_TOKEN,
        )
    with _bound(settings) as bound, _opened(config) as index:
        app = create_app(index, settings, token)
        address = "http://{}:{}".format(*bound.getsockname())
        server = _Server(_uvicorn(app, settings))
        emit(Serving(config.alias, index.release.id, address))
        server.run(sockets=[bound])
        return Served(address, server.server_state.total_requests)


def application(config: Config) -> Guard:
    """Return the same application for a server of its own, such as a replica of Ray Serve.

    Where that listens is not known here, so a token must be set. The index stays open as long as the process.

    Raises:
        UsageError: no token is set, or nothing is live.
        ConfigError, IntegrityError, SpaceMismatch: as `serve`.
    """
    token = token_of(config.serve)
    if token is None:
        raise UsageError(
            "serve.token is not set", "a replica may listen at any address", _SET_TOKEN
        )
    return create_app(_opened(config), config.serve, token)


def _opened(config: Config) -> Index:
    storage, every = config.storage, config.serve.refresh_s
    return open_index(storage.root, config.alias, options=storage.options, refresh_every=every)


def token_of(settings: ServeConfig) -> str | None:
    """Return the token that requests must carry; None if none is set.

    Raises:
        ConfigError: the variable that holds it is not set, or is short enough to be guessed.
    """
    if settings.token is None:
        return None
    variable = settings.token.removeprefix("env:")
    hide_variable(variable)
    found = os.environ.get(variable, "")
    if len(found) < _LEAST_TOKEN:
        raise ConfigError(
            f"the environment variable {variable} has {len(found)} characters, a token has {_LEAST_TOKEN} or more",
            f"serve.token is env:{variable}",
            f"export {variable}=$(openssl rand -hex 32)",
        )
    return found


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def _bound(settings: ServeConfig) -> Iterator[socket.socket]:
    """Yield a socket at the address, taken before the index is opened, which may take a while."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        bound = socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        what = f"{settings.host}:{settings.port} cannot be served at"
        raise UsageError(
            what, error.strerror, "reembed serve --set serve.port=0     # any free port"
        ) from error
    with bound:
        yield bound


def _uvicorn(app: Any, settings: ServeConfig) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=settings.shutdown_s,
    )


class _Server(uvicorn.Server):
    """Ends normally after a signal; uvicorn's own would send it to the process once more."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

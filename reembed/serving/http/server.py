"""A server in this process: it binds, serves until SIGTERM or Ctrl-C, finishes what is under way, and closes."""

from __future__ import annotations

import asyncio
import os
import select
import shlex
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import uvicorn

from reembed.config.settings import Config
from reembed.errors import UsageError
from reembed.events import Listener, Serving
from reembed.redact import hide_variable
from reembed.serving.http.app import create_app
from reembed.serving.http.guard import Guard, is_loopback
from reembed.serving.http.options import SET_TOKEN, ServeOptions
from reembed.serving.index import Index
from reembed.serving.index import open as open_index

SHUTDOWN_S = 30
"""Seconds that requests under way get when the server is stopped."""
_LAST_S, _TURN_S = 2.0, 0.05
"""Seconds in which connections that wait are accepted and their requests are read, at most, and between two looks."""
_LEAST_TOKEN = 16


@dataclass(frozen=True)
class Served:
    """What a server did until it was stopped."""

    address: str
    requests: int

    def to_json(self) -> dict[str, Any]:
        """Return what `reembed serve --json` prints."""
        return asdict(self)


def serve(config: Config, host: str, port: int, options: ServeOptions, emit: Listener) -> Served:
    """Serve what the config's alias names, until the process is asked to end.

    Requests under way are finished, for `SHUTDOWN_S` at most. Emits `Serving` when it begins.

    Raises:
        UsageError: other machines reach the host and no token is given, the address is in use, or nothing is live.
        IntegrityError, SpaceMismatch: as `reembed.open`.
    """
    token = token_of(options)
    if token is None and not is_loopback(host):
        why = "other machines could read the index without one"
        raise UsageError(
            f"serving at {host} needs a token",
            why,
            f"reembed serve --host {shlex.quote(host)} --token env:REEMBED_TOKEN"
            "     # after: export REEMBED_TOKEN=$(openssl rand -hex 32)",
        )
    with _bound(host, port) as bound, _opened(config, options) as index:
        app = create_app(index, options, token)
        at, number, *_ = bound.getsockname()
        address = f"http://[{at}]:{number}" if ":" in at else f"http://{at}:{number}"
        told = Serving(config.alias, index.release.id, address)
        server = _Server(_uvicorn(app), lambda: emit(told))
        server.run(sockets=[bound])
        return Served(address, server.server_state.total_requests)


def application(config: Config, options: ServeOptions) -> Guard:
    """Return the same application for a server of its own, such as a replica of Ray Serve.

    Where that listens is not known here, so there must be a token. The index stays open as long as the process.

    Raises:
        UsageError: no token is given, or nothing is live.
        IntegrityError, SpaceMismatch: as `reembed.open`.
    """
    token = token_of(options)
    if token is None:
        raise UsageError("a replica needs a token", "it may listen at any address", SET_TOKEN)
    return create_app(_opened(config, options), options, token)


def token_of(options: ServeOptions) -> str | None:
    """Return the token that requests must carry; None if they need none.

    Raises:
        UsageError: its variable is not set, or is short enough to be guessed.
    """
    if options.token is None:
        return None
    variable = options.token.removeprefix("env:")
    hide_variable(variable)
    found = os.environ.get(variable, "").strip()  # a file of a secret often ends with a line
    if len(found) < _LEAST_TOKEN:
        raise UsageError(
            f"the environment variable {variable} has {len(found)} characters",
            f"a token has {_LEAST_TOKEN} or more",
            f"export {shlex.quote(variable)}=$(openssl rand -hex 32)",
        )
    return found


def _opened(config: Config, options: ServeOptions) -> Index:
    return open_index(
        config.storage.root,
        config.alias,
        options=config.storage.options,
        refresh_every=options.refresh_every,
        lazy_budget=options.lazy_budget,
        lazy_embed=options.lazy_embed,
    )


@contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """Yield a socket at the address, taken before the index is opened; it listens once the server runs."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        fix = "reembed serve --port 0     # any free port"
        raise UsageError(f"{host}:{port} cannot be served at", error.strerror, fix) from error
    with bound:
        yield bound


def _uvicorn(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )


class _Server(uvicorn.Server):
    """Ends normally after a signal; uvicorn's own would send it to the process once more."""

    def __init__(self, config: uvicorn.Config, listens: Callable[[], object]) -> None:
        """Take what is called once requests are taken."""
        super().__init__(config)
        self._listens = listens

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so: who waits for the line may ask at once."""
        await super().startup(sockets)
        if self.started:
            self._listens()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept the connections that wait and read their requests, then end as uvicorn does.

        Linux resets connections that were not accepted when the socket closes, and uvicorn closes those whose request
        it has not read. With the shortest queue few more come meanwhile, and answers now close their connection.
        """
        self.server_state.default_headers.append((b"connection", b"close"))
        listening = sockets or []
        for waiting in listening:
            waiting.listen(0)
        until = time.monotonic() + _LAST_S
        await asyncio.sleep(_TURN_S)
        while self._unread(listening) and time.monotonic() < until:
            await asyncio.sleep(_TURN_S)
        await super().shutdown(sockets)

    def _unread(self, listening: list[socket.socket]) -> bool:
        """Return whether a connection waits to be accepted, or has sent what was not read."""
        found = select.poll()
        for one in listening:
            found.register(one, select.POLLIN)
        for connection in self.server_state.connections:
            transport: Any = connection.transport
            found.register(transport.get_extra_info("socket"), select.POLLIN)
        return bool(found.poll(0))

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

"""What a request must pass before the application sees it: its host, its token, and its size. All are counted."""

from __future__ import annotations

import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGI = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/health", "/ready")
"""Paths that need no token: what probes a container has none."""


@dataclass(frozen=True)
class Guard:
    """An ASGI application that refuses requests without the token, or with a body that is too large."""

    app: ASGI
    token: str | None
    """None: no token is needed; then only requests to this machine's own names are taken, so that no page in a
    browser reaches it by a name of its own (DNS rebinding)."""
    max_bytes: int
    count: Callable[[str, int], object]
    """Called with path and status of each answer."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer 401, 403 or 413, or hand the request on with its whole body."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.count(scope["path"], message["status"])
            await send(message)

        await self._answer(scope, receive, counted)

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        if self.token is None and not is_loopback(_host(headers)):
            why = "without a token, requests are taken for localhost and its addresses only"
            await _refuse(send, 403, "the request is for another host", why)
            return
        if scope["path"] not in OPEN_PATHS and not self._may_enter(headers):
            why = "send the header Authorization: Bearer TOKEN, with the server's token"
            challenge = ((b"www-authenticate", b"Bearer"),)
            await _refuse(send, 401, "the request has no valid token", why, challenge)
            return
        body = await self._body(headers, receive)
        if body is None:
            why = f"this server takes {self.max_bytes:,} bytes; send fewer queries at a time"
            await _refuse(send, 413, "the request is too large", why)
            return
        await self.app(scope, _replayed(body, receive), send)

    def _may_enter(self, headers: dict[bytes, bytes]) -> bool:
        if self.token is None:
            return True
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        same = hmac.compare_digest(given.strip(), self.token.encode())
        return same and scheme.lower() == b"bearer"

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
        """Return the body; None if it is longer than allowed. No more than that is held."""
        said = headers.get(b"content-length", b"0")
        if not said.isdigit() or int(said) > self.max_bytes:
            return None
        body, more = bytearray(), True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.max_bytes:
                return None
        return bytes(body)


def is_loopback(host: str) -> bool:
    """Return whether a name or address is this machine's own, which others do not reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host(headers: dict[bytes, bytes]) -> str:
    """Return the host that a request is for, without its port and brackets."""
    host = headers.get(b"host", b"").decode("latin-1")
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body once, then what comes after it: a client that leaves."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


async def _refuse(
    send: Send, status: int, what: str, why: str, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
    body = json.dumps({"error": "Refused", "what": what, "why": why, "fix": None}).encode()
    kind = ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": [*kind, *headers]})
    await send({"type": "http.response.body", "body": body})

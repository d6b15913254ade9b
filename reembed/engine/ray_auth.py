"""Who else can reach the Ray cluster: anyone who can reach one without a token can run code on it."""

from __future__ import annotations

import ipaddress
import os
import shlex
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from reembed.errors import RunFailed, UsageError
from reembed.redact import redacted

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_LONGEST_PARENT = 20
"""Characters of the folder that holds a session's: sockets lie 87 characters below it."""


def cluster_address(configured: str | None) -> str | None:
    """Return the cluster that Ray would connect to; None for a private one on this machine.

    As in Ray, `auto` gives way to RAY_ADDRESS.
    """
    address = configured
    if configured in (None, "auto"):
        address = os.environ.get("RAY_ADDRESS") or configured
    if address == "local":
        return None
    return address


def require_token(address: str, allowed: bool) -> str:
    """Refuse a cluster on other machines that asks for no token; return what to tell about the one used.

    Ray sends a token only if RAY_AUTH_MODE=token. Under `ray job submit` it and `auto` come from the cluster.

    Raises:
        UsageError: there is no token, and `allowed` (ray.allow_unauthenticated) does not waive it.
    """
    if _on_this_machine(address) or os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
        return exposed_token()
    if allowed:
        return "; without a token (ray.allow_unauthenticated): anyone who can reach it can run code"
    raise UsageError(
        f"the Ray cluster at {redacted(address)} is on another machine, and RAY_AUTH_MODE is not token",
        "anyone who can reach an unauthenticated Ray cluster can run code on it and read documents and keys; "
        "if its network is closed to all others, set ray.allow_unauthenticated",
        "export RAY_AUTH_MODE=token     # and the cluster's token in ~/.ray/auth_token or RAY_AUTH_TOKEN",
    )


@contextmanager
def private_token() -> Iterator[None]:
    """Make a token file that Ray creates in the block readable by its owner only; Ray leaves that to the umask."""
    file = _token_file()
    there = file.exists()
    yield
    if not there and file.exists():
        file.chmod(0o600)


def exposed_token() -> str:
    """Return what to tell about a token that other users of this machine can read; "" if none can."""
    file = _token_file()
    try:
        exposed = file.stat().st_mode & _OTHERS
    except OSError:
        return ""
    if not exposed or "RAY_AUTH_TOKEN" in os.environ:
        return ""
    return f"; other users of this machine can read its token: chmod 600 {shlex.quote(str(file))}"


@contextmanager
def session_folder() -> Iterator[str]:
    """Make a folder that only this user can enter, for what a private Ray writes: Ray opens its own to all.

    It is removed at the end, unless the run failed, because Ray's logs may tell why, or RAY_TMPDIR names
    its parent.

    Raises:
        UsageError: it cannot be made, or its path is too long for those of Ray's sockets.
    """
    named = os.environ.get("RAY_TMPDIR")
    parent = named or tempfile.gettempdir()
    if len(parent) > _LONGEST_PARENT:
        if named:
            raise UsageError(
                f"RAY_TMPDIR={named} is too long",
                f"a socket path may have at most 107 characters, which leaves {_LONGEST_PARENT} for it",
                "export RAY_TMPDIR=/tmp",
            )
        parent = "/tmp"
    try:
        folder = tempfile.mkdtemp(prefix="reembed-", dir=parent)
    except OSError as error:
        raise UsageError(
            f"cannot make a folder in {parent} for Ray's session",
            error.strerror,
            "set RAY_TMPDIR to a folder that can be written, with a short path",
        ) from error
    keep = bool(named)
    try:
        yield folder
    except RunFailed:
        keep = True
        raise
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _on_this_machine(address: str) -> bool:
    try:
        host = urlsplit("//" + address.rpartition("://")[2]).hostname or ""
        return host in ("auto", "localhost") or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name: where it leads is unknown
        return False


def _token_file() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")

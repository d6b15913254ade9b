"""Credentials that must not be printed, stored or sent on: found in names and addresses, and blacked out."""

from __future__ import annotations

import os
import re

SECRET_WORDS = (
    "secret",
    "token",
    "password",
    "passwd",
    "access_key",
    "account_key",
    "master_key",
    "customer_key",
    "private_key",
    "api_key",
    "sas",
    "signature",
)
_HIDDEN = "***"
_CONTAINER_SCHEMES = ("abfs", "abfss", "wasb", "wasbs")  # container@account is no user name there
# S3 keys may hold slashes, so what stands before the @ is looked for past them; a port is none.
_PASSWORD = re.compile(r"([\w+.-]+://)[^\s/@'\":]*:(?!\d+(?:[/\s'\"]|$))[^\s'\"]*@")
_USER = re.compile(r"([\w+.-]+)(://)[^\s/@'\"]+@")
_QUERY = re.compile(
    r"([?&;](?:x-amz-[\w-]*|x-goog-[\w-]*|awsaccesskeyid|googleaccessid|key-pair-id|sig|policy|code"
    rf"|[\w-]*(?:{'|'.join(SECRET_WORDS)}|credential)[\w-]*)=)[^&\s'\"#]+",
    re.IGNORECASE,
)
_NOT_SECRET = ("_path", "_file", "_uri", "_url", "_dir")  # where it is kept, not what it is
_LEAST_LENGTH = 8


def is_secret_name(name: str) -> bool:
    """Whether a setting or variable of this name holds a secret."""
    return any(word in name.lower() for word in SECRET_WORDS)


def credentials_in(address: str) -> str | None:
    """What an address holds that is not to be written down, in words; None where nothing."""
    if "://" not in address:
        return None
    if _PASSWORD.search(address) or _USER.sub(_user, address) != address:
        return "a user name or password before the @"
    return "a key or signature after the ?" if _QUERY.search(address) else None


def redacted(text: str) -> str:
    """The text with *** for credentials in addresses and for secrets of the environment."""
    text = _QUERY.sub(rf"\1{_HIDDEN}", _PASSWORD.sub(rf"\1{_HIDDEN}@", text))
    text = _USER.sub(_user, text)
    for secret in _of_the_environment():
        text = text.replace(secret, _HIDDEN)
    return text


def _user(found: re.Match[str]) -> str:
    kept = found[1] in _CONTAINER_SCHEMES
    return found[0] if kept else f"{found[1]}{found[2]}{_HIDDEN}@"


def _of_the_environment() -> list[str]:
    """Longest first: one may begin with another."""
    values = (
        value
        for name, value in os.environ.items()
        if is_secret_name(name)
        and not name.lower().endswith(_NOT_SECRET)
        and len(value) >= _LEAST_LENGTH
    )
    return sorted(values, key=len, reverse=True)

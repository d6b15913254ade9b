"""Find credentials in names and addresses, and redact them before anything is printed, stored or sent."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

SECRET_WORDS = (
    "secret", "token", "password", "passwd", "access_key", "account_key", "master_key", "customer_key",
    "private_key", "api_key", "client_key", "encryption_key", "sas", "signature", "connection_string",
    "authorization",
)  # fmt: skip
_HARMLESS_OPTION = re.compile(
    r"(?:aws_|s3_|google_|azure_|azure_storage_)?"
    r"(?:(?:default_)?region|endpoint(?:_url(?:_s3)?)?|bucket(?:_name)?|container_name|account_name"
    r"|allow_http|allow_invalid_certificates|virtual_hosted_style_request|unsigned_payload"
    r"|skip_signature|imdsv1_fallback|request_payer|s3_express|checksum_algorithm|conditional_put"
    r"|copy_if_not_exists|use_emulator|use_fabric_endpoint|server_side_encryption|disable_tagging"
    r"|connect_timeout|timeout|pool_idle_timeout|pool_max_idle_per_host|http1_only|http2_only"
    r"|max_retries|retry_timeout|user_agent)",
    re.IGNORECASE,
)
HIDDEN = "***"
REFERENCE = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")
"""An object-store setting that names the environment variable with its value."""
_OPTIONS = ("source.options", "gate.options", "storage.options")
_VARIABLES: set[str] = set()
"""Environment variables that hold a secret, whatever their names."""
_CONTAINER_SCHEMES = ("abfs", "abfss", "wasb", "wasbs")  # container@account: not a user
# S3 keys may hold slashes, so the part before the @ may too; a port is not a password.
_PASSWORD = re.compile(r"([\w+.-]+://)[^\s/@'\":]*:(?!\d+(?:[/\s'\"]|$))[^\s'\"]*@")
_USER = re.compile(r"([\w+.-]+)(://)[^\s/@'\"]+@")
_QUERY = re.compile(
    r"([?&;](?:x-amz-[\w-]*|x-goog-[\w-]*|awsaccesskeyid|googleaccessid|key-pair-id|sig|policy|code"
    rf"|[\w-]*(?:{'|'.join(SECRET_WORDS)}|credential)[\w-]*)=)[^&\s'\"#]+",
    re.IGNORECASE,
)
_NOT_SECRET = ("_path", "_file", "_uri", "_url", "_dir")  # the place of a secret, not the secret
_LEAST_LENGTH = 8
# Control, direction and other invisible characters, unpaired surrogates, and the two other line separators.
_STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")


def is_secret_name(name: str) -> bool:
    """Return whether a setting or variable of this name holds a secret."""
    return any(word in name.lower() for word in SECRET_WORDS)


def shown_option(name: str, value: str) -> str:
    """Return the value of an object-store setting; *** unless it is known to hold nothing secret."""
    if _HARMLESS_OPTION.fullmatch(name) or REFERENCE.fullmatch(value):
        return value
    return HIDDEN


def hide_variable(name: str) -> None:
    """Redact the value of this environment variable from now on."""
    _VARIABLES.add(name)


def without_options(text: str, options: Iterable[tuple[str, str]]) -> str:
    """Return the text with *** for values of object-store settings that may be secret."""
    for name, value in options:
        if value and shown_option(name, value) == HIDDEN:
            text = text.replace(value, HIDDEN)
    return text


def shown_override(override: str) -> str:
    """Return a `--set NAME=VALUE` in a form that may be printed."""
    name, _, value = override.partition("=")
    options, _, option = name.strip().rpartition(".")
    if name.strip() in _OPTIONS:
        return f"{name}={HIDDEN}"
    if options in _OPTIONS:
        return f"{name}={shown_option(option, value)}"
    return override


def credentials_in(address: str) -> str | None:
    """Return which credentials an address holds, in words; None if it holds none."""
    if "://" not in address:
        return None
    if _PASSWORD.search(address) or _USER.sub(_user, address) != address:
        return "a user name or password before the @"
    if _QUERY.search(address):
        return "a key or signature after the ?"
    return None


def redacted(text: str) -> str:
    """Return the text with *** for credentials in addresses and for secrets of the environment."""
    text = _QUERY.sub(rf"\1{HIDDEN}", _PASSWORD.sub(rf"\1{HIDDEN}@", text))
    text = _USER.sub(_user, text)
    for secret in _of_the_environment():
        text = text.replace(secret, HIDDEN)
    return text


def _user(found: re.Match[str]) -> str:
    if found[1] in _CONTAINER_SCHEMES:
        return found[0]
    return f"{found[1]}{found[2]}{HIDDEN}@"


def _of_the_environment() -> list[str]:
    """Return secrets of the environment, longest first: one may be the start of another."""
    values = (
        value
        for name, value in os.environ.items()
        if len(value) >= _LEAST_LENGTH
        and (
            name in _VARIABLES or (is_secret_name(name) and not name.lower().endswith(_NOT_SECRET))
        )
    )
    return sorted(values, key=len, reverse=True)


def plain(text: str) -> str:
    """Return text from documents and ids without characters that could fake output; line ends stay."""
    return "".join(
        c if c == "\n" or unicodedata.category(c) not in _STEERING else f"\\x{ord(c):02x}"
        for c in text
    )


def one_line(text: str) -> str:
    """Return the text as `plain` does, on one line."""
    return plain(text).replace("\n", "\\n")


def harmless(value: Any) -> Any:
    """Return a result with every string made plain. Colours are added afterwards."""
    if isinstance(value, dict):
        return {harmless(k): harmless(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [harmless(v) for v in value]
    if isinstance(value, str):
        return one_line(value)
    return value

"""Settings of an object store: checked, and completed with the keys that they name in the environment.

A secret is written as `env:NAME`. Only that reference is stored, printed and sent to workers; each
process looks the variable up when it opens the store.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import AfterValidator

from reembed.errors import ConfigError, UsageError
from reembed.redact import HIDDEN, REFERENCE, hide_variable, is_secret_name, shown_option

Options = tuple[tuple[str, str], ...]
"""Names and values, sorted, with references in place of secrets."""

_KEYS = {"aws_access_key_id", "access_key_id"}
_TOKENS = {"aws_session_token", "aws_token", "session_token", "token"}


@dataclass(frozen=True)
class Stores:
    """How the stores beside the root are reached. Kept in no record."""

    source: Options = field(repr=False)
    queries: Options = field(repr=False)


def as_options(settings: Mapping[str, str] | None) -> Options:
    """Return a section's `options` as sorted pairs."""
    return tuple(sorted((settings or {}).items()))


def secrets_in(settings: Mapping[str, str]) -> list[str]:
    """Return the names of options that hold a secret itself instead of a reference to it."""
    return [k for k, v in settings.items() if is_secret_name(k) and not REFERENCE.fullmatch(v)]


def require_texts(settings: object) -> None:
    """Refuse options that are not texts by name.

    Raises:
        UsageError: naming the first that is not.
    """
    if settings is None:
        return
    if not isinstance(settings, Mapping):
        what = f"options must map names to texts, not {settings!r:.80}"
        raise UsageError(what, None, 'options={"aws_region": "eu-west-1"}')
    for name, value in settings.items():
        if not (isinstance(name, str) and isinstance(value, str)):
            raise UsageError(
                f"the option {name!r:.80} must be a text, not of type {type(value).__name__}",
                "options are given to the object store as they are",
                f"options={ {str(name): str(value)}!r}",
            )


def checked(section: str) -> AfterValidator:
    """Return the check of a section's `options`: no secrets, and nothing that was blacked out."""

    def check(settings: dict[str, str] | None) -> dict[str, str] | None:
        for key in secrets_in(settings or {}):
            raise ValueError(
                f"{key} is a secret; export it, for example as {key.upper()}, "
                f"and write {key}: env:{key.upper()}"
            )
        for key, value in (settings or {}).items():
            if value == HIDDEN:
                raise ValueError(
                    f"{key} was left out of this file; add --set {section}.options.{key}=VALUE"
                )
        return settings

    return AfterValidator(check)


def resolved(options: Options | Mapping[str, str]) -> dict[str, str]:
    """Return the options with the value of the variable in place of each `env:NAME`.

    Raises:
        ConfigError: a variable is not set, or the keys would be used with another key's session token.
    """
    found = {name: _value(name, value) for name, value in dict(options).items()}
    names = {name.lower() for name in found}
    if names & _KEYS and not names & _TOKENS and os.environ.get("AWS_SESSION_TOKEN"):
        raise ConfigError(
            "AWS_SESSION_TOKEN of the environment would be sent with keys that it does not belong to",
            "the options name an access key and no session token, so the store takes that one",
            "unset AWS_SESSION_TOKEN     # and name its keys and token as env:NAME where they are needed",
        )
    return found


def _value(name: str, value: str) -> str:
    reference = REFERENCE.fullmatch(value)
    if reference is None:
        return value
    variable = reference[1]
    if shown_option(name, "") == HIDDEN:
        hide_variable(variable)
    try:
        return os.environ[variable]
    except KeyError:
        raise ConfigError(
            f"the environment has no {variable}",
            f"the store option {name} is {value}",
            f"set {variable} in the environment, here and on every Ray node",
        ) from None

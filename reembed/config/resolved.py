"""A config as a result: the settings, and where each came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reembed.config.settings import Config, load


@dataclass(frozen=True)
class ResolvedConfig:
    """Checked settings."""

    config: Config
    origins: dict[str, str]
    """`file:line` or `--set` of each dotted setting that is not a default."""
    check: bool = False
    """Whether only the check was asked for."""

    def to_json(self) -> dict[str, Any]:
        """Return what `reembed config --json` prints, without secrets."""
        return {
            "valid": True,
            "check": self.check,
            "settings": self.config.shown(),
            "origins": self.origins,
        }


def resolve(files: Sequence[str], overrides: Sequence[str] = ()) -> ResolvedConfig:
    """Load and check config files, left to right, then `NAME=VALUE` overrides.

    Raises:
        ConfigError: naming every wrong setting with its place and, for a typo, the nearest name.
    """
    return ResolvedConfig(*load(list(files), list(overrides)))

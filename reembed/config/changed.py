"""Settings that differ from those that something was planned or built with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reembed.events import ChangedSetting


def changed_settings(
    section: str, used: Mapping[str, Any], now: Mapping[str, Any]
) -> list[ChangedSetting]:
    """Return each setting of a section whose value now differs from the one that was used."""
    return [
        ChangedSetting(f"{section}.{name}", used[name], value)
        for name, value in now.items()
        if name in used and used[name] != value
    ]

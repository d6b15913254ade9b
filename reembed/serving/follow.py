"""Call a refresh again and again beside the searches."""

from __future__ import annotations

import logging
import threading
import weakref
from typing import Protocol

from reembed.redact import redacted

log = logging.getLogger(__name__)


class Refreshed(Protocol):
    """What follows an alias."""

    refresh_error: Exception | None

    @property
    def alias(self) -> str:
        """The name that it follows."""

    def refresh(self) -> bool:
        """Follow the alias; return True if it moved."""


class Follower:
    """A thread that refreshes at an interval until it is stopped, or until nobody holds what it refreshes."""

    def __init__(self, index: Refreshed, every_s: float) -> None:
        self._end = threading.Event()
        arguments = (weakref.ref(index), every_s, self._end)
        name = f"reembed-refresh-{index.alias}"
        threading.Thread(target=_follow, args=arguments, name=name, daemon=True).start()

    def stop(self) -> None:
        """Refresh no more. A refresh under way ends by itself."""
        self._end.set()


def _follow(held: weakref.ref[Refreshed], every_s: float, end: threading.Event) -> None:
    while not end.wait(every_s):
        index = held()
        if index is None:
            return
        try:
            index.refresh()
        except Exception as error:  # noqa: BLE001 - kept where it is seen; else nothing follows the alias any more
            if not end.is_set():
                index.refresh_error = error
                why = redacted(f"{type(error).__name__}: {error}")
                log.warning(
                    "%s could not be refreshed, the release before serves: %s", index.alias, why
                )
        del index  # it is freed when its owner drops it, not at the next look

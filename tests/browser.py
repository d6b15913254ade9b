"""Chromium, driven through a pipe: what a page looks like, and what a screen reader is told."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
"""Debian's package `chromium`, or another build; None if there is none."""


class Tab:
    """A page that is open."""

    def __init__(self, to: int, back: int) -> None:
        """Take the ends of the pipes of --remote-debugging-pipe, and open a tab."""
        self._to, self._back, self._rest, self._number = to, back, b"", 0
        self._session: str | None = None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        self.ask("Page.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol; return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return dict(answer["result"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            some = os.read(self._back, 1 << 20)
            assert some, "the browser ended"
            self._rest += some
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    def show(self, html: str, width: int, *, dark: bool = False, media: str = "screen") -> None:
        """Show a page in a window of a width."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", media=media, features=[scheme])
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": True}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        frame = self.ask("Page.getFrameTree")["frameTree"]["frame"]["id"]
        self.ask("Page.setDocumentContent", frameId=frame, html=html)

    def value(self, expression: str) -> Any:
        """Return what an expression of JavaScript gives; the page itself runs none."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")


@contextmanager
def open_tab() -> Iterator[Tab]:
    """Start the browser; it ends with the context."""
    assert CHROMIUM
    ours_in, theirs_out = os.pipe()
    theirs_in, ours_out = os.pipe()
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe")

    def as_three_and_four() -> None:
        keep = os.dup(theirs_out), os.dup(theirs_in)
        os.dup2(keep[1], 3)
        os.dup2(keep[0], 4)

    running = subprocess.Popen(
        [CHROMIUM, *flags],
        close_fds=False,
        preexec_fn=as_three_and_four,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Tab(ours_out, ours_in)
    finally:
        os.close(ours_out)
        running.terminate()
        running.wait(30)
        os.close(ours_in)

"""Where a worker process runs, as its executor knows it. This module does not import Ray."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Place(NamedTuple):
    """Ids of a process's node, of its driver's job and of its actor; empty outside a cluster."""

    node: str = ""
    job: str = ""
    actor: str = ""


class Host(Protocol):
    """Tells a worker where it runs, and whether another one died alone."""

    def place(self) -> Place:
        """Return where this process runs."""

    def outlived(self, node: str, job: str) -> bool:
        """Return whether a process there died while its node and its driver lived on."""


class Alone:
    """A process outside a cluster: nothing is known about others."""

    def place(self) -> Place:
        """As `Host.place`."""
        return Place()

    def outlived(self, node: str, job: str) -> bool:
        """As `Host.outlived`."""
        return False


ALONE = Alone()

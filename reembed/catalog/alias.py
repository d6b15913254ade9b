"""The log of an alias, as files: numbered records that are created once, and where to start listing.

aliases/ALIAS/00000001.json ...  created only if the number is free; none is deleted
aliases/ALIAS.json               where to start listing; only a hint, it may be old or wrong

Files of other names in the folder are ignored.
"""

from __future__ import annotations

import getpass
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reembed.errors import IntegrityError
from reembed.store.records import Record, encode
from reembed.store.storage import Storage

_RECORD = re.compile(r"([0-9]{8})\.json")
HINT_EVERY = 64


def who() -> str:
    """Return user@host of this process; what is not UTF-8 becomes a question mark."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container whose user id has no name
        user = f"uid{os.getuid()}"
    return f"{user}@{platform.node()}".encode(errors="replace").decode()


@dataclass(frozen=True)
class _Hint:
    """The records up to `after` need not be listed."""

    after: int


@dataclass(frozen=True)
class AliasFiles:
    """The records of one alias's log, by number."""

    storage: Storage
    alias: str

    def numbers(self) -> range:
        """Return the numbers of all records.

        Raises:
            IntegrityError: there is a gap in them.
        """
        return self._numbers(0)

    def newest(self) -> int | None:
        """Return the highest number; None for an empty log.

        Raises:
            IntegrityError: there is a gap after the hint.
        """
        found = self._numbers(self._hint()) or self._numbers(0)
        return found[-1] if found else None

    def read(self, number: int) -> Record:
        """Return a record.

        Raises:
            IntegrityError: it is missing, or another record is in its place.
        """
        record = self.storage.read_if_there(self._path(number))
        if record is None:
            raise self.broken(number, "it is missing, or later records belong to another log")
        if record["generation"] != number:
            found = record["generation"]
            raise self.broken(number, f"it holds generation {found!r}, expected {number}")
        return record

    def create(self, number: int, record: Mapping[str, Any], proven_at: str | None) -> bool:
        """Create a record; False if the number is taken. `proven_at` is as in `Storage.create`."""
        return self.storage.create(self._path(number), record, proven_at=proven_at)

    def hint(self, number: int) -> None:
        """Keep where to list from, for a log that has grown."""
        if number % HINT_EVERY <= 1:
            self.storage.write(self._hint_path, encode(_Hint(number - 1)))

    def broken(self, number: int, why: str) -> IntegrityError:
        """Return the error that the log is damaged at a record."""
        return IntegrityError(
            f"the log of {self.alias} has a gap at {self.storage.uri(self._path(number))}",
            why,
            "reembed config     # and put the log's records back from a backup of storage.root",
        )

    def _numbers(self, after: int) -> range:
        names = self.storage.names(f"aliases/{self.alias}/", after=f"{after:08d}.json")
        listed = {int(m[1]) for m in map(_RECORD.fullmatch, names) if m}
        numbers = range(after + 1, max(listed, default=after) + 1)
        for number in numbers:
            if number not in listed:
                self.read(number)  # gone, or written while the folder was being listed
        return numbers

    def _hint(self) -> int:
        try:
            found = self.storage.decode_if_there(_Hint, self._hint_path)
        except IntegrityError:
            return 0
        if found is None:
            return 0
        return max(found.after, 0)

    def _path(self, number: int) -> str:
        return f"aliases/{self.alias}/{number:08d}.json"

    @property
    def _hint_path(self) -> str:
        return f"aliases/{self.alias}.json"

"""Records that are created once, under the next free number: a folder of 00000001.json, 00000002.json ..."""

from __future__ import annotations

import re

from reembed.errors import IntegrityError
from reembed.store.storage import Storage

NUMBER = re.compile(r"([0-9]{8})\.json")


def numbers(storage: Storage, folder: str) -> list[int]:
    """Return the numbers of the records in a folder, from 1; files of other names are ignored.

    Raises:
        IntegrityError: one was removed.
    """
    names = map(NUMBER.fullmatch, storage.names(f"{folder}/"))
    found = [int(m[1]) for m in names if m]
    if found != list(range(1, len(found) + 1)):
        raise IntegrityError(
            f"records were removed from {folder}",
            f"there are numbers {', '.join(map(str, found))}",
            "reembed status     # and put the files back from a backup of the store",
        )
    return found

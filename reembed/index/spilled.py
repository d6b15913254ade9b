"""Keep lists of codes in blocks on the disk: FAISS reads them into memory and has no file of its own for them.

The file has, list by list, the blocks as they are and the numbers of their vectors, where FAISS's lists on disk
have codes and numbers. A search reads the blocks of a list from there, and finds what it finds in memory.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np


def spill(index: Any, folder: Path) -> None:
    """Move the lists of a PQ fast-scan index to a file in `folder`, mapped; other kinds stay as they are.

    The file may be unlinked afterwards.

    Raises:
        OSError: the disk has no room for it.
    """
    found: Any = faiss.try_extract_index_ivf(index)
    ivf = faiss.downcast_index(found) if found is not None else None
    if not isinstance(ivf, faiss.IndexIVFPQFastScan):
        return
    path = folder / f"{uuid.uuid4().hex}.lists"
    lists: Any = faiss.OnDiskInvertedLists()
    with path.open("wb") as file:
        lists.totsize = _write(ivf, lists.lists, file)
    lists.nlist, lists.code_size = ivf.nlist, ivf.M2 // 2
    lists.filename, lists.read_only = str(path), True
    # Threads that read ahead cost four times the search itself where the pages are in memory.
    lists.prefetch_nthread = 0
    lists.do_mmap()
    lists.this.disown()
    ivf.replace_invlists(lists, True)


def _write(ivf: Any, places: Any, file: BinaryIO) -> int:
    """Write every list, note its place, and return the bytes written."""
    code_size, block, end = ivf.M2 // 2, ivf.bbs, 0
    places.clear()
    for number in range(ivf.nlist):
        size = ivf.invlists.list_size(number)
        place = faiss.OnDiskOneList()
        place.size, place.capacity, place.offset = size, -(-size // block) * block, end
        places.push_back(place)
        if size:
            codes = ivf.invlists.get_codes(number)
            file.write(faiss.rev_swig_ptr(codes, place.capacity * code_size).tobytes())
            numbers = np.zeros(place.capacity, np.int64)
            numbers[:size] = faiss.rev_swig_ptr(ivf.invlists.get_ids(number), size)
            file.write(numbers.tobytes())
        end += place.capacity * (code_size + 8)
    return end

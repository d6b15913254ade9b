"""Give memory that is not used back to the system, as far as the C library can: glibc does.

Lance and FAISS take memory from malloc. By default glibc raises, with each large buffer that is freed, the size from
which it returns buffers to the system; the heaps of its threads keep those below. In a task that reads a table, that
was twice what is in use.
"""

from __future__ import annotations

import ctypes
import mmap

_LIBC = ctypes.CDLL(None)
_M_MMAP_THRESHOLD = -3
"""Of mallopt(3)."""
_RETURNED_BYTES = 2**20
"""Lance's buffers of vectors are larger; lists of an index, of which there may be 100,000, are mostly smaller."""


def return_freed_buffers() -> None:
    """Return each buffer of a MiB or more to the system when it is freed, for the rest of this process."""
    if hasattr(_LIBC, "mallopt"):
        _LIBC.mallopt(_M_MMAP_THRESHOLD, _RETURNED_BYTES)


def forget(address: int, size: int) -> None:
    """Return the pages that lie whole within a reserved range whose contents nobody reads; a write takes them again."""
    start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (address + size) // mmap.PAGESIZE * mmap.PAGESIZE
    if start < end:
        advice = ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED
        _LIBC.madvise(*advice)

"""Memory whose every access out of bounds is noticed."""

from __future__ import annotations

import ctypes
import mmap
import os

import numpy as np

NO_ACCESS = 0
MAX_BYTES = 1 << 20
libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Slot:
    """Memory between two pages without access."""

    def __init__(self) -> None:
        page = mmap.PAGESIZE
        self.memory = mmap.mmap(-1, MAX_BYTES + 2 * page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        for guard in (start, start + page + MAX_BYTES):
            assert libc.mprotect(guard, page, NO_ACCESS) == 0, os.strerror(ctypes.get_errno())
        self.bytes = np.frombuffer(self.memory, np.uint8, MAX_BYTES, page)
        self.used = self.bytes[:0]

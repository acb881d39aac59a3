"""How much memory this process holds, and giving back what it does not need."""

import ctypes
import os
from pathlib import Path

STATM = Path("/proc/self/statm")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; other C libraries have none


def resident_bytes() -> int:
    """Bytes of memory that this process holds; 0 if the system does not say."""
    try:
        return int(STATM.read_text().split()[1]) * PAGE_BYTES
    except OSError:
        return 0


def give_back() -> None:
    """Memory that was freed goes back to the system, where the C library can do that."""
    if _TRIM is not None:
        _TRIM(ctypes.c_size_t(0))
